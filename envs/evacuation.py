"""Can a node be emptied, and where would its replicas go?

Best-fit decreasing onto the other occupied nodes is Ray's own test (``_find_best_node_to_compact``, 2.60); the
safety filter's limit on concurrent moves is not applied, since an evacuation may take several ticks. Dims: N nodes,
R replicas, D deployments, K resources, G GPU devices per node.
"""

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from rayfold.envs.devices import num_whole, take_gpus
from rayfold.envs.jit import inner, kernel
from rayfold.envs.placement import less_left
from rayfold.envs.safety import (
    Limits,
    cooled_deployments,
    count_nodes,
    has_capacity,
    has_whole_capacity,
    is_full,
    open_nodes,
    source_node_reason,
)
from rayfold.envs.spec_arrays import SpecArrays
from rayfold.envs.state import ReplicaPhase, StateArrays
from rayfold.envs.views import by_reference

__all__ = [
    "BLOCKED",
    "Workspace",
    "evacuation",
    "move_price_usd",
    "new_workspace",
    "plan_evacuation",
    "plan_evacuations",
    "prepare",
    "sort_replicas",
]

BLOCKED = -1

_RUNNING, _STOPPING = int(ReplicaPhase.RUNNING), int(ReplicaPhase.STOPPING)


@by_reference(is_written=True)
class Workspace(NamedTuple):
    """Memory for what the kernels work out about one state: made once, written again and again."""

    seen: NDArray[np.int64]  # (1,) CHANGES of the state that all this is about, -1 = unknown
    used: NDArray[np.int64]  # (R,) rows in use, ascending; the rest says nothing
    may_move: NDArray[np.bool_]  # (D,) cooled_deployments
    is_open: NDArray[np.bool_]  # (N,) open_nodes
    can_leave: NDArray[np.bool_]  # (N,) source_node_reason is none
    takers: NDArray[np.int64]  # (D,) nodes and new nodes that may take a replica
    by_deployment: NDArray[np.int64]  # (D, 5) replicas by phase
    by_node: NDArray[np.int64]  # (N, 3) replicas held, leaving, arriving
    num_moves: NDArray[np.int64]  # (N,) plan_evacuation
    is_blocked: NDArray[np.bool_]  # (N,) some replica may not leave the node
    begin: NDArray[np.int64]  # (N + 1,) where the node's replicas begin in rows
    rows: NDArray[np.int64]  # (R,) replicas that would have to leave, node by node, largest demand first
    destination: NDArray[np.int64]  # (R,) node row planned for each of rows
    room: NDArray[np.float64]  # (K,) free on all nodes that may take replicas
    takes: NDArray[np.int64]  # (N,) nodes that hold replicas and may take more, those with the least left first
    spare: NDArray[np.int64]  # (N,) for sorting them
    num_takes: NDArray[np.int64]  # (1,) how many
    whole: NDArray[np.int64]  # (N,) whole devices free on each of them
    touched: NDArray[np.int64]  # (N,) nodes whose free resources the plan has changed
    is_touched: NDArray[np.bool_]  # (N,)
    node_free: NDArray[np.float64]  # (N, K) what those had before
    gpu_free: NDArray[np.float64]  # (N, G)


def new_workspace(st: StateArrays) -> Workspace:
    """Memory for states of this size."""
    (num_nodes, num_deployments), num_replicas = st.node_held.shape, st.replica_phase.shape[0]
    return Workspace(
        seen=np.full(1, -1),
        used=np.zeros(num_replicas, np.int64),
        may_move=np.zeros(num_deployments, np.bool_),
        is_open=np.zeros(num_nodes, np.bool_),
        can_leave=np.zeros(num_nodes, np.bool_),
        takers=np.zeros(num_deployments, np.int64),
        by_deployment=np.zeros((num_deployments, 5), np.int64),
        by_node=np.zeros((num_nodes, 3), np.int64),
        num_moves=np.zeros(num_nodes, np.int64),
        is_blocked=np.zeros(num_nodes, np.bool_),
        begin=np.zeros(num_nodes + 1, np.int64),
        rows=np.zeros(num_replicas, np.int64),
        destination=np.zeros(num_replicas, np.int64),
        room=np.zeros(st.node_free.shape[1]),
        takes=np.zeros(num_nodes, np.int64),
        spare=np.zeros(num_nodes, np.int64),
        num_takes=np.zeros(1, np.int64),
        whole=np.zeros(num_nodes, np.int64),
        touched=np.zeros(num_nodes, np.int64),
        is_touched=np.zeros(num_nodes, np.bool_),
        node_free=np.zeros_like(st.node_free),
        gpu_free=np.zeros_like(st.gpu_free),
    )


@kernel
def prepare(spec: SpecArrays, st: StateArrays, now_s: float, limits: Limits, work: Workspace) -> None:
    """Lists what would have to leave each node, in place."""
    counts, num_used = count_nodes(st, spec.type_capacity.shape[0]), 0
    for n in range(st.node_type.shape[0]):
        work.can_leave[n] = source_node_reason(spec, st, counts, n) == 0
    cooled_deployments(spec, st, now_s, limits, work.may_move)
    open_nodes(st, now_s, limits, work.is_open)
    work.seen[0] = -1
    for r in range(st.replica_phase.shape[0]):
        if st.replica_phase[r] != 0:
            work.used[num_used] = r
            num_used += 1
    sort_replicas(spec, st, num_used, work)


@inner
def sort_replicas(spec: SpecArrays, st: StateArrays, num_used: int, work: Workspace) -> None:
    """``prepare`` where ``can_leave``, ``is_open``, ``may_move`` and ``num_used`` rows of ``used`` are written."""
    node_free, num_held, room, takes, num_takes = st.node_free, st.node_num_held, work.room, work.takes, 0
    room[:] = 0.0
    for n in range(num_held.shape[0]):
        work.is_blocked[n] = not work.can_leave[n]
        if num_held[n] > 0 and work.is_open[n]:
            for k in range(room.shape[0]):
                room[k] += node_free[n, k]
            if not is_full(spec.least_demand, node_free, n):
                takes[num_takes] = n
                num_takes += 1
                work.whole[n] = num_whole(st.gpu_free, n)
    _sort_nodes(node_free, takes, work.spare, num_takes)
    work.num_takes[0] = num_takes
    _sort_into_nodes(spec, st, num_used, work)


@inner
def _sort_nodes(node_free: NDArray[np.float64], nodes: NDArray[np.int64], spare: NDArray[np.int64], num: int) -> None:
    """Sorts the first ``num`` of ``nodes``, in place: least left first, equal ones in order; a merge sort."""
    width = 1
    while width < num:
        for first in range(0, num, 2 * width):
            middle, end = min(first + width, num), min(first + 2 * width, num)
            a, b = first, middle
            for i in range(first, end):
                if a < middle and (b >= end or not less_left(node_free, nodes[b], nodes[a])):
                    spare[i] = nodes[a]
                    a += 1
                else:
                    spare[i] = nodes[b]
                    b += 1
        nodes[:num] = spare[:num]
        width *= 2


@inner
def _sort_into_nodes(spec: SpecArrays, st: StateArrays, num_used: int, work: Workspace) -> None:
    phase, node, peer, spans = st.replica_phase, st.replica_node, st.replica_peer, st.replica_spans
    deployment, rank, may_move = st.replica_deployment, spec.demand_rank, work.may_move
    used, rows, begin, is_blocked, keys = work.used, work.rows, work.begin, work.is_blocked, work.destination
    num_nodes = begin.shape[0] - 1
    begin[:] = 0
    for i in range(num_used):
        r = used[i]
        if not _must_leave(phase[r], node[r], peer[r]):
            continue
        begin[node[r] + 1] += 1
        if phase[r] != _RUNNING or spans[r] or not may_move[deployment[r]]:
            is_blocked[node[r]] = True
        if spans[r]:
            for j in range(st.replica_bundle_node.shape[1]):
                if st.replica_bundle_node[r, j] >= 0:
                    is_blocked[st.replica_bundle_node[r, j]] = True
    for n in range(num_nodes):
        begin[n + 1] += begin[n]
    for i in range(num_used):  # begin[n] moves to the end of node n's part, and back below
        r = used[i]
        if _must_leave(phase[r], node[r], peer[r]):
            keys[begin[node[r]]] = (rank[deployment[r]] << 32) + r
            begin[node[r]] += 1
    for n in range(num_nodes, 0, -1):
        begin[n] = begin[n - 1]
    begin[0] = 0
    for n in range(num_nodes):
        for i in range(begin[n], begin[n + 1]):  # insertion: largest demand first, equal ones stay in order
            key, j = keys[i], i
            while j > begin[n] and key < keys[j - 1]:
                keys[j] = keys[j - 1]
                j -= 1
            keys[j] = key
    for i in range(begin[num_nodes]):
        rows[i] = keys[i] & 0xFFFFFFFF


@njit(cache=True, inline="always")
def _must_leave(phase: int, node: int, peer: int) -> bool:
    """Whether an evacuation has to move a replica: it holds something and is not leaving already."""
    return node >= 0 and phase != _STOPPING and not (phase == _RUNNING and peer >= 0)


@kernel
def plan_evacuation(
    spec: SpecArrays, st: StateArrays, may_take: NDArray[np.float32], node: int, work: Workspace
) -> int:
    """Plans the emptying of one node.

    Args:
        spec: Static description.
        st: State; free resources are written while planning and restored.
        may_take: ``(>=N, >=D)`` destination mask of ``move_masks`` for this state.
        node: Node row to empty.
        work: ``prepare``d for this state; ``destination`` of the node's rows is written.

    Returns:
        Number of replicas that have to leave, or ``BLOCKED`` if some replica may not move or fits nowhere.
        Replicas already leaving or draining need no move.
    """
    first, end = work.begin[node], work.begin[node + 1]
    if work.is_blocked[node] or not _has_room(st.replica_deployment, spec.demand, work.rows, first, end, work.room):
        return BLOCKED
    return _plan(
        spec.demand,
        spec.bundle,
        spec.num_bundles,
        spec.max_per_node,
        spec.sums_gpus,
        st.replica_deployment,
        st.node_free,
        st.gpu_free,
        st.node_held,
        may_take,
        work.rows,
        work.destination,
        work.takes,
        work.num_takes[0],
        work.whole,
        spec.has_whole_demand,
        work.is_touched,
        work.touched,
        work.node_free,
        work.gpu_free,
        node,
        first,
        end,
    )


@inner
def plan_evacuations(
    spec: SpecArrays, st: StateArrays, may_take: NDArray[np.float32], work: Workspace, count: NDArray[np.int64]
) -> None:
    """``plan_evacuation`` of every node that holds something; ``count`` ``(N,)`` is written, 0 for the others."""
    demand, bundle, num_bundles = spec.demand, spec.bundle, spec.num_bundles
    max_per_node, sums_gpus, deployment = spec.max_per_node, spec.sums_gpus, st.replica_deployment
    num_held, node_free, gpu_free, held = st.node_num_held, st.node_free, st.gpu_free, st.node_held
    is_blocked, begin, rows, destination = work.is_blocked, work.begin, work.rows, work.destination
    is_touched, touched, old_free, old_gpus = work.is_touched, work.touched, work.node_free, work.gpu_free
    takes, num_takes = work.takes, work.num_takes[0]
    for node in range(count.shape[0]):
        if num_held[node] == 0:
            count[node] = 0
            continue
        first, end = begin[node], begin[node + 1]
        if (
            is_blocked[node]
            or (first < end and num_takes == 0)
            or not _has_room(deployment, demand, rows, first, end, work.room)
        ):
            count[node] = BLOCKED
            continue
        count[node] = _plan(
            demand,
            bundle,
            num_bundles,
            max_per_node,
            sums_gpus,
            deployment,
            node_free,
            gpu_free,
            held,
            may_take,
            rows,
            destination,
            takes,
            num_takes,
            work.whole,
            spec.has_whole_demand,
            is_touched,
            touched,
            old_free,
            old_gpus,
            node,
            first,
            end,
        )


@inner
def _plan(
    demand: NDArray[np.float64],
    bundle: NDArray[np.float64],
    num_bundles: NDArray[np.int64],
    max_per_node: NDArray[np.int64],
    sums_gpus: NDArray[np.bool_],
    deployment: NDArray[np.int64],
    node_free: NDArray[np.float64],
    gpu_free: NDArray[np.float64],
    held: NDArray[np.int64],
    may_take: NDArray[np.float32],
    rows: NDArray[np.int64],
    destination: NDArray[np.int64],
    takes: NDArray[np.int64],
    num_takes: int,
    whole: NDArray[np.int64],
    has_whole_demand: bool,
    is_touched: NDArray[np.bool_],
    touched: NDArray[np.int64],
    old_free: NDArray[np.float64],
    old_gpus: NDArray[np.float64],
    node: int,
    first: int,
    end: int,
) -> int:
    """Best fit, one replica after another; the arguments are the fields of these names.

    Where every demand is whole devices, it is enough to count them.
    """
    num_touched, count, d, best = 0, end - first, -1, -1

    def fits(d: int, n: int) -> bool:
        if has_whole_demand:
            return bool(has_whole_capacity(demand, max_per_node, node_free, whole, held, d, n))
        return bool(has_capacity(demand, bundle, num_bundles, max_per_node, sums_gpus, node_free, gpu_free, held, d, n))

    for i in range(first, end):
        before, d = d, deployment[rows[i]]
        # A node that took one of these has the least left of all: if it still fits it is the best fit again.
        is_known = d == before and fits(d, best)
        if not is_known:
            best = -1
            for c in range(num_takes):  # the first one that may take it is the best fit of those not touched
                n = takes[c]
                if may_take[n, d] != 0.0 and n != node and not is_touched[n]:
                    best = n
                    break
            for c in range(num_touched):
                n = touched[c]
                is_better = (
                    best < 0 or less_left(node_free, n, best) or (n < best and not less_left(node_free, best, n))
                )
                # What may_take said before the plan took room on n has to be said again.
                if may_take[n, d] != 0.0 and is_better and fits(d, n):
                    best = n
        destination[i] = best
        if best < 0:
            count = BLOCKED
            break
        if i == end - 1:
            break  # nothing else has to fit beside it
        if not is_touched[best]:
            is_touched[best] = True
            touched[num_touched] = best
            num_touched += 1
            _copy_row(node_free, old_free, best)
            if not has_whole_demand:
                _copy_row(gpu_free, old_gpus, best)
        if has_whole_demand:
            whole[best] -= round(demand[d, 0])
        elif sums_gpus[d]:
            take_gpus(gpu_free, best, demand[d, 0])
        else:
            for j in range(num_bundles[d]):
                take_gpus(gpu_free, best, bundle[d, j, 0])
        for k in range(demand.shape[1]):
            node_free[best, k] -= demand[d, k]
        held[best, d] += 1
    for i in range(first, end - 1):
        if destination[i] < 0:
            break
        held[destination[i], deployment[rows[i]]] -= 1
        if has_whole_demand:
            whole[destination[i]] += round(demand[deployment[rows[i]], 0])
    for i in range(num_touched):
        _copy_row(old_free, node_free, touched[i])
        if not has_whole_demand:
            _copy_row(old_gpus, gpu_free, touched[i])
        is_touched[touched[i]] = False
    return count


@njit(cache=True, inline="always")
def _copy_row(source: NDArray[np.float64], target: NDArray[np.float64], n: int) -> None:
    for k in range(source.shape[1]):
        target[n, k] = source[n, k]


@inner
def _has_room(
    deployment: NDArray[np.int64],
    demand: NDArray[np.float64],
    rows: NDArray[np.int64],
    first: int,
    end: int,
    room: NDArray[np.float64],
) -> bool:
    """Whether all nodes together have what would leave: a test that costs little and settles much."""
    for k in range(room.shape[0]):
        need = 0.0
        for i in range(first, end):
            need += demand[deployment[rows[i]], k]
        if need > room[k] + 1e-6:
            return False
    return True


def evacuation(
    spec: SpecArrays,
    st: StateArrays,
    now_s: float,
    limits: Limits,
    may_take: NDArray[np.float32],
    node: int,
    destination: NDArray[np.int64],
) -> int:
    """``plan_evacuation`` of a single node.

    Args:
        spec: Static description.
        st: State; restored.
        now_s: Its clock.
        limits: Limits.
        may_take: ``(>=N, >=D)`` destination mask of ``move_masks`` for this state.
        node: Node row to empty.
        destination: ``(R,)``, written: node row for every replica that has to leave, -1 for the others.

    Returns:
        See ``plan_evacuation``.
    """
    destination[:] = -1
    work = new_workspace(st)
    prepare(spec, st, now_s, limits, work)
    count = plan_evacuation(spec, st, may_take, node, work)
    if count != BLOCKED:
        for i in range(work.begin[node], work.begin[node + 1]):
            destination[work.rows[i]] = work.destination[i]
    return count


@kernel
def move_price_usd(spec: SpecArrays, d: int, move_frac: float, disruption_scale: float) -> float:
    """Expected price of moving one replica of ``d``: mean cold start and fixed price (DESIGN §5)."""
    mean_s = 0.5 * (spec.startup_s[d, 0] + spec.startup_s[d, 1])
    return float(spec.replica_usd_per_h[d] * (mean_s / 3600.0 + move_frac) * disruption_scale)
