"""``Traffic``: offered load of one episode at every simulator step, and how it is drawn from rates.

The load does not depend on what a policy does: requests come and stay for their service time in a queue with
infinitely many servers, so every policy faces the same traffic. Dims: T simulator steps, D deployments, B rate bins.

*Service time.* ``service_s = ttft_s + output_tokens * tpot_s``: time to first token, then one token after another
(DistServe, OSDI 2024, §2.1: "the overall request latency equals TTFT plus TPOT times the number of generated
tokens"). It is the mean of an exponential distribution here.

*Bursts.* A trace's bin hides how arrivals bunch inside it. ServeGen (alibaba/ServeGen) reports inter-arrival times
with a coefficient of variation (CV) of 1 to 3. For a renewal process the variance of counts tends to ``CV**2`` times
their mean, so each step's count is Poisson with a Gamma-distributed mean of just that dispersion.
"""

import math
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["SLOW_MEAN_S", "Traffic", "sample_traffic", "service_time_s"]

SLOW_MEAN_S = 600.0  # time constant of ongoing_slow


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Traffic:
    """Offered load of one episode."""

    ongoing: NDArray[np.float64]  # (T, D) concurrent requests, if all were served at once
    ongoing_lookback: NDArray[np.float64]  # (T, D) mean over each deployment's look-back period, this step included
    ongoing_slow: NDArray[np.float64]  # (T, D) exponential mean, time constant SLOW_MEAN_S
    tokens_per_ongoing_s: NDArray[np.float64]  # (D,) output tokens per ongoing request and second


def service_time_s(ttft_s: float, tpot_s: float, output_tokens: float) -> float:
    """Mean time a request is ongoing.

    Args:
        ttft_s: Time to first token.
        tpot_s: Time per output token.
        output_tokens: Mean output tokens of a request.
    """
    return ttft_s + output_tokens * tpot_s


def sample_traffic(
    rates_rps: NDArray[np.float64],
    *,
    bin_s: float,
    service_s: NDArray[np.float64],
    burstiness_cv: NDArray[np.float64],
    tokens_per_request: NDArray[np.float64],
    look_back_s: NDArray[np.float64],
    num_steps: int,
    step_s: float,
    rng: np.random.Generator,
) -> Traffic:
    """Draws one episode. Warm-started: the queue is stationary at the first bin's rate when the episode begins.

    Args:
        rates_rps: ``(B, D)`` arrivals per second in each bin.
        bin_s: Bin width.
        service_s: ``(D,)`` mean service times, > 0.
        burstiness_cv: ``(D,)`` CV of inter-arrival times; 1 or less is Poisson.
        tokens_per_request: ``(D,)`` mean output tokens.
        look_back_s: ``(D,)`` look-back periods.
        num_steps: T.
        step_s: Length of a step.
        rng: Source of randomness.

    Raises:
        ValueError: The bins do not cover the episode.
    """
    if num_steps * step_s > len(rates_rps) * bin_s + 1e-6:
        raise ValueError(f"rates must cover {num_steps * step_s:g} s, got {len(rates_rps)} bins of {bin_s:g} s")
    window = np.maximum(1, np.rint(look_back_s / step_s)).astype(np.int64)
    warm_up = max(int(window.max(initial=1)), math.ceil(SLOW_MEAN_S / step_s))
    starts_s = (np.arange(-warm_up, num_steps) + 0.5) * step_s  # a step belongs to the bin its middle is in
    bins = np.clip(np.floor(starts_s / bin_s).astype(np.int64), 0, None)
    ongoing = _queue(rates_rps, bins, service_s, np.maximum(burstiness_cv, 1.0), step_s, rng)
    slow = _exponential_mean(ongoing, rates_rps[0] * service_s, -math.expm1(-step_s / SLOW_MEAN_S))
    return Traffic(
        ongoing=ongoing[warm_up:],
        ongoing_lookback=_moving_mean(ongoing, window)[warm_up:],
        ongoing_slow=slow[warm_up:],
        tokens_per_ongoing_s=tokens_per_request / service_s,
    )


@njit(cache=True)
def _queue(
    rates_rps: NDArray[np.float64],
    bins: NDArray[np.int64],
    service_s: NDArray[np.float64],
    cv: NDArray[np.float64],
    step_s: float,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """``(len(bins), D)`` requests in an infinite-server queue at the end of each step.

    Of those present a Binomial share ``exp(-step_s / service_s)`` stays; of a step's arrivals, spread evenly over it,
    the share ``service_s / step_s * (1 - exp(-step_s / service_s))``. The mean is then ``rate * service_s`` exactly,
    whatever the step (Little's law).
    """
    num_steps, num_deployments = bins.shape[0], rates_rps.shape[1]
    out = np.empty((num_steps, num_deployments))
    for d in range(num_deployments):
        stay = math.exp(-step_s / service_s[d])
        arrival_stay = service_s[d] / step_s * (1.0 - stay)
        extra = cv[d] * cv[d] - 1.0
        present = rng.poisson(rates_rps[0, d] * service_s[d])
        for t in range(num_steps):
            if present > 0:
                present = rng.binomial(present, stay)
            mean = rates_rps[bins[t], d] * step_s
            if mean > 0.0 and extra > 1e-9:
                mean = rng.gamma(mean / extra, extra)
            if mean > 0.0:
                present += rng.poisson(mean * arrival_stay)
            out[t, d] = present
    return out


def _moving_mean(values: NDArray[np.float64], window: NDArray[np.int64]) -> NDArray[np.float64]:
    """``(T, D)`` mean of the last ``window[d]`` rows; fewer at the top."""
    total = np.vstack([np.zeros(values.shape[1]), np.cumsum(values, axis=0)])
    row = np.arange(1, len(values) + 1)[:, None]
    first = np.maximum(row - window[None, :], 0)
    column = np.arange(values.shape[1])[None, :]
    mean: NDArray[np.float64] = (total[row, column] - total[first, column]) / (row - first)
    return mean


@njit(cache=True)
def _exponential_mean(values: NDArray[np.float64], start: NDArray[np.float64], weight: float) -> NDArray[np.float64]:
    """``(T, D)`` exponential mean of rows, ``start`` ``(D,)`` before the first."""
    out = np.empty_like(values)
    level = start.copy()
    for t in range(values.shape[0]):
        for d in range(values.shape[1]):
            level[d] += weight * (values[t, d] - level[d])
            out[t, d] = level[d]
    return out
