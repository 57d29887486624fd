"""Random numbers inside the kernels: a stream whose whole state is one integer in an array.

numpy's ``Generator`` cannot be kept in an array of clusters that a kernel steps in one call, and numba's own
``np.random`` is global. SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) passes BigCrush and is a few instructions.
"""

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["exponential", "new_stream", "uniform", "unit"]


def new_stream(rng: np.random.Generator) -> NDArray[np.uint64]:
    """``(1,)`` state of a stream, seeded from ``rng``."""
    return rng.integers(0, 2**64, size=1, dtype=np.uint64)


@njit(cache=True, inline="always")
def unit(stream: NDArray[np.uint64]) -> float:
    """A number in ``[0, 1)``, 53 bits; advances the stream."""
    stream[0] += np.uint64(0x9E3779B97F4A7C15)
    z = stream[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return float(z >> np.uint64(11)) * 2.0**-53


@njit(cache=True, inline="always")
def uniform(stream: NDArray[np.uint64], low: float, high: float) -> float:
    """A number in ``[low, high)``."""
    return low + (high - low) * unit(stream)


@njit(cache=True, inline="always")
def exponential(stream: NDArray[np.uint64], mean: float) -> float:
    """An exponential waiting time."""
    return -mean * math.log1p(-unit(stream))
