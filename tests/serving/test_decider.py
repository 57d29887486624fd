"""The loop of the decider, on hand-built states: whatever goes wrong, the cluster stays as it is."""

import dataclasses
import json
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from rayfold.envs.cluster import ClusterSpec, Deployment, NodeType, ReplicaShape
from rayfold.envs.moves import Move, MovePhase, Plan
from rayfold.envs.safety import Limits
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase, StateArrays
from rayfold.errors import ExecutorError
from rayfold.policies.best_fit import BestFit
from rayfold.serving.decider import Decider, Decision, Mode
from rayfold.serving.history import History
from rayfold.serving.journal import Journal
from rayfold.serving.live_settings import LiveSettings

SETTINGS = LiveSettings(limits=Limits(max_concurrent_moves=4), plan_deadline_s=5.0, decision_interval_s=0.01)


def _state(now_s: float = 1000.0) -> ClusterState:
    """Two 4-GPU nodes with one replica each: either fits onto the other."""
    spec = ClusterSpec(
        node_types=(NodeType(name="gpu4", resources={"GPU": 4.0, "CPU": 8.0}, price_usd_per_h=4.0),),
        deployments=(Deployment(name="a", app="a", shape=ReplicaShape(bundles=({"GPU": 1.0, "CPU": 1.0},))),),
    )
    st = StateArrays.empty(spec, 2, 2)
    st.node_type[:], st.node_phase[:] = 0, NodePhase.ALIVE
    st.node_free[:] = [3.0, 7.0, 0.0]
    st.gpu_free[:] = [0.0, 1.0, 1.0, 1.0]
    st.replica_deployment[:], st.replica_node[:] = 0, [0, 1]
    st.replica_phase[:], st.replica_gpus[:] = ReplicaPhase.RUNNING, 1
    st.node_held[:], st.node_num_held[:], st.node_idle_since_s[:] = 1, 1, np.inf
    st.deployment_target[:] = 2
    return ClusterState(spec=spec, now_s=now_s, arrays=st, node_ids=("n0", "n1"), replica_ids=("r0", "r1"))


class _Recorder:
    """An executor that remembers."""

    def __init__(self, error: str = "") -> None:
        self.started: list[tuple[str, str]] = []
        self.phases: dict[str, MovePhase] = {}
        self._error = error

    def start(self, state: ClusterState, move: Move) -> str:
        if self._error:
            raise ExecutorError(self._error)
        self.started.append((state.replica_ids[move.replica_idx], state.node_ids[move.node_idx]))
        move_id = f"m{len(self.started)}"
        self.phases[move_id] = MovePhase.STARTING
        return move_id

    def phase(self, move_id: str) -> MovePhase:
        return self.phases[move_id]

    def cancel(self, move_id: str) -> None:
        self.phases[move_id] = MovePhase.CANCELLED


class _Fixed:
    """A policy with a given answer."""

    name = "fixed"

    def __init__(self, answer: Callable[[], Plan]) -> None:
        self._answer = answer

    def reset(self) -> None: ...

    def plan(self, state: ClusterState, rng: np.random.Generator) -> Plan:
        return self._answer()


def _plan(*moves: Move) -> Plan:
    return Plan(moves=moves, scores=(0.0,) * len(moves), reason="because")


def _raise() -> Plan:
    raise ValueError("planted")


def _decider(
    answer: Callable[[], Plan],
    executor: _Recorder,
    *,
    mode: Mode = Mode.ACT,
    snapshot: Callable[[], ClusterState] = _state,
    fallback: Callable[[], Plan] | None = None,
    settings: LiveSettings = SETTINGS,
    journal: Journal | None = None,
) -> Decider:
    return Decider(
        policy=_Fixed(answer),
        fallback=BestFit(settings.limits) if fallback is None else _Fixed(fallback),
        settings=settings,
        snapshot=snapshot,
        history=History(),
        executor=executor,
        mode=mode,
        journal=journal or Journal(),
        rng=np.random.default_rng(0),
    )


def _tick(decider: Decider) -> Decision:
    decision = decider.tick()
    assert decision is not None
    return decision


def test_act_starts_the_move_and_follows_it() -> None:
    """An allowed move is started on the full ids, and its phases are told."""
    executor = _Recorder()
    decider = _decider(lambda: _plan(Move(0, 1)), executor)
    decision = _tick(decider)
    assert executor.started == [("r0", "n1")]
    assert (decision.policy, decision.num_nodes, decision.usd_per_h) == ("fixed", 2, 8.0)
    assert [m.move_id for m in decision.moves] == ["m1"]
    executor.phases["m1"] = MovePhase.DONE
    decider.watch()
    assert decider.moves["m1"]["phase"] == "done"


def test_other_modes_start_nothing() -> None:
    """Recommend and observe decide the same and start nothing; off does not even look."""
    for mode in (Mode.RECOMMEND, Mode.OBSERVE):
        executor = _Recorder()
        decision = _tick(_decider(lambda: _plan(Move(0, 1)), executor, mode=mode))
        assert [m.allowed for m in decision.moves] == [True]
        assert executor.started == []

    def forbidden() -> ClusterState:
        raise AssertionError("looked")

    assert _decider(_raise, _Recorder(), mode=Mode.OFF, snapshot=forbidden).tick() is None


def test_failing_policy_falls_back_to_the_heuristic() -> None:
    """A policy's error is named, and best fit answers instead."""
    executor = _Recorder()
    decision = _tick(_decider(_raise, executor))
    assert decision.policy == "best_fit"
    assert "ValueError: planted" in decision.reason
    assert len(executor.started) == 1


def test_failing_heuristic_means_no_moves() -> None:
    """Nothing moves where both fail."""
    executor = _Recorder()
    decision = _tick(_decider(_raise, executor, fallback=_raise))
    assert (decision.policy, decision.moves, executor.started) == ("", (), [])


def test_late_policy_falls_back() -> None:
    """A policy that overruns its deadline, and one still busy at the next tick, are answered for."""
    release = threading.Event()

    def slow() -> Plan:
        release.wait(30.0)
        return _plan()

    executor = _Recorder()
    decider = _decider(slow, executor, settings=dataclasses.replace(SETTINGS, plan_deadline_s=0.05), mode=Mode.OBSERVE)
    assert "TimeoutError" in _tick(decider).reason
    assert "still busy" in _tick(decider).reason
    release.set()
    decider.stop()


def test_filter_refuses_with_its_reason() -> None:
    """Moves to where a replica is, or to nowhere, are refused one by one, and the rest goes on."""
    executor = _Recorder()
    decision = _tick(_decider(lambda: _plan(Move(0, 0), Move(0, 7), Move(9, 0), Move(1, 0)), executor))
    assert [m.reason for m in decision.moves] == ["same_node", "no_such_node", "no_such_replica", "allowed"]
    assert executor.started == [("r1", "n0")]


def test_second_move_is_checked_against_the_first() -> None:
    """With r0 moving off n0, n0 is fenced: r1 may not go there in the same plan."""
    executor = _Recorder()
    decision = _tick(_decider(lambda: _plan(Move(0, 1), Move(1, 0)), executor))
    assert [m.reason for m in decision.moves] == ["allowed", "destination_fenced"]
    assert executor.started == [("r0", "n1")]


def test_move_is_checked_again_right_before_it_starts() -> None:
    """A node that filled up, or a replica that went, between plan and start stops the move."""
    full = _state()
    full.arrays.node_free[1], full.arrays.gpu_free[1] = 0.0, 0.0
    gone = dataclasses.replace(_state(), replica_ids=("r9", "r1"))
    for later, reason in ((full, "no longer allowed: no_capacity"), (gone, "the replica or the node is gone")):
        views, executor = iter([_state(), later]), _Recorder()
        decision = _tick(_decider(lambda: _plan(Move(0, 1)), executor, snapshot=lambda views=views: next(views)))  # type: ignore[misc]
        assert [m.reason for m in decision.moves] == [reason]
        assert executor.started == []


def test_executor_refusal_is_recorded(tmp_path: Path) -> None:
    """What the executor refuses is in the journal with its reason, in memory and on disk alike."""
    journal = Journal(tmp_path / "deep" / "journal.jsonl")
    _tick(_decider(lambda: _plan(Move(0, 1)), _Recorder("planted"), journal=journal))
    on_disk = [json.loads(line) for line in (tmp_path / "deep" / "journal.jsonl").read_text().splitlines()]
    assert on_disk == journal.last(10)
    assert on_disk[0]["moves"][0]["reason"] == "planted"
    assert on_disk[0]["moves"][0]["allowed"] is False


def test_loop_survives_an_error_and_recovers() -> None:
    """A failing snapshot costs its tick only."""
    calls = iter(range(1000))
    seen = threading.Event()

    def flaky() -> ClusterState:
        if next(calls) == 0:
            raise RuntimeError("planted")
        seen.set()
        return _state()

    journal = Journal()
    decider = _decider(_plan, _Recorder(), snapshot=flaky, mode=Mode.OBSERVE, journal=journal)
    thread = threading.Thread(target=decider.run, daemon=True)
    thread.start()
    assert seen.wait(10.0)
    decider.stop()
    thread.join(10.0)
    assert not thread.is_alive()
    assert "RuntimeError: planted" in journal.last(1000)[0]["error"]
