"""Starting and cancelling a move: the same transition in the simulator and in a policy's look-ahead."""

import numpy as np
from numba import njit

from rayfold.envs.cluster import SpecArrays
from rayfold.envs.moves import Move
from rayfold.envs.placement import hold, let_go
from rayfold.envs.safety import Limits
from rayfold.envs.state import ClusterState, ReplicaPhase, StateArrays

__all__ = ["begin_move", "cancel_move", "free_row", "with_move"]

_EMPTY, _STARTING = int(ReplicaPhase.EMPTY), int(ReplicaPhase.STARTING)


@njit(cache=True)
def free_row(st: StateArrays) -> int:
    """First unused replica row, -1 if there is none."""
    for r in range(st.replica_phase.shape[0]):
        if st.replica_phase[r] == _EMPTY:
            return r
    return -1


@njit(cache=True)
def begin_move(spec: SpecArrays, st: StateArrays, now_s: float, fence_s: float, source: int, n: int) -> int:
    """Starts the replacement of replica ``source`` on node ``n``, in place.

    Both hold their resources until the replacement serves; the node that is left is fenced.

    Args:
        spec: Static description.
        st: State; the safety filter allows the move.
        now_s: Clock.
        fence_s: How long the node stays fenced.
        source: Replica row that leaves.
        n: Node row it goes to.

    Returns:
        Row of the replacement, -1 if no row is unused (nothing is changed then).
    """
    row = free_row(st)
    if row < 0:
        return -1
    d = st.replica_deployment[source]
    st.replica_deployment[row] = d
    st.replica_phase[row] = _STARTING
    st.replica_since_s[row] = now_s
    st.replica_peer[row] = source
    st.replica_peer[source] = row
    hold(spec, st, row, n)
    st.deployment_moved_s[d] = now_s
    st.deployment_changed_s[d] = now_s
    st.node_fenced_until_s[st.replica_node[source]] = now_s + fence_s
    return row


@njit(cache=True)
def cancel_move(spec: SpecArrays, st: StateArrays, now_s: float, replacement: int) -> None:
    """Drops the starting ``replacement``, in place; the old replica goes on serving, its node is unfenced."""
    source = st.replica_peer[replacement]
    st.replica_peer[source] = -1
    st.node_fenced_until_s[st.replica_node[source]] = -np.inf
    st.deployment_changed_s[st.replica_deployment[source]] = now_s
    let_go(spec, st, replacement, now_s)


def with_move(state: ClusterState, move: Move, limits: Limits) -> ClusterState:
    """The state just after ``move`` has begun; ``state`` itself is unchanged.

    Args:
        state: The cluster.
        move: A move that the safety filter allows.
        limits: For the fence.
    """
    arrays, replica_ids = state.arrays.copy(), state.replica_ids
    if free_row(arrays) < 0:
        empty = StateArrays.empty(state.spec, 0, 1)
        grown = {
            name: np.concatenate([getattr(arrays, name), getattr(empty, name)])
            for name in StateArrays._fields
            if name.startswith("replica_")
        }
        arrays = arrays._replace(**grown)
        replica_ids = (*replica_ids, "") if replica_ids else ()
    begin_move(state.spec.arrays, arrays, state.now_s, limits.fence_s, move.replica_idx, move.node_idx)
    return ClusterState(
        spec=state.spec, now_s=state.now_s, arrays=arrays, node_ids=state.node_ids, replica_ids=replica_ids
    )
