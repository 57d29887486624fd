"""Figures of a trace, computed by hand."""

import math
from pathlib import Path

import numpy as np
import pytest

from rayfold.envs.trace_file import Trace
from rayfold.envs.trace_stats import Gap, trace_stats


def _trace(requests: list[list[float]], inputs: list[list[float]]) -> Trace:
    tokens = np.array(inputs, np.float64)
    return Trace(
        path=Path("x_60s.csv"),
        bin_s=60.0,
        series_ids=("a", "b"),
        requests=np.array(requests, np.float64),
        input_tokens=tokens,
        output_tokens=2 * tokens,
    )


def test_figures_by_hand() -> None:
    """Two series over four minutes; the third minute is quiet, and tokens are known in one bin of b."""
    nan = math.nan
    stats = trace_stats(_trace([[6, 0, 0, 2], [12, 12, 0, 36]], [[60, 0, 0, 20], [120, nan, 0, nan]]))
    b, a = stats.series
    assert (b.series_id, a.series_id) == ("b", "a")
    assert (a.requests, a.mean_rps, a.peak_rps, a.peak_to_mean) == (8, 2 / 60, 0.1, 3)
    assert a.dispersion == pytest.approx((16 + 4 + 4 + 0) / 4 / 2)  # squares of 6-2, 0-2, 0-2, 2-2
    assert (a.busy_frac, a.input_tokens, a.input_known_frac, a.output_tokens) == (0.5, 80, 1, 160)
    assert (b.requests, b.input_tokens, b.input_known_frac, b.output_known_frac) == (60, 120, 0.2, 0.2)
    assert (stats.total.requests, stats.total.peak_rps, stats.total.input_tokens) == (68, 38 / 60, 200)
    assert stats.total.input_known_frac == pytest.approx(20 / 68)
    assert stats.gaps == (Gap(120, 180),)
    assert stats.duration_s == 240


def test_gaps_at_both_ends() -> None:
    """A gap may begin or end with the trace."""
    assert trace_stats(_trace([[0, 1, 0]] * 2, [[0, 0, 0]] * 2)).gaps == (Gap(0, 60), Gap(120, 180))


def test_nothing_at_all() -> None:
    """A trace without requests has no ratios, and raises no warning."""
    stats = trace_stats(_trace([[0, 0], [0, 0]], [[0, 0], [0, 0]]))
    assert math.isnan(stats.total.peak_to_mean)
    assert math.isnan(stats.series[0].input_known_frac)
    assert stats.gaps == (Gap(0, 120),)


def test_poisson_counts_have_dispersion_one() -> None:
    """The index of dispersion is what it is known for."""
    counts = np.random.default_rng(0).poisson(20.0, (2, 5000)).astype(np.float64)
    stats = trace_stats(_trace(counts.tolist(), np.zeros_like(counts).tolist()))
    assert stats.series[0].dispersion == pytest.approx(1.0, abs=0.08)
