"""Mutants of valid files, for the fuzz tests of every reader, and what a reader may do with them."""

import copy
import time
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st_

from rayfold.errors import InputError

__all__ = ["FUZZ", "changed", "is_read", "odd_values", "places"]

LONGEST_S = 10.0  # of CPU time, for one file of a few kilobytes
FUZZ = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def is_read(read: Callable[[], object]) -> bool:
    """Whether a file is read; anything else that happens than one line of ``InputError`` is a failure of the test."""
    begun_s, message = time.process_time(), ""
    try:
        read()
    except InputError as err:
        message = str(err)
    assert time.process_time() - begun_s < LONGEST_S
    assert message.isprintable(), message
    assert len(message) < 2000
    return not message


def odd_values() -> st_.SearchStrategy[Any]:
    """What JSON or YAML may hold in the place of what belongs there."""
    return st_.one_of(
        st_.none(),
        st_.booleans(),
        st_.integers(-3, 3),
        st_.sampled_from([10**9, 10**18, 2**64, -(2**63), 10**30, 1e-300, 1e300, -1.5, float("nan"), float("inf")]),
        st_.sampled_from(["", " ", "GPU", "1", "nan", "a" * 3000, "\x00", "a\nb", "é"]),
        st_.sampled_from([[], {}, [[]], [None], {"a": {}}, {"": 1}, [1, 2], ["a"]]),
    )


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values within a value, itself first."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(p for k, v in items for p in places(v, (*path, k)))]


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy with one value replaced."""
    if not path:
        return new
    out = copy.copy(value)
    out[path[0]] = changed(value[path[0]], path[1:], new)
    return out
