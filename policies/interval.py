"""A mean and how well it is known."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

__all__ = ["Interval95", "interval95"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval95:
    """Mean and half-width of its 95 % confidence interval (Student's t); NaN from a single value."""

    mean: float
    ci95: float

    def as_json(self) -> dict[str, Any]:
        """``{"mean", "ci95": [low, high]}``; JSON has no NaN: null."""
        ends = None if math.isnan(self.ci95) else [self.mean - self.ci95, self.mean + self.ci95]
        return {"mean": self.mean, "ci95": ends}


def interval95(values: Sequence[float] | NDArray[np.float64]) -> Interval95:
    """Mean and half-width of the 95 % confidence interval; one value tells nothing of the half-width: NaN."""
    array = np.asarray(values, np.float64)
    if len(array) < 2:
        return Interval95(mean=float(array.mean()), ci95=math.nan)
    half = stats.t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / np.sqrt(len(array))
    return Interval95(mean=float(array.mean()), ci95=float(half))
