"""Can a node be emptied, and where would its replicas go?

Dims: N nodes, R replicas, D deployments, K resources.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from rayfold.envs.cluster import SpecArrays
from rayfold.envs.devices import take_gpus
from rayfold.envs.placement import best_fit_node, replicas_on
from rayfold.envs.safety import Limits, destination_reason, source_reason
from rayfold.envs.state import NodePhase, ReplicaPhase, StateArrays

__all__ = ["BLOCKED", "evacuation", "move_price_usd"]

BLOCKED = -1

_ALIVE = int(NodePhase.ALIVE)
_RUNNING, _STOPPING = int(ReplicaPhase.RUNNING), int(ReplicaPhase.STOPPING)


@njit(cache=True)
def evacuation(
    spec: SpecArrays, st: StateArrays, now_s: float, limits: Limits, node: int, destination: NDArray[np.int64]
) -> int:
    """Best-fit plan that empties ``node`` onto other occupied nodes, largest replica first.

    Best-fit decreasing is Ray's own test (``_find_best_node_to_compact``, 2.60); the safety filter's limit on
    concurrent moves is not applied, since an evacuation may take several ticks.

    Args:
        spec: Static description.
        st: State; free resources are written while planning and restored.
        now_s: Its clock.
        limits: Limits.
        node: Node row to empty.
        destination: ``(R,)``, written: node row for every replica that has to leave, -1 for the others.

    Returns:
        Number of replicas that have to leave, or ``BLOCKED`` if some replica may not move or fits nowhere.
        Replicas already leaving or draining need no move.
    """
    destination[:] = -1
    num_nodes, num_replicas = st.node_type.shape[0], st.replica_phase.shape[0]
    leaving = np.zeros(num_replicas, np.bool_)
    count = 0
    for r in range(num_replicas):
        if st.replica_node[r] != node or st.replica_phase[r] == _STOPPING:
            continue
        if st.replica_phase[r] == _RUNNING and st.replica_peer[r] >= 0:
            continue
        if source_reason(spec, st, now_s, limits, r, 0) != 0:
            return BLOCKED
        leaving[r] = True
        count += 1
    if count == 0:
        return 0
    counts = replicas_on(st)
    node_free, gpu_free = st.node_free.copy(), st.gpu_free.copy()
    allowed = np.zeros(num_nodes, np.bool_)
    for _ in range(count):
        r = _largest(spec, st, leaving)
        d = st.replica_deployment[r]
        for n in range(num_nodes):
            usable = n != node and counts[n] > 0 and st.node_phase[n] == _ALIVE
            allowed[n] = usable and destination_reason(spec, st, now_s, limits, d, n) == 0
        n = best_fit_node(spec, st, d, allowed)
        if n < 0:
            destination[:] = -1
            count = BLOCKED
            break
        destination[r] = n
        leaving[r] = False
        take_gpus(st.gpu_free, n, spec.demand[d, 0])
        for k in range(spec.demand.shape[1]):
            st.node_free[n, k] -= spec.demand[d, k]
    st.node_free[:] = node_free
    st.gpu_free[:] = gpu_free
    return count


@njit(cache=True)
def _largest(spec: SpecArrays, st: StateArrays, leaving: NDArray[np.bool_]) -> int:
    best = -1
    for r in range(leaving.shape[0]):
        if not leaving[r]:
            continue
        if best < 0:
            best = r
            continue
        a, b = st.replica_deployment[r], st.replica_deployment[best]
        for k in range(spec.demand.shape[1]):
            if spec.demand[a, k] != spec.demand[b, k]:
                if spec.demand[a, k] > spec.demand[b, k]:
                    best = r
                break
    return best


@njit(cache=True)
def move_price_usd(spec: SpecArrays, d: int, move_frac: float, disruption_scale: float) -> float:
    """Expected price of moving one replica of ``d``: mean cold start and fixed price (DESIGN §5)."""
    mean_s = 0.5 * (spec.startup_s[d, 0] + spec.startup_s[d, 1])
    return float(spec.replica_usd_per_h[d] * (mean_s / 3600.0 + move_frac) * disruption_scale)
