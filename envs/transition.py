"""Starting and cancelling a move: the same transition in the simulator and in a policy's look-ahead."""

import numpy as np

from rayfold.envs.jit import kernel
from rayfold.envs.moves import Move
from rayfold.envs.node_autoscaler import add_node
from rayfold.envs.placement import hold, let_go
from rayfold.envs.safety import Limits
from rayfold.envs.spec_arrays import SpecArrays
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase, StateArrays

__all__ = ["begin_move", "cancel_move", "free_row", "with_move"]

_EMPTY, _PENDING, _STARTING = int(ReplicaPhase.EMPTY), int(ReplicaPhase.PENDING), int(ReplicaPhase.STARTING)
_BOOTING, _ABSENT = int(NodePhase.BOOTING), int(NodePhase.ABSENT)


@kernel
def free_row(st: StateArrays) -> int:
    """First unused replica row, -1 if there is none."""
    phase = st.replica_phase
    for r in range(phase.shape[0]):
        if phase[r] == _EMPTY:
            return r
    return -1


@kernel
def begin_move(spec: SpecArrays, st: StateArrays, now_s: float, fence_s: float, source: int, n: int) -> int:
    """Starts the replacement of replica ``source`` on node ``n``, in place.

    Both hold their resources until the replacement serves; the node that is left is fenced. ``n = N + t`` launches a
    node of type t, and the replacement is PENDING until that is alive.

    Args:
        spec: Static description.
        st: State; the safety filter allows the move.
        now_s: Clock.
        fence_s: How long the node stays fenced.
        source: Replica row that leaves.
        n: Node row it goes to, or N + node type.

    Returns:
        Row of the replacement, -1 if no row of the replica or of the node is unused (nothing is changed then).
    """
    row, num_nodes = free_row(st), st.node_type.shape[0]
    if row < 0:
        return -1
    launched = -1
    if n >= num_nodes:
        launched = add_node(spec, st, n - num_nodes, _BOOTING, now_s)
        if launched < 0:
            return -1
    d = st.replica_deployment[source]
    st.replica_deployment[row] = d
    st.replica_phase[row] = _STARTING if launched < 0 else _PENDING
    st.replica_since_s[row] = now_s
    st.replica_pinned_node[row] = launched
    st.replica_peer[row] = source
    st.replica_peer[source] = row
    if launched < 0:
        hold(spec, st, row, n)
    st.deployment_moved_s[d] = now_s
    st.deployment_changed_s[d] = now_s
    st.node_fenced_until_s[st.replica_node[source]] = now_s + fence_s
    return row


@kernel
def cancel_move(spec: SpecArrays, st: StateArrays, now_s: float, replacement: int) -> None:
    """Drops the ``replacement`` before it serves, in place; the old replica goes on serving.

    Its node is unfenced, unless other replicas are leaving it.
    """
    source = st.replica_peer[replacement]
    n = st.replica_node[source]
    st.replica_peer[source] = -1
    is_still_left = False
    for r in range(st.replica_phase.shape[0]):
        if st.replica_node[r] == n and st.replica_peer[r] >= 0 and st.replica_phase[r] > _STARTING:
            is_still_left = True
    if not is_still_left:
        st.node_fenced_until_s[n] = -np.inf
    st.deployment_changed_s[st.replica_deployment[source]] = now_s
    let_go(spec, st, replacement, now_s)


def with_move(state: ClusterState, move: Move, limits: Limits) -> ClusterState:
    """The state just after ``move`` has begun; ``state`` itself is unchanged.

    Args:
        state: The cluster.
        move: A move that the safety filter allows.
        limits: For the fence.
    """
    arrays, num_nodes = state.arrays.copy(), len(state.arrays.node_type)
    replica_ids, node_ids, n = state.replica_ids, state.node_ids, move.node_idx
    if free_row(arrays) < 0:
        arrays = arrays.with_rows(state.spec, 0, 1)
        replica_ids = (*replica_ids, "") if replica_ids else ()
    if n >= num_nodes and not (arrays.node_phase == _ABSENT).any():
        arrays = arrays.with_rows(state.spec, 1, 0)
        node_ids = (*node_ids, "") if node_ids else ()
        n += 1
    begin_move(state.spec.arrays, arrays, state.now_s, limits.fence_s, move.replica_idx, n)
    return ClusterState(spec=state.spec, now_s=state.now_s, arrays=arrays, node_ids=node_ids, replica_ids=replica_ids)
