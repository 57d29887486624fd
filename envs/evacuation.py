"""Can a node be emptied, and where would its replicas go?

Dims: N nodes, R replicas, D deployments, K resources.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from rayfold.envs.cluster import SpecArrays
from rayfold.envs.devices import take_gpus
from rayfold.envs.placement import asks_more, less_left, replicas_on
from rayfold.envs.safety import Limits, capacity_reason, source_reason
from rayfold.envs.state import ReplicaPhase, StateArrays

__all__ = ["BLOCKED", "evacuation", "move_price_usd"]

BLOCKED = -1

_RUNNING, _STOPPING = int(ReplicaPhase.RUNNING), int(ReplicaPhase.STOPPING)


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
    """Best-fit plan that empties ``node`` onto other occupied nodes, largest replica first.

    Best-fit decreasing is Ray's own test (``_find_best_node_to_compact``, 2.60); the safety filter's limit on
    concurrent moves is not applied, since an evacuation may take several ticks.

    Args:
        spec: Static description.
        st: State; free resources are written while planning and restored.
        now_s: Its clock.
        limits: Limits.
        may_take: ``(>=N, >=D)`` destination mask of ``move_masks`` for this state.
        node: Node row to empty.
        destination: ``(R,)``, written: node row for every replica that has to leave, -1 for the others.

    Returns:
        Number of replicas that have to leave, or ``BLOCKED`` if some replica may not move or fits nowhere.
        Replicas already leaving or draining need no move.
    """
    destination[:] = -1
    num_nodes, num_resources = st.node_type.shape[0], spec.demand.shape[1]
    leaving = _leaving_replicas(spec, st, now_s, limits, node)
    if leaving.shape[0] > 0 and leaving[0] < 0:
        return BLOCKED
    counts = replicas_on(st)
    node_free, gpu_free = st.node_free.copy(), st.gpu_free.copy()
    touched = np.zeros(num_nodes, np.bool_)
    count = len(leaving)
    for i in range(leaving.shape[0]):
        r = leaving[i]
        d = st.replica_deployment[r]
        best = -1
        for n in range(num_nodes):
            if n == node or counts[n] == 0 or may_take[n, d] == 0.0:
                continue
            if touched[n] and (capacity_reason(spec, st, d, n) != 0 or _is_full_of(spec, st, destination, d, n)):
                continue
            if best < 0 or less_left(spec, st, n, best):
                best = n
        if best < 0:
            destination[:] = -1
            count = BLOCKED
            break
        destination[r] = best
        touched[best] = True
        take_gpus(st.gpu_free, best, spec.demand[d, 0])
        for k in range(num_resources):
            st.node_free[best, k] -= spec.demand[d, k]
    st.node_free[:] = node_free
    st.gpu_free[:] = gpu_free
    return count


@njit(cache=True)
def _is_full_of(spec: SpecArrays, st: StateArrays, destination: NDArray[np.int64], d: int, n: int) -> bool:
    """Whether replicas of ``d`` on ``n``, with those planned to go there, reach the limit per node."""
    if spec.max_per_node[d] <= 0:
        return False
    count = 0
    for r in range(destination.shape[0]):
        if st.replica_deployment[r] == d and (st.replica_node[r] == n or destination[r] == n):
            count += 1
    return bool(count >= spec.max_per_node[d])


@njit(cache=True)
def _leaving_replicas(spec: SpecArrays, st: StateArrays, now_s: float, limits: Limits, node: int) -> NDArray[np.int64]:
    """Rows that have to leave ``node``, largest demand first; ``[-1]`` if one of them may not."""
    rows = np.empty(st.replica_phase.shape[0], np.int64)
    count = 0
    for r in range(rows.shape[0]):
        if st.replica_node[r] != node or st.replica_phase[r] == _STOPPING:
            continue
        if st.replica_phase[r] == _RUNNING and st.replica_peer[r] >= 0:
            continue
        if source_reason(spec, st, now_s, limits, r, 0) != 0:
            rows[0] = BLOCKED
            return rows[:1]
        i = count
        while i > 0 and asks_more(spec, st.replica_deployment[r], st.replica_deployment[rows[i - 1]]):
            rows[i] = rows[i - 1]
            i -= 1
        rows[i] = r
        count += 1
    return rows[:count]


@njit(cache=True)
def move_price_usd(spec: SpecArrays, d: int, move_frac: float, disruption_scale: float) -> float:
    """Expected price of moving one replica of ``d``: mean cold start and fixed price (DESIGN §5)."""
    mean_s = 0.5 * (spec.startup_s[d, 0] + spec.startup_s[d, 1])
    return float(spec.replica_usd_per_h[d] * (mean_s / 3600.0 + move_frac) * disruption_scale)
