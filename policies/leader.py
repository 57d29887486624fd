"""``Leader``: which policy leads in which kind of cluster, learned from what each has cost in others.

Per-instance algorithm selection (Rice 1976; SATzilla, Xu et al. 2008): no policy is best everywhere, but a description
of the cluster tells which one will be. Each member's bill, relative to that of the reference on the same episode, is a
Gaussian process over that description (Rasmussen and Williams 2006, algorithm 2.1). Far from all that was seen it knows
nothing, expects no gain and is in doubt: then the reference leads. Dims: N episodes, D features, K members.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular

from rayfold.policies.world_features import WORLD_FEATURES

__all__ = ["REFERENCE", "Experience", "Kernel", "Leader", "covariance", "scale_of"]

REFERENCE = -1  # stands for no member: the reference leads
WORTH_LIMIT = 0.15  # beyond it a bill is just far too high, or luck
_NEW_NODES = WORLD_FEATURES.index("new_nodes")
DOUBT = 0.5  # chosen on training days (docs/learning.md, 14)


class Kernel(NamedTuple):
    """Squared-exponential, one length for all standardised features."""

    signal_frac: float  # of the bill: how much worlds differ
    length: float  # in standard deviations of the features
    noise_frac: float  # of the bill: how much episodes of one world differ


@dataclass(frozen=True, slots=True, kw_only=True)
class Experience:
    """What the leader has learned from."""

    members: tuple[str, ...]  # names as in ``by_name``
    worlds: NDArray[np.float64]  # (N, D)
    worth: NDArray[np.float64]  # (N, K) bill of each member over that of the reference, minus 1
    kernels: tuple[Kernel, ...]  # one per member


def scale_of(worlds: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and spread ``(D,)`` of each feature; a feature that never differed has the spread 1."""
    spread = worlds.std(0)
    return worlds.mean(0), np.where(spread > 1e-6, spread, 1.0)


def covariance(a: NDArray[np.float64], b: NDArray[np.float64], kernel: Kernel) -> NDArray[np.float64]:
    """``(len(a), len(b))`` of standardised worlds, without noise.

    Worlds in which moves may launch nodes and worlds in which they may not tell nothing of each other: who is good in
    the one kind need not have learned the other.
    """
    squares = ((a[:, None, :] - b[None, :, :]) ** 2).sum(-1)
    is_alike = np.abs(a[:, None, _NEW_NODES] - b[None, :, _NEW_NODES]) < 1e-6
    out: NDArray[np.float64] = is_alike * kernel.signal_frac**2 * np.exp(-0.5 * squares / kernel.length**2)
    return out


class Leader:
    """Knows what members will cost.

    Args:
        experience: At least one episode.
        doubt: How many standard deviations of what it does not know it adds to what it expects.
    """

    def __init__(self, experience: Experience, doubt: float = DOUBT) -> None:
        self.experience, self.doubt = experience, doubt
        self._mean, self._spread = scale_of(experience.worlds)
        self._known = (experience.worlds - self._mean) / self._spread
        worth = np.clip(experience.worth, -WORTH_LIMIT, WORTH_LIMIT)
        self._lower, self._weights = [], []
        for k, kernel in enumerate(experience.kernels):
            noisy = covariance(self._known, self._known, kernel) + kernel.noise_frac**2 * np.eye(len(self._known))
            self._lower.append(cholesky(noisy, lower=True))
            self._weights.append(cho_solve((self._lower[-1], True), worth[:, k]))

    def expected(self, world: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Bill of each member over that of the reference, minus 1.

        Args:
            world: ``(D,)``, see ``world_features``.

        Returns:
            Means and standard deviations ``(K,)``; these are of the mean of many episodes, not of one.
        """
        x = ((world - self._mean) / self._spread)[None, :]
        means, stds = [], []
        for kernel, lower, weights in zip(self.experience.kernels, self._lower, self._weights, strict=True):
            near = covariance(self._known, x, kernel)[:, 0]
            known = solve_triangular(lower, near, lower=True)
            means.append(float(near @ weights))
            stds.append(max(0.0, kernel.signal_frac**2 - float(known @ known)) ** 0.5)
        return np.array(means), np.array(stds)

    def choose(self, world: NDArray[np.float64]) -> tuple[int, float]:
        """Row of the member that leads, or ``REFERENCE``; and what its bill is expected to be, as in ``expected``."""
        mean, std = self.expected(world)
        cautious = mean + self.doubt * std
        best = int(cautious.argmin())
        return (best, float(mean[best])) if cautious[best] < 0.0 else (REFERENCE, 0.0)
