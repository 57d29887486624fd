"""The brakes: each stops what it names, at its bound and not before, and lets the rest go on."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayfold.envs.moves import Move
from rayfold.envs.safety import Limits
from rayfold.envs.state import ClusterState
from rayfold.errors import InputError
from rayfold.serving.budgets import Brake, brake, churn
from rayfold.serving.freeze import is_frozen, parse_window, parse_zone
from rayfold.serving.live_moves import MoveRecord, RecordedPhase
from rayfold.serving.live_settings import Brakes
from tests.serving.deciders import FakeCluster, make_decider, plan_of, two_nodes

NOW_S = 100_000.0  # a Friday, 03:46:40 UTC
OPEN = Brakes(moving_frac=1.0)
LIMITS = Limits()


def _record(i: int = 0, *, ago_s: float = 60.0, phase: str = "done", **changes: Any) -> MoveRecord:
    record = MoveRecord(
        move_id=f"m{i}",
        decision_id=1,
        deployment="a/a",
        replica_id="old",
        from_node="n0",
        to_node="n1",
        started_s=NOW_S - ago_s,
        phase=RecordedPhase(phase),
        phase_s=NOW_S - ago_s,
        replacement_id=f"new{i}",
    )
    return dataclasses.replace(record, **changes)


def _ask(records: list[MoveRecord], brakes: Brakes, state: ClusterState | None = None) -> Brake | None:
    return brake(state or two_nodes(NOW_S), Move(0, 1), records, brakes, LIMITS, NOW_S)


@pytest.mark.parametrize(
    ("phase", "stops"), [("done", False), ("draining", False), ("failed", True), ("cancelled", True)]
)
def test_launch_that_failed_is_not_tried_again_at_once(phase: str, stops: bool) -> None:
    """Within an hour, for that type only: the cloud may have no such node."""
    lately = _record(phase=phase, to_node="new:gpu4", deployment="b/b")
    others = [_record(phase="failed", to_node="new:other"), _record(phase="failed", to_node="n1")]

    def verdict(*records: MoveRecord) -> Brake | None:
        return brake(two_nodes(NOW_S), Move(0, 2), [*others, *records], OPEN, LIMITS, NOW_S)

    assert verdict() is None
    assert verdict(lately) == (Brake.LAUNCH_FAILED_LATELY if stops else None)
    assert verdict(dataclasses.replace(lately, started_s=NOW_S - 3600.0)) is None
    assert _ask([lately], OPEN) is None, "a move to a node that is there"


def test_nothing_stops_a_first_move() -> None:
    """With its defaults the brake lets a first move of an idle cluster go."""
    assert _ask([], Brakes()) is None


@pytest.mark.parametrize("phase", ["intended", "done", "failed", "cancelled"])
def test_moves_of_the_last_hour_are_counted(phase: str) -> None:
    """At the bound, whatever became of them; one that is an hour old counts no more."""
    brakes = dataclasses.replace(OPEN, moves_per_h=3)
    others = [_record(i, phase=phase, deployment="b/b") for i in range(3)]
    assert _ask(others[:2], brakes) is None
    assert _ask(others, brakes) == Brake.MOVES_PER_HOUR
    assert _ask([*others[:2], _record(9, ago_s=3600.0, phase=phase, deployment="b/b")], brakes) is None
    assert _ask([], dataclasses.replace(OPEN, moves_per_h=0)) == Brake.MOVES_PER_HOUR


def test_moves_of_a_deployment_are_counted_apart() -> None:
    """Those of others do not count."""
    brakes = dataclasses.replace(OPEN, moves_per_deployment_h=2)
    assert _ask([_record(i, deployment="b/b") for i in range(9)], brakes) is None
    assert _ask([_record(i) for i in range(2)], brakes) == Brake.MOVES_OF_DEPLOYMENT_PER_HOUR


def test_share_of_a_deployment_at_once() -> None:
    """A quarter of eight is two; one may always move; moves that have ended hold no share."""
    state = two_nodes(NOW_S)
    state.arrays.deployment_target[0] = 8
    quarter = Brakes(moving_frac=0.25)
    draining = [_record(i, phase="draining") for i in range(2)]
    assert _ask(draining[:1], quarter, state) is None
    assert _ask(draining, quarter, state) == Brake.TOO_MUCH_OF_DEPLOYMENT_AT_ONCE
    assert _ask([_record(i) for i in range(5)], quarter, state) is None
    state.arrays.deployment_target[0] = 3
    assert _ask([], quarter, state) is None
    assert _ask(draining[:1], quarter, state) == Brake.TOO_MUCH_OF_DEPLOYMENT_AT_ONCE


def test_replica_that_was_moved_stays_for_a_while() -> None:
    """It is the replacement of the earlier move, and counts from when that ended."""
    brakes = dataclasses.replace(OPEN, min_run_s=600.0)
    assert _ask([_record(replacement_id="r0", ago_s=599.0)], brakes) == Brake.MOVED_LATELY
    assert _ask([_record(replacement_id="r0", ago_s=600.0)], brakes) is None
    assert _ask([_record(replacement_id="r1", ago_s=1.0)], brakes) is None


def test_headroom_is_counted_on_the_nodes_that_stay() -> None:
    """Two 4-GPU nodes with one replica each: with r0 moved to n1, two GPUs are free beside n0, which is emptied."""
    for headroom, expected in ((2.0, None), (2.5, Brake.NO_HEADROOM)):
        assert _ask([], dataclasses.replace(OPEN, headroom_gpus=headroom)) == expected
    fenced = two_nodes(NOW_S)
    fenced.arrays.node_fenced_until_s[1] = NOW_S + 1.0
    assert _ask([], dataclasses.replace(OPEN, headroom_gpus=0.5), fenced) == Brake.NO_HEADROOM
    assert np.isinf(two_nodes().arrays.node_fenced_until_s).all()


def test_freeze_window_stops_everything_in_it() -> None:
    """03:46 on a Friday."""
    for window, expected in (
        ("fri 03:46-03:47", Brake.FREEZE_WINDOW),
        ("fri 03:47-04:00", None),
        ("daily 00:00-24:00", Brake.FREEZE_WINDOW),
        ("sat,sun 00:00-24:00", None),
        ("thu 22:00-06:00", Brake.FREEZE_WINDOW),
        ("fri 22:00-06:00", None),
    ):
        assert _ask([], dataclasses.replace(OPEN, freeze=(window,))) == expected, window
    there = dataclasses.replace(OPEN, freeze=("fri 05:00-06:00",), freeze_zone="Europe/Athens")
    assert _ask([], there) == Brake.FREEZE_WINDOW


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 6), st.integers(0, 1439), st.integers(0, 1440), st.integers(0, 7 * 1440 - 1))
def test_window_agrees_with_a_list_of_its_minutes(day: int, start: int, end: int, minute: int) -> None:
    """Two routes: the rule, and the minutes of the week written out one by one."""
    name = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")[day]
    text = f"{name} {start // 60:02}:{start % 60:02}-{end // 60:02}:{end % 60:02}"
    length = end - start if end > start else 1440 - start + end
    minutes = {(day * 1440 + start + i) % (7 * 1440) for i in range(length)}
    monday_s = 4 * 86400.0  # 5 January 1970
    frozen = is_frozen([parse_window(text, "w")], monday_s + 60.0 * minute, parse_zone("UTC", "z"))
    assert frozen == (minute in minutes)


@pytest.mark.parametrize(
    "text", ["", "mon", "mon 8:00-9:00", "xyz 08:00-09:00", "mon 08:00-25:00", "mon 24:00-25:00", "mon 08:61-09:00"]
)
def test_wrong_window_is_told(text: str) -> None:
    """In one line that names where it stands."""
    with pytest.raises(InputError, match=r"settings: brakes\.freeze"):
        parse_window(text, "settings: brakes.freeze")


def test_wrong_zone_is_told() -> None:
    """Unknown, and a path that leads elsewhere."""
    for name in ("Nowhere/Land", "../../etc/passwd", ""):
        with pytest.raises(InputError, match="time zone"):
            parse_zone(name, "zone")


def test_churn_is_told_above_its_limit_and_from_the_resumption_on() -> None:
    """Six undone moves against a limit of five; those undone before the decider was resumed do not count."""
    brakes = Brakes(undone_limit=5, undone_window_s=7200.0)
    undone = [_record(i, undone_s=NOW_S - 100.0) for i in range(6)]
    assert churn(undone[:5], brakes, -np.inf, NOW_S) == ""
    assert "6 moves were undone within 2 h (limit 5)" in churn(undone, brakes, -np.inf, NOW_S)
    assert churn(undone, brakes, NOW_S - 50.0, NOW_S) == ""
    assert churn([_record(i, undone_s=NOW_S - 7201.0) for i in range(9)], brakes, -np.inf, NOW_S) == ""


def test_decider_counts_the_moves_of_its_own_plan() -> None:
    """With one move an hour allowed, the second of the same plan is braked, and so is the first of the next."""
    tight = dataclasses.replace(
        _settings(), brakes=Brakes(moves_per_h=1, moving_frac=1.0), limits=Limits(deployment_cooldown_s=0.0)
    )
    executor = FakeCluster()
    decider = make_decider(lambda: plan_of(Move(0, 1), Move(0, 1)), executor, settings=tight)
    first, second = decider.tick(), decider.tick()
    assert first is not None
    assert second is not None
    assert [m.reason for m in first.moves] == ["allowed", "already_moving"]
    assert [m.reason for m in second.moves] == ["moves_per_hour", "moves_per_hour"]
    assert len(executor.started) == 1


def _settings() -> Any:
    from tests.serving.deciders import SETTINGS

    return SETTINGS


def test_breaker_pauses_the_decider_until_it_is_resumed() -> None:
    """It says so at the moves, in the journal and after a restart, goes on deciding, and resumes once told to."""
    executor = FakeCluster()
    decider = make_decider(lambda: plan_of(Move(0, 1)), executor)
    for i in range(6):
        decider.journal.intend(_record(i, started_s=900.0, phase="intended", from_node="gone"))
        decider.journal.set_phase(f"m{i}", RecordedPhase.DONE, 950.0)
    decider.journal.mark_undone("gone", 990.0)
    for made in (decider, make_decider(lambda: plan_of(Move(0, 1)), executor, journal=decider.journal)):
        decision = made.tick()
        assert decision is not None
        assert "paused: 6 moves were undone" in decision.moves[0].reason
        assert "6 moves were undone" in made.paused
    assert executor.started == []
    assert [e["kind"] for e in decider.journal.events(9)] == ["paused"]
    decider.resume()
    again = decider.tick()
    assert again is not None
    assert again.moves[0].reason == "allowed"
    assert len(executor.started) == 1
