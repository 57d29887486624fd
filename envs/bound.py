"""Lower bounds on the hourly price of the nodes that the present replicas need.

Dims: D deployments, K resources, P planes, B bills; see ``packing_bound``.
"""

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.cluster import SpecArrays
from rayfold.envs.jit import inner, kernel
from rayfold.envs.state import ReplicaPhase, StateArrays

__all__ = ["bound_of", "bound_usd_per_h", "packing_bound_of", "relaxed_bound_usd_per_h"]

_PENDING, _RUNNING = int(ReplicaPhase.PENDING), int(ReplicaPhase.RUNNING)


@kernel
def bound_of(spec: SpecArrays, live: NDArray[np.int64]) -> float:
    """Least price per hour of nodes that could hold ``live`` ``(D,)`` replicas.

    For each resource: every replica pays for its share at the cheapest unit price among the types it fits; the
    dearest resource is a valid bound, since each alone is a relaxation of vector bin packing.
    """
    best = 0.0
    for k in range(spec.demand.shape[1]):
        total = 0.0
        for d in range(live.shape[0]):
            total += live[d] * spec.bound_usd_per_h[d, k]
        best = max(best, total)
    return best


@kernel
def packing_bound_of(spec: SpecArrays, live: NDArray[np.int64]) -> float:
    """``bound_of``, raised to the planes of ``packing_bound`` and to the next sum of node prices; at most all nodes."""
    best, planes, bills = bound_of(spec, live), spec.plane_usd_per_h, spec.bills_usd_per_h
    for p in range(planes.shape[1]):
        total = planes[0, p]
        for d in range(live.shape[0]):
            total += live[d] * planes[1 + d, p]
        best = max(best, total)
    if bills.shape[0] == 0:
        return best
    i = np.searchsorted(bills, best - 1e-6)
    if i < bills.shape[0]:
        return float(bills[i])
    all_nodes = 0.0
    for t in range(spec.type_max_nodes.shape[0]):
        all_nodes += spec.type_max_nodes[t] * spec.type_price_usd_per_h[t]
    return min(best, all_nodes)


@kernel
def bound_usd_per_h(spec: SpecArrays, st: StateArrays) -> float:
    """``packing_bound_of`` the replicas of a state; of a move only one side counts."""
    return packing_bound_of(spec, _live(spec, st))


@kernel
def relaxed_bound_usd_per_h(spec: SpecArrays, st: StateArrays) -> float:
    """``bound_of`` the same replicas."""
    return bound_of(spec, _live(spec, st))


@inner
def _live(spec: SpecArrays, st: StateArrays) -> NDArray[np.int64]:
    live = np.zeros(spec.demand.shape[0], np.int64)
    for r in range(st.replica_phase.shape[0]):
        phase = st.replica_phase[r]
        is_replacement = st.replica_peer[r] >= 0 and phase != _RUNNING
        if phase >= _PENDING and phase <= _RUNNING and not is_replacement:
            live[st.replica_deployment[r]] += 1
    return live
