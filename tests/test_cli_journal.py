"""``journal export`` and ``explain --decision``: what was recorded, and one line for what the user gives wrong."""

import json
from pathlib import Path

import pytest

from rayfold.envs.moves import Candidate, Move, MovePhase, Plan
from rayfold.serving.journal import Journal
from tests.serving.deciders import FakeCluster, make_decider, two_nodes
from tests.test_cli import check_refused
from tests.test_cli_simulate import Run, run  # noqa: F401  # a fixture


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A journal of two decisions: one whose move is done, one that comes to nothing."""
    path = tmp_path / "j.sqlite3"
    plans = iter(
        [
            Plan(
                moves=(Move(0, 1),),
                scores=(2.5,),
                expected_saving_usd=1.25,
                reason="n0 can be emptied",
                candidates=(
                    Candidate(moves=(Move(0, 1),), score=2.5, price_usd=0.5, saving_usd_per_h=4.0, reason="chosen"),
                    Candidate(moves=(Move(1, 1),), score=0.1, reason="stays where it is"),
                ),
            ),
            Plan(reason="nothing to do"),
        ]
    )
    executor, journal = FakeCluster(), Journal(path)
    decider = make_decider(lambda: next(plans), executor, journal=journal)
    decider.tick()
    executor.set_phase(executor.ids[0], MovePhase.DONE)
    decider.tick()
    journal.add_event("mode", "observe", 5.0)
    journal.close()
    return path


def test_export_writes_every_record(run: Run, recorded: Path, tmp_path: Path) -> None:  # noqa: F811
    """Two decisions, one move with its phases, one event; the journal stays as it is."""
    before = recorded.read_bytes()
    done = run("journal", "export", "--journal", "j.sqlite3", "--out", "out/j.jsonl")
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (tmp_path / "out" / "j.jsonl").read_text().splitlines()]
    assert [r["record"] for r in records] == ["decision", "decision", "move", "event"]
    assert [p["phase"] for p in records[2]["phases"]] == ["intended", "starting", "done"]
    assert records[0]["candidates"][1]["moves"][0]["reason"] == "same_node"
    assert "2 decisions, 1 moves, 1 events" in done.stdout
    assert recorded.read_bytes() == before


def test_explain_shows_a_decision_as_recorded(run: Run, recorded: Path, tmp_path: Path) -> None:  # noqa: F811
    """State, alternatives, reasons and what became of the moves; no policy is asked unless one is named."""
    done = run("explain", "--decision", "1", "--journal", "j.sqlite3", "--json", "o.json")
    assert done.returncode == 0, done.stderr
    digest = two_nodes().digest()
    for part in ("decision 1 of fixed, mode act: n0 can be emptied", digest[:12], "2 nodes, 8.00 USD/h", "1.25 USD"):
        assert part in done.stdout
    for part in ("2.500", "chosen", "stays where it is", "1 refused: same_node", "intended, starting, done"):
        assert part in done.stdout
    content = json.loads((tmp_path / "o.json").read_text())
    assert (content["state_digest"], content["policies"]) == (digest, {})
    assert content["recorded"]["carried_out"][0]["phase"] == "done"


def test_explain_asks_a_policy_about_a_recorded_state(run: Run, recorded: Path) -> None:  # noqa: F811
    """A recorded decision is replayed: the state is whole, so that any policy can answer."""
    done = run("explain", "--decision", "2", "--journal", "j.sqlite3", "--policy", "best_fit", "--no-optimum")
    assert done.returncode == 0, done.stderr
    assert "nothing to do" in done.stdout
    assert "best_fit: " in done.stdout


def test_what_is_given_wrong(run: Run, recorded: Path) -> None:  # noqa: F811
    """No journal, no such decision, both sources, half a source, an output that cannot be."""
    two_nodes().save(recorded.parent / "state.npz")
    for arguments, flag in (
        (("journal", "export", "--journal", "absent", "--out", "o"), "absent"),
        (("journal", "export", "--journal", "j.sqlite3", "--out", "."), "--out"),
        (("explain", "--decision", "9", "--journal", "j.sqlite3"), "--decision 9"),
        (("explain", "--decision", "1", "--journal", "absent"), "absent"),
        (("explain", "--decision", "1", "--journal", "state.npz"), "state.npz"),
        (("explain", "--decision", "1"), "--journal"),
        (("explain", "--journal", "j.sqlite3"), "--decision"),
        (("explain", "--decision", "1", "--journal", "j.sqlite3", "--state", "state.npz"), "--state"),
        (("explain",), "--state"),
    ):
        check_refused(run(*arguments), flag)
