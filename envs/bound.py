"""Lower bounds on the hourly price of the nodes that so many replicas need.

Dims: D deployments, K resources, P planes, B bills; see ``packing_bound``.
"""

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.jit import kernel
from rayfold.envs.spec_arrays import SpecArrays

__all__ = ["bound_of", "packing_bound_of"]


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
