"""Weibull arrivals: how many requests of a renewal process fall into one simulator step.

ServeGen and BurstGPT (KDD 2025) fit the times between requests with Gamma and with Weibull distributions. Waits are
counted in mean waits here, so that a rate that changes only stretches the clock. The process is followed from request
to request, from its stationary state on: a long wait lasts through several steps, and steps that follow one another
are correlated, as in the process itself.
"""

import enum
import math

import numpy as np

from rayfold.envs.jit import inner, kernel

__all__ = ["MANY", "Arrivals", "count_renewals", "first_wait", "weibull_scale", "weibull_shape"]

MANY = 200.0  # mean arrivals in a step from which counts are taken to be those of the limit, independent of each other


class Arrivals(enum.StrEnum):
    """Distribution of the times between requests."""

    GAMMA = "gamma"  # each step's count by itself: Poisson with a Gamma-distributed mean
    WEIBULL = "weibull"  # request by request


def weibull_shape(cv: float) -> float:
    """The shape of waits with a CV, by bisection of ``cv**2 + 1 = G(1 + 2 / k) / G(1 + 1 / k)**2``.

    Args:
        cv: From 1, a Poisson process, to 100.
    """
    low, high = 0.1, 1.0
    for _ in range(60):
        shape = 0.5 * (low + high)
        excess = math.lgamma(1.0 + 2.0 / shape) - 2.0 * math.lgamma(1.0 + 1.0 / shape)
        low, high = (shape, high) if excess > math.log1p(cv * cv) else (low, shape)
    return high


@inner
def weibull_scale(shape: float) -> float:
    """Makes the mean wait 1."""
    return 1.0 / math.gamma(1.0 + 1.0 / shape)


@kernel
def first_wait(shape: float, rng: np.random.Generator) -> float:
    """Time to the next request from a moment that has nothing to do with the process.

    Such a moment lies anywhere in a wait that is chosen in proportion to its length: with ``y = (wait / scale)**shape``
    its density is that of ``Gamma(1 + 1 / shape)``.

    Returns:
        In mean waits.
    """
    length = weibull_scale(shape) * rng.standard_gamma(1.0 + 1.0 / shape) ** (1.0 / shape)
    return float(rng.random() * length)


@kernel
def count_renewals(wait: float, mean: float, shape: float, rng: np.random.Generator) -> tuple[int, float]:
    """Requests in one step.

    Args:
        wait: Time from the beginning of the step to the next request, in mean waits.
        mean: Length of the step in mean waits.
        shape: Of the Weibull distribution.
        rng: Source of randomness.

    Returns:
        How many, and the wait from the end of the step on.
    """
    scale, count = weibull_scale(shape), 0
    while wait < mean:
        count += 1
        wait += scale * rng.standard_exponential() ** (1.0 / shape)
    return count, wait - mean
