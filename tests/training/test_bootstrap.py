"""Bootstrap: by hand, paired, and as SciPy has it."""

import math

import numpy as np
import pytest
from scipy import stats

from rayfold.training.bootstrap import NUM_RESAMPLES, mean_of, ratio, relative, resample_weights


def test_two_seeds_by_hand() -> None:
    """A quarter of the resamples is both times the lower value, a quarter the higher: the interval is the range."""
    estimate = mean_of([1.0, 3.0])
    assert (estimate.mean, estimate.ci95) == (2.0, (1.0, 3.0))
    assert np.unique(estimate.resampled).tolist() == [1.0, 2.0, 3.0]


def test_one_seed_has_no_interval() -> None:
    """Null, not a width of 0."""
    assert mean_of([5.0]).as_json() == {"mean": 5.0, "ci95": None}


def test_resamples_are_of_seeds_and_always_the_same() -> None:
    """So many draws with replacement in each, and the next call has the same."""
    weights = resample_weights(7)
    assert weights.shape == (NUM_RESAMPLES, 7)
    np.testing.assert_allclose(weights.sum(axis=1), 1.0)
    np.testing.assert_allclose(weights.mean(axis=0), 1.0 / 7.0, atol=0.01)
    resample_weights.cache_clear()
    assert np.array_equal(weights, resample_weights(7))


def test_interval_is_scipys() -> None:
    """A second route: ``scipy.stats.bootstrap``, percentile method, within the noise of 10,000 resamples."""
    values = np.random.default_rng(1).gamma(2.0, 10.0, 16)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=NUM_RESAMPLES, method="percentile", rng=2)
    ours = mean_of(values).ci95
    assert ours is not None
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    np.testing.assert_allclose(ours, theirs.confidence_interval, atol=0.05 * width)


def test_differences_are_paired() -> None:
    """Seeds differ by far more than policies do: a tenth less on each seed is a tenth less in every resample."""
    none = np.random.default_rng(0).uniform(10.0, 1000.0, 8)
    difference = relative(mean_of(0.9 * none), mean_of(none))
    assert difference.mean == pytest.approx(-0.1)
    np.testing.assert_allclose(difference.ci95 or (), (-0.1, -0.1))


def test_what_is_not_defined_is_null() -> None:
    """By a mean of 0 nothing is divided; by 0 in a resample leaves no interval."""
    assert ratio(mean_of([1.0, 2.0]), mean_of([0.0, 0.0])).as_json() == {"mean": None, "ci95": None}
    assert math.isnan(relative(mean_of([1.0]), mean_of([0.0])).mean)
    assert ratio(mean_of([1.0, 2.0]), mean_of([0.0, 2.0])).as_json() == {"mean": 1.5, "ci95": None}
