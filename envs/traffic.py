"""``Traffic``: offered load of one episode at every simulator step, and how it is drawn from rates.

The load does not depend on what a policy does: requests come and stay for their service time in a queue with
infinitely many servers, so every policy faces the same traffic. Dims: T simulator steps, D deployments, B rate bins.

*Service time.* ``service_s = ttft_s + output_tokens * tpot_s``: time to first token, then one token after another
(DistServe, OSDI 2024, §2.1: "the overall request latency equals TTFT plus TPOT times the number of generated
tokens"). It is the mean of an exponential distribution here.

*Bursts.* A trace's bin hides how arrivals bunch inside it. ServeGen (alibaba/ServeGen) reports inter-arrival times
with a coefficient of variation (CV) of 1 to 3. For a renewal process the variance of counts tends to ``CV**2`` times
their mean, so each step's count is Poisson with a Gamma-distributed mean of just that dispersion. With Weibull
arrivals it is that of the renewal process itself (``arrivals.py``), whose dispersion is less over short times.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from rayfold.envs.arrivals import MANY, count_renewals, first_wait, weibull_shape

__all__ = ["SLOW_MEAN_S", "Traffic", "look_back_rows", "sample_traffic", "service_time_s"]

SLOW_MEAN_S = 600.0  # time constant of ClusterState.deployment_ongoing_slow


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Traffic:
    """Offered load of one episode, and of the time just before it that Serve's metrics look back on."""

    ongoing: NDArray[np.float32]  # (W + T, D) concurrent requests, if all were served at once
    num_before: int  # W rows before the first step
    window: NDArray[np.int64]  # (D,) rows of each deployment's look-back period, at most W
    tokens_per_ongoing_s: NDArray[np.float64]  # (D,) output tokens per ongoing request and second
    start_s: float = 0.0  # when the first step begins, in seconds after a midnight

    @staticmethod
    def of_steps(
        ongoing: NDArray[Any],
        *,
        look_back_s: NDArray[np.float64],
        step_s: float,
        tokens_per_ongoing_s: NDArray[np.float64],
    ) -> "Traffic":
        """Traffic that is given step by step; the load before the first one was the same as in it.

        Args:
            ongoing: ``(T, D)`` concurrent requests.
            look_back_s: ``(D,)`` look-back periods.
            step_s: Length of a step.
            tokens_per_ongoing_s: ``(D,)`` output tokens per ongoing request and second.
        """
        window = look_back_rows(look_back_s, step_s)
        before = np.repeat(ongoing[:1], int(window.max(initial=1)), axis=0)
        rows = np.concatenate([before, ongoing]).astype(np.float32)
        return Traffic(ongoing=rows, num_before=len(before), window=window, tokens_per_ongoing_s=tokens_per_ongoing_s)

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.ongoing) - self.num_before

    def lookback_sum(self) -> NDArray[np.float64]:
        """``(D,)`` sum of the look-back period that ends before the first step."""
        rows = self.ongoing[: self.num_before].astype(np.float64)
        return np.array([rows[len(rows) - w :, d].sum() for d, w in enumerate(self.window)])

    def slow_mean(self, step_s: float) -> NDArray[np.float64]:
        """``(D,)`` exponential mean of the load before the first step, time constant ``SLOW_MEAN_S``."""
        age = np.arange(self.num_before - 1, -1, -1) * step_s
        weight = np.exp(-age / SLOW_MEAN_S)
        mean: NDArray[np.float64] = weight @ self.ongoing[: self.num_before] / weight.sum()
        return mean


def look_back_rows(look_back_s: NDArray[np.float64], step_s: float) -> NDArray[np.int64]:
    """``(D,)`` steps of each look-back period, at least 1."""
    return np.maximum(1, np.rint(look_back_s / step_s)).astype(np.int64)


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
    start_s: float = 0.0,
    has_weibull_arrivals: NDArray[np.bool_] | None = None,
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
        start_s: When the first bin begins, in seconds after a midnight.
        has_weibull_arrivals: ``(D,)`` whether inter-arrival times are Weibull, not Gamma; None = nowhere.

    Raises:
        ValueError: The bins do not cover the episode.
    """
    if num_steps * step_s > len(rates_rps) * bin_s + 1e-6:
        raise ValueError(f"rates must cover {num_steps * step_s:g} s, got {len(rates_rps)} bins of {bin_s:g} s")
    window = look_back_rows(look_back_s, step_s)
    warm_up = max(int(window.max(initial=1)), math.ceil(SLOW_MEAN_S / step_s))
    starts_s = (np.arange(-warm_up, num_steps) + 0.5) * step_s  # a step belongs to the bin its middle is in
    bins = np.clip(np.floor(starts_s / bin_s).astype(np.int64), 0, None)
    cv = np.maximum(burstiness_cv, 1.0)
    is_weibull = np.zeros(len(cv), np.bool_) if has_weibull_arrivals is None else has_weibull_arrivals
    shape = np.array([weibull_shape(c) if w else 0.0 for c, w in zip(cv, is_weibull, strict=True)])
    ongoing = _queue(rates_rps, bins, service_s, cv, shape, step_s, rng)
    return Traffic(
        ongoing=ongoing,
        num_before=warm_up,
        window=window,
        tokens_per_ongoing_s=tokens_per_request / service_s,
        start_s=start_s,
    )


@njit(cache=True)
def _queue(
    rates_rps: NDArray[np.float64],
    bins: NDArray[np.int64],
    service_s: NDArray[np.float64],
    cv: NDArray[np.float64],
    weibull_shapes: NDArray[np.float64],
    step_s: float,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """``(len(bins), D)`` requests in an infinite-server queue at the end of each step.

    Of those present a Binomial share ``exp(-step_s / service_s)`` stays; of a step's arrivals, spread evenly over it,
    the share ``service_s / step_s * (1 - exp(-step_s / service_s))``. The mean is then ``rate * service_s`` exactly,
    whatever the step (Little's law). Shape 0 is Gamma arrivals; so are more than ``MANY`` of the others.
    """
    num_steps, num_deployments = bins.shape[0], rates_rps.shape[1]
    out = np.empty((num_steps, num_deployments), np.float32)
    for d in range(num_deployments):
        stay = math.exp(-step_s / service_s[d])
        arrival_stay = service_s[d] / step_s * (1.0 - stay)
        extra = cv[d] * cv[d] - 1.0
        present = rng.poisson(rates_rps[0, d] * service_s[d])
        shape = weibull_shapes[d]
        wait = first_wait(shape, rng) if shape > 0.0 else 0.0
        for t in range(num_steps):
            if present > 0:
                present = rng.binomial(present, stay)
            mean = rates_rps[bins[t], d] * step_s
            if shape > 0.0 and mean <= MANY:
                count, wait = count_renewals(wait, mean, shape, rng)
                if count > 0:
                    present += rng.binomial(count, arrival_stay)
            else:
                if mean > 0.0 and extra > 1e-9:
                    mean = rng.gamma(mean / extra, extra)
                if mean > 0.0:
                    present += rng.poisson(mean * arrival_stay)
            out[t, d] = present
    return out
