"""How the kernels of this room are compiled: cached on disk, and without entry points that nobody uses.

Every entry point costs compile time: by default there is one for Python, and one for C, for every kernel.
"""

from collections.abc import Callable
from typing import TypeVar

from numba import njit

__all__ = ["inlined", "inner", "kernel", "threaded"]

F = TypeVar("F", bound=Callable[..., object])


def kernel(function: F) -> F:
    """A kernel that Python may call."""
    return _compile(function, no_cfunc_wrapper=True)


def threaded(function: F) -> F:
    """A kernel that Python may call in several threads at once."""
    return _compile(function, no_cfunc_wrapper=True, nogil=True)


def inner(function: F) -> F:
    """A kernel that only other kernels call."""
    return _compile(function, no_cfunc_wrapper=True, no_cpython_wrapper=True)


def inlined(function: F) -> F:
    """A kernel that is copied into those that call it: a call counts references of every array that it is given."""
    return _compile(function, no_cfunc_wrapper=True, no_cpython_wrapper=True, inline="always")


def _compile(function: F, **options: bool | str) -> F:
    compiled: F = njit(cache=True, **options)(function)  # type: ignore[call-overload]  # its stubs lack some options
    return compiled
