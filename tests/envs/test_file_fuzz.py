"""Any file as a saved state or an event log: it is read as a whole, or refused in one line, soon."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st_

from rayfold.envs.event_log import read_log, state_path
from rayfold.envs.state import ClusterState, StateArrays
from rayfold.envs.state_check import check_state
from tests.envs.clusters import random_state
from tests.envs.importers.test_fuzz import mutations
from tests.mutants import FUZZ, changed, is_read, odd_values, places

LOG = Path(__file__).parents[1] / "data" / "replay" / "ten_minutes.jsonl.gz"


def _checked(path: Path) -> ClusterState:
    """What ``rayfold simulate`` does with a file."""
    state = ClusterState.load(path)
    check_state(state, str(path))
    return state


def _saved(folder: Path) -> tuple[Path, dict[str, Any]]:
    path = folder / "state.npz"
    random_state(np.random.default_rng(1)).save(path)
    assert is_read(lambda: _checked(path))
    with np.load(path) as data:
        return path, dict(data)


def test_bytes_of_a_state(tmp_path: Path) -> None:
    """Flipped, cut, doubled, replaced; and a text, and an array that is no archive."""
    path, _ = _saved(tmp_path)
    data, read = path.read_bytes(), set()

    @FUZZ
    @given(mutations())
    def check(mutate: Callable[[bytes], bytes]) -> None:
        path.write_bytes(mutate(data))
        read.add(is_read(lambda: _checked(path)))

    check()
    assert False in read
    for content in (b"", b"PK\x03\x04", b"state", b"\x93NUMPY\x01\x00" + bytes(90)):
        path.write_bytes(content)
        assert not is_read(lambda: _checked(path))
    np.save(path.with_suffix(".npy"), np.zeros(3))
    assert not is_read(lambda: _checked(path.with_suffix(".npy")))


def test_header_of_a_state(tmp_path: Path) -> None:
    """Any value of the description becomes something else."""
    path, content = _saved(tmp_path)
    header, read = json.loads(str(content["header"])), set()

    @FUZZ
    @given(st_.sampled_from(places(header)), odd_values())
    def check(place: tuple[Any, ...], new: Any) -> None:
        np.savez(path, **{**content, "header": np.array(json.dumps(changed(header, place, new)))})
        read.add(is_read(lambda: _checked(path)))

    check()
    assert False in read


def test_arrays_of_a_state(tmp_path: Path) -> None:
    """An array is missing, of another shape or type, or has a number that cannot be."""
    path, content = _saved(tmp_path)
    read = set()

    @FUZZ
    @given(
        st_.sampled_from(StateArrays._fields),
        st_.sampled_from(["missing", "shape", "type", "number"]),
        st_.integers(0, 400),
        st_.sampled_from([-2, -1, 0, 3, 10**6, 2**62, np.nan, np.inf, -np.inf]),
    )
    def check(name: str, how: str, at: int, number: float) -> None:
        array = content[name].copy()
        if how == "shape":
            array = array[..., :1] if at % 2 else array.ravel()
        elif how == "type":
            array = array.astype(np.float32 if at % 2 else np.complex128)
        elif how == "number" and array.size:
            with np.errstate(invalid="ignore"):
                array.flat[at % array.size] = np.array(number).astype(array.dtype)
        np.savez(path, **{k: v for k, v in {**content, name: array}.items() if how != "missing" or k != name})
        read.add(is_read(lambda: _checked(path)))

    check()
    assert read == {True, False}


def _log(folder: Path) -> tuple[Path, list[Any]]:
    """A log of a few lines, plain, with its state."""
    path = folder / "log.jsonl"
    with gzip.open(LOG, "rt") as f:
        lines = [json.loads(line) for line in f]
    moves = [line for line in lines if line["kind"] == "move"][:2]
    lines = [lines[0], lines[1], *moves, lines[-2], lines[-1]]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    shutil.copy(state_path(LOG), state_path(path))
    assert is_read(lambda: read_log(path))
    return path, lines


def test_values_of_a_log(tmp_path: Path) -> None:
    """Any value of any line becomes something else."""
    path, lines = _log(tmp_path)
    read = set()

    @FUZZ
    @given(st_.sampled_from(places(lines)[1:]), odd_values())
    def check(place: tuple[Any, ...], new: Any) -> None:
        path.write_text("".join(json.dumps(line) + "\n" for line in changed(lines, place, new)))
        read.add(is_read(lambda: read_log(path)))

    check()
    assert False in read


def test_bytes_of_a_log(tmp_path: Path) -> None:
    """Plain and compressed; a log that was cut is never read as if it were whole."""
    path, _ = _log(tmp_path)
    plain = path.read_bytes()
    packed = state_path(path).with_name("log.jsonl.gz")

    @FUZZ
    @given(mutations(), st_.booleans())
    def check(mutate: Callable[[bytes], bytes], is_packed: bool) -> None:
        if is_packed:
            packed.write_bytes(mutate(gzip.compress(plain)))
            is_read(lambda: read_log(packed))
        else:
            path.write_bytes(mutate(plain))
            is_read(lambda: read_log(path))

    check()
    lines = plain.splitlines(keepends=True)
    for num in range(len(lines)):
        path.write_bytes(b"".join(lines[:num]))
        assert not is_read(lambda: read_log(path))
    path.write_bytes(b"[" * 100_000)
    assert not is_read(lambda: read_log(path))
