"""``ClusterState``: what is saved comes back, and a broken file is refused in one line."""

from pathlib import Path

import numpy as np
import pytest

from rayfold.envs.state import ClusterState
from rayfold.errors import InputError
from tests.envs.clusters import random_state


def test_round_trip(tmp_path: Path) -> None:
    """Arrays, clock, description and ids."""
    state = random_state(np.random.default_rng(1))
    state = ClusterState(spec=state.spec, now_s=state.now_s, arrays=state.arrays, node_ids=("a", "b"))
    path = tmp_path / "state.npz"
    state.save(path)
    loaded = ClusterState.load(path)
    assert loaded.digest() == state.digest()
    assert loaded.spec == state.spec
    assert loaded.node_ids == ("a", "b")


def test_digest_sees_every_array() -> None:
    """A change anywhere changes the digest."""
    state = random_state(np.random.default_rng(1))
    before = {state.digest()}
    for array in state.arrays:
        array.flat[0] = 1 - array.flat[0] if array.dtype != np.bool_ else not array.flat[0]
        assert state.digest() not in before
        before.add(state.digest())


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def _foreign(path: Path) -> None:
    np.savez(path, something=np.zeros(3))


def _resize(path: Path) -> None:
    with np.load(path) as data:
        content = dict(data)
    content["node_free"] = content["node_free"][:, :1]
    np.savez(path, **content)


def _pickled(path: Path) -> None:
    np.savez(path, header=np.array([{"format": 1}], dtype=object))


@pytest.mark.parametrize("spoil", [_truncate, _foreign, _resize, _pickled, Path.unlink])
def test_broken_file_is_refused(spoil: object, tmp_path: Path) -> None:
    """Truncated, foreign, of wrong shape, with a pickle inside, missing: the file is named."""
    path = tmp_path / "state.npz"
    random_state(np.random.default_rng(1)).save(path)
    assert callable(spoil)
    spoil(path)
    with pytest.raises(InputError, match=r"state\.npz"):
        ClusterState.load(path)
