"""GPU devices of a node: which ones a replica takes and gives back.

Ray hands out whole devices to replicas that ask for one or more GPUs, and a share of one device to those
that ask for less (``GPU: 0.5``); 0.5 + 0.5 free on two devices is not one free GPU. Dims: N nodes, G devices.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["EPS", "NO_DEVICES", "can_take_gpus", "num_whole", "release_gpus", "take_gpus"]

EPS = 1e-6  # resources are compared with this slack, as Ray's fixed-point 1e-4 makes sums inexact
NO_DEVICES = -1


@njit(cache=True, inline="always")
def _best_fraction(gpu_free: NDArray[np.float64], node: int, demand: float) -> int:
    best = -1
    for g in range(gpu_free.shape[1]):
        free = gpu_free[node, g]
        if free + EPS >= demand and (best < 0 or free < gpu_free[node, best]):
            best = g
    return best


@njit(cache=True, inline="always")
def num_whole(gpu_free: NDArray[np.float64], node: int) -> int:
    """Devices of ``node`` that are free as a whole; ``gpu_free`` is ``(N, G)``, the free fraction per device."""
    whole = 0
    for g in range(gpu_free.shape[1]):
        whole += int(gpu_free[node, g] >= 1.0 - EPS)
    return whole


@njit(cache=True, inline="always")
def can_take_gpus(gpu_free: NDArray[np.float64], node: int, demand: float) -> bool:
    """Whether the devices of ``node`` can hold ``demand`` GPUs.

    Args:
        gpu_free: ``(N, G)`` free fraction per device.
        node: Node row.
        demand: GPUs asked for: 0, below 1, or a whole number.
    """
    if demand <= EPS:
        return True
    if demand < 1.0 - EPS:
        return bool(_best_fraction(gpu_free, node, demand) >= 0)
    return bool(num_whole(gpu_free, node) + EPS >= demand)


@njit(cache=True)
def take_gpus(gpu_free: NDArray[np.float64], node: int, demand: float) -> int:
    """Takes devices of ``node`` in place.

    A share goes to the fullest device that still holds it, whole devices in order of index.

    Args:
        gpu_free: ``(N, G)`` free fraction per device, written.
        node: Node row.
        demand: GPUs asked for: 0, below 1, or a whole number.

    Returns:
        Bit mask of the devices taken, 0 for no demand, ``NO_DEVICES`` (and nothing taken) if they do not fit.
    """
    if demand <= EPS:
        return 0
    if not can_take_gpus(gpu_free, node, demand):
        return NO_DEVICES
    if demand < 1.0 - EPS:
        g = _best_fraction(gpu_free, node, demand)
        gpu_free[node, g] -= demand
        return 1 << g
    mask, left = 0, round(demand)
    for g in range(gpu_free.shape[1]):
        if left > 0 and gpu_free[node, g] >= 1.0 - EPS:
            gpu_free[node, g] = 0.0
            mask |= 1 << g
            left -= 1
    return mask


@njit(cache=True)
def release_gpus(gpu_free: NDArray[np.float64], node: int, mask: int, demand: float) -> None:
    """Gives back what ``take_gpus`` took, in place.

    Args:
        gpu_free: ``(N, G)`` free fraction per device, written.
        node: Node row.
        mask: Bit mask returned by ``take_gpus``.
        demand: The same demand.
    """
    if mask <= 0:
        return
    share = demand if demand < 1.0 - EPS else 1.0
    for g in range(gpu_free.shape[1]):
        if (mask >> g) & 1:
            gpu_free[node, g] = min(1.0, gpu_free[node, g] + share)
