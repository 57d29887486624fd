"""Binning: totals are kept, intervals are shared by overlap, sizes are bounded."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st_

from rayfold.envs.importers import counts as counts_module
from rayfold.envs.importers.counts import Count, bin_counts, busiest
from rayfold.errors import InputError

PATH = Path("x_60s.csv")


def _count(series_id: str, start_s: float, width_s: float = 0.0, requests: float = 1.0) -> Count:
    return Count(series_id, start_s, width_s, requests, 2.0 * requests, 3.0 * requests)


def _bin(*counts: Count, bin_s: int = 60, is_absolute: bool = False) -> np.ndarray:
    return bin_counts(counts, bin_s=bin_s, path=PATH, is_absolute=is_absolute, where="here").requests


def test_edges_of_a_bin() -> None:
    """A bin holds its start, not its end; an interval that ends at an edge does not touch the next bin."""
    np.testing.assert_array_equal(_bin(_count("a", 0), _count("a", 59.999), _count("a", 60)), [[2, 1]])
    np.testing.assert_array_equal(_bin(_count("a", 0, 60, 5), _count("a", 60, 60, 7)), [[5, 7]])


def test_an_interval_is_shared_by_overlap() -> None:
    """8 requests from 45 s to 165 s: 15, 60 and 45 of 120 s."""
    np.testing.assert_allclose(_bin(_count("a", 45, 120, 8)), [[1, 4, 3]])


def test_absolute_times_begin_at_the_first_bin() -> None:
    """Bins stay aligned to the epoch: 10:00:59 and 10:01:00 are in two bins of a minute."""
    np.testing.assert_array_equal(_bin(_count("a", 36059), _count("a", 36060), is_absolute=True), [[1, 1]])
    assert _bin(_count("a", 36059)).shape == (1, 601)


def test_quiet_series_and_a_quiet_end_are_kept() -> None:
    """A series without requests has a row, and a quiet last window makes the trace longer."""
    np.testing.assert_array_equal(_bin(_count("a", 0), _count("b", 120, 60, 0)), [[1, 0, 0], [0, 0, 0]])


def test_tokens_are_unknown_if_those_of_one_request_are() -> None:
    """A bin's mean must not be taken over a part of its requests."""
    unknown = Count("a", 0, 0, 1, float("nan"), 4)
    trace = bin_counts([_count("a", 0), unknown], bin_s=60, path=PATH, is_absolute=False, where="here")
    assert np.isnan(trace.input_tokens[0, 0])
    assert trace.output_tokens[0, 0] == 7


def test_too_much_is_refused_before_it_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each limit: the dense array, one interval's bins, and all bins with requests."""
    with pytest.raises(InputError, match="at least one request"):
        _bin()
    with pytest.raises(InputError, match="series x bins"):
        _bin(_count("a", 0), _count("a", 6e9))
    with pytest.raises(InputError, match="bins for one interval"):
        _bin(_count("a", 0, 1e9, 7))
    monkeypatch.setattr(counts_module, "_MAX_BUSY_CELLS", 3)
    with pytest.raises(InputError, match="bins with requests"):
        _bin(*(_count("a", 60 * i) for i in range(4)))


def test_busiest() -> None:
    """By requests over all their counts, then by name."""
    rows = [_count("a", 0, 0, 2), _count("b", 0, 0, 3), _count("a", 9, 0, 2), _count("d", 0, 0, 3), _count("c", 0)]
    assert busiest(rows, 2) == {"a", "b"}
    assert busiest(rows, 9) == {"a", "b", "c", "d"}


@settings(max_examples=200, deadline=None)
@given(
    st_.lists(
        st_.builds(
            _count,
            st_.sampled_from("abc"),
            st_.floats(0, 5000),
            st_.floats(0.001, 1000) | st_.just(0.0),
            st_.floats(0, 1000),
        ),
        min_size=1,
        max_size=20,
    ),
    st_.integers(1, 700),
    st_.booleans(),
)
def test_totals_are_kept(rows: list[Count], bin_s: int, is_absolute: bool) -> None:
    """Whatever the bins, each series has as many requests and tokens as were read."""
    trace = bin_counts(rows, bin_s=bin_s, path=PATH, is_absolute=is_absolute, where="here")
    for i, name in enumerate(trace.series_ids):
        total = sum(row.requests for row in rows if row.series_id == name)
        assert trace.requests[i].sum() == pytest.approx(total)
        assert trace.input_tokens[i].sum() == pytest.approx(2 * total)
    assert (trace.requests >= 0).all()
