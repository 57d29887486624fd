"""What no allowed move may break, counted anew from the replicas. Written without a look at ``envs/safety.py``.

Dims: N nodes, R replicas, D deployments, G devices, K resources, M bundles.
"""

import enum

from rayfold.envs.jit import inner, kernel
from rayfold.envs.safety import Limits
from rayfold.envs.state import NodePhase, ReplicaPhase, StateArrays
from tests.filter_fuzz.facts import Facts
from tests.filter_fuzz.world import Others

__all__ = ["Broken", "broken_after", "broken_by"]

_SLACK = 1e-5


class Broken(enum.IntEnum):
    """An invariant."""

    NONE = 0
    REPLICA = 1  # is there, serves, on one node, and does not move already
    OPT_OUT = 2  # of its deployment or of its node
    COOLDOWN = 3
    IN_FLIGHT = 4
    SOURCE = 5  # alive, releasable, not the head, more of its type than there must be
    DESTINATION = 6  # is there, is another, alive, open to moves, not the head
    FENCE = 7
    LABELS = 8
    RESOURCES = 9
    DEVICES = 10
    PER_NODE = 11
    NEW_NODE = 12  # allowed, and fewer of its type than there may be
    BOOKS = 13  # free room in the state is not what capacity and holders leave


_ALIVE, _RUNNING, _STOPPING = int(NodePhase.ALIVE), int(ReplicaPhase.RUNNING), int(ReplicaPhase.STOPPING)
_NONE, _REPLICA, _OPT_OUT, _COOLDOWN, _IN_FLIGHT, _SOURCE = 0, 1, 2, 3, 4, 5
_DESTINATION, _FENCE, _LABELS, _RESOURCES, _DEVICES, _PER_NODE, _NEW_NODE, _BOOKS = 6, 7, 8, 9, 10, 11, 12, 13


@inner
def _node_of(st: StateArrays, r: int, j: int) -> int:
    return int(st.replica_bundle_node[r, j] if st.replica_spans[r] else st.replica_node[r])


@inner
def _used(facts: Facts, st: StateArrays, n: int, k: int) -> float:
    """What replicas and others hold of a resource of node ``n``."""
    total = float(st.node_others[n, k])
    for r in range(st.replica_phase.shape[0]):
        d = st.replica_deployment[r]
        if d >= 0 and st.replica_node[r] >= 0:
            for j in range(facts.num_bundles[d]):
                if _node_of(st, r, j) == n:
                    total += facts.bundles[d, j, k]
    return total


@inner
def _device_load(facts: Facts, st: StateArrays, others: Others, n: int, g: int) -> float:
    """What is held of one device, by the masks of the replicas."""
    load = float(others.devices[n, g])
    for r in range(st.replica_phase.shape[0]):
        d = st.replica_deployment[r]
        if d < 0 or st.replica_node[r] < 0:
            continue
        for j in range(facts.num_bundles[d]):
            if _node_of(st, r, j) == n and st.replica_gpus[r, j] >> g & 1:
                gpus = facts.bundles[d, j, 0]
                load += gpus if 0.0 < gpus < 1.0 else 1.0
    return load


@inner
def _in_flight(st: StateArrays) -> int:
    """Replacements that do not serve yet."""
    count = 0
    for r in range(st.replica_phase.shape[0]):
        phase, source = st.replica_phase[r], st.replica_peer[r]
        if source >= 0 and 0 < phase < _RUNNING and st.replica_phase[source] == _RUNNING:
            count += 1
    return count


@inner
def _leaving(facts: Facts, st: StateArrays, now_s: float, limits: Limits, r: int) -> int:
    """What is broken if ``r`` leaves its node."""
    if r < 0 or r >= st.replica_phase.shape[0]:
        return _REPLICA
    if st.replica_phase[r] != _RUNNING or st.replica_peer[r] >= 0 or st.replica_spans[r]:
        return _REPLICA
    d, n, same = st.replica_deployment[r], st.replica_node[r], 0
    if not facts.may_move[d] or st.node_is_opted_out[n]:
        return _OPT_OUT
    if st.deployment_moved_s[d] < now_s < st.deployment_moved_s[d] + limits.deployment_cooldown_s:
        return _COOLDOWN
    if _in_flight(st) + 1 > limits.max_concurrent_moves:
        return _IN_FLIGHT
    for other in range(st.node_type.shape[0]):
        same += st.node_type[other] == st.node_type[n]
    is_kept = st.node_is_head[n] or not st.node_releasable[n] or same - 1 < facts.min_nodes[st.node_type[n]]
    return _SOURCE if st.node_phase[n] != _ALIVE or is_kept else _NONE


@inner
def _needs(facts: Facts, d: int, k: int) -> float:
    total = 0.0
    for j in range(facts.num_bundles[d]):
        total += facts.bundles[d, j, k]
    return total


@inner
def _new_node(facts: Facts, st: StateArrays, limits: Limits, d: int, t: int) -> int:
    count = 0
    for n in range(st.node_type.shape[0]):
        count += st.node_type[n] == t
    if not limits.allow_new_nodes or count + 1 > facts.max_nodes[t]:
        return _NEW_NODE
    if not facts.matches[d, t]:
        return _LABELS
    for k in range(facts.capacity.shape[1]):
        if _needs(facts, d, k) > facts.capacity[t, k] + _SLACK:
            return _RESOURCES
    return _NONE


@inner
def _arriving(facts: Facts, st: StateArrays, others: Others, now_s: float, limits: Limits, d: int, n: int) -> int:
    """What is broken if a replica of ``d`` comes to ``n``; of the devices only what no choice of them could mend."""
    is_open = st.node_releasable[n] or limits.use_unreleasable_nodes
    if st.node_phase[n] != _ALIVE or st.node_is_head[n] or not is_open:
        return _DESTINATION
    if st.node_fenced_until_s[n] > now_s:
        return _FENCE
    t, here, untouched, largest, whole, share = st.node_type[n], 0, 0, 0.0, 0.0, 0.0
    if not facts.matches[d, t]:
        return _LABELS
    for k in range(facts.capacity.shape[1]):
        if _used(facts, st, n, k) + _needs(facts, d, k) > facts.capacity[t, k] + _SLACK:
            return _RESOURCES
    for r in range(st.replica_phase.shape[0]):
        if st.replica_deployment[r] == d and st.replica_node[r] >= 0:
            is_here = False
            for j in range(facts.num_bundles[d]):
                is_here = is_here or _node_of(st, r, j) == n
            here += is_here
    if facts.max_per_node[d] > 0 and here + 1 > facts.max_per_node[d]:
        return _PER_NODE
    for g in range(int(facts.capacity[t, 0])):
        load = _device_load(facts, st, others, n, g)
        untouched += load < _SLACK
        largest = max(largest, 1.0 - load)
    for j in range(facts.num_bundles[d]):
        gpus = facts.bundles[d, j, 0]
        whole, share = (whole, max(share, gpus)) if gpus < 1.0 else (whole + gpus, share)
    return _DEVICES if whole > untouched + _SLACK or share > largest + _SLACK else _NONE


@kernel
def broken_by(facts: Facts, st: StateArrays, others: Others, now_s: float, limits: Limits, r: int, n: int) -> int:
    """The first invariant that moving replica ``r`` to node ``n`` (or N + type) would break; a ``Broken``."""
    broken, num_nodes = _leaving(facts, st, now_s, limits, r), st.node_type.shape[0]
    if broken != _NONE:
        return broken
    if n < 0 or n >= num_nodes + facts.capacity.shape[0] or n == st.replica_node[r]:
        return _DESTINATION
    d = st.replica_deployment[r]
    if n >= num_nodes:
        return _new_node(facts, st, limits, d, n - num_nodes)
    return _arriving(facts, st, others, now_s, limits, d, n)


@kernel
def broken_after(facts: Facts, st: StateArrays, others: Others, limits: Limits, was_over: bool) -> int:
    """What is wrong with a state after a move; a ``Broken``.

    Args:
        facts: The cluster.
        st: After the move.
        others: What others hold.
        limits: What is allowed.
        was_over: More moves were in flight before than is allowed.
    """
    if not was_over and _in_flight(st) > limits.max_concurrent_moves:
        return _IN_FLIGHT
    for n in range(st.node_type.shape[0]):
        t = st.node_type[n]
        if t < 0:
            continue
        for k in range(facts.capacity.shape[1]):
            used = _used(facts, st, n, k)
            if used > facts.capacity[t, k] + _SLACK:
                return _RESOURCES
            if abs(st.node_free[n, k] - (facts.capacity[t, k] - used)) > _SLACK:
                return _BOOKS
        for g in range(st.gpu_free.shape[1]):
            exists, load = g < int(facts.capacity[t, 0]), _device_load(facts, st, others, n, g)
            if load > (1.0 if exists else 0.0) + _SLACK:
                return _DEVICES
            if abs(st.gpu_free[n, g] - ((1.0 if exists else 0.0) - load)) > _SLACK:
                return _BOOKS
    return _NONE
