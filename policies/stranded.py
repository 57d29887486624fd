"""GPUs that the present mix of deployments cannot use: the fragmentation measure of FGD.

Weng et al., "Beware of Fragmentation: Scheduling GPU-Sharing Workloads with Fragmentation Gradient Descent", ATC'23,
§3: ``F_n(M) = sum_m p_m F_n(m)``, with ``F_n(m)`` the free GPUs of node n that a task m cannot be given: all of them
if it does not fit on n, else those of devices that have too little left for it. ``p_m`` is the share of m among all
replicas wanted. A deployment without GPUs can use none of them, as there.

Dims: X rows (nodes as they are or would be), D deployments, G GPU devices per node, K resources.
"""

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.devices import EPS
from rayfold.envs.spec_arrays import SpecArrays

__all__ = ["mix", "stranded_gpus", "take_devices"]


def mix(target: NDArray[np.int64]) -> NDArray[np.float64]:
    """``(D,)`` share of each deployment among the replicas wanted; all 0 if none is."""
    total = target.sum()
    return target / total if total > 0 else np.zeros(len(target))


def stranded_gpus(
    spec: SpecArrays,
    shares: NDArray[np.float64],
    node_type: NDArray[np.int64],
    node_free: NDArray[np.float64],
    gpu_free: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Expected GPUs of each node that a replica drawn from the mix cannot use.

    A placement group whose bundles choose devices for themselves is held to fit where its sum does.

    Args:
        spec: Static description.
        shares: ``(D,)`` of ``mix``.
        node_type: ``(X,)``.
        node_free: ``(X, K)``.
        gpu_free: ``(X, G)``.

    Returns:
        ``(X,)`` GPUs.
    """
    wanted = np.flatnonzero(shares > 0)
    gpus = spec.demand[wanted, 0]
    per_device = np.where(spec.sums_gpus[wanted], gpus, spec.bundle[wanted, :, 0].max(axis=1)).clip(max=1.0)
    is_usable = gpu_free[:, :, None] >= per_device - EPS  # (X, G, wanted)
    usable = np.einsum("xg,xgd->xd", gpu_free, is_usable)
    fits = spec.fits_type[wanted][:, node_type].T & (usable >= gpus - EPS) & (gpus > EPS)
    for k in range(node_free.shape[1]):
        fits &= node_free[:, k, None] >= spec.demand[wanted, k] - EPS
    free = gpu_free.sum(axis=1)
    stranded: NDArray[np.float64] = (free[:, None] - np.where(fits, usable, 0.0)) @ shares[wanted]
    return stranded


def take_devices(gpu_free: NDArray[np.float64], gpus: float) -> NDArray[np.float64]:
    """``devices.take_gpus`` on every row at once; rows that cannot hold ``gpus`` come back as anything.

    Args:
        gpu_free: ``(X, G)``.
        gpus: 0, below 1, or a whole number.
    """
    left = gpu_free.copy()
    if gpus <= EPS or not gpu_free.size:
        return left
    if gpus < 1.0 - EPS:
        device = np.where(gpu_free + EPS >= gpus, gpu_free, np.inf).argmin(axis=1)
        left[np.arange(len(left)), device] -= gpus
        return left
    is_whole = gpu_free >= 1.0 - EPS
    left[is_whole & (is_whole.cumsum(axis=1) <= round(gpus))] = 0.0
    return left
