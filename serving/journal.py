"""Record of decisions, moves and events: one SQLite file in WAL mode.

A move's intent is committed before it is acted on, so that a decider killed at any point finds what was under way.
Decisions, which hold their whole state, are dropped oldest first when their bytes exceed a bound; moves and events
are small and kept by number.
"""

import dataclasses
import json
import sqlite3
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from rayfold.envs.state import ClusterState
from rayfold.errors import InputError
from rayfold.serving.live_moves import MoveRecord, RecordedPhase

__all__ = ["Journal"]

_VERSION = 1
_MAX_BYTES = 256 * 2**20  # of decisions
_MAX_MOVES, _MAX_EVENTS = 100_000, 10_000
_BUSY_S = 5.0
_SCHEMA = """
CREATE TABLE decisions (id INTEGER PRIMARY KEY AUTOINCREMENT, time_s REAL NOT NULL, digest TEXT NOT NULL,
    body TEXT NOT NULL, state BLOB NOT NULL, num_bytes INTEGER NOT NULL);
CREATE TABLE moves (move_id TEXT PRIMARY KEY, decision_id INTEGER NOT NULL, deployment TEXT NOT NULL,
    replica_id TEXT NOT NULL, from_node TEXT NOT NULL, to_node TEXT NOT NULL, started_s REAL NOT NULL,
    phase TEXT NOT NULL, phase_s REAL NOT NULL, detail TEXT NOT NULL, replacement_id TEXT NOT NULL, undone_s REAL);
CREATE TABLE phases (move_id TEXT NOT NULL, time_s REAL NOT NULL, phase TEXT NOT NULL, detail TEXT NOT NULL);
CREATE TABLE events (id INTEGER PRIMARY KEY AUTOINCREMENT, time_s REAL NOT NULL, kind TEXT NOT NULL,
    text TEXT NOT NULL);
CREATE TABLE notes (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE INDEX moves_by_time ON moves (started_s);
CREATE INDEX phases_by_move ON phases (move_id);
"""
_OPEN = "phase NOT IN ('done', 'failed', 'cancelled')"


class Journal:
    """Durable where it has a path. Safe to use from several threads.

    Args:
        path: The file, made if missing; None keeps everything in memory.
        max_bytes: Of the decisions with their states.
        read_only: The file must be there and stays as it is.

    Raises:
        InputError: The file cannot be opened, or is no journal of this version.
    """

    def __init__(self, path: Path | None = None, *, max_bytes: int = _MAX_BYTES, read_only: bool = False) -> None:
        self._where, self._max_bytes = str(path or "journal"), max_bytes
        self._lock = threading.RLock()
        self._db = self._open(path, read_only)
        self._num_bytes = self._row("SELECT COALESCE(SUM(num_bytes), 0) FROM decisions")[0]

    def _open(self, path: Path | None, read_only: bool) -> sqlite3.Connection:
        if read_only and not (path and path.is_file()):
            raise InputError(self._where, "a journal written by `rayfold serve`", "no such file")
        try:
            if path is not None and not read_only:
                path.parent.mkdir(parents=True, exist_ok=True)
            name = ":memory:" if path is None else f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}"
            db = sqlite3.connect(name, timeout=_BUSY_S, isolation_level=None, check_same_thread=False, uri=True)
        except (OSError, sqlite3.Error) as err:
            raise InputError(self._where, "a journal that can be opened", err) from err
        try:
            if not read_only:
                db.execute("PRAGMA journal_mode=WAL")
                db.execute("PRAGMA synchronous=FULL")  # an intent must outlive the machine's power too
                _create(db)
            found = int(db.execute("PRAGMA user_version").fetchone()[0])
        except sqlite3.Error as err:
            db.close()
            raise InputError(self._where, "a journal", err) from err
        if found != _VERSION:
            db.close()
            raise InputError(self._where, f"a journal of version {_VERSION}", f"version {found}")
        return db

    def close(self) -> None:
        """No use after this."""
        with self._lock:
            self._db.close()

    def _row(self, query: str, *values: Any) -> Any:
        with self._lock:
            return self._db.execute(query, values).fetchone()

    def _rows(self, query: str, *values: Any) -> list[Any]:
        with self._lock:
            return self._db.execute(query, values).fetchall()

    def _write(self, *statements: tuple[str, tuple[Any, ...]]) -> int:
        """All statements or none; the row id of the last insert."""
        with self._lock, closing(self._db.cursor()) as cursor:
            cursor.execute("BEGIN IMMEDIATE")
            try:
                for query, values in statements:
                    cursor.execute(query, values)
            except BaseException:
                self._db.rollback()
                raise
            self._db.commit()
            return int(cursor.lastrowid or 0)

    def add_decision(self, body: Mapping[str, Any], state: ClusterState) -> int:
        """Records a decision with the state it was made on, and drops the oldest beyond the bound.

        Args:
            body: JSON values only, ``time_s`` and ``state_digest`` among them.
            state: Saved whole, so that the decision can be replayed.

        Returns:
            Its id; ids grow.
        """
        text, blob = json.dumps(body, allow_nan=False), _pack(state)
        size = len(text) + len(blob)
        insert = "INSERT INTO decisions (time_s, digest, body, state, num_bytes) VALUES (?, ?, ?, ?, ?)"
        with self._lock:
            made = self._write((insert, (body["time_s"], body["state_digest"], text, blob, size)))
            self._num_bytes += size
            while self._num_bytes > self._max_bytes:
                oldest = self._row("SELECT id, num_bytes FROM decisions WHERE id < ? ORDER BY id LIMIT 1", made)
                if oldest is None:
                    break
                self._write(("DELETE FROM decisions WHERE id = ?", (oldest[0],)))
                self._num_bytes -= oldest[1]
        return made

    def revise_decision(self, decision_id: int, body: Mapping[str, Any]) -> None:
        """Replaces the body of a decision by what became of it."""
        text = json.dumps(body, allow_nan=False)
        self._write(("UPDATE decisions SET body = ? WHERE id = ?", (text, decision_id)))

    def decisions(self, limit: int) -> list[dict[str, Any]]:
        """The newest decisions, oldest first."""
        rows = self._rows("SELECT id, body FROM decisions ORDER BY id DESC LIMIT ?", max(0, limit))
        return [{"id": row[0], **json.loads(row[1])} for row in reversed(rows)]

    def decision(self, decision_id: int) -> dict[str, Any] | None:
        """One decision with its moves as recorded, None if it is not there (any more)."""
        if not 0 <= decision_id < 2**63:
            return None
        row = self._row("SELECT body FROM decisions WHERE id = ?", decision_id)
        if row is None:
            return None
        moves = self._records("decision_id = ? ORDER BY started_s, rowid", decision_id)
        return {"id": decision_id, **json.loads(row[0]), "carried_out": [self._story(m) for m in moves]}

    def state(self, decision_id: int) -> ClusterState:
        """The state a decision was made on.

        Raises:
            InputError: No such decision, or the state is not what was recorded.
        """
        where = f"{self._where}: decision {decision_id}"
        row = self._row("SELECT state, digest FROM decisions WHERE id = ?", decision_id)
        if row is None:
            raise InputError(where, "a decision of this journal", "no such id")
        state = _unpack(row[0])
        if state.digest() != row[1]:
            raise InputError(where, f"a state with digest {row[1][:12]}", state.digest()[:12])
        return state

    def intend(self, record: MoveRecord) -> None:
        """Writes down that a move is about to be started. On return it is on disk."""
        names = [f.name for f in dataclasses.fields(record)]
        values = tuple(str(record.phase) if name == "phase" else getattr(record, name) for name in names)
        excess = "SELECT move_id FROM moves ORDER BY started_s DESC, rowid DESC LIMIT -1 OFFSET ?"
        self._write(
            (f"INSERT INTO moves ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})", values),
            (_ADD_PHASE, (record.move_id, record.started_s, str(record.phase), "")),
            (f"DELETE FROM phases WHERE move_id IN ({excess})", (_MAX_MOVES,)),
            (f"DELETE FROM moves WHERE move_id IN ({excess})", (_MAX_MOVES,)),
        )

    def set_phase(
        self, move_id: str, phase: RecordedPhase, time_s: float, *, detail: str = "", replacement_id: str = ""
    ) -> None:
        """A move has entered a phase. A final phase is never left, whatever is told later."""
        update = (
            "UPDATE moves SET phase = ?, phase_s = IIF(?, ?, phase_s), detail = ?, "
            f"replacement_id = COALESCE(NULLIF(?, ''), replacement_id) WHERE move_id = ? AND {_OPEN}"
        )
        with self._lock:
            row = self._row(f"SELECT phase FROM moves WHERE move_id = ? AND {_OPEN}", move_id)
            if row is None:
                return
            entered = row[0] != str(phase)  # else only the replacement is news
            entry = [(_ADD_PHASE, (move_id, time_s, str(phase), detail))] if entered else []
            self._write((update, (str(phase), entered, time_s, detail, replacement_id, move_id)), *entry)

    def mark_undone(self, from_node: str, time_s: float) -> int:
        """The release of a node was undone: so were the moves that emptied it. How many were marked."""
        with self._lock:
            where = "from_node = ? AND phase = 'done' AND undone_s IS NULL"
            count = int(self._row(f"SELECT COUNT(*) FROM moves WHERE {where}", from_node)[0])
            self._write((f"UPDATE moves SET undone_s = ? WHERE {where}", (time_s, from_node)))
        return count

    def _records(self, where: str, *values: Any) -> list[MoveRecord]:
        names = [f.name for f in dataclasses.fields(MoveRecord)]
        rows = self._rows(f"SELECT {', '.join(names)} FROM moves WHERE {where}", *values)
        found = (dict(zip(names, row, strict=True)) for row in rows)
        return [MoveRecord(**{**values, "phase": RecordedPhase(values["phase"])}) for values in found]

    def _story(self, record: MoveRecord) -> dict[str, Any]:
        rows = self._rows("SELECT time_s, phase, detail FROM phases WHERE move_id = ? ORDER BY rowid", record.move_id)
        return {**record.as_json(), "phases": [{"time_s": r[0], "phase": r[1], "detail": r[2]} for r in rows]}

    def move(self, move_id: str) -> MoveRecord | None:
        """One move, None if there is no such."""
        return next(iter(self._records("move_id = ?", move_id)), None)

    def open_moves(self) -> list[MoveRecord]:
        """Moves that have not ended, oldest first."""
        return self._records(f"{_OPEN} ORDER BY started_s, rowid")

    def moves_since(self, time_s: float) -> list[MoveRecord]:
        """Moves begun, ended or undone at or after a time, and those that have not ended; oldest first."""
        where = f"started_s >= ? OR phase_s >= ? OR COALESCE(undone_s, 0) >= ? OR {_OPEN} ORDER BY started_s, rowid"
        return self._records(where, time_s, time_s, time_s)

    def moves(self, limit: int) -> list[dict[str, Any]]:
        """The newest moves with their phases, oldest first."""
        newest = self._records("1 ORDER BY started_s DESC, rowid DESC LIMIT ?", max(0, limit))
        return [self._story(record) for record in reversed(newest)]

    def add_event(self, kind: str, text: str, time_s: float) -> None:
        """Something that happened beside decisions: an error, a change of mode, a brake."""
        self._write(
            ("INSERT INTO events (time_s, kind, text) VALUES (?, ?, ?)", (time_s, kind, text)),
            ("DELETE FROM events WHERE id <= (SELECT MAX(id) FROM events) - ?", (_MAX_EVENTS,)),
        )

    def events(self, limit: int) -> list[dict[str, Any]]:
        """The newest events, oldest first."""
        rows = self._rows("SELECT time_s, kind, text FROM events ORDER BY id DESC LIMIT ?", max(0, limit))
        return [{"time_s": row[0], "kind": row[1], "text": row[2]} for row in reversed(rows)]

    def note(self, name: str, value: str) -> None:
        """Keeps one value by name, for the decider that comes after."""
        self._write(
            ("INSERT INTO notes VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value", (name, value))
        )

    def noted(self, name: str) -> str | None:
        """What ``note`` kept."""
        row = self._row("SELECT value FROM notes WHERE name = ?", name)
        return None if row is None else str(row[0])

    def export(self) -> Iterator[dict[str, Any]]:
        """Everything but the states: decisions, moves with their phases, events, each with its ``record`` kind."""
        for (decision_id,) in self._rows("SELECT id FROM decisions ORDER BY id"):
            row = self._row("SELECT body FROM decisions WHERE id = ?", decision_id)
            if row is not None:  # a decider that runs may have dropped it meanwhile
                yield {"record": "decision", "id": decision_id, **json.loads(row[0])}
        for move in self._records("1 ORDER BY started_s, rowid"):
            yield {"record": "move", **self._story(move)}
        for event in self.events(_MAX_EVENTS):
            yield {"record": "event", **event}


_ADD_PHASE = "INSERT INTO phases (move_id, time_s, phase, detail) VALUES (?, ?, ?, ?)"


def _create(db: sqlite3.Connection) -> None:
    """Makes the tables of a new file; two that open it at once agree by the lock."""
    db.execute("BEGIN IMMEDIATE")
    try:
        is_new = db.execute("PRAGMA user_version").fetchone()[0] == 0
        if is_new and db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0] == 0:
            for statement in _SCHEMA.split(";"):
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {_VERSION}")
        db.execute("COMMIT")
    except BaseException:
        db.execute("ROLLBACK")
        raise


def _pack(state: ClusterState) -> bytes:
    with tempfile.TemporaryDirectory() as folder:  # a state is saved to files only
        state.save(Path(folder) / "state.npz")
        return (Path(folder) / "state.npz").read_bytes()


def _unpack(blob: bytes) -> ClusterState:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "state.npz").write_bytes(blob)
        return ClusterState.load(Path(folder) / "state.npz")
