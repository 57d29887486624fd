"""Percentile bootstrap over seeds (Efron & Tibshirani 1993, ch. 13), paired: every figure sees the same resamples.

A resample is a row of weights on the seeds, so that the mean of a resample is one product, and differences and ratios
of figures are taken resample by resample. Dims: B resamples, S seeds.
"""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["NUM_RESAMPLES", "Estimate", "mean_of", "ratio", "relative", "resample_weights"]

NUM_RESAMPLES = 10_000


class Estimate(NamedTuple):
    """A figure, and the same figure of every resample."""

    mean: float  # NaN = not defined
    resampled: NDArray[np.float64]  # (B,); (0,) from a single seed, which tells nothing of the spread

    @property
    def ci95(self) -> tuple[float, float] | None:
        """Its 95 % interval, if there is one."""
        if math.isnan(self.mean) or not len(self.resampled) or not np.isfinite(self.resampled).all():
            return None
        low, high = np.quantile(self.resampled, (0.025, 0.975))
        return float(low), float(high)

    def as_json(self) -> dict[str, Any]:
        """JSON has no NaN: null."""
        interval = self.ci95
        return {"mean": None if math.isnan(self.mean) else self.mean, "ci95": list(interval) if interval else None}


@cache
def resample_weights(num_seeds: int) -> NDArray[np.float64]:
    """``(B, S)`` shares of each seed in each resample; always the same, and none from a single seed."""
    num_resamples = NUM_RESAMPLES if num_seeds > 1 else 0
    drawn = np.random.default_rng(0).multinomial(num_seeds, np.full(num_seeds, 1.0 / num_seeds), num_resamples)
    weights: NDArray[np.float64] = drawn / num_seeds
    weights.flags.writeable = False
    return weights


def mean_of(values: Sequence[float] | NDArray[np.float64]) -> Estimate:
    """Mean of ``(S,)`` values, one per seed."""
    array = np.asarray(values, np.float64)
    return Estimate(float(array.mean()), resample_weights(len(array)) @ array)


def ratio(above: Estimate, below: Estimate) -> Estimate:
    """Ratio of two figures; not defined where the one below is 0, its interval where it is 0 in a resample."""
    if below.mean == 0.0 or math.isnan(below.mean):
        return Estimate(math.nan, below.resampled)
    with np.errstate(divide="ignore", invalid="ignore"):
        return Estimate(above.mean / below.mean, above.resampled / below.resampled)


def relative(figure: Estimate, reference: Estimate) -> Estimate:
    """Difference to a reference, as a share of the reference: -0.1 is 10 % less."""
    difference = Estimate(figure.mean - reference.mean, figure.resampled - reference.resampled)
    return ratio(difference, Estimate(abs(reference.mean), np.abs(reference.resampled)))
