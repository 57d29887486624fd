"""Built-in traffic generator: request rates per bin for users without traces.

Five kinds, each with the long-run mean ``mean_rps`` (STEP before its drop). Dims: B bins.
"""

import enum
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.cluster import Interval

__all__ = ["GeneratorSettings", "TrafficKind", "generate_rates"]

_DAY_S = 86400.0
_NOISE_TIME_S = 3600.0  # correlation time of the slow noise


class TrafficKind(enum.StrEnum):
    """Shape of a generated rate."""

    STEADY = "steady"  # noise around the mean
    DIURNAL = "diurnal"  # a cosine over the day
    BURSTY = "bursty"  # a base rate, times burst_factor while a burst lasts
    SPORADIC = "sporadic"  # nothing, except while active
    STEP = "step"  # the mean, low_frac of it from a random moment for a random time


_DROP_AT_S = Interval(0.0, 3600.0)
_LOW_FOR_S = Interval(math.inf, math.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorSettings:
    """One generated series. Fields that a kind does not use are ignored by it."""

    kind: TrafficKind = TrafficKind.STEADY
    mean_rps: float = 1.0
    noise_frac: float = 0.1  # standard deviation of the log rate, slowly varying; every kind
    swing_frac: float = 0.6  # DIURNAL: amplitude over mean, 0..1
    peak_at_h: float = 14.0  # DIURNAL: time of day of the peak
    active_frac: float = 0.1  # BURSTY, SPORADIC: share of time in a burst
    active_s: float = 900.0  # BURSTY, SPORADIC: mean length of a burst (exponential)
    burst_factor: float = 5.0  # BURSTY: rate in a burst over rate outside
    low_frac: float = 0.1  # STEP: rate after the drop over rate before
    drop_at_s: Interval = _DROP_AT_S  # STEP: moment of the drop, from the start of the episode
    low_for_s: Interval = _LOW_FOR_S  # STEP: how long it stays low, inf = for good


def generate_rates(
    settings: GeneratorSettings, *, num_bins: int, bin_s: float, start_s: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Draws the rate of one series.

    Args:
        settings: Kind and parameters.
        num_bins: B.
        bin_s: Bin width.
        start_s: Time of day at bin 0.
        rng: Source of randomness.

    Returns:
        ``(B,)`` requests per second, >= 0.
    """
    since_s = (np.arange(num_bins) + 0.5) * bin_s
    match settings.kind:
        case TrafficKind.STEADY:
            shape = np.ones(num_bins)
        case TrafficKind.DIURNAL:
            angle = 2.0 * math.pi * (start_s + since_s - settings.peak_at_h * 3600.0) / _DAY_S
            shape = 1.0 + settings.swing_frac * np.cos(angle)
        case TrafficKind.BURSTY:
            level = np.where(_active(settings, num_bins, bin_s, rng), settings.burst_factor, 1.0)
            shape = level / (1.0 + settings.active_frac * (settings.burst_factor - 1.0))
        case TrafficKind.SPORADIC:
            shape = _active(settings, num_bins, bin_s, rng) / settings.active_frac
        case TrafficKind.STEP:
            drop_s = rng.uniform(*settings.drop_at_s)
            low_for = settings.low_for_s
            rise_s = drop_s + (math.inf if math.isinf(low_for.max_s) else rng.uniform(*low_for))
            shape = np.where((since_s >= drop_s) & (since_s < rise_s), settings.low_frac, 1.0)
    return settings.mean_rps * shape * _slow_noise(settings.noise_frac, num_bins, bin_s, rng)


def _active(settings: GeneratorSettings, num_bins: int, bin_s: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """``(B,)`` two-state Markov chain with the given share of active bins, from its stationary state on."""
    share = settings.active_frac
    p_end = -math.expm1(-bin_s / settings.active_s)
    if share < 1.0 and p_end * share / (1.0 - share) > 1.0:
        p_end = (1.0 - share) / share
    p_begin = 1.0 if share >= 1.0 else p_end * share / (1.0 - share)
    draws = rng.random(num_bins)
    active = np.empty(num_bins, np.bool_)
    is_on = bool(draws[0] < share)
    for i in range(num_bins):
        if i > 0:
            is_on = bool(draws[i] >= p_end) if is_on else bool(draws[i] < p_begin)
        active[i] = is_on or share >= 1.0
    return active


def _slow_noise(noise_frac: float, num_bins: int, bin_s: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """``(B,)`` log-normal factor of mean 1: a first-order autoregressive process in the logarithm."""
    keep = math.exp(-bin_s / _NOISE_TIME_S)
    push = noise_frac * math.sqrt(1.0 - keep * keep)
    draws = rng.standard_normal(num_bins)
    log_factor = np.empty(num_bins)
    level = noise_frac * draws[0]
    for i in range(num_bins):
        if i > 0:
            level = keep * level + push * draws[i]
        log_factor[i] = level
    factor: NDArray[np.float64] = np.exp(log_factor - 0.5 * noise_frac**2)
    return factor
