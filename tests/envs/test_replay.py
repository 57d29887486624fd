"""A recorded run against the simulator: the fit and the comparison by hand, the recorded log within tolerances.

The runs in ``tests/data/replay`` were recorded by ``benchmarks/replay_local.py`` on a real local Ray 2.60 cluster.
"""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from rayfold.envs.cluster import (
    AutoscalingConfig,
    ClusterSettings,
    ClusterSpec,
    Deployment,
    Interval,
    NodeType,
    ReplicaShape,
)
from rayfold.envs.event_log import EventLog, LogHeader, MoveEvent, Poll, SeenNode, SeenReplica, read_log
from rayfold.envs.replay import Trajectory, offered_ongoing, real_trajectory, recorded_traffic, replay_log
from rayfold.envs.replay_compare import Agreement, compare, fit_text, replay_text
from rayfold.envs.replay_fit import Fitted, fit_times, fitted_state
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase, StateArrays
from rayfold.errors import InputError

LOGS = Path(__file__).parents[1] / "data" / "replay"
RUNS = ("ten_minutes", "busy_machine")

PENDING, STARTING = ReplicaPhase.PENDING, ReplicaPhase.STARTING
RUNNING, STOPPING = ReplicaPhase.RUNNING, ReplicaPhase.STOPPING

# Replica: deployment, creation, and its phases: (first poll, phase, node); the last entry is its end.
LIVES: dict[str, tuple[int, float, list[tuple[int, ReplicaPhase | None, str]]]] = {
    "x0": (0, -50.0, [(0, RUNNING, "A"), (99, None, "")]),
    "x1": (
        0,
        2.0,
        [(2, PENDING, ""), (4, STARTING, "A"), (5, RUNNING, "A"), (24, STOPPING, "A"), (27, None, "")],
    ),
    "x2": (
        0,
        6.0,
        [(6, PENDING, ""), (12, STARTING, "B"), (14, RUNNING, "B"), (20, STOPPING, "B"), (22, None, "")],
    ),
    "y0": (1, 23.0, [(23, PENDING, ""), (28, STARTING, "A"), (30, RUNNING, "A"), (99, None, "")]),
}


def hand_spec() -> ClusterSpec:
    """2-GPU nodes and two deployments of one GPU."""
    quick = {"startup_s": Interval(1.0, 1.0), "drain_s": Interval(1.0, 1.0)}
    shape = ReplicaShape(bundles=({"GPU": 1.0},))
    scaling = AutoscalingConfig(min_replicas=0, max_replicas=3)
    return ClusterSpec(
        node_types=(
            NodeType(
                name="n", resources={"GPU": 2.0}, price_usd_per_h=1.0, min_nodes=1, max_nodes=3, boot_s=Interval(9, 9)
            ),
        ),
        deployments=tuple(
            Deployment(name=name, app=name, shape=shape, autoscaling=scaling, **quick)  # type: ignore[arg-type]
            for name in ("x", "y")
        ),
        settings=ClusterSettings(idle_timeout_s=99.0),
    )


def hand_state() -> ClusterState:
    """Node A with replica x0."""
    spec = hand_spec()
    st = StateArrays.empty(spec, 1, 1)
    st.node_type[0], st.node_phase[0] = 0, NodePhase.ALIVE
    st.node_free[0], st.gpu_free[0] = [1.0, 0.0, 0.0], [0.0, 1.0]
    st.replica_deployment[0], st.replica_node[0], st.replica_phase[0], st.replica_gpus[0] = 0, 0, RUNNING, 1
    st.deployment_target[:] = 1, 0
    return ClusterState(spec=spec, now_s=1000.0, arrays=st, node_ids=("A",), replica_ids=("x0",))


def hand_poll(t: int) -> Poll:
    """The cluster of ``LIVES`` at second ``t``; node B boots from 8 on, joins at 11, boots to 12 too, ends at 32."""
    replicas = []
    for replica_id, (d, created_s, steps) in LIVES.items():
        now = [(phase, node) for first, phase, node in steps if first <= t]
        if now and now[-1][0] is not None:
            replicas.append(SeenReplica(replica_id, d, now[-1][1], now[-1][0], created_s))
    nodes = [SeenNode("A", "n", NodePhase.ALIVE)]
    nodes += [SeenNode("B", "n", NodePhase.ALIVE)] if 11 <= t < 32 else []
    nodes += [SeenNode("", "n", NodePhase.BOOTING)] if 8 <= t <= 12 else []
    return Poll(t_s=float(t), nodes=tuple(nodes), replicas=tuple(replicas), targets=(1, 0), ongoing=(0.5 * t, 0.0))


def hand_log() -> EventLog:
    """34 polls, one a second."""
    header = LogHeader(
        node_types=("n",),
        deployments=("x/x", "y/y"),
        idle_timeout_s=9.0,
        fence_s=60.0,
        poll_s=1.0,
        ray_version="2.60.0",
        title="by hand",
    )
    return EventLog(header=header, first=hand_state(), polls=tuple(hand_poll(t) for t in range(34)), moves=())


def test_fit_by_hand() -> None:
    """Waiting for a node or for room is no start-up; a node shown as booting after it has joined is no launch."""
    fit = fit_times(hand_log())
    # x1: created at 2, had room, ran between polls 4 and 5. x2: node B joined between 10 and 11, ran between 13 and 14.
    assert fit.startup[0] == Fitted(count=2, min_s=2.5, mean_s=2.75, max_s=3.0)
    # y0 had to wait for x1, which was gone between polls 26 and 27; it ran between 29 and 30.
    assert fit.startup[1] == Fitted(count=1, min_s=3.0, mean_s=3.0, max_s=3.0)
    assert fit.drain[0] == Fitted(count=2, min_s=2.0, mean_s=2.5, max_s=3.0)
    assert fit.drain[1].count == 0
    assert fit.boot == (Fitted(count=1, min_s=3.0, mean_s=3.0, max_s=3.0),)
    assert fit.lag == Fitted(count=1, min_s=1.5, mean_s=1.5, max_s=1.5)
    assert fit.release == Fitted(count=1, min_s=10.0, mean_s=10.0, max_s=10.0)


def test_fitted_state_holds_the_fit() -> None:
    """Boot includes the lag, the time-out is the measured release, what was not seen stays."""
    log = hand_log()
    spec = fitted_state(log, fit_times(log)).spec
    assert spec.node_types[0].boot_s == Interval(4.5, 4.5)
    assert spec.deployments[0].startup_s == Interval(2.5, 3.0)
    assert spec.deployments[1].drain_s == Interval(1.0, 1.0)
    assert (spec.settings.idle_timeout_s, spec.settings.substep_s) == (10.0, 1.0)


def test_interval_keeps_the_mean() -> None:
    """A skewed sample becomes the widest interval around its mean that it covers."""
    assert Fitted.of([1.0, 1.0, 4.0]).interval(Interval(0.0, 0.0)) == Interval(1.0, 3.0)
    assert Fitted.of([]).interval(Interval(7.0, 8.0)) == Interval(7.0, 8.0)


def test_recorded_traffic_is_the_recorded_series() -> None:
    """Row i holds what the log showed at the end of step i."""
    traffic = recorded_traffic(hand_log(), 1.0)
    np.testing.assert_array_equal(traffic.ongoing[traffic.num_before :, 0], 0.5 * np.arange(1, 34))
    assert traffic.window.tolist() == [1] * traffic.ongoing.shape[1]


def _trajectory(alive: list[list[int]], running: list[list[int]], targets: list[int]) -> Trajectory:
    return Trajectory(
        times_s=np.arange(4.0),
        slots=(("t", "A"), ("t", "#1")),
        alive=np.array(alive, np.bool_),
        running=np.array(running, np.int64)[:, :, None],
        targets=np.array(targets, np.int64)[:, None],
    )


def test_comparison_by_hand() -> None:
    """Four moments, two nodes: the second node comes one moment late and stays too long."""
    real = _trajectory([[1, 0], [1, 1], [1, 1], [1, 0]], [[1, 0], [1, 1], [1, 1], [1, 0]], [1, 2, 2, 1])
    sim = _trajectory([[1, 0], [1, 0], [1, 1], [1, 1]], [[1, 0], [2, 0], [1, 1], [1, 1]], [1, 2, 2, 2])
    assert compare(real, sim) == Agreement(
        mean_nodes=1.5,
        node_error=0.5,
        node_error_by_type=(0.5,),
        longest_node_gap_s=1.0,
        node_hours_ratio=1.0,
        replica_error=(0.25,),
        target_error=(0.25,),
        longest_target_gap_s=0.0,
        placement_by_type=(1.0 + 1.0 + 1.0 + 0.5) / 4,
        placement_by_node=(1.0 + 0.5 + 1.0 + 0.5) / 4,
    )


def test_what_is_compared_with_itself_agrees() -> None:
    """No error, full agreement."""
    real = real_trajectory(hand_log())
    same = compare(real, real)
    assert (same.node_error, same.longest_node_gap_s, same.placement_by_node) == (0.0, 0.0, 1.0)
    assert sum(same.replica_error) + sum(same.target_error) == 0.0


def test_launched_nodes_are_matched_in_their_order() -> None:
    """A first node keeps its id, a launched one its type and turn."""
    assert real_trajectory(hand_log()).slots == (("n", "A"), ("n", "#1"))


def _write(log: EventLog, path: Path, *, end: bool = True) -> None:
    records = [{"kind": "header", "format": 1, **dataclasses.asdict(log.header)}]
    records += [{"kind": "poll", **dataclasses.asdict(p)} for p in log.polls]
    records += [{"kind": "end"}] if end else []
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    log.first.save(path.with_name("log.npz"))


def test_log_round_trip(tmp_path: Path) -> None:
    """What was written is what is read."""
    log = hand_log()
    _write(log, tmp_path / "log.jsonl")
    read = read_log(tmp_path / "log.jsonl")
    assert (read.header, read.polls, read.moves) == (log.header, log.polls, ())
    assert read.first.digest() == log.first.digest()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: "", "the header of an event log"),
        (lambda text: text.rsplit("\n", 2)[0], "the end mark"),
        (lambda text: text[: len(text) // 2], "one JSON object"),
        (lambda text: text.replace('"format": 1', '"format": 9'), "log format 1"),
        (lambda text: text.replace('"kind": "poll"', '"kind": "poem"', 1), "kind poll or move"),
        (lambda text: text.replace('"targets": [1, 0]', '"targets": [1]', 1), "2 targets"),
        (lambda text: text.replace('["x0", 0,', '["x0", 7,', 1), "a deployment below 2"),
        (lambda text: text.replace('"t_s": 0.0', '"t_s": "soon"', 1), "valid number"),
        (lambda text: text.replace('"y/y"', '"z/z"'), "the deployments of the log"),
    ],
)
def test_spoilt_log_is_one_line(tmp_path: Path, spoil: Callable[[str], str], message: str) -> None:
    """Every fault is told with its place, and nothing is read."""
    path = tmp_path / "log.jsonl"
    _write(hand_log(), path)
    text = path.read_text()
    assert spoil(text) != text
    path.write_text(spoil(text))
    with pytest.raises(InputError, match=message) as told:
        read_log(path)
    assert "\n" not in str(told.value)


def test_missing_log_and_bad_gzip(tmp_path: Path) -> None:
    """A missing file and one that is not gzip are told."""
    with pytest.raises(InputError, match="No such file"):
        read_log(tmp_path / "log.jsonl")
    (tmp_path / "log.jsonl.gz").write_bytes(b"not gzip")
    with pytest.raises(InputError, match="an event log"):
        read_log(tmp_path / "log.jsonl.gz")


def test_moves_are_made_where_they_were_made() -> None:
    """A move from A to B is made from the first node to the first launched one; one to a node unknown is skipped."""
    log = hand_log()
    state = dataclasses.replace(log.first, arrays=log.first.arrays.copy())
    polls = tuple(dataclasses.replace(p, targets=(3, 0), ongoing=(6.0, 0.0)) for p in log.polls)
    gone = SeenNode("C", "n", NodePhase.ALIVE)
    polls = (*polls[:-1], dataclasses.replace(polls[-1], nodes=(*polls[-1].nodes, gone)))
    state.arrays.deployment_target[0] = 3

    def move(t_s: float, to_node: str) -> MoveEvent:
        return MoveEvent(
            t_s=t_s,
            move_id=to_node,
            phase="starting",
            deployment_idx=0,
            replica_id="x0",
            from_node="A",
            to_node=to_node,
        )

    log = dataclasses.replace(log, polls=polls, moves=(move(24.0, "B"), move(26.0, "C")))
    replay = replay_log(log, dataclasses.replace(state, spec=fitted_state(log, fit_times(log)).spec), rng(0))
    assert (replay.moves_as_recorded, replay.moves_from_elsewhere, replay.moves_skipped) == (1, 0, 1), replay.refusals
    end = replay.trajectory.running[-1, :, 0].tolist()
    assert end == [1, 2], "two on A and one on B before, one of A's on B after"


def test_a_dip_of_serves_own_making_is_undone() -> None:
    """From a stop on, for look-back and report, the count is no lower than the lower of its values before and after."""
    polls = []
    for t in range(60):
        stopped = t >= 20
        replicas = [SeenReplica("x0", 0, "A", RUNNING, 0.0)]
        replicas += [] if stopped else [SeenReplica("x1", 0, "A", RUNNING, 0.0)]
        ongoing = 4.0 if t < 20 else 2.0 if t < 35 else 5.0
        node = SeenNode("A", "n", NodePhase.ALIVE)
        polls.append(
            Poll(t_s=float(t), nodes=(node,), replicas=tuple(replicas), targets=(1, 0), ongoing=(ongoing, float(t)))
        )
    log = dataclasses.replace(hand_log(), polls=tuple(polls))
    offered = offered_ongoing(log)
    # The look-back period is 30 s and a report may be 10 s old: until 60, where the count is 5; before it was 4.
    np.testing.assert_array_equal(offered[:, 0], [4.0] * 35 + [5.0] * 25)
    np.testing.assert_array_equal(offered[:, 1], np.arange(60.0))
    falls = [dataclasses.replace(p, ongoing=(1.0 if p.t_s >= 20 else 4.0, 0.0)) for p in polls]
    fallen = offered_ongoing(dataclasses.replace(log, polls=tuple(falls)))
    np.testing.assert_array_equal(fallen[:, 0], [4.0] * 20 + [1.0] * 40)  # a lasting fall is no dip


def rng(seed: int) -> np.random.Generator:
    """A generator."""
    return np.random.default_rng(seed)


# The recorded run ---------------------------------------------------------------------------------------------------

RAMP_S = 240.0  # until then: two scale-ups, three launches, a move and a release; nothing was scaled down yet


class Mean(NamedTuple):
    """Errors of the replays, each the mean over the draws and the worst deployment."""

    node_error: float
    hours_off: float  # |simulated / real node hours - 1|
    replica_error: float
    target_error: float
    target_gap_s: float
    by_type: float
    by_node: float
    ramp_by_node: float  # placement_by_node until RAMP_S


# What a replay may be off by, of 3.3 (or 3.6) nodes on average. A race that reality has decided one way (which of two
# replicas is ready first) is decided either way by the draws, and then nodes and placement differ to the end.
LARGEST = {
    "ten_minutes": Mean(
        node_error=0.15,
        hours_off=0.04,
        replica_error=0.05,
        target_error=0.03,
        target_gap_s=2.0,
        by_type=0.95,
        by_node=0.95,
        ramp_by_node=0.95,
    ),
    # Start-ups of 2 to 21 s, drawn one by one, cannot tell which replicas were the slow ones.
    "busy_machine": Mean(
        node_error=0.25,
        hours_off=0.06,
        replica_error=0.12,
        target_error=0.03,
        target_gap_s=2.0,
        by_type=0.90,
        by_node=0.80,
        ramp_by_node=0.80,
    ),
}


def broken(mean: Mean, run: str = RUNS[0]) -> set[str]:
    """Names of the tolerances that are not kept; the placements are shares, which must be at least so high."""
    shares = {"by_type", "by_node", "ramp_by_node"}
    pairs = {name: (getattr(mean, name), getattr(LARGEST[run], name)) for name in Mean._fields}
    return {name for name, (got, limit) in pairs.items() if (got < limit if name in shares else got > limit)}


@functools.cache
def recorded(run: str = RUNS[0]) -> EventLog:
    """A recorded run."""
    return read_log(LOGS / f"{run}.jsonl.gz")


@functools.cache
def fitted(run: str = RUNS[0]) -> ClusterState:
    """First state of a recorded run, with its fitted times."""
    return fitted_state(recorded(run), fit_times(recorded(run)))


def replayed(state: ClusterState, log: EventLog, *, as_recorded: bool = False, num_seeds: int = 8) -> Mean:
    """Replays ``log`` from ``state`` with different draws, against what really happened."""
    real = real_trajectory(log)
    ramp = real.until(RAMP_S)
    replays = [replay_log(log, state, rng(i), as_recorded=as_recorded) for i in range(num_seeds)]
    whole = [compare(real, r.trajectory) for r in replays]
    return Mean(
        node_error=float(np.mean([a.node_error for a in whole])),
        hours_off=abs(float(np.mean([a.node_hours_ratio for a in whole])) - 1.0),
        replica_error=float(np.mean([a.replica_error for a in whole], axis=0).max()),
        target_error=float(np.mean([a.target_error for a in whole], axis=0).max()),
        target_gap_s=float(np.mean([a.longest_target_gap_s for a in whole])),
        by_type=float(np.mean([a.placement_by_type for a in whole])),
        by_node=float(np.mean([a.placement_by_node for a in whole])),
        ramp_by_node=float(np.mean([compare(ramp, r.trajectory).placement_by_node for r in replays])),
    )


@pytest.mark.parametrize("run", RUNS)
def test_recorded_run_holds_what_is_to_be_replayed(run: str) -> None:
    """About ten minutes, both node types launched, nodes released, scaling up and down, at least three moves done."""
    log, real = recorded(run), real_trajectory(recorded(run))
    assert log.duration_s == pytest.approx(600.0, abs=10.0)
    assert log.header.ray_version == "2.60.0"
    assert {t for t, name in real.slots if name.startswith("#")} == {"gpu2", "gpu4"}
    num_nodes = real.alive.sum(1)
    assert (num_nodes[0], num_nodes.max(), num_nodes[-1]) == (2, 5, 2)
    assert (np.diff(real.targets, axis=0) > 0).any(0).all()
    assert (np.diff(real.targets, axis=0) < 0).any(0).all()
    assert sum(m.phase == "done" for m in log.moves) >= 3
    assert {m.move_id for m in log.moves if m.phase == "starting"} == {
        m.move_id for m in log.moves if m.phase == "done"
    }
    assert np.diff(log.times_s()).max() < 5.0, "no hole between polls"


def test_fit_of_the_recorded_run() -> None:
    """Every kind of duration was seen; the release is the autoscaler's time-out and its reaction."""
    fit = fit_times(recorded())
    assert all(f.count >= 3 for f in (*fit.startup, *fit.drain))
    assert all(f.count == 2 for f in fit.boot)
    assert (fit.lag.count, fit.release.count) == (4, 4)
    assert all(1.0 < f.mean_s < 6.0 for f in fit.startup)
    assert all(0.9 < f.mean_s < 2.0 for f in fit.drain)  # graceful_shutdown_wait_loop_s was 1
    assert 0.0 <= fit.release.min_s - recorded().header.idle_timeout_s < 2.0
    text = fit_text(recorded().first.spec, fit, 20.0)
    assert "release of an empty node  20.63 s mean, 20.48 to 21.00, 4 times (time-out set to 20 s)" in text


@pytest.mark.parametrize("run", RUNS)
def test_replay_keeps_the_tolerances(run: str) -> None:
    """Number of nodes, targets, replicas and placement of the simulator agree with reality."""
    mean = replayed(fitted(run), recorded(run), num_seeds=20)
    assert broken(mean, run) == set(), mean


def _with(
    state: ClusterState,
    deployment: Callable[[Deployment], Deployment] = lambda d: d,
    node_type: Callable[[NodeType], NodeType] = lambda t: t,
    **settings: object,
) -> ClusterState:
    spec = state.spec
    changed = ClusterSpec(
        node_types=tuple(map(node_type, spec.node_types)),
        deployments=tuple(map(deployment, spec.deployments)),
        settings=dataclasses.replace(spec.settings, **settings),  # type: ignore[arg-type]
    )
    return dataclasses.replace(state, spec=changed)


def _times(interval: Interval, factor: float) -> Interval:
    return Interval(factor * interval.min_s, factor * interval.max_s)


def _slow_start(d: Deployment) -> Deployment:
    return dataclasses.replace(d, startup_s=_times(d.startup_s, 10.0))


def _delays(up_s: float, down_s: float) -> Callable[[Deployment], Deployment]:
    def change(d: Deployment) -> Deployment:
        scaling = dataclasses.replace(d.autoscaling, upscale_delay_s=up_s, downscale_delay_s=down_s)
        return dataclasses.replace(d, autoscaling=scaling)

    return change


FAULTS: dict[str, tuple[Callable[[ClusterState], ClusterState], set[str]]] = {
    "start-up ten times as long": (lambda s: _with(s, _slow_start), {"replica_error", "ramp_by_node"}),
    "boot ten times as long": (
        lambda s: _with(s, node_type=lambda t: dataclasses.replace(t, boot_s=_times(t.boot_s, 10.0))),
        {"node_error", "ramp_by_node"},
    ),
    "released after a minute": (lambda s: _with(s, idle_timeout_s=60.0), {"node_error", "hours_off"}),
    "upscale delay of 30 s": (lambda s: _with(s, _delays(30.0, 25.0)), {"target_error", "target_gap_s"}),
    "downscale delay of 50 s": (lambda s: _with(s, _delays(5.0, 50.0)), {"target_error", "target_gap_s"}),
    "two gpu2 nodes too many": (
        lambda s: _with(s, node_type=lambda t: dataclasses.replace(t, max_nodes=4 if t.name == "gpu2" else 1)),
        {"ramp_by_node"},
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault_breaks_the_tolerances(name: str) -> None:
    """A simulator with one thing wrong is found out, by the figures that this thing shows in."""
    change, expected = FAULTS[name]
    mean = replayed(change(fitted()), recorded())
    assert expected <= broken(mean), mean


def test_replay_without_its_moves_is_found_out() -> None:
    """The recorded moves matter: without them replicas are elsewhere."""
    mean = replayed(fitted(), dataclasses.replace(recorded(), moves=()))
    assert "by_node" in broken(mean), mean


def test_dips_left_in_the_load_are_found_out() -> None:
    """Serve's own dips, fed to a simulator that has none, let it scale down further than Serve did."""
    mean = replayed(fitted(), recorded(), as_recorded=True)
    assert "target_gap_s" in broken(mean), mean


def test_replay_is_the_same_for_a_seed() -> None:
    """One seed, one trajectory."""
    first, second = (replay_log(recorded(), fitted(), rng(3)).trajectory for _ in range(2))
    np.testing.assert_array_equal(first.running, second.running)
    assert first.slots == second.slots


def test_report_names_every_figure() -> None:
    """The text tells the fit and the errors of each deployment."""
    replay = replay_log(recorded(), fitted(), rng(0))
    text = replay_text(recorded().first.spec, [replay], [compare(real_trajectory(recorded()), replay.trajectory)])
    assert text.startswith("1 replays of 600 s")
    assert all(f"{what} of {key}" in text for what in ("replicas", "target") for key in ("a/a", "b/b", "c/c"))
