"""Serve's placement: which node takes a pending replica, and which replica is stopped.

Ported from ``ray.serve._private.deployment_scheduler.DeploymentScheduler`` (Ray 2.60). Dims: N nodes, R replicas,
D deployments, K resources.
"""

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.devices import release_gpus, take_gpus
from rayfold.envs.jit import inner, kernel
from rayfold.envs.safety import capacity_reason, has_capacity
from rayfold.envs.spec_arrays import SpecArrays
from rayfold.envs.state import NodePhase, ReplicaPhase, StateArrays

__all__ = [
    "active_nodes",
    "asks_more",
    "fits_better",
    "hold",
    "less_left",
    "let_go",
    "member_node",
    "pack_node",
    "replicas_to_stop",
    "spread_node",
]

_ALIVE = int(NodePhase.ALIVE)
_MANY = 1000  # more than a gang has members
_PENDING, _STARTING, _RUNNING = (
    int(ReplicaPhase.PENDING),
    int(ReplicaPhase.STARTING),
    int(ReplicaPhase.RUNNING),
)


@kernel
def hold(spec: SpecArrays, st: StateArrays, r: int, n: int) -> None:
    """Replica ``r`` takes its resources on ``n``, in place; the caller has checked that it fits."""
    d = st.replica_deployment[r]
    if spec.sums_gpus[d]:
        st.replica_gpus[r, 0] = take_gpus(st.gpu_free, n, spec.demand[d, 0])
    else:
        for j in range(spec.num_bundles[d]):
            st.replica_gpus[r, j] = take_gpus(st.gpu_free, n, spec.bundle[d, j, 0])
    for k in range(spec.demand.shape[1]):
        st.node_free[n, k] -= spec.demand[d, k]
    st.replica_node[r] = n
    st.node_held[n, d] += 1
    st.node_num_held[n] += 1
    st.node_idle_since_s[n] = np.inf


@kernel
def let_go(spec: SpecArrays, st: StateArrays, r: int, now_s: float) -> None:
    """Replica ``r`` gives its resources back and its row becomes EMPTY, in place."""
    d, n = st.replica_deployment[r], st.replica_node[r]
    if n >= 0 and st.replica_spans[r]:
        _let_go_bundles(spec, st, r, now_s)
    elif n >= 0:
        if spec.sums_gpus[d]:
            release_gpus(st.gpu_free, n, st.replica_gpus[r, 0], spec.demand[d, 0])
        else:
            for j in range(spec.num_bundles[d]):
                release_gpus(st.gpu_free, n, st.replica_gpus[r, j], spec.bundle[d, j, 0])
        for k in range(spec.demand.shape[1]):
            st.node_free[n, k] += spec.demand[d, k]
        _leave(st, n, d, now_s)
    st.replica_deployment[r] = -1
    st.replica_node[r] = -1
    st.replica_phase[r] = 0
    st.replica_peer[r] = -1
    st.replica_spans[r] = False
    st.replica_pinned_node[r] = -1
    for j in range(st.replica_gpus.shape[1]):
        st.replica_gpus[r, j] = 0
        st.replica_bundle_node[r, j] = -1


@inner
def _leave(st: StateArrays, n: int, d: int, now_s: float) -> None:
    st.node_held[n, d] -= 1
    st.node_num_held[n] -= 1
    if st.node_num_held[n] == 0:
        st.node_idle_since_s[n] = now_s


@inner
def _let_go_bundles(spec: SpecArrays, st: StateArrays, r: int, now_s: float) -> None:
    d = st.replica_deployment[r]
    for j in range(spec.num_bundles[d]):
        n = st.replica_bundle_node[r, j]
        release_gpus(st.gpu_free, n, st.replica_gpus[r, j], spec.bundle[d, j, 0])
        for k in range(spec.demand.shape[1]):
            st.node_free[n, k] += spec.bundle[d, j, k]
        is_last = True
        for i in range(j + 1, spec.num_bundles[d]):
            if st.replica_bundle_node[r, i] == n:
                is_last = False
        if is_last:
            _leave(st, n, d, now_s)


@kernel
def asks_more(spec: SpecArrays, a: int, b: int) -> bool:
    """Whether deployment ``a`` asks for more than ``b``: GPU first, then CPU, memory, custom (``Resources.__lt__``)."""
    for k in range(spec.demand.shape[1]):
        if spec.demand[a, k] != spec.demand[b, k]:
            return bool(spec.demand[a, k] > spec.demand[b, k])
    # A limit per node is a share of a resource that every node has one of; it counts last.
    if a == b or spec.max_per_node[a] <= 0 or spec.max_per_node[b] > 0:
        return bool(a < b and spec.max_per_node[a] > 0)
    return True


@inner
def less_left(node_free: NDArray[np.float64], a: int, b: int) -> bool:
    """Whether node ``a`` is left with less than ``b``: GPU first, then CPU, memory, custom (``Resources.__lt__``)."""
    for k in range(node_free.shape[1]):
        left = node_free[a, k] - node_free[b, k]
        if abs(left) > 1e-9:
            return bool(left < 0)
    return False


@inner
def fits_better(
    node_free: NDArray[np.float64], node_held: NDArray[np.int64], limited: NDArray[np.int64], a: int, b: int
) -> bool:
    """Whether node ``a`` is left with less than ``b``; see ``less_left``. The arguments are the fields of these names.

    Of nodes with as much left it is the one with more replicas that have a limit per node: the limit is a share of a
    resource that every node has one of, and ``Resources.__lt__`` comes to it last.
    """
    if less_left(node_free, a, b):
        return True
    if less_left(node_free, b, a):
        return False
    for i in range(limited.shape[0]):
        if node_held[a, limited[i]] != node_held[b, limited[i]]:
            return bool(node_held[a, limited[i]] > node_held[b, limited[i]])
    return False


@kernel
def member_node(spec: SpecArrays, st: StateArrays, r: int, j: int) -> int:
    """Node row of member ``j`` of gang ``r``; of a replica that is no gang, of its actor, and ``j`` is 0."""
    if not st.replica_spans[r]:
        return int(st.replica_node[r])
    d = st.replica_deployment[r]
    return int(st.replica_bundle_node[r, j * (spec.num_bundles[d] // spec.gang_size[d])])


@kernel
def active_nodes(spec: SpecArrays, st: StateArrays) -> NDArray[np.bool_]:
    """Nodes with a running replica: ``(N,)``. To Ray every other node is idle, starting replicas or not."""
    active, phase = np.zeros(st.node_type.shape[0], np.bool_), st.replica_phase
    for r in range(phase.shape[0]):
        if phase[r] == _RUNNING:
            for j in range(spec.gang_size[st.replica_deployment[r]]):
                active[member_node(spec, st, r, j)] = True
    return active


@kernel
def pack_node(spec: SpecArrays, st: StateArrays, now_s: float, d: int, active: NDArray[np.bool_]) -> int:
    """Best fit: active nodes first, then idle ones, fenced ones last (Ray cancels its compaction then).

    With label fallbacks each selector is tried in turn, active and idle nodes alike
    (``_build_pack_placement_candidates``).

    Args:
        spec: Static description.
        st: State.
        now_s: Its clock.
        d: Deployment row.
        active: ``(N,)`` ``active_nodes``, and those that took a replica in the same round of placement.

    Returns:
        Node row, -1 if the replica fits nowhere.
    """
    node_type, phase, fenced_until_s, rank = st.node_type, st.node_phase, st.node_fenced_until_s, spec.label_rank
    node_free, gpu_free, node_held, fits_type = st.node_free, st.gpu_free, st.node_held, spec.fits_type
    demand, bundle, num_bundles, sums_gpus = spec.demand, spec.bundle, spec.num_bundles, spec.sums_gpus
    max_per_node, limited = spec.max_per_node, spec.limited
    best, best_stage = -1, 1 << 30
    for n in range(node_type.shape[0]):
        if phase[n] != _ALIVE or not fits_type[d, node_type[n]]:
            continue
        stage = 2 * rank[d, node_type[n]] + int(not active[n])
        if fenced_until_s[n] > now_s:
            stage = 1 << 20  # after every other node, whatever its labels
        if stage > best_stage or (stage == best_stage and not fits_better(node_free, node_held, limited, n, best)):
            continue
        if has_capacity(demand, bundle, num_bundles, max_per_node, sums_gpus, node_free, gpu_free, node_held, d, n):
            best, best_stage = n, stage
    return best


@kernel
def spread_node(spec: SpecArrays, st: StateArrays, now_s: float, d: int, cursor: int) -> int:
    """Round robin over the nodes from ``cursor``, those of label fallbacks later, fenced ones last.

    Ray's raylet does this for the ``SPREAD`` strategy (``SpreadSchedulingPolicy``, C++).

    Returns:
        Node row, -1 if the replica fits nowhere.
    """
    node_type, phase, fenced_until_s, rank = st.node_type, st.node_phase, st.node_fenced_until_s, spec.label_rank
    num_nodes, fits_type = node_type.shape[0], spec.fits_type
    best, best_stage = -1, 1 << 30
    for i in range(num_nodes):
        n = cursor + i
        n = n - num_nodes if n >= num_nodes else n
        if phase[n] != _ALIVE or not fits_type[d, node_type[n]]:
            continue
        stage = rank[d, node_type[n]]
        if fenced_until_s[n] > now_s:
            stage = 1 << 20
        if stage < best_stage and capacity_reason(spec, st, d, n) == 0:
            best, best_stage = n, stage
            if stage == 0:
                break
    return best


@kernel
def replicas_to_stop(
    spec: SpecArrays, st: StateArrays, d: int, num: int, serial: NDArray[np.int64], top: int = -1
) -> NDArray[np.int64]:
    """The replicas of ``d`` that a downscale by ``num`` stops, first one first.

    ``_get_replicas_to_stop``: not running ones, then off the head node, then on nodes of a label fallback, then on
    the node with the fewest running replicas (of those the one met first, deployment by deployment), then the newest.
    A replica that is being moved goes before other running ones: Serve stops its starting replacement and finds the
    old one in surplus. A gang goes with the first of its members.

    Args:
        spec: Static description.
        st: State.
        d: Deployment row.
        num: How many.
        serial: ``(R,)`` creation order.
        top: Rows in use, -1 = any may be.

    Returns:
        At most ``num`` rows.
    """
    num_nodes, num_replicas = st.node_type.shape[0], st.replica_phase.shape[0] if top < 0 else top
    phases, deployment = st.replica_phase, st.replica_deployment
    counts = np.zeros(num_nodes, np.int64)
    first = np.full(num_nodes, -1, np.int64)  # the running replica by which Ray meets the node
    first_member = np.zeros(num_nodes, np.int64)
    for r in range(num_replicas):
        if phases[r] == _RUNNING:
            for j in range(spec.gang_size[deployment[r]]):
                n = member_node(spec, st, r, j)
                counts[n] += 1
                if first[n] < 0 or _is_met_before(st, serial, r, first[n]):
                    first[n], first_member[n] = r, j
    chosen = np.empty(num, np.int64)
    is_taken = np.zeros(num_replicas, np.bool_)
    for i in range(num):
        best = -1
        best_key = (9, 9, 9, 0, 0, 0.0, 0, 0.0, 0)
        for r in range(num_replicas):
            phase = phases[r]
            if deployment[r] != d or phase < _PENDING or phase > _RUNNING or is_taken[r]:
                continue
            if phase != _RUNNING:
                if st.replica_peer[r] >= 0:
                    continue  # a replacement goes with the replica it replaces
                key = (0, 0, 0, 0, 0, 0.0, 0, 0.0, -serial[r])
            else:
                key = (9, 9, 9, 0, 0, 0.0, 0, 0.0, 0)
                for j in range(spec.gang_size[d]):
                    n = member_node(spec, st, r, j)
                    f = first[n]
                    member_key = (
                        1 if st.replica_peer[r] >= 0 else 2,
                        int(st.node_is_head[n]),
                        int(spec.label_rank[d, st.node_type[n]] == 0),
                        counts[n],
                        st.replica_deployment[f],
                        st.replica_since_s[f],
                        serial[f] * _MANY + first_member[n],
                        -st.replica_since_s[r],
                        -serial[r],
                    )
                    if member_key < key:
                        key = member_key
            if best < 0 or key < best_key:
                best, best_key = r, key
        if best < 0:
            return chosen[:i]
        is_taken[best] = True
        chosen[i] = best
    return chosen


@inner
def _is_met_before(st: StateArrays, serial: NDArray[np.int64], a: int, b: int) -> bool:
    """Whether Ray, walking deployments and then replicas in the order they came to run, meets ``a`` before ``b``."""
    if st.replica_deployment[a] != st.replica_deployment[b]:
        return bool(st.replica_deployment[a] < st.replica_deployment[b])
    if st.replica_since_s[a] != st.replica_since_s[b]:
        return bool(st.replica_since_s[a] < st.replica_since_s[b])
    return bool(serial[a] < serial[b])
