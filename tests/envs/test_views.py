"""Named tuples as one pointer: what a kernel sees of them, and what is refused."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from rayfold.envs.jit import kernel
from rayfold.envs.views import address_of, at, by_reference


@by_reference(is_written=False)
class Numbers(NamedTuple):
    """Scalars of each kind."""

    rate: float
    num: int
    is_on: bool


@by_reference(is_written=True)
class Part(NamedTuple):
    """Arrays that are written, and a tuple inside."""

    ids: NDArray[np.int64]  # (N,)
    table: NDArray[np.float64]  # (N, M)
    flags: NDArray[np.bool_]  # (N,)
    numbers: Numbers


@kernel
def weigh(part: Part, n: int) -> float:
    """Reads every kind of field and writes one."""
    part.table[n, 1] += 1.0
    bonus = 100.0 if part.numbers.is_on and part.flags[n] else 0.0
    return float(part.ids[n] * part.table[n, 0] + part.numbers.rate * part.numbers.num + bonus)


@kernel
def weigh_all(like: Part, addresses: NDArray[np.int64], out: NDArray[np.float64]) -> None:
    """``weigh`` of many, by their addresses."""
    for i in range(addresses.shape[0]):
        out[i] = weigh(at(like, addresses[i]), 0)  # type: ignore[call-arg]  # numba gives the first one


def part(scale: float = 1.0, *, is_on: bool = True) -> Part:
    """Three rows of two columns."""
    table = scale * np.arange(6.0).reshape(3, 2) + 1.0
    return Part(np.array([7, 8, 9]), table, np.array([True, False, True]), Numbers(0.5, 4, is_on))


def test_a_kernel_reads_and_writes_the_fields() -> None:
    """8 * 3 + 0.5 * 4, and 9 * 5 + 2 + 100 where the flags are set; the write is seen by Python."""
    p = part()
    assert weigh(p, 1) == 26.0
    assert weigh(p, 2) == 147.0
    np.testing.assert_array_equal(p.table, [[1.0, 2.0], [3.0, 5.0], [5.0, 7.0]])


def test_integers_where_a_float_is_declared() -> None:
    """The declared type counts, so that no second kernel is compiled and no bits are misread."""
    p = part()
    assert weigh(p._replace(numbers=Numbers(2, 4, np.bool_(False))), 1) == 32.0  # type: ignore[arg-type]


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
def test_a_copy_has_a_row_of_its_own(again: Any) -> None:
    """Addresses hold for the arrays of one tuple in one process: no copy carries them."""
    p = part()
    weigh(p, 0)
    other = again(p)
    assert type(other) is Part
    assert "_address" in vars(p)
    assert not vars(other)
    assert weigh(other, 1) == 26.0


def test_a_tuple_with_another_array_is_read_anew() -> None:
    """``_replace`` and ``_make`` give tuples of the same class without the old row."""
    p = part()
    weigh(p, 0)
    assert weigh(p._replace(table=10.0 * np.ones((3, 2))), 1) == 82.0
    assert weigh(Part._make(p), 1) == 26.0


@pytest.mark.parametrize(
    ("name", "array", "error"),
    [
        ("ids", np.arange(3, dtype=np.int32), TypeError),
        ("table", np.ones((3, 4))[:, ::2], ValueError),
        ("table", np.broadcast_to(1.0, (3, 1)), ValueError),
        ("flags", [True, False, True], TypeError),
        ("numbers", (0.5, 4, True), TypeError),
    ],
)
def test_what_does_not_fit_is_refused(name: str, array: Any, error: type[Exception]) -> None:
    """Kernels do not look at what is behind an address."""
    with pytest.raises(error, match=name):
        weigh(part()._replace(**{name: array}), 0)


def test_many_in_one_call() -> None:
    """7 * 1 + 2 + 100 each; only the second is switched off."""
    parts = [part(), part(3.0, is_on=False), part(5.0)]
    out = np.zeros(3)
    weigh_all(parts[0], np.array([address_of(p, parts[0]) for p in parts]), out)
    np.testing.assert_array_equal(out, [109.0, 9.0, 109.0])
    assert all(p.table[0, 1] == s + 2.0 for p, s in zip(parts, (1.0, 3.0, 5.0), strict=True))


def test_an_address_of_another_type_is_refused() -> None:
    """Read as ``like``, its row would send a kernel anywhere."""
    p = part()
    with pytest.raises(TypeError, match="expected"):
        address_of(p.numbers, p)


_SCRIPT = """
import numpy as np
from compiled import Numbers, total
print(total(Numbers(1.5, 2, True)), sum(total.stats.cache_hits.values()))
"""
_MODULE = """
from typing import NamedTuple
from rayfold.envs.jit import kernel
from rayfold.envs.views import by_reference

@by_reference(is_written=False)
class Numbers(NamedTuple):
    rate: float
    num: int
    is_on: bool

@kernel
def total(n: Numbers) -> float:
    return n.rate * n.num
"""


def test_what_is_compiled_is_found_again(tmp_path: Path) -> None:
    """The type is the same in another process: the second one takes the kernel from the disk."""
    (tmp_path / "compiled.py").write_text(_MODULE)
    (tmp_path / "script.py").write_text(_SCRIPT)
    seen = [
        subprocess.run([sys.executable, "script.py"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
        for _ in range(2)
    ]
    assert seen == ["3.0 0\n", "3.0 1\n"]
