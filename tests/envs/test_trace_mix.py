"""Mixing series: by hand, and what must hold for any."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st_

from rayfold.envs.trace_file import Trace
from rayfold.envs.trace_mix import TracePart, mix_parts, shift_within_splits
from rayfold.envs.traffic_source import BinRange, Split
from rayfold.errors import InputError

SPLITS = {Split.TRAIN: BinRange(0, 3), Split.VALIDATION: BinRange(3, 6)}


def _trace(name: str, series: dict[str, list[float]], tokens_per_request: float = 2.0) -> Trace:
    requests = np.array(list(series.values()), np.float64)
    return Trace(
        path=Path(name),
        bin_s=10.0,
        series_ids=tuple(series),
        requests=requests,
        input_tokens=requests,
        output_tokens=np.where(requests > 0, tokens_per_request * requests, 0.0),
    )


FIRST = _trace("one_10s.csv", {"a": [10, 20, 30, 40, 50, 60], "b": [1, 0, 0, 0, 0, 0]})
SECOND = _trace("two_10s.csv", {"c": [100, 0, 0, 100], "a": [9, 9, 9, 9]}, tokens_per_request=5.0)


def test_one_part_is_the_series() -> None:
    """Counts over the bin width."""
    mixed = mix_parts([FIRST, SECOND], [TracePart(series_id="a")], SPLITS, "here")
    np.testing.assert_array_equal(mixed.rates_rps, [1, 2, 3, 4, 5, 6])
    assert mixed.tokens_per_request == 2


def test_scale_shift_and_sum_by_hand() -> None:
    """Half of a, one bin later in each split, and c, which ends early, two bins earlier."""
    parts = [TracePart(series_id="a", scale=0.5, shift_s=10), TracePart(series_id="c", shift_s=-20)]
    mixed = mix_parts([FIRST, SECOND], parts, SPLITS, "here")
    a = np.array([30, 10, 20, 60, 40, 50]) / 2
    c = np.array([0, 100, 0, 0, 100, 0])
    np.testing.assert_allclose(mixed.rates_rps, (a + c) / 10)
    # train: 30 requests of 2 tokens, 100 of 5
    assert mixed.tokens_per_request == pytest.approx((30 * 2 + 100 * 5) / 130)


def test_unknown_tokens_do_not_count() -> None:
    """The mean is over the requests whose tokens are known; none known is nan."""
    unknown = _trace("three_10s.csv", {"u": [7, 7, 7, 7, 7, 7]}, tokens_per_request=math.nan)
    both = [TracePart(series_id="a"), TracePart(series_id="u")]
    assert mix_parts([FIRST, unknown], both, SPLITS, "here").tokens_per_request == 2
    assert math.isnan(mix_parts([FIRST, unknown], both[1:], SPLITS, "here").tokens_per_request)


@given(st_.integers(-20, 20), st_.integers(-20, 20))
def test_shifts_add_up_and_never_leak(one: int, other: int) -> None:
    """Each split keeps its values; two shifts are one; bins outside the splits stay."""
    rates = np.arange(16.0).reshape(8, 2)
    shifted = shift_within_splits(rates, one, SPLITS)
    for first, end in SPLITS.values():
        assert sorted(shifted[first:end, 0]) == sorted(rates[first:end, 0])
    np.testing.assert_array_equal(shifted[6:], rates[6:])
    again = shift_within_splits(shifted, other, SPLITS)
    np.testing.assert_array_equal(again, shift_within_splits(rates, one + other, SPLITS))


@given(st_.lists(st_.tuples(st_.sampled_from("abc"), st_.floats(0, 10), st_.integers(-9, 9)), max_size=4))
def test_mixing_is_linear(parts: list[tuple[str, float, int]]) -> None:
    """The mix is the sum of its parts taken alone."""
    chosen = [TracePart(series_id=name, scale=scale, shift_s=10.0 * bins) for name, scale, bins in parts]
    together = mix_parts([FIRST, SECOND], chosen, SPLITS, "here").rates_rps
    alone = sum((mix_parts([FIRST, SECOND], [p], SPLITS, "here").rates_rps for p in chosen), np.zeros(6))
    np.testing.assert_allclose(together, alone)


@pytest.mark.parametrize(
    ("part", "where", "expected"),
    [
        (TracePart(series_id="z"), "traffic.1.series", "a series_id of one_10s.csv, two_10s.csv"),
        (TracePart(series_id="a", scale=-1), "traffic.1.scale", "a number >= 0"),
        (TracePart(series_id="a", scale=math.nan), "traffic.1.scale", "a number >= 0"),
        (TracePart(series_id="a", shift_s=15), "traffic.1.shift_s", "a whole number of bins of 10 s"),
        (TracePart(series_id="a", shift_s=math.inf), "traffic.1.shift_s", "a whole number of bins of 10 s"),
    ],
)
def test_mistakes_are_named(part: TracePart, where: str, expected: str) -> None:
    """Each with the part's number."""
    with pytest.raises(InputError) as err:
        mix_parts([FIRST, SECOND], [TracePart(series_id="b"), part], SPLITS, "traffic")
    assert (err.value.where, err.value.expected) == (where, expected)
