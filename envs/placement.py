"""Serve's placement: which node takes a pending replica, and which replica is stopped.

Ported from ``ray.serve._private.deployment_scheduler.DeploymentScheduler`` (Ray 2.60). Dims: N nodes, R replicas,
D deployments, K resources.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from rayfold.envs.cluster import SpecArrays
from rayfold.envs.devices import release_gpus, take_gpus
from rayfold.envs.safety import capacity_reason
from rayfold.envs.state import NodePhase, ReplicaPhase, StateArrays

__all__ = [
    "active_nodes",
    "asks_more",
    "best_fit_node",
    "hold",
    "less_left",
    "let_go",
    "next_to_stop",
    "pack_node",
    "replicas_on",
    "spread_node",
]

_ALIVE = int(NodePhase.ALIVE)
_PENDING, _STARTING, _RUNNING = (
    int(ReplicaPhase.PENDING),
    int(ReplicaPhase.STARTING),
    int(ReplicaPhase.RUNNING),
)


@njit(cache=True)
def replicas_on(st: StateArrays) -> NDArray[np.int64]:
    """Replicas that hold resources, per node: ``(N,)``."""
    counts = np.zeros(st.node_type.shape[0], np.int64)
    for r in range(st.replica_node.shape[0]):
        if st.replica_node[r] >= 0:
            counts[st.replica_node[r]] += 1
    return counts


@njit(cache=True)
def hold(spec: SpecArrays, st: StateArrays, r: int, n: int) -> None:
    """Replica ``r`` takes its resources on ``n``, in place; the caller has checked that it fits."""
    d = st.replica_deployment[r]
    st.replica_gpus[r] = take_gpus(st.gpu_free, n, spec.demand[d, 0])
    for k in range(spec.demand.shape[1]):
        st.node_free[n, k] -= spec.demand[d, k]
    st.replica_node[r] = n
    st.node_idle_since_s[n] = np.inf


@njit(cache=True)
def let_go(spec: SpecArrays, st: StateArrays, r: int, now_s: float) -> None:
    """Replica ``r`` gives its resources back and its row becomes EMPTY, in place."""
    d, n = st.replica_deployment[r], st.replica_node[r]
    if n >= 0:
        release_gpus(st.gpu_free, n, st.replica_gpus[r], spec.demand[d, 0])
        for k in range(spec.demand.shape[1]):
            st.node_free[n, k] += spec.demand[d, k]
    st.replica_deployment[r] = -1
    st.replica_node[r] = -1
    st.replica_phase[r] = 0
    st.replica_peer[r] = -1
    st.replica_gpus[r] = 0
    if n >= 0:
        for other in range(st.replica_node.shape[0]):
            if st.replica_node[other] == n:
                return
        st.node_idle_since_s[n] = now_s


@njit(cache=True, inline="always")
def asks_more(spec: SpecArrays, a: int, b: int) -> bool:
    """Whether deployment ``a`` asks for more than ``b``: GPU first, then CPU, memory, custom (``Resources.__lt__``)."""
    for k in range(spec.demand.shape[1]):
        if spec.demand[a, k] != spec.demand[b, k]:
            return bool(spec.demand[a, k] > spec.demand[b, k])
    # A limit per node is a share of a resource that every node has one of; it counts last.
    if a == b or spec.max_per_node[a] <= 0 or spec.max_per_node[b] > 0:
        return bool(a < b and spec.max_per_node[a] > 0)
    return True


@njit(cache=True, inline="always")
def less_left(spec: SpecArrays, st: StateArrays, a: int, b: int) -> bool:
    """Whether node ``a`` is left with less than ``b``: GPU first, then CPU, memory, custom (``Resources.__lt__``)."""
    for k in range(spec.demand.shape[1]):
        left = st.node_free[a, k] - st.node_free[b, k]
        if abs(left) > 1e-9:
            return bool(left < 0)
    return False


@njit(cache=True)
def fits_better(spec: SpecArrays, st: StateArrays, a: int, b: int) -> bool:
    """``less_left``, and of nodes with as much left the one with more replicas that have a limit per node.

    The limit is a share of a resource that every node has one of; ``Resources.__lt__`` comes to it last.
    """
    if less_left(spec, st, a, b):
        return True
    if less_left(spec, st, b, a):
        return False
    for d in range(spec.demand.shape[0]):
        if spec.max_per_node[d] > 0:
            more = 0
            for r in range(st.replica_node.shape[0]):
                if st.replica_deployment[r] == d:
                    more += int(st.replica_node[r] == a) - int(st.replica_node[r] == b)
            if more != 0:
                return bool(more > 0)
    return False


@njit(cache=True, inline="always")
def best_fit_node(spec: SpecArrays, st: StateArrays, d: int, allowed: NDArray[np.bool_]) -> int:
    """Node of ``allowed`` ``(N,)`` that one replica of ``d`` leaves fullest, -1 if it fits on none."""
    best = -1
    for n in range(st.node_type.shape[0]):
        if allowed[n] and capacity_reason(spec, st, d, n) == 0 and (best < 0 or fits_better(spec, st, n, best)):
            best = n
    return best


@njit(cache=True)
def active_nodes(st: StateArrays) -> NDArray[np.bool_]:
    """Nodes with a running replica: ``(N,)``. To Ray every other node is idle, starting replicas or not."""
    active = np.zeros(st.node_type.shape[0], np.bool_)
    for r in range(st.replica_phase.shape[0]):
        if st.replica_phase[r] == _RUNNING:
            active[st.replica_node[r]] = True
    return active


@njit(cache=True)
def pack_node(spec: SpecArrays, st: StateArrays, now_s: float, d: int, active: NDArray[np.bool_]) -> int:
    """Best fit: active nodes first, then empty ones, fenced ones last (Ray cancels its compaction then).

    Returns:
        Node row, -1 if the replica fits nowhere.
    """
    num_nodes = st.node_type.shape[0]
    allowed = np.zeros(num_nodes, np.bool_)
    for stage in range(3):
        for n in range(num_nodes):
            fenced = st.node_fenced_until_s[n] > now_s
            wanted = (stage == 0 and active[n]) or (stage == 1 and not active[n])
            allowed[n] = st.node_phase[n] == _ALIVE and (fenced if stage == 2 else (wanted and not fenced))
        n = best_fit_node(spec, st, d, allowed)
        if n >= 0:
            return int(n)
    return -1


@njit(cache=True)
def spread_node(spec: SpecArrays, st: StateArrays, now_s: float, d: int, cursor: int) -> int:
    """Round robin over the nodes from ``cursor``, fenced ones last.

    Ray's raylet does this for the ``SPREAD`` strategy (``SpreadSchedulingPolicy``, C++).

    Returns:
        Node row, -1 if the replica fits nowhere.
    """
    num_nodes = st.node_type.shape[0]
    for want_fenced in (False, True):
        for i in range(num_nodes):
            n = (cursor + i) % num_nodes
            if st.node_phase[n] != _ALIVE or (st.node_fenced_until_s[n] > now_s) != want_fenced:
                continue
            if capacity_reason(spec, st, d, n) == 0:
                return int(n)
    return -1


@njit(cache=True)
def next_to_stop(st: StateArrays, d: int, serial: NDArray[np.int64]) -> int:
    """The replica of ``d`` that a downscale stops first, -1 if there is none.

    ``_get_replicas_to_stop``: not running ones, then off the head node, then on the node with the fewest
    replicas (of those the one met first), then the newest. A replica that is being moved goes before other running
    ones: Serve stops its starting replacement and finds the old one in surplus.

    Args:
        st: State.
        d: Deployment row.
        serial: ``(R,)`` creation order.
    """
    counts = np.zeros(st.node_type.shape[0], np.int64)
    met = np.full(st.node_type.shape[0], 1 << 62, np.int64)  # when Ray, deployment by deployment, meets the node
    for r in range(st.replica_node.shape[0]):
        n = st.replica_node[r]
        if n >= 0 and st.replica_phase[r] == _RUNNING:
            counts[n] += 1
            met[n] = min(met[n], (st.replica_deployment[r] << 40) + serial[r])
    best = -1
    best_key = (9, 9, 0, 0, 0)
    for r in range(st.replica_phase.shape[0]):
        phase = st.replica_phase[r]
        if st.replica_deployment[r] != d or phase < _PENDING or phase > _RUNNING:
            continue
        if phase != _RUNNING:
            if st.replica_peer[r] >= 0:
                continue  # a replacement goes with the replica it replaces
            key = (0, 0, 0, 0, -serial[r])
        else:
            n = st.replica_node[r]
            key = (1 if st.replica_peer[r] >= 0 else 2, int(st.node_is_head[n]), counts[n], met[n], -serial[r])
        if best < 0 or key < best_key:
            best, best_key = r, key
    return int(best)
