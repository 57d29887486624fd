"""Which node Ray 2.60 would empty, and where Serve would put the replacements: its two searches as kernels.

``find_node`` is ``DeploymentScheduler._find_best_node_to_compact``, ``order_nodes`` is the choice that
``_pack_schedule_replica`` makes for a replacement. They see what Serve sees: sums of GPU shares per node and never
single devices, RUNNING replicas as the sign of a node in use, ``max_replicas_per_node`` as a share of a resource that
every node has one of. They know neither prices nor fences, opt-outs, releasable or not, nor ``min_nodes``.

Where Ray's order is that of a Python set (nodes, equal replicas of a node, several resources beside GPU, CPU and
memory), it differs from process to process; here rows and columns come in order. Dims: N nodes, R replicas,
D deployments, K resources, T node types.
"""

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.cluster import NO_MATCH
from rayfold.envs.jit import inner, kernel
from rayfold.envs.placement import asks_more, fits_better, member_node
from rayfold.envs.spec_arrays import SpecArrays
from rayfold.envs.state import NodePhase, ReplicaPhase, StateArrays

__all__ = ["find_node", "order_nodes", "replicas_to_move"]

_EPS = 1e-9  # Resources.EPSILON
_MEMORY = 2  # column of memory_gib
_ALIVE = int(NodePhase.ALIVE)
_STARTING, _RUNNING = int(ReplicaPhase.STARTING), int(ReplicaPhase.RUNNING)


@inner
def _counts(spec: SpecArrays, st: StateArrays) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """RUNNING replicas per node ``(N,)``; RUNNING and STARTING ones per node and deployment ``(N, D)``.

    A group that spans nodes is counted where its first bundle is, a gang where each of its members runs.
    """
    running = np.zeros(st.node_type.shape[0], np.int64)
    held = np.zeros((st.node_type.shape[0], spec.demand.shape[0]), np.int64)
    for r in range(st.replica_phase.shape[0]):
        n = st.replica_node[r]
        if n < 0 or (st.replica_phase[r] != _RUNNING and st.replica_phase[r] != _STARTING):
            continue
        held[n, st.replica_deployment[r]] += 1
        if st.replica_phase[r] == _RUNNING:
            for j in range(spec.gang_size[st.replica_deployment[r]]):
                running[member_node(spec, st, r, j)] += 1
    return running, held


@inner
def _fits(spec: SpecArrays, free: NDArray[np.float64], held: NDArray[np.int64], d: int, n: int) -> bool:
    """``Resources.can_fit``: sums of each resource, and the limit per node."""
    for k in range(spec.demand.shape[1]):
        if free[n, k] + _EPS < spec.demand[d, k]:
            return False
    return bool(spec.max_per_node[d] <= 0 or held[n, d] < spec.max_per_node[d])


@inner
def _compare_sizes(spec: SpecArrays, a: int, b: int) -> int:
    """1 if a node of type ``a`` is larger than one of type ``b``, 0 if as large, -1 (``_compaction_node_size``)."""
    for k in range(spec.type_capacity.shape[1]):
        size_a, size_b = spec.type_capacity[a, k], spec.type_capacity[b, k]
        if k == _MEMORY:
            size_a, size_b = np.rint(size_a), np.rint(size_b)
        if size_a != size_b:
            return 1 if size_a > size_b else -1
    return 0


@kernel
def replicas_to_move(spec: SpecArrays, st: StateArrays, node: int) -> NDArray[np.int64]:
    """RUNNING rows of ``node``, largest demand first, equal ones by deployment, then in order of rows."""
    rows = np.empty(st.replica_phase.shape[0], np.int64)
    count = 0
    for r in range(rows.shape[0]):
        if st.replica_node[r] != node or st.replica_phase[r] != _RUNNING:
            continue
        i, d = count, st.replica_deployment[r]
        while i > 0:
            other = st.replica_deployment[rows[i - 1]]
            if not asks_more(spec, d, other) and (asks_more(spec, other, d) or d >= other):
                break
            rows[i] = rows[i - 1]
            i -= 1
        rows[i] = r
        count += 1
    return rows[:count]


@inner
def _moves_to_empty(
    spec: SpecArrays, st: StateArrays, running: NDArray[np.int64], held: NDArray[np.int64], node: int
) -> int:
    """Replicas that leave ``node`` by best fit onto other nodes in use; 0 if none, or if one fits nowhere."""
    rows = replicas_to_move(spec, st, node)
    free, taken = st.node_free.copy(), held.copy()
    for i in range(rows.shape[0]):
        d = st.replica_deployment[rows[i]]
        best, best_rank = -1, NO_MATCH
        for n in range(running.shape[0]):
            rank = spec.label_rank[d, st.node_type[n]]
            if n == node or running[n] == 0 or st.node_phase[n] != _ALIVE or rank > min(best_rank, NO_MATCH - 1):
                continue
            is_better = rank < best_rank or fits_better(free, taken, spec.limited, n, best)
            if is_better and _fits(spec, free, taken, d, n):
                best, best_rank = n, rank
        if best < 0:
            return 0
        taken[best, d] += 1
        for k in range(free.shape[1]):
            free[best, k] -= spec.demand[d, k]
    return int(rows.shape[0])


@kernel
def find_node(spec: SpecArrays, st: StateArrays, is_fixed: NDArray[np.bool_]) -> int:
    """The node that Ray would empty: the largest that can be, then the one with the fewest replicas.

    Args:
        spec: Static description.
        st: State; nothing is written.
        is_fixed: ``(D,)`` gangs: a node with such a replica is not emptied (``_get_deployment_placement_candidates``).

    Returns:
        Node row, -1 if no node can be emptied onto other nodes in use.
    """
    running, held = _counts(spec, st)
    can_leave = np.ones(running.shape[0], np.bool_)
    for r in range(st.replica_phase.shape[0]):
        d = st.replica_deployment[r]
        if st.replica_phase[r] == _RUNNING and (st.replica_spans[r] or is_fixed[d]):
            for j in range(spec.gang_size[d]):
                can_leave[member_node(spec, st, r, j)] = False
    best, best_moves = -1, 0
    for n in range(running.shape[0]):
        if running[n] == 0 or st.node_phase[n] != _ALIVE or st.node_is_head[n] or not can_leave[n]:
            continue
        larger = 1 if best < 0 else _compare_sizes(spec, st.node_type[n], st.node_type[best])
        if larger < 0 or (larger == 0 and running[n] >= best_moves):
            continue
        moves = _moves_to_empty(spec, st, running, held, n)
        if moves > 0:
            best, best_moves = n, moves
    return best


@kernel
def order_nodes(spec: SpecArrays, st: StateArrays, d: int, node: int) -> NDArray[np.int64]:
    """Nodes that Serve would give a replacement of ``d`` to while ``node`` is emptied, its first choice first.

    By label selector, its fallbacks later; of each nodes in use by best fit, then unused ones. A node that a
    replacement is starting on is in use: Ray places all replacements at once, here they follow one another.

    Args:
        spec: Static description.
        st: State; nothing is written.
        d: Deployment row.
        node: Node row being emptied; never a candidate.

    Returns:
        Node rows where it fits by sums of resources.
    """
    used, held = _counts(spec, st)
    for r in range(st.replica_phase.shape[0]):
        if st.replica_phase[r] == _STARTING and st.replica_peer[r] >= 0:
            used[st.replica_node[r]] += 1
    order = np.empty(used.shape[0], np.int64)
    stages = 2 * spec.label_rank[d, st.node_type] + (used == 0)  # each selector in turn, nodes in use before others
    count = 0
    for n in range(used.shape[0]):
        if n == node or st.node_phase[n] != _ALIVE or stages[n] >= 2 * NO_MATCH:
            continue
        if not _fits(spec, st.node_free, held, d, n):
            continue
        i = count
        while i > 0:
            other = order[i - 1]
            if stages[n] > stages[other]:
                break
            if stages[n] == stages[other] and not fits_better(st.node_free, held, spec.limited, n, other):
                break
            order[i] = other
            i -= 1
        order[i] = n
        count += 1
    return order[:count]
