"""The recorder: by hand without Ray, and a short run on a real cluster, complete to the last event."""

import dataclasses
import warnings
from pathlib import Path

import numpy as np
import pytest

from rayfold.envs.cluster import NodeType
from rayfold.envs.event_log import EventLog, SeenNode, SeenReplica, read_log, state_path
from rayfold.envs.moves import Move, MovePhase
from rayfold.envs.replay import real_trajectory, replay_log
from rayfold.envs.replay_compare import compare
from rayfold.envs.replay_fit import fit_times, fitted_state
from rayfold.envs.state import NodePhase, ReplicaPhase
from rayfold.serving.event_log import Recorder
from rayfold.serving.executor import MoveStatus
from rayfold.serving.live_settings import LiveSettings, NodeTypeSettings
from rayfold.serving.raw_cluster import RawCluster, RawDeployment, RawNode, RawReplica
from rayfold.serving.replay_scenario import ReplayApp, ReplayScenario, Stage, run_scenario

BEGUN_S = 5000.0
ROOM = {"GPU": 4.0, "CPU": 8.0}
SETTINGS = LiveSettings(
    idle_timeout_s=15.0, node_types={"gpu4": NodeTypeSettings(price_usd_per_h=4.0, min_nodes=1, max_nodes=3)}
)


def raw(t_s: float, *, replicas: dict[str, tuple[str, str | None]], booting: int = 0) -> RawCluster:
    """Two nodes and one deployment of one GPU; replicas by id: Serve's state and node."""

    def node(node_id: str) -> RawNode:
        held = sum(n == node_id for _, n in replicas.values())
        available = {"GPU": 4.0 - held, "CPU": 8.0 - held}
        return RawNode(node_id=node_id, node_type="gpu4", total=ROOM, available=available)

    return RawCluster(
        now_s=BEGUN_S + t_s,
        nodes=(node("n1"), node("n2")),
        deployments=(
            RawDeployment(
                app="a", name="a", actor_resources={"GPU": 1.0, "CPU": 1.0}, target=len(replicas), ongoing=1.5 + t_s
            ),
        ),
        replicas=tuple(
            RawReplica(app="a", name="a", replica_id=r, state=state, node_id=node_id, start_s=BEGUN_S - 7.0)
            for r, (state, node_id) in replicas.items()
        ),
        booting_types=("gpu4",) * booting,
    )


def record(path: Path, raws: list[RawCluster]) -> EventLog:
    """Records these views, with a move of replica r1 to n2 noted after the first that is done after the last."""
    views = iter(raws)
    with Recorder(
        path, SETTINGS, poll_s=1.0, fence_s=60.0, title="by hand", ray_version="2.60.0", fetch=lambda: next(views)
    ) as recorder:
        state = recorder.poll()
        recorder.note_start("m", state, Move(0, 1), BEGUN_S + 0.5)
        for _ in raws[1:]:
            recorder.note_statuses({"m": MoveStatus(MovePhase.DRAINING, "", "r1", "r9", "n2")}, BEGUN_S + 1.0)
            recorder.poll()
        done = {"m": MoveStatus(MovePhase.DONE, "", "r1", "r9", "n2")}
        recorder.note_statuses(done, BEGUN_S + 2.5)
        recorder.note_statuses(done, BEGUN_S + 3.0)
        assert not path.exists(), "a log under its own name is whole"
    return read_log(path)


@pytest.mark.parametrize("name", ["log.jsonl", "log.jsonl.gz"])
def test_recorded_by_hand(tmp_path: Path, name: str) -> None:
    """Nodes, replicas with creation time, targets, requests, and each move's beginning and end once."""
    first = raw(0.0, replicas={"r1": ("RUNNING", "n1")})
    second = raw(1.0, replicas={"r1": ("PENDING_MIGRATION", "n1"), "r9": ("STARTING", None)}, booting=1)
    third = raw(2.0, replicas={"r1": ("STOPPING", "n1"), "r9": ("RUNNING", "n2")})
    log = record(tmp_path / name, [first, second, third])
    alive = [SeenNode("n1", "gpu4", NodePhase.ALIVE), SeenNode("n2", "gpu4", NodePhase.ALIVE)]
    assert [p.t_s for p in log.polls] == [0.0, 1.0, 2.0]
    assert log.polls[1].nodes == (*alive, SeenNode("", "gpu4", NodePhase.BOOTING))
    assert log.polls[1].replicas == (
        SeenReplica("r1", 0, "n1", ReplicaPhase.RUNNING, -7.0),
        SeenReplica("r9", 0, "", ReplicaPhase.PENDING, -7.0),
    )
    assert log.polls[2].replicas[0].phase is ReplicaPhase.STOPPING
    assert [(p.targets, p.ongoing) for p in log.polls] == [((1,), (1.5,)), ((2,), (2.5,)), ((2,), (3.5,))]
    assert [(m.t_s, m.phase, m.from_node, m.to_node, m.replacement_id) for m in log.moves] == [
        (0.5, "starting", "n1", "n2", ""),
        (2.5, "done", "n1", "n2", "r9"),
    ]
    assert log.first.node_ids == ("n1", "n2")
    assert log.first.now_s == BEGUN_S
    assert log.header.node_types == ("gpu4",)


def test_failed_recording_leaves_no_log(tmp_path: Path) -> None:
    """An error inside the block, and nothing lies under the name of the log."""
    with pytest.raises(StopIteration):
        record(tmp_path / "log.jsonl", [])
    assert not (tmp_path / "log.jsonl").exists()


SHORT = ReplayScenario(
    title="short",
    node_types=(
        NodeType(
            name="gpu2",
            resources={"GPU": 2.0, "CPU": 4.0, "memory_gib": 4.0},
            price_usd_per_h=2.0,
            min_nodes=1,
            max_nodes=3,
        ),
    ),
    apps=(ReplayApp(name="a", num_gpus=1, max_replicas=3),),
    stages=(Stage(at_s=0.0, clients={"a": 1}), Stage(at_s=1.0, clients={"a": 9}), Stage(at_s=22.0, clients={"a": 1})),
    move_at_s=(10.0,),
    duration_s=46.0,
    upscale_delay_s=1.0,
    downscale_delay_s=4.0,
    look_back_s=4.0,
    metrics_interval_s=2.0,
    idle_timeout_s=5.0,
    fence_s=5.0,
)


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # Ray leaves sockets to the collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_short_real_run_is_recorded_whole(tmp_path: Path) -> None:
    """Scale-up, launch, move, scale-down and release are all in the log; its first snapshot loads, its replay runs."""
    path = tmp_path / "short.jsonl.gz"
    lines: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing and starting Ray Serve warns of its own deprecations
        load = run_scenario(SHORT, path, lines.append)
    log = read_log(path)
    assert (load.failed, load.answered > 50) == (0, True)
    assert [len(log.polls) > 60, state_path(path).exists(), log.header.deployments] == [True, True, ("a/a",)]
    assert set(log.first.arrays.replica_phase.tolist()) == {ReplicaPhase.RUNNING}
    real = real_trajectory(log)
    told = "\n".join(lines)
    assert real.targets[:, 0].max() == 3, told
    assert real.targets[-1, 0] == 1, told
    assert real.running.sum((1, 2)).max() >= 3, told
    assert (real.alive.sum(1).max() >= 2, real.alive[-1].sum()) == (True, 1), "a node was launched and one released"
    assert [m.phase for m in log.moves] == ["starting", "done"], told
    _check_every_event(log)
    fit = fit_times(log)
    assert min(fit.startup[0].count, fit.drain[0].count, fit.boot[0].count, fit.release.count) >= 1
    sim = replay_log(log, fitted_state(log, fit), np.random.default_rng(0)).trajectory
    found = compare(real, sim)
    assert found.node_error < 0.5, dataclasses.asdict(found)
    assert max(found.target_error) < 0.3, dataclasses.asdict(found)


def _check_every_event(log: EventLog) -> None:
    """Every replica is seen from its beginning to its end, and the move leads from its replica to its replacement."""
    seen = [{r.replica_id: r for r in p.replicas} for p in log.polls]
    phases: dict[str, list[ReplicaPhase]] = {}
    for moment in seen:
        for replica_id, replica in moment.items():
            phases.setdefault(replica_id, []).append(replica.phase)
    for replica_id, found in phases.items():
        assert found == sorted(found), f"{replica_id} goes back in its life: {found}"
        assert ReplicaPhase.RUNNING in found
        if replica_id not in seen[-1]:
            assert found[-1] is ReplicaPhase.STOPPING
    end = log.moves[-1]
    assert phases[end.replica_id][-1] is ReplicaPhase.STOPPING
    arrived = next(
        m[end.replacement_id] for m in seen if m.get(end.replacement_id, None) and m[end.replacement_id].node_id
    )
    assert arrived.node_id == end.to_node
