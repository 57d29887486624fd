"""Where an episode's request rates come from: a stretch of a trace, or the generator.

Dims: B rate bins, D deployments.
"""

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.generator import GeneratorSettings, generate_rates

__all__ = ["BinRange", "EpisodeRates", "GeneratorSource", "RequestModel", "Split", "TraceSource", "TrafficSource"]

_DAY_S = 86400.0


class Split(enum.StrEnum):
    """Which part of the traffic: for training and tuning, or for choosing models and reporting figures."""

    TRAIN = "train"
    VALIDATION = "validation"


class RequestModel(NamedTuple):
    """What the requests of each deployment are like."""

    service_s: NDArray[np.float64]  # (D,) mean time a request is ongoing
    tokens_per_request: NDArray[np.float64]  # (D,) mean output tokens
    burstiness_cv: NDArray[np.float64]  # (D,) CV of inter-arrival times within a bin
    has_weibull_arrivals: NDArray[np.bool_]  # (D,) they are Weibull, not Gamma

    def rows(self, deployments: NDArray[np.int64]) -> "RequestModel":
        """Those of some deployments, in this order."""
        return RequestModel(
            self.service_s[deployments],
            self.tokens_per_request[deployments],
            self.burstiness_cv[deployments],
            self.has_weibull_arrivals[deployments],
        )


class BinRange(NamedTuple):
    """Bins ``[first, end)`` of a trace."""

    first: int
    end: int


class EpisodeRates(NamedTuple):
    """Rates of one episode."""

    rates_rps: NDArray[np.float64]  # (B, D)
    start_s: float  # when the first bin begins, in seconds after a midnight


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TraceSource:
    """Rates of a trace; each episode begins at a random bin of its split and ends within it."""

    name: str  # the trace files, for reports
    rates_rps: NDArray[np.float64]  # (B, D)
    bin_s: float
    splits: Mapping[Split, BinRange]

    def max_horizon_s(self, split: Split) -> float:
        """Longest episode that fits in a split."""
        bins = self.splits[split]
        return max(0, bins.end - bins.first) * self.bin_s

    def rates(self, rng: np.random.Generator, split: Split, horizon_s: float) -> EpisodeRates:
        """Draws the rates of one episode.

        Args:
            rng: Draws the first bin.
            split: Where from.
            horizon_s: Length, at most ``max_horizon_s(split)``.

        Returns:
            B' bins that cover the horizon, and when they begin.
        """
        num_bins = math.ceil(horizon_s / self.bin_s - 1e-9)
        bins = self.splits[split]
        first = int(rng.integers(bins.first, bins.end - num_bins + 1))
        return EpisodeRates(self.rates_rps[first : first + num_bins], first * self.bin_s % _DAY_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorSource:
    """Generated rates, one series per deployment, from a random time of day on.

    It has no days, so the splits differ by their random streams only.
    """

    settings: tuple[GeneratorSettings, ...]  # D
    bin_s: float

    @property
    def name(self) -> str:
        """For reports."""
        return "generated"

    def max_horizon_s(self, split: Split) -> float:
        """A leap year, in either ``split``."""
        return 366 * _DAY_S

    def rates(self, rng: np.random.Generator, split: Split, horizon_s: float) -> EpisodeRates:
        """Draws the rates of one episode; see ``TraceSource.rates``."""
        num_bins = math.ceil(horizon_s / self.bin_s - 1e-9)
        start_s = math.floor(rng.uniform(0.0, _DAY_S))
        columns = [
            generate_rates(s, num_bins=num_bins, bin_s=self.bin_s, start_s=start_s, rng=child)
            for s, child in zip(self.settings, rng.spawn(len(self.settings)), strict=True)
        ]
        return EpisodeRates(np.stack(columns, axis=1), float(start_s))


TrafficSource = TraceSource | GeneratorSource
