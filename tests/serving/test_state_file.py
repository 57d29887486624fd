"""A live state in a file: whole or not at all, and fit for the simulator when read again."""

from pathlib import Path

import numpy as np
import pytest
import ray

from rayfold.envs.safety import Limits
from rayfold.envs.state import ClusterState
from rayfold.envs.state_check import check_state
from rayfold.errors import ClusterError, InputError
from rayfold.policies.none import NoMoves
from rayfold.policies.twin import roll_forward, startable
from rayfold.serving import state_file
from rayfold.serving.history import History
from rayfold.serving.live_settings import LiveSettings
from rayfold.serving.raw_cluster import RawCluster, RawDeployment, RawNode, RawReplica
from rayfold.serving.snapshot import build_state
from rayfold.serving.state_file import save_snapshot, write_state
from tests.envs.clusters import constant_traffic

NOW_S = 1_700_000_000.0
TOTAL = {"GPU": 4.0, "CPU": 8.0, "memory": 8 * 2.0**30}


def live_state() -> ClusterState:
    """Two nodes, two replicas, and one whose node has gone while it was looked at."""
    raw = RawCluster(
        now_s=NOW_S,
        nodes=tuple(
            RawNode(node_id=n, node_type="gpu4", total=TOTAL, available={**TOTAL, "GPU": 3.0, "CPU": 7.0})
            for n in ("n1", "n2")
        ),
        deployments=(
            RawDeployment(app="a", name="a", actor_resources={"GPU": 1.0, "CPU": 1.0}, target=3, ongoing=2.0),
        ),
        replicas=tuple(
            RawReplica(app="a", name="a", replica_id=f"r-{n}", state="RUNNING", node_id=n, start_s=NOW_S - 60.0)
            for n in ("n1", "n2", "n3")
        ),
    )
    return build_state(raw, LiveSettings(usd_per_gpu_h=1.0), History())


def test_file_holds_spec_and_ids_and_starts_the_simulator(tmp_path: Path) -> None:
    """Nothing but the file is needed: what comes back is equal, passes the check, and can be rolled forward."""
    state = live_state()
    write_state(state, tmp_path / "s.npz")
    loaded = ClusterState.load(tmp_path / "s.npz")
    assert loaded.digest() == state.digest()
    assert (loaded.spec, loaded.node_ids, loaded.replica_ids) == (state.spec, state.node_ids, state.replica_ids)
    check_state(loaded, "s.npz")
    ready = startable(loaded)
    traffic = constant_traffic(ready.spec, {"a": 4.0}, 120)
    result = roll_forward(ready, NoMoves(), [traffic], Limits(), np.random.default_rng(0))
    assert result.summary()["cost_usd"].mean == pytest.approx(2 * 4.0 / 6.0)  # 600 s of two nodes at 4 USD/h
    assert [path.name for path in tmp_path.iterdir()] == ["s.npz"]


def test_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up half-way: one error, the old file as it was, no temporary file."""
    path = tmp_path / "s.npz"
    path.write_bytes(b"before")

    def fills_up(state: ClusterState, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ClusterState, "save", fills_up)
    with pytest.raises(InputError, match="No space left"):
        write_state(live_state(), path)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("was_connected", [False, True])
def test_connection_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, was_connected: bool) -> None:
    """Ray is left as it was found, on success and on failure."""
    closed: list[bool] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: was_connected)
    monkeypatch.setattr(ray, "shutdown", lambda: closed.append(True))
    monkeypatch.setattr(state_file, "connect", lambda address: None)
    monkeypatch.setattr(state_file, "take_snapshot", lambda settings, history: live_state())
    assert save_snapshot("h:1", LiveSettings(), tmp_path / "s.npz").digest() == live_state().digest()
    assert len(closed) == (not was_connected)

    def fails(settings: LiveSettings, history: History) -> ClusterState:
        raise ClusterError("Serve does not run")

    monkeypatch.setattr(state_file, "take_snapshot", fails)
    with pytest.raises(ClusterError):
        save_snapshot("h:1", LiveSettings(), tmp_path / "none.npz")
    assert len(closed) == 2 * (not was_connected)
    assert not (tmp_path / "none.npz").exists()
