"""The loop of the decider, on hand-built states: whatever goes wrong, the cluster stays as it is."""

import dataclasses
import io
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from rayfold.cli_journal import show_decision
from rayfold.envs.moves import Candidate, Move, MovePhase, Plan
from rayfold.envs.safety import Limits
from rayfold.envs.state import ClusterState
from rayfold.errors import InputError
from rayfold.policies.by_name import policy_maker
from rayfold.serving import decider as decider_module
from rayfold.serving.decider import Decider
from rayfold.serving.decision import Decision, Mode
from rayfold.serving.journal import Journal
from rayfold.serving.live_moves import RecordedPhase
from rayfold.serving.live_settings import merge_settings
from tests.serving.deciders import SETTINGS, FakeCluster, FixedPolicy, make_decider, plan_of, two_nodes


def _raise() -> Plan:
    raise ValueError("planted")


def _tick(decider: Decider) -> Decision:
    decision = decider.tick()
    assert decision is not None
    return decision


def test_act_starts_the_move_and_follows_it() -> None:
    """An allowed move is started on the full ids, and its phases are told."""
    executor = FakeCluster()
    decider = make_decider(lambda: plan_of(Move(0, 1)), executor)
    decision = _tick(decider)
    assert executor.started == [("r0", "n1")]
    assert (decision.policy, decision.num_nodes, decision.usd_per_h) == ("fixed", 2, 8.0)
    (move_id,) = executor.ids
    assert [m.move_id for m in decision.moves] == [move_id]
    executor.set_phase(move_id, MovePhase.DONE)
    decider.watch()
    (told,) = decider.journal.moves(10)
    assert [p["phase"] for p in told["phases"]] == ["intended", "starting", "done"]
    assert (told["replica_id"], told["from_node"], told["to_node"], told["phase"]) == ("r0", "n0", "n1", "done")


def test_other_modes_start_nothing() -> None:
    """Recommend and observe decide the same and start nothing; off does not even look."""
    for mode in (Mode.RECOMMEND, Mode.OBSERVE):
        executor = FakeCluster()
        decision = _tick(make_decider(lambda: plan_of(Move(0, 1)), executor, mode=mode))
        assert [m.allowed for m in decision.moves] == [True]
        assert executor.started == []

    def forbidden() -> ClusterState:
        raise AssertionError("looked")

    assert make_decider(_raise, FakeCluster(), mode=Mode.OFF, snapshot=forbidden).tick() is None


def test_failing_policy_falls_back_to_the_heuristic() -> None:
    """A policy's error is named, and best fit answers instead."""
    executor = FakeCluster()
    decision = _tick(make_decider(_raise, executor))
    assert decision.policy == "best_fit"
    assert "ValueError: planted" in decision.reason
    assert len(executor.started) == 1


def test_failing_heuristic_means_no_moves() -> None:
    """Nothing moves where both fail."""
    executor = FakeCluster()
    decision = _tick(make_decider(_raise, executor, fallback=_raise))
    assert (decision.policy, decision.moves, executor.started) == ("", (), [])


def test_late_policy_falls_back() -> None:
    """A policy that overruns its deadline, and one still busy at the next tick, are answered for."""
    release = threading.Event()

    def slow() -> Plan:
        release.wait(30.0)
        return plan_of()

    executor = FakeCluster()
    decider = make_decider(
        slow, executor, settings=dataclasses.replace(SETTINGS, plan_deadline_s=0.05), mode=Mode.OBSERVE
    )
    assert "TimeoutError" in _tick(decider).reason
    assert "still busy" in _tick(decider).reason
    release.set()
    decider.stop()


def test_filter_refuses_with_its_reason() -> None:
    """Moves to where a replica is, or to nowhere, are refused one by one, and the rest goes on."""
    executor = FakeCluster()
    decision = _tick(make_decider(lambda: plan_of(Move(0, 0), Move(0, 7), Move(9, 0), Move(1, 0)), executor))
    assert [m.reason for m in decision.moves] == ["same_node", "no_such_node", "no_such_replica", "allowed"]
    assert executor.started == [("r1", "n0")]


def test_second_move_is_checked_against_the_first() -> None:
    """With r0 moving off n0, n0 is fenced: r1 may not go there in the same plan."""
    executor = FakeCluster()
    decision = _tick(make_decider(lambda: plan_of(Move(0, 1), Move(1, 0)), executor))
    assert [m.reason for m in decision.moves] == ["allowed", "destination_fenced"]
    assert executor.started == [("r0", "n1")]


def test_move_is_checked_again_right_before_it_starts() -> None:
    """A node that filled up, or a replica that went, between plan and start stops the move."""
    full = two_nodes()
    full.arrays.node_free[1], full.arrays.gpu_free[1] = 0.0, 0.0
    gone = dataclasses.replace(two_nodes(), replica_ids=("r9", "r1"))
    for later, reason in ((full, "no longer allowed: no_capacity"), (gone, "the replica or the node is gone")):
        views, executor = iter([two_nodes(), later]), FakeCluster()
        decision = _tick(make_decider(lambda: plan_of(Move(0, 1)), executor, snapshot=lambda views=views: next(views)))  # type: ignore[misc]
        assert [m.reason for m in decision.moves] == [reason]
        assert executor.started == []


def test_move_to_a_new_node_names_its_type() -> None:
    """In the decision, in the journal, and to the executor; without the limit it is refused."""
    executor = FakeCluster()
    allowed = dataclasses.replace(SETTINGS, limits=SETTINGS.limits._replace(allow_new_nodes=True))
    decider = make_decider(lambda: plan_of(Move(0, 2)), executor, settings=allowed)
    decision = decider.tick()
    assert decision is not None
    assert decision.moves[0].to_node == "new:gpu4"
    assert executor.started == [("r0", "new:gpu4")]
    assert decider.journal.open_moves()[0].to_node == "new:gpu4"
    decision = make_decider(lambda: plan_of(Move(0, 2)), FakeCluster()).tick()
    assert decision is not None
    assert decision.moves[0].reason == "new_nodes_not_allowed"


def test_executor_refusal_is_recorded(tmp_path: Path) -> None:
    """What the executor refuses is in the journal with its reason, at the decision and at the move."""
    journal = Journal(tmp_path / "deep" / "journal.sqlite3")
    _tick(make_decider(lambda: plan_of(Move(0, 1)), FakeCluster("planted"), journal=journal))
    (decision,) = journal.decisions(10)
    (move,) = decision["moves"]
    assert (move["reason"], move["allowed"]) == ("planted", False)
    (told,) = journal.moves(10)
    assert (told["phase"], told["detail"], told["decision_id"]) == ("cancelled", "planted", decision["id"])
    journal.close()


def test_decision_holds_what_else_could_have_been_done() -> None:
    """Candidates are recorded with score, price and a verdict per move, and the state with which to replay it."""
    candidates = (
        Candidate(moves=(Move(0, 1),), score=2.0, price_usd=0.5, saving_usd_per_h=4.0, reason="chosen"),
        Candidate(moves=(Move(0, 0),), score=float("nan"), reason="stays"),
    )
    plan = Plan(moves=(Move(0, 1),), scores=(2.0,), expected_saving_usd=3.5, candidates=candidates)
    decider = make_decider(lambda: plan, FakeCluster(), mode=Mode.OBSERVE)
    _tick(decider)
    (told,) = decider.journal.decisions(10)
    assert (told["expected_saving_usd"], told["state_digest"]) == (3.5, two_nodes().digest())
    assert [(c["score"], c["reason"]) for c in told["candidates"]] == [(2.0, "chosen"), (None, "stays")]
    assert [c["moves"][0]["reason"] for c in told["candidates"]] == ["allowed", "same_node"]
    replayed = decider.journal.state(told["id"])
    assert replayed.digest() == told["state_digest"]
    np.testing.assert_array_equal(replayed.arrays.node_free, two_nodes().arrays.node_free)


def test_what_cannot_be_recorded_is_not_begun() -> None:
    """With a journal that cannot be written, the tick fails before anything moves."""

    class Full(Journal):
        def intend(self, record: object) -> None:
            raise OSError("disk full")

    executor = FakeCluster()
    decider = make_decider(lambda: plan_of(Move(0, 1)), executor, journal=Full())
    try:
        decider.tick()
    except OSError:
        pass
    else:
        raise AssertionError("the error must be told")
    assert executor.started == []


def test_move_of_a_node_that_comes_back_is_undone() -> None:
    """Emptied, released, and one of its type joins within half an hour: the move is marked."""
    clock = {"now_s": 1000.0}

    def at(node_ids: tuple[str, str]) -> ClusterState:
        return dataclasses.replace(two_nodes(clock["now_s"]), node_ids=node_ids)

    views = [at(("n0", "n1"))] * 2
    executor = FakeCluster()
    plans = iter([plan_of(Move(0, 1)), plan_of(), plan_of()])
    decider = make_decider(lambda: next(plans), executor, snapshot=lambda: views[-1], clock=lambda: clock["now_s"])
    _tick(decider)
    executor.set_phase(executor.ids[0], MovePhase.DONE)
    clock["now_s"] = 1100.0
    views.append(at(("booting-0", "n1")))
    _tick(decider)
    assert decider.journal.moves(1)[0]["undone_s"] is None
    clock["now_s"] = 1200.0
    views.append(at(("n9", "n1")))
    _tick(decider)
    assert decider.journal.moves(1)[0]["undone_s"] == 1200.0
    assert decider.journal.events(1)[0]["kind"] == "undone"


def test_cancelled_elsewhere_is_noticed() -> None:
    """A move that nobody knows any more is closed, not waited for."""
    executor = FakeCluster()
    decider = make_decider(lambda: plan_of(Move(0, 1)), executor)
    _tick(decider)
    executor._known.clear()
    decider.watch()
    (told,) = decider.journal.moves(1)
    assert told["phase"] == RecordedPhase.FAILED


def test_restarted_controller_is_attached_again_and_told() -> None:
    """At the next tick in mode act, once; the journal says so."""
    executor = FakeCluster()
    decider = make_decider(plan_of, executor)
    executor.has_lost_attachment = True
    _tick(decider)
    _tick(decider)
    assert [e["kind"] for e in decider.journal.events(9)] == ["reattached"]


def test_leaving_act_lets_the_cluster_go() -> None:
    """Executor first, then whoever waits for the lease; a stopped decider does the same."""
    told: list[str] = []

    class Told(FakeCluster):
        def detach(self) -> bool:
            told.append("detach")
            return True

    decider = make_decider(plan_of, Told(), stand_down=lambda: told.append("stand down"))
    _tick(decider)
    assert told == []
    decider.set_mode(Mode.RECOMMEND)
    _tick(decider)
    assert told == ["detach", "stand down"]
    decider.set_mode(Mode.ACT)
    _tick(decider)
    decider.close()
    assert told == ["detach", "stand down"] * 2


def test_attachment_of_a_dead_decider_is_undone() -> None:
    """The next one, told to observe, lets the cluster go for the dead one, once, and not while another acts."""
    journal = Journal()
    _tick(make_decider(plan_of, FakeCluster(), journal=journal))  # and dies
    held_by = ["other holds the lease", "", ""]

    class Careful(FakeCluster):
        def detach(self) -> bool:
            return self.has_attached and super().detach()

        has_attached = False

        def keep_attached(self) -> bool:
            self.has_attached = True
            return False

    executor = Careful()
    heir = make_decider(plan_of, executor, journal=journal, mode=Mode.OBSERVE, may_act=lambda: held_by.pop(0))
    _tick(heir)
    assert (executor.has_attached, executor.detached) == (False, 0)
    _tick(heir)
    _tick(heir)
    assert (executor.has_attached, executor.detached) == (True, 1)


def test_who_may_not_act_recommends() -> None:
    """Without the lease each move is refused with the holder's name, and nothing starts."""
    executor = FakeCluster()
    decider = make_decider(lambda: plan_of(Move(0, 1)), executor, may_act=lambda: "other holds the lease")
    decision = _tick(decider)
    assert [(m.allowed, m.reason) for m in decision.moves] == [(False, "other holds the lease")]
    assert executor.started == []


def test_cluster_that_may_not_be_touched_is_observed() -> None:
    """In mode act on a Ray that was not tested, decisions go on, and each move is refused with the reason."""
    executor = FakeCluster(forbidden="Ray 9 is not a tested version")
    decision = _tick(make_decider(lambda: plan_of(Move(0, 1)), executor))
    assert [m.reason for m in decision.moves] == ["Ray 9 is not a tested version"]
    assert executor.started == []


def test_loop_survives_an_error_and_recovers() -> None:
    """A failing snapshot costs its tick only."""
    calls = iter(range(1000))
    seen = threading.Event()

    def flaky() -> ClusterState:
        if next(calls) == 0:
            raise RuntimeError("planted")
        seen.set()
        return two_nodes()

    journal = Journal()
    decider = make_decider(plan_of, FakeCluster(), snapshot=flaky, mode=Mode.OBSERVE, journal=journal)
    thread = threading.Thread(target=decider.run, daemon=True)
    thread.start()
    assert seen.wait(10.0)
    decider.stop()
    thread.join(10.0)
    assert not thread.is_alive()
    assert "RuntimeError: planted" in journal.events(1000)[0]["text"]


def test_moves_are_followed_between_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an hour between ticks, a move that ends is told long before the next one."""
    monkeypatch.setattr(decider_module, "_WATCH_S", 0.01)
    executor = FakeCluster()
    plans = iter([plan_of(Move(0, 1))])
    hourly = dataclasses.replace(SETTINGS, decision_interval_s=3600.0)
    decider = make_decider(lambda: next(plans), executor, settings=hourly)
    thread = threading.Thread(target=decider.run, daemon=True)
    thread.start()
    deadline_s = time.monotonic() + 10.0
    while not executor.ids and time.monotonic() < deadline_s:
        threading.Event().wait(0.01)
    executor.set_phase(executor.ids[0], MovePhase.DONE)
    while decider.journal.open_moves() and time.monotonic() < deadline_s:
        threading.Event().wait(0.01)
    assert [m["phase"] for m in decider.journal.moves(9)] == ["done"]
    decider.stop()
    thread.join(10.0)
    assert not thread.is_alive()


def test_stopped_decider_starts_nothing() -> None:
    """A tick that is under way when the decider is stopped begins no move."""
    executor = FakeCluster()
    deciders: list[Decider] = []

    def stopping() -> Plan:
        deciders[0].stop()
        return plan_of(Move(0, 1))

    deciders.append(make_decider(stopping, executor))
    decision = _tick(deciders[0])
    assert [m.reason for m in decision.moves] == ["the decider is being stopped"]
    assert executor.started == []


class Limited(FixedPolicy):
    """Remembers the limits it was made with."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(lambda: plan_of(Move(0, 1)))
        self.limits = limits


def test_new_limits_make_the_policies_anew() -> None:
    """Policy and filter see the same limits from the next tick on; other settings leave the policy its memory."""
    made: list[Limited] = []

    def make(limits: Limits) -> Limited:
        made.append(Limited(limits))
        return made[-1]

    decider = make_decider(plan_of, FakeCluster(), make_policy=make, mode=Mode.RECOMMEND)
    assert [m.allowed for m in _tick(decider).moves] == [True]
    decider.reconfigure(merge_settings(decider.settings, {"plan_deadline_s": 4.0}, "test"))
    assert len(made) == 1
    decider.reconfigure(merge_settings(decider.settings, {"limits": {"max_concurrent_moves": 0}}, "test"))
    assert [policy.limits.max_concurrent_moves for policy in made] == [4, 0]
    assert [m.reason for m in _tick(decider).moves] == ["too_many_moves"]


def test_limits_that_a_policy_refuses_change_nothing() -> None:
    """The error is told and the old settings stay in force."""

    def make(limits: Limits) -> Limited:
        if limits.max_concurrent_moves == 0:
            raise InputError("--policy", "some moves", "none")
        return Limited(limits)

    decider = make_decider(plan_of, FakeCluster(), make_policy=make)
    before = decider.settings
    with pytest.raises(InputError):
        decider.reconfigure(merge_settings(before, {"limits": {"max_concurrent_moves": 0}}, "test"))
    assert decider.settings is before


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("poisoned", ["score", "saving"])
def test_numbers_that_are_none_move_nothing(poisoned: str, bad: float) -> None:
    """One bad score among good ones, or a bad saving: no move of the plan is made, and the verdict says why."""
    executor = FakeCluster()
    scores = (0.5, bad) if poisoned == "score" else (0.5, 0.5)
    saving = bad if poisoned == "saving" else 1.0
    plan = Plan(moves=(Move(0, 1), Move(1, 0)), scores=scores, expected_saving_usd=saving)
    decision = _tick(make_decider(lambda: plan, executor))
    reasons = {"score": "score_is_no_number", "saving": "saving_is_no_number"}
    assert [(m.allowed, m.reason) for m in decision.moves] == [(False, reasons[poisoned])] * 2
    assert executor.started == []


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("seen", ["when deciding", "right before the move"])
def test_poisoned_prices_move_nothing(seen: str, bad: float) -> None:
    """On the state of the decision and on the fresh one right before the move; the decision can be read and shown."""
    views = [two_nodes(), two_nodes()]
    spoilt = views[0 if seen == "when deciding" else 1]
    spoilt.spec.arrays.type_price_usd_per_h[0] = bad
    executor, journal = FakeCluster(), Journal()
    make = make_decider(lambda: plan_of(Move(0, 1)), executor, snapshot=lambda: views.pop(0), journal=journal)
    (refused,) = _tick(make).moves
    assert refused.reason.endswith("price_is_no_price")
    assert (refused.allowed, executor.started) == (False, [])
    shown = io.StringIO()
    told = journal.decision(1)
    assert told is not None
    show_decision(Console(file=shown), told, 8)
    assert "price_is_no_price" in shown.getvalue()


@pytest.mark.parametrize("policy", ["learned", "best_fit", "patient", "dearest_first", "karpenter"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_no_policy_moves_on_poisoned_prices(policy: str, bad: float) -> None:
    """Whatever a real policy makes of them, its error included."""
    state = two_nodes()
    state.spec.arrays.type_price_usd_per_h[0] = bad
    executor = FakeCluster()
    _tick(make_decider(plan_of, executor, snapshot=lambda: state, make_policy=policy_maker(policy)))
    assert executor.started == []
