"""From counts that use the room which others leave to moves: each one fits once those before it are over.

Moves go where they fit, replicas of nodes that stay first, since they make room. Where none fits, one replica is
parked on a node that has room for it and goes on from there: that costs a move more.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.moves import Move
from rayfold.envs.placement import hold, let_go
from rayfold.envs.safety import Limits, capacity_reason, check_move
from rayfold.envs.spec_arrays import SpecArrays
from rayfold.envs.state import ClusterState, ReplicaPhase, StateArrays
from rayfold.envs.transition import with_move
from rayfold.policies.exact_model import CountProblem
from rayfold.policies.exact_order import NO_LIMIT, leaving
from rayfold.policies.exact_program import Counts

__all__ = ["order_repacking", "possible_at_once"]


def order_repacking(
    state: ClusterState, problem: CountProblem, counts: Counts, max_moves: int, *, may_park: bool = True
) -> tuple[Move, ...]:
    """The moves of a solution, each of which fits when those before it are done.

    Args:
        state: That the problem was made of.
        problem: The problem.
        counts: A solution.
        max_moves: With those by way of another node.
        may_park: Whether any may go by way of another node.

    Returns:
        All moves, or those up to where it is stuck.
    """
    return _Repacking(state, problem, counts).run(max_moves, may_park)


def possible_at_once(state: ClusterState, moves: Sequence[Move], limits: Limits) -> tuple[Move, ...]:
    """Those of the moves that need neither room which others leave nor the end of a fence.

    Args:
        state: The cluster.
        moves: In the order of ``order_repacking``.
        limits: What the safety filter allows; its limit on concurrent moves and its cooldown are not applied.
    """
    limits = limits._replace(max_concurrent_moves=NO_LIMIT, deployment_cooldown_s=0.0)
    found = []
    for move in moves:
        if check_move(state, move, limits).allowed:
            state = with_move(state, move, limits)
            found.append(move)
    return tuple(found)


class _Repacking:
    """What is still to be moved, on a scratch copy of the state."""

    def __init__(self, state: ClusterState, problem: CountProblem, counts: Counts) -> None:
        self._spec: SpecArrays = state.spec.arrays
        self._st: StateArrays = state.arrays.copy()
        self._now_s, self._p, self._empties = state.now_s, problem, counts.empties
        # Taking what one gives needs no move, unless it is about which device is given back.
        stays = np.minimum(counts.takes, counts.gives) * (problem.on_device.sum(1) == 0)
        self._takes = counts.takes - stays
        self._rows: dict[tuple[int, int], list[int]] = {}
        for b, d in np.argwhere(counts.gives - stays > 0):
            of_kind = [r for r in leaving(state, int(problem.node[b])) if state.arrays.replica_deployment[r] == d]
            of_kind = _by_device(state, of_kind, counts.on_device[b, :, d]) or of_kind
            self._rows[int(b), int(d)] = of_kind[: int(counts.gives[b, d] - stays[b, d])]
        self._moves: list[Move] = []

    def run(self, max_moves: int, may_park: bool) -> tuple[Move, ...]:
        """Moves until there is nothing left, or nothing that can be done."""
        parked, most_parked = 0, int(self._takes.sum()) if may_park else 0
        while self._takes.any() and len(self._moves) < max_moves:
            if self._move_what_fits(max_moves):
                continue
            if parked >= most_parked or len(self._moves) + int(self._takes.sum()) >= max_moves or not self._park():
                break
            parked += 1
        return tuple(self._moves)

    def _move_what_fits(self, max_moves: int) -> bool:
        """One pass over all that is to be taken; whether anything moved."""
        before = len(self._moves)
        order = sorted(np.argwhere(self._takes > 0).tolist(), key=lambda bd: (tuple(-self._p.demand[bd[1]]), bd[0]))
        for b, d in order:
            while self._takes[b, d] > 0 and len(self._moves) < max_moves and self._fits(d, b):
                source = self._source(b, d)
                if source is None:
                    break
                self._move(source, d, b)
                self._takes[b, d] -= 1
        return len(self._moves) > before

    def _fits(self, d: int, b: int) -> bool:
        n = int(self._p.node[b])
        return n < self._p.num_rows and capacity_reason(self._spec, self._st, d, n) == 0

    def _source(self, b: int, d: int) -> int | None:
        """The bin that gives a replica: one that stays, then the one with the fewest left."""
        giving = [a for (a, kind), rows in self._rows.items() if kind == d and rows and a != b and self._may_give(a)]
        held = self._st.node_num_held
        return min(giving, key=lambda a: (self._empties[a], held[self._p.node[a]], a), default=None)

    def _may_give(self, a: int) -> bool:
        """A node that is to take something is not emptied first: it might be released."""
        return not self._takes[a].any() or bool(self._st.node_num_held[self._p.node[a]] > 1)

    def _move(self, a: int, d: int, b: int) -> int:
        """From bin a to bin b."""
        r, st = self._rows[a, d].pop(), self._st
        n = int(self._p.node[b])
        let_go(self._spec, st, r, self._now_s)
        st.replica_deployment[r], st.replica_phase[r] = d, int(ReplicaPhase.RUNNING)
        hold(self._spec, st, r, n)
        self._moves.append(Move(r, n))
        return r

    def _park(self) -> bool:
        """Moves a replica that is in the way to where there is room for it; whether there was one."""
        waiting = {int(b) for b in np.flatnonzero(self._takes.any(1))}
        by_size = sorted(self._rows.items(), key=lambda item: (tuple(-self._p.demand[item[0][1]]), item[0]))
        for (a, d), rows in by_size:
            if a not in waiting or not rows or not self._may_give(a):
                continue
            rooms = [b for b in range(len(self._p.node)) if b != a and self._p.slots[b, d] > 0 and self._fits(d, b)]
            # Nodes that are emptied in the end hold up nothing.
            b = min(rooms, key=lambda b: (not self._empties[b], b in waiting, b), default=None)
            if b is not None and self._st.node_num_held[self._p.node[b]] > 0:
                r = self._move(a, d, b)
                self._rows.setdefault((b, d), []).append(r)
                return True
        return False


def _by_device(state: ClusterState, rows: list[int], wanted: NDArray[np.int64]) -> list[int]:
    """So many of these replicas from each device, ``wanted`` ``(G,)``."""
    masks = state.arrays.replica_gpus.max(1)
    return [r for g, num in enumerate(wanted) for r in [r for r in rows if masks[r] == 1 << g][: int(num)]]
