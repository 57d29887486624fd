"""Can a node be emptied, and where would its replicas go?

Best-fit decreasing onto the other occupied nodes is Ray's own test (``_find_best_node_to_compact``, 2.60); the
safety filter's limit on concurrent moves is not applied, since an evacuation may take several ticks. Dims: N nodes,
R replicas, D deployments, K resources, G GPU devices per node.
"""

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from rayfold.envs.cluster import SpecArrays
from rayfold.envs.devices import take_gpus
from rayfold.envs.placement import asks_more, less_left
from rayfold.envs.safety import (
    Limits,
    capacity_reason,
    count_nodes,
    destination_node_reason,
    replica_reason,
    source_node_reason,
)
from rayfold.envs.state import ReplicaPhase, StateArrays

__all__ = ["BLOCKED", "Workspace", "evacuation", "move_price_usd", "new_workspace", "plan_evacuation", "prepare"]

BLOCKED = -1

_RUNNING, _STOPPING = int(ReplicaPhase.RUNNING), int(ReplicaPhase.STOPPING)


class Workspace(NamedTuple):
    """Memory for planning evacuations of one state: made once, filled by ``prepare``."""

    is_blocked: NDArray[np.bool_]  # (N,) some replica may not leave the node
    begin: NDArray[np.int64]  # (N + 1,) where the node's replicas begin in rows
    rows: NDArray[np.int64]  # (R,) replicas that would have to leave, node by node, largest demand first
    destination: NDArray[np.int64]  # (R,) node row planned for each of rows
    room: NDArray[np.float64]  # (K,) free on all nodes that may take replicas
    touched: NDArray[np.int64]  # (N,) nodes whose free resources the plan has changed
    is_touched: NDArray[np.bool_]  # (N,)
    node_free: NDArray[np.float64]  # (N, K) what those had before
    gpu_free: NDArray[np.float64]  # (N, G)


@njit(cache=True)
def new_workspace(st: StateArrays) -> Workspace:
    """Memory for states of this size."""
    num_nodes, num_replicas = st.node_type.shape[0], st.replica_phase.shape[0]
    return Workspace(
        np.zeros(num_nodes, np.bool_),
        np.zeros(num_nodes + 1, np.int64),
        np.zeros(num_replicas, np.int64),
        np.zeros(num_replicas, np.int64),
        np.zeros(st.node_free.shape[1]),
        np.zeros(num_nodes, np.int64),
        np.zeros(num_nodes, np.bool_),
        np.zeros_like(st.node_free),
        np.zeros_like(st.gpu_free),
    )


@njit(cache=True, inline="always")
def _must_leave(st: StateArrays, r: int) -> bool:
    """Whether an evacuation has to move ``r``: it holds something and is not leaving already."""
    phase = st.replica_phase[r]
    if st.replica_node[r] < 0 or phase == _STOPPING:
        return False
    return not (phase == _RUNNING and st.replica_peer[r] >= 0)


@njit(cache=True)
def prepare(spec: SpecArrays, st: StateArrays, now_s: float, limits: Limits, work: Workspace) -> None:
    """Lists what would have to leave each node, in place."""
    num_nodes, num_replicas = st.node_type.shape[0], st.replica_phase.shape[0]
    counts = count_nodes(st, spec.type_capacity.shape[0])
    work.room[:] = 0.0
    for n in range(num_nodes):
        work.is_blocked[n] = st.node_type[n] < 0 or source_node_reason(spec, st, counts, n) != 0
        if st.node_num_held[n] > 0 and destination_node_reason(st, now_s, limits, n) == 0:
            for k in range(work.room.shape[0]):
                work.room[k] += st.node_free[n, k]
    work.begin[:] = 0
    for r in range(num_replicas):
        if st.replica_phase[r] == 0:
            continue
        if st.replica_spans[r]:
            for j in range(st.replica_bundle_node.shape[1]):
                if st.replica_bundle_node[r, j] >= 0:
                    work.is_blocked[st.replica_bundle_node[r, j]] = True
        if _must_leave(st, r):
            n = st.replica_node[r]
            work.begin[n + 1] += 1
            if not work.is_blocked[n] and replica_reason(spec, st, now_s, limits, r, -1) != 0:
                work.is_blocked[n] = True
    for n in range(num_nodes):
        work.begin[n + 1] += work.begin[n]
    for r in range(num_replicas):  # begin[n] moves to the end of node n's part, and back below
        if st.replica_phase[r] == 0 or not _must_leave(st, r):
            continue
        n = st.replica_node[r]
        work.rows[work.begin[n]] = r
        work.begin[n] += 1
    for n in range(num_nodes, 0, -1):
        work.begin[n] = work.begin[n - 1]
    work.begin[0] = 0
    for n in range(num_nodes):
        _sort_rows(spec, st, work.rows[work.begin[n] : work.begin[n + 1]])


@njit(cache=True, inline="always")
def _sort_rows(spec: SpecArrays, st: StateArrays, rows: NDArray[np.int64]) -> None:
    """Largest demand first, in place; equal ones stay in order."""
    for i in range(1, rows.shape[0]):
        r, j = rows[i], i
        while j > 0 and asks_more(spec, st.replica_deployment[r], st.replica_deployment[rows[j - 1]]):
            rows[j] = rows[j - 1]
            j -= 1
        rows[j] = r


@njit(cache=True)
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
    if work.is_blocked[node]:
        return BLOCKED
    first, end = work.begin[node], work.begin[node + 1]
    if not _has_room(spec, st, node, work):
        return BLOCKED
    num_touched, count = 0, end - first
    for i in range(first, end):
        d = st.replica_deployment[work.rows[i]]
        best = _best_destination(spec, st, may_take, node, d, work)
        work.destination[i] = best
        if best < 0:
            count = BLOCKED
            break
        if not work.is_touched[best]:
            work.is_touched[best] = True
            work.touched[num_touched] = best
            num_touched += 1
            work.node_free[best] = st.node_free[best]
            work.gpu_free[best] = st.gpu_free[best]
        _put(spec, st, d, best)
    for i in range(first, end):
        if work.destination[i] < 0:
            break
        st.node_held[work.destination[i], st.replica_deployment[work.rows[i]]] -= 1
    for i in range(num_touched):
        n = work.touched[i]
        st.node_free[n] = work.node_free[n]
        st.gpu_free[n] = work.gpu_free[n]
        work.is_touched[n] = False
    return count


@njit(cache=True, inline="always")
def _has_room(spec: SpecArrays, st: StateArrays, node: int, work: Workspace) -> bool:
    """Whether all other nodes together have what leaves ``node``: a test that costs little and settles much."""
    for k in range(work.room.shape[0]):
        need = 0.0
        for i in range(work.begin[node], work.begin[node + 1]):
            need += spec.demand[st.replica_deployment[work.rows[i]], k]
        if need > work.room[k] + 1e-6:
            return False
    return True


@njit(cache=True, inline="always")
def _best_destination(
    spec: SpecArrays, st: StateArrays, may_take: NDArray[np.float32], node: int, d: int, work: Workspace
) -> int:
    best = -1
    for n in range(st.node_type.shape[0]):
        if may_take[n, d] == 0.0 or n == node or st.node_num_held[n] == 0:
            continue
        if best >= 0 and not less_left(spec, st, n, best):
            continue
        if work.is_touched[n] and capacity_reason(spec, st, d, n) != 0:
            continue
        best = n
    return best


@njit(cache=True, inline="always")
def _put(spec: SpecArrays, st: StateArrays, d: int, n: int) -> None:
    if spec.sums_gpus[d]:
        take_gpus(st.gpu_free, n, spec.demand[d, 0])
    else:
        for j in range(spec.num_bundles[d]):
            take_gpus(st.gpu_free, n, spec.bundle[d, j, 0])
    for k in range(spec.demand.shape[1]):
        st.node_free[n, k] -= spec.demand[d, k]
    st.node_held[n, d] += 1


@njit(cache=True)
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


@njit(cache=True)
def move_price_usd(spec: SpecArrays, d: int, move_frac: float, disruption_scale: float) -> float:
    """Expected price of moving one replica of ``d``: mean cold start and fixed price (DESIGN §5)."""
    mean_s = 0.5 * (spec.startup_s[d, 0] + spec.startup_s[d, 1])
    return float(spec.replica_usd_per_h[d] * (mean_s / 3600.0 + move_frac) * disruption_scale)
