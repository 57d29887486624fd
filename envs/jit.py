"""How the kernels of this room are compiled: cached on disk, and without entry points that nobody uses.

A cluster is about 120 arrays in nested tuples, and taking those apart at an entry point is most of what a kernel
costs to compile: an entry for Python, and one for C, for every kernel by default.
"""

from collections.abc import Callable
from typing import TypeVar

from numba import njit

__all__ = ["inner", "kernel"]

F = TypeVar("F", bound=Callable[..., object])


def kernel(function: F) -> F:
    """A kernel that Python may call."""
    compiled: F = njit(cache=True, no_cfunc_wrapper=True)(function)
    return compiled


def inner(function: F) -> F:
    """A kernel that only other kernels call."""
    compiled: F = njit(cache=True, no_cfunc_wrapper=True, no_cpython_wrapper=True)(function)
    return compiled
