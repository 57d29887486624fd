"""From counts to moves: which replica goes where, in an order in which each move can be made when its turn comes."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.moves import Move
from rayfold.envs.safety import Limits, check_move
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase
from rayfold.envs.transition import with_move
from rayfold.policies.exact_model import CountProblem
from rayfold.policies.exact_program import Counts

__all__ = ["NO_LIMIT", "OrderedEvacuation", "leaving", "order_evacuations"]

NO_LIMIT = 1 << 40  # on concurrent moves


class OrderedEvacuation(NamedTuple):
    """How one node is emptied."""

    node_idx: int
    moves: tuple[Move, ...]  # that can be made now; the others wait for a node that is launched or boots


def order_evacuations(
    state: ClusterState, limits: Limits, problem: CountProblem, counts: Counts
) -> list[OrderedEvacuation]:
    """Emptied nodes, one after another, their largest replicas first.

    What is under way comes first, then what is worth most per move. Shares of a GPU may land on other devices than the
    counts mean: an evacuation that does not fit then is left out as a whole. One node is launched at a time.

    Args:
        state: That the problem was made of.
        limits: What the safety filter allows; its limit on concurrent moves is not applied.
        problem: The problem.
        counts: A solution without use of the room that others leave.
    """
    limits = limits._replace(max_concurrent_moves=NO_LIMIT)
    left, found, can_launch = counts.takes.copy(), [], True
    for b in _by_worth(state, problem, counts):
        tried = left.copy()
        result = _empty(state, limits, problem, int(problem.node[b]), tried, can_launch)
        if result is None:
            continue
        state, moves = result
        left = tried
        can_launch = can_launch and all(move.node_idx < problem.num_rows for move in moves)
        if moves:
            found.append(OrderedEvacuation(int(problem.node[b]), moves))
    return found


def leaving(state: ClusterState, node: int) -> list[int]:
    """Running replicas of a node that are not being moved, largest first."""
    st, demand = state.arrays, state.spec.arrays.demand
    rows = np.flatnonzero(
        (st.replica_node == node) & (st.replica_phase == ReplicaPhase.RUNNING) & (st.replica_peer < 0)
    )
    return sorted(map(int, rows), key=lambda r: (tuple(-demand[st.replica_deployment[r]]), r))


def _by_worth(state: ClusterState, problem: CountProblem, counts: Counts) -> list[int]:
    is_fenced = state.arrays.node_fenced_until_s > state.now_s
    emptied = [int(b) for b in np.flatnonzero(counts.empties)]
    worth = {b: (problem.saving_usd[b] - problem.count[b] @ problem.move_usd) / problem.count[b].sum() for b in emptied}
    return sorted(emptied, key=lambda b: (not is_fenced[problem.node[b]], -worth[b], b))


def _empty(
    state: ClusterState, limits: Limits, problem: CountProblem, node: int, left: NDArray[np.int64], can_launch: bool
) -> tuple[ClusterState, tuple[Move, ...]] | None:
    """The moves of one evacuation, taken off ``left`` in place; None if something fits nowhere."""
    moves: list[Move] = []
    for r in leaving(state, node):
        d = int(state.arrays.replica_deployment[r])
        for b in np.flatnonzero(left[:, d] > 0):
            n = int(problem.node[b])
            is_new = n >= problem.num_rows
            waits = not can_launch if is_new else state.arrays.node_phase[n] == NodePhase.BOOTING
            if not waits and check_move(state, Move(r, n), limits).allowed:
                state = with_move(state, Move(r, n), limits)
                moves.append(Move(r, n))
                can_launch = can_launch and not is_new
            elif not waits:
                continue
            left[b, d] -= 1
            break
        else:
            return None
    return state, tuple(moves)
