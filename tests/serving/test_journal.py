"""The journal: what is written is there after anything, and it does not grow without bound."""

import dataclasses
import sqlite3
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayfold.errors import InputError
from rayfold.serving.decision import Decision, Mode, jsonable
from rayfold.serving.journal import Journal
from rayfold.serving.live_moves import MoveRecord, RecordedPhase
from tests.serving.deciders import two_nodes

STATE = two_nodes()


def _decision(time_s: float = 1.0) -> dict[str, object]:
    return Decision(
        time_s=time_s, mode=Mode.OBSERVE, policy="p", reason="because", state_digest=STATE.digest()
    ).as_json()


def _move(move_id: str, started_s: float = 1.0, from_node: str = "n0") -> MoveRecord:
    return MoveRecord(
        move_id=move_id,
        decision_id=1,
        deployment="a/a",
        replica_id=f"r-{move_id}",
        from_node=from_node,
        to_node="n1",
        started_s=started_s,
    )


def test_everything_survives_a_new_process(tmp_path: Path) -> None:
    """Decisions, states, moves with their phases, events and notes are read back as written, by a second one too."""
    path = tmp_path / "j.sqlite3"
    first = Journal(path)
    made = first.add_decision(_decision(), STATE)
    first.intend(_move("m"))
    first.set_phase("m", RecordedPhase.STARTING, 2.0)
    first.set_phase("m", RecordedPhase.STARTING, 2.5, replacement_id="r-new")
    first.set_phase("m", RecordedPhase.DONE, 3.0)
    first.add_event("mode", "act", 4.0)
    first.note("paused", "by hand")
    second = Journal(path)  # the first is still open: WAL lets both in
    told = second.decision(made)
    assert told is not None
    assert (told["id"], told["policy"]) == (made, "p")
    assert second.state(made).digest() == STATE.digest()
    (move,) = told["carried_out"]
    assert [(p["time_s"], p["phase"]) for p in move["phases"]] == [(1.0, "intended"), (2.0, "starting"), (3.0, "done")]
    assert (move["replacement_id"], move["phase"]) == ("r-new", "done")
    assert second.events(9) == [{"time_s": 4.0, "kind": "mode", "text": "act"}]
    assert (second.noted("paused"), second.noted("other")) == ("by hand", None)
    reader = Journal(path, read_only=True)
    assert [r["record"] for r in reader.export()] == ["decision", "move", "event"]
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader.note("paused", "no")
    reader.close()
    first.close()
    second.close()


def test_intent_is_on_disk_when_intend_returns(tmp_path: Path) -> None:
    """Another connection sees it at once, without the first having closed anything."""
    journal = Journal(tmp_path / "j.sqlite3")
    journal.intend(_move("m"))
    other = sqlite3.connect(tmp_path / "j.sqlite3")
    assert other.execute("SELECT phase FROM moves").fetchall() == [("intended",)]
    assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    other.close()
    journal.close()


def test_final_phase_is_never_left() -> None:
    """A late word about an ended move changes nothing."""
    journal = Journal()
    journal.intend(_move("m"))
    journal.set_phase("m", RecordedPhase.CANCELLED, 2.0, detail="by hand")
    journal.set_phase("m", RecordedPhase.DONE, 3.0)
    (told,) = journal.moves(9)
    assert (told["phase"], told["detail"], len(told["phases"])) == ("cancelled", "by hand", 2)
    assert journal.open_moves() == []


def test_move_id_is_taken_once() -> None:
    """Two moves of one id cannot be recorded."""
    journal = Journal()
    journal.intend(_move("m"))
    with pytest.raises(sqlite3.IntegrityError):
        journal.intend(_move("m"))
    assert len(journal.moves(9)) == 1


def test_oldest_decisions_go_first_and_moves_stay() -> None:
    """Above the bound of bytes the oldest decision goes; the newest stays even where it alone is above it."""
    one = Journal()
    one.add_decision(_decision(), STATE)
    size = one._num_bytes
    journal = Journal(max_bytes=3 * size + 50)
    journal.intend(_move("m", started_s=0.0))
    for t in range(7):
        journal.add_decision(_decision(float(t)), STATE)
    assert [d["time_s"] for d in journal.decisions(99)] == [4.0, 5.0, 6.0]
    assert [d["id"] for d in journal.decisions(99)] == [5, 6, 7]
    assert journal.decision(1) is None
    assert len(journal.moves(9)) == 1
    tiny = Journal(max_bytes=1)
    tiny.add_decision(_decision(), STATE)
    tiny.add_decision(_decision(2.0), STATE)
    assert [d["time_s"] for d in tiny.decisions(9)] == [2.0]


def test_file_stops_growing(tmp_path: Path) -> None:
    """Freed pages are used again: many times the bound in decisions leaves a file near the bound."""
    path = tmp_path / "j.sqlite3"
    probe = Journal()
    probe.add_decision(_decision(), STATE)
    journal = Journal(path, max_bytes=8 * probe._num_bytes)
    for t in range(60):
        journal.add_decision(_decision(float(t)), STATE)
    assert 6 <= len(journal.decisions(999)) <= 8
    journal.close()
    assert path.stat().st_size < 3 * 8 * probe._num_bytes + 2**17


def test_undone_marks_only_the_done_moves_of_the_node() -> None:
    """Moves off other nodes and moves that came to nothing are not undone, and none is undone twice."""
    journal = Journal()
    for move_id, node, phase in (("a", "n0", "done"), ("b", "n0", "cancelled"), ("c", "n2", "done")):
        journal.intend(_move(move_id, from_node=node))
        journal.set_phase(move_id, RecordedPhase(phase), 2.0)
    assert journal.mark_undone("n0", 50.0) == 1
    assert journal.mark_undone("n0", 60.0) == 0
    assert {m["move_id"]: m["undone_s"] for m in journal.moves(9)} == {"a": 50.0, "b": None, "c": None}


def test_moves_since_tells_what_is_open_and_what_happened_lately() -> None:
    """An old open move, an old one undone lately, and a new one; not an old one that ended long ago."""
    journal = Journal()
    for move_id, started_s in (("open", 1.0), ("ended", 1.0), ("undone", 1.0), ("new", 100.0)):
        journal.intend(_move(move_id, started_s, from_node=move_id))
    for move_id in ("ended", "undone"):
        journal.set_phase(move_id, RecordedPhase.DONE, 2.0)
    journal.mark_undone("undone", 99.0)
    assert {m.move_id for m in journal.moves_since(90.0)} == {"open", "undone", "new"}


def test_what_is_no_journal_is_refused_in_one_line(tmp_path: Path) -> None:
    """A missing file, a text file, another database, another version, and a folder that cannot be."""
    text, other, newer = tmp_path / "text", tmp_path / "other", tmp_path / "newer"
    text.write_text("no database at all, but long enough to be read as one" * 20)
    db = sqlite3.connect(other)
    db.execute("CREATE TABLE t (x)")
    db.close()
    Journal(newer).close()
    db = sqlite3.connect(newer)
    db.execute("PRAGMA user_version = 9")
    db.close()
    for path, read_only in ((tmp_path / "no", True), (text, True), (text, False), (other, False), (newer, True)):
        with pytest.raises(InputError) as caught:
            Journal(path, read_only=read_only)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError):
        Journal(text / "below" / "j.sqlite3")
    assert text.read_text().startswith("no database")


def test_damaged_state_is_not_taken_for_the_recorded_one(tmp_path: Path) -> None:
    """A state whose digest is another is refused."""
    journal = Journal(tmp_path / "j.sqlite3")
    made = journal.add_decision({**_decision(), "state_digest": "0" * 64}, STATE)
    with pytest.raises(InputError, match="digest"):
        journal.state(made)
    with pytest.raises(InputError, match="no such id"):
        journal.state(made + 1)
    journal.close()


def test_threads_may_share_it() -> None:
    """Four threads that write and read leave every move in its last phase."""
    journal = Journal()

    def work(name: int) -> None:
        for i in range(25):
            journal.intend(_move(f"{name}-{i}"))
            journal.moves(5)
            journal.set_phase(f"{name}-{i}", RecordedPhase.DONE, 2.0)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30.0)
    assert len(journal.moves(999)) == 100
    assert journal.open_moves() == []


_PHASES = st.sampled_from(list(RecordedPhase))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), _PHASES), max_size=20))
def test_any_order_of_phases_is_kept_as_a_story(told: list[tuple[str, RecordedPhase]]) -> None:
    """Whatever is told in whatever order: a move's phase is the last of its story, and nothing follows a final one."""
    journal = Journal()
    for move_id in "abc":
        journal.intend(_move(move_id))
    for move_id, phase in told:
        journal.set_phase(move_id, phase, 2.0)
    for move in journal.moves(9):
        phases = [p["phase"] for p in move["phases"]]
        assert move["phase"] == phases[-1]
        assert not {"done", "failed", "cancelled"} & set(phases[:-1])
    journal.close()


def test_records_are_json() -> None:
    """Not-a-number becomes null, and a record's values are plain."""
    assert jsonable({"a": [float("nan"), 1.5, (True, None, "x")]}) == {"a": [None, 1.5, [True, None, "x"]]}
    record = dataclasses.replace(_move("m"), undone_s=3.0)
    assert record.as_json()["phase"] == "intended"
    assert not record.is_final
    assert dataclasses.replace(record, phase=RecordedPhase.DONE).is_final
