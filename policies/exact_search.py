"""Large-neighbourhood search: the same program, a few dozen bins at a time, where the whole would not close.

Shaw (CP 1998): fix most of a solution, solve the rest to optimality, repeat. The neighbourhoods first go once through
all bins; later they take bins that are left partly empty, which is where another node may be saved, and some others.
"""

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from rayfold.policies.exact_model import CountProblem
from rayfold.policies.exact_program import Counts, Solved, solve_counts, value_usd
from rayfold.policies.mip import INFINITY

__all__ = ["search_counts", "upper_bound_usd"]

_BUILD_EFFORT = 500  # of writing down one neighbourhood, which takes as long as so much search


def search_counts(
    problem: CountProblem,
    start: Counts,
    rng: np.random.Generator,
    *,
    num_bins: int,
    time_limit_s: float,
    max_effort: float = INFINITY,
    max_stale: int = 30,
    gap_frac: float = 1e-4,
    clock: Callable[[], float] = time.perf_counter,
) -> Solved:
    """Good counts for a large problem.

    Args:
        problem: What there is to decide.
        start: Feasible counts, which the result is not worse than.
        rng: Draws the neighbourhoods.
        num_bins: In one of them.
        time_limit_s: For the whole search.
        max_effort: For the whole search too, at the same point on every machine; see ``Mip.solve``.
        max_stale: Ends it: neighbourhoods without a gain, after the first round.
        gap_frac: Ends a neighbourhood's solve, and the search.
        clock: Measures the time.
    """
    end_s = clock() + time_limit_s
    best, value, bound = start, value_usd(problem, start), upper_bound_usd(problem)
    first = _chunks(rng.permutation(len(problem.node)), num_bins)
    stale, effort = 0, 0
    while clock() < end_s and effort < max_effort and stale < max_stale and value < bound * (1.0 - gap_frac):
        bins = first.pop() if first else _neighbourhood(problem, best, rng, num_bins)
        left_s, left = max(0.05, end_s - clock()), max_effort - effort
        solved = solve_counts(problem, best, time_limit_s=left_s, max_effort=left, gap_frac=gap_frac, bins=bins)
        effort += solved.effort + _BUILD_EFFORT
        is_gain = solved.value_usd > value + 1e-9
        stale = 0 if is_gain or first else stale + 1
        best, value = solved.counts, solved.value_usd
    return Solved(best, value, max(value, bound), value >= bound * (1.0 - gap_frac), effort)


def upper_bound_usd(problem: CountProblem) -> float:
    """No counts are worth more: each resource by itself, bins as if replicas could be cut (a knapsack per resource).

    What leaves fits into the free room of the bins that stay, so the bins with the most dollars per unit of room that
    they use up go first; the last one in part.
    """
    p = problem
    can = np.flatnonzero(p.can_empty)
    worth = np.maximum(p.saving_usd[can] - p.count[can] @ p.move_usd, 0.0)
    takes = np.any(p.slots > 0, axis=1)
    best = float(worth.sum())
    for k in range(p.demand.shape[1]):
        used_up = p.count[can] @ p.demand[:, k] + np.where(takes[can], np.maximum(p.free[can, k], 0.0), 0.0)
        best = min(best, _fractional_knapsack(worth, used_up, float(np.maximum(p.free[takes, k], 0.0).sum())))
    return best


def _fractional_knapsack(worth: NDArray[np.float64], size: NDArray[np.float64], room: float) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
        order = np.argsort(-np.where(size > 0.0, worth / size, np.inf), kind="stable")
    total = 0.0
    for i in order:
        part = 1.0 if size[i] <= room else room / size[i]
        total += part * float(worth[i])
        room -= part * float(size[i])
        if part < 1.0:
            break
    return total


def _chunks(bins: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    return [np.sort(bins[i : i + size]) for i in range(0, len(bins), size)]


def _neighbourhood(problem: CountProblem, counts: Counts, rng: np.random.Generator, num_bins: int) -> NDArray[np.int64]:
    """Half of it from bins that stay and are not full, the rest from all."""
    left = problem.free[:, 0] - (counts.takes - counts.gives) @ problem.demand[:, 0]
    has_room = np.flatnonzero(~counts.empties & (left > 1e-6))
    half = rng.permutation(has_room)[: num_bins // 2]
    others = np.setdiff1d(np.arange(len(problem.node)), half)
    return np.sort(np.concatenate([half, rng.permutation(others)[: num_bins - len(half)]]))
