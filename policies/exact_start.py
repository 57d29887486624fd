"""Where the exact planner's search begins: the evacuations that ``best_fit`` would make, as long as each one pays."""

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.safety import Limits
from rayfold.envs.state import ClusterState
from rayfold.envs.transition import with_move
from rayfold.policies.evacuations import Evacuation, evacuations
from rayfold.policies.exact_model import CountProblem
from rayfold.policies.exact_order import NO_LIMIT
from rayfold.policies.exact_program import Counts, no_moves

__all__ = ["start_counts"]


def start_counts(state: ClusterState, limits: Limits, problem: CountProblem) -> Counts:
    """Feasible counts: one evacuation after another in ``best_fit``'s order, both copies held throughout.

    Args:
        state: That the problem was made of.
        limits: What the safety filter allows; its limit on concurrent moves is not applied.
        problem: The problem.
    """
    limits = limits._replace(max_concurrent_moves=NO_LIMIT, fence_s=max(limits.fence_s, 1.0))
    counts, bin_of = no_moves(problem), {int(n): b for b, n in enumerate(problem.node)}
    left, may_leave = problem.max_moves, problem.may_leave.copy()
    received = np.zeros(len(problem.node), np.bool_)
    while True:
        fits = [e for e in evacuations(state, limits) if _pays(problem, e, bin_of, left, may_leave, received)]
        if not fits:
            return counts
        chosen = min(fits, key=lambda e: (not e.is_underway, e.price_usd, -e.node_usd_per_h, e.node_idx))
        b = bin_of[chosen.node_idx]
        counts.empties[b] = True
        counts.gives[b] = problem.count[b]
        for move in chosen.moves:
            to = bin_of[move.node_idx]
            counts.takes[to, state.arrays.replica_deployment[move.replica_idx]] += 1
            received[to] = True
        for move in chosen.moves:
            state = with_move(state, move, limits)
        left -= len(chosen.moves)
        may_leave[problem.node_type[b]] -= 1


def _pays(
    problem: CountProblem,
    e: Evacuation,
    bin_of: dict[int, int],
    left: int,
    may_leave: NDArray[np.int64],
    received: NDArray[np.bool_],
) -> bool:
    b = bin_of.get(e.node_idx)
    if b is None or not problem.can_empty[b] or received[b] or len(e.moves) > left:
        return False
    return bool(problem.saving_usd[b] > e.price_usd and may_leave[problem.node_type[b]] > 0)
