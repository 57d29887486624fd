"""``first_fit_decreasing``: empty the least loaded node, each replica onto the first node that takes it.

The textbook rule of bin packing (Johnson 1973): items from the largest to the smallest, each into the first bin with
room. Bins are the occupied nodes in order of their rows; the node that holds the least share of its GPUs goes first.
"""

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.moves import Move, Plan
from rayfold.envs.safety import Limits, check_move, source_reason
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase
from rayfold.envs.transition import with_move
from rayfold.policies.destinations import masks
from rayfold.policies.evacuations import Evacuation, first_moves, new_evacuation

__all__ = ["FirstFitDecreasing"]


class FirstFitDecreasing:
    """Empties one node at a time, as soon as it can be emptied. A node that is being emptied goes first.

    Args:
        limits: What the safety filter allows.
    """

    name = "first_fit_decreasing"

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    def reset(self) -> None:
        """Nothing to forget."""

    def plan(self, state: ClusterState, rng: np.random.Generator) -> Plan:
        """The first moves of the first node in order that can be emptied."""
        may_take = masks(state, self._limits).destination
        for n in _order(state):
            found = _empty(state, n, self._limits, may_take)
            if found is not None:
                chosen = found.as_candidate(-_load(state, n), "chosen")
                return first_moves(state, found, self._limits, f"empty node {n}", (chosen,))
        return Plan(reason="no node can be emptied")


def _load(state: ClusterState, n: int) -> float:
    """Share of the resource that is held most."""
    st, capacity = state.arrays, state.spec.arrays.type_capacity[state.arrays.node_type[n]]
    has = capacity > 0
    return float(((capacity - st.node_free[n])[has] / capacity[has]).max(initial=0.0))


def _order(state: ClusterState) -> list[int]:
    """Occupied nodes: those being emptied first, then from the least loaded on."""
    st = state.arrays
    occupied = map(int, np.flatnonzero((st.node_phase == NodePhase.ALIVE) & (st.node_num_held > 0)))
    return sorted(occupied, key=lambda n: (st.node_fenced_until_s[n] <= state.now_s, _load(state, n), n))


def _empty(state: ClusterState, n: int, limits: Limits, may_take: NDArray[np.bool_]) -> Evacuation | None:
    """All replicas off one node, None if one of them must stay. The limit on concurrent moves does not count."""
    relaxed = limits._replace(max_concurrent_moves=len(state.arrays.replica_phase) + 1)
    st, spec = state.arrays, state.spec.arrays
    is_leaving = (st.replica_phase == ReplicaPhase.STOPPING) | (
        (st.replica_phase == ReplicaPhase.RUNNING) & (st.replica_peer >= 0)
    )
    rows = np.flatnonzero((st.replica_node == n) & ~is_leaving)
    demand = spec.demand[st.replica_deployment[rows]]
    rows = rows[np.lexsort((rows, *(-demand[:, k] for k in reversed(range(demand.shape[1])))))]
    if not len(rows) or any(source_reason(spec, st, state.now_s, relaxed, int(r), 0) for r in rows):
        return None
    now, moves = state, list[Move]()
    for r in map(int, rows):
        to = _first(now, r, n, relaxed, may_take)
        if to < 0:
            return None
        moves.append(Move(r, to))
        now = with_move(now, moves[-1], relaxed)
    return new_evacuation(state, n, moves)


def _first(state: ClusterState, r: int, n: int, limits: Limits, may_take: NDArray[np.bool_]) -> int:
    """First occupied node that takes a replica, -1 if none does."""
    st = state.arrays
    d = st.replica_deployment[r]
    demand = state.spec.arrays.demand[d]
    rows = may_take[:, d] & (st.node_num_held[: len(may_take)] > 0)
    rows &= (st.node_free[: len(may_take)] >= demand - 1e-9).all(1)
    for to in map(int, np.flatnonzero(rows)):
        if to != n and check_move(state, Move(r, to), limits).allowed:
            return to
    return -1
