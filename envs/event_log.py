"""The event log of a cluster run: what was seen at each poll, and every move. JSON lines, gzip where named ``.gz``.

First line: the header. Last line: the end mark, so that a cut file is noticed. Between them polls and move events in
order of time. The ``ClusterState`` of the first poll lies beside the log (``state_path``). Times are seconds after
the first poll. Dims: D deployments.
"""

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase
from rayfold.errors import InputError

__all__ = [
    "FORMAT_VERSION",
    "EventLog",
    "LogHeader",
    "MoveEvent",
    "Poll",
    "SeenNode",
    "SeenReplica",
    "read_log",
    "state_path",
]

FORMAT_VERSION = 1


class SeenNode(NamedTuple):
    """One node at one poll."""

    node_id: str  # empty while it boots
    node_type: str
    phase: NodePhase


class SeenReplica(NamedTuple):
    """One replica at one poll."""

    replica_id: str
    deployment_idx: int
    node_id: str  # empty where Serve does not know it: until the process of the replica runs
    phase: ReplicaPhase
    created_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LogHeader:
    """What holds for the whole log."""

    node_types: tuple[str, ...]
    deployments: tuple[str, ...]  # (D,) keys ``app/name``, in the order of the saved state
    idle_timeout_s: float  # the autoscaler's setting
    fence_s: float  # of the executor
    poll_s: float  # time between polls that was aimed at
    ray_version: str
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Poll:
    """The cluster at one moment."""

    t_s: float
    nodes: tuple[SeenNode, ...]
    replicas: tuple[SeenReplica, ...]
    targets: tuple[int, ...]  # (D,)
    ongoing: tuple[float, ...]  # (D,) requests, as the replica autoscaler counts them: mean of the look-back period


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveEvent:
    """A move that began, or reached a final phase."""

    t_s: float
    move_id: str
    phase: str  # MovePhase: "starting" when it begins
    deployment_idx: int
    replica_id: str
    from_node: str
    to_node: str
    replacement_id: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventLog:
    """A whole log."""

    header: LogHeader
    first: ClusterState
    polls: tuple[Poll, ...]
    moves: tuple[MoveEvent, ...]

    @property
    def duration_s(self) -> float:
        """Time of the last poll."""
        return self.polls[-1].t_s

    def times_s(self) -> NDArray[np.float64]:
        """``(P,)`` time of each poll."""
        return np.array([p.t_s for p in self.polls])


def state_path(log_path: Path) -> Path:
    """Where the first state of a log lies: ``x.jsonl.gz`` -> ``x.npz``."""
    return log_path.with_name(log_path.name.split(".")[0] + ".npz")


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as f:
        for number, line in enumerate(f, 1):
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as err:
                raise InputError(f"{path}:{number}", "one JSON object", repr(line[:60])) from err


def read_log(path: Path) -> EventLog:
    """Reads a log and the state beside it.

    Raises:
        InputError: A file is missing, cut, of another format or inconsistent.
    """
    try:
        records = list(_lines(path))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as err:
        raise InputError(str(path), "an event log", getattr(err, "strerror", None) or err) from err
    header = _header(path, records)
    polls: list[Poll] = []
    moves: list[MoveEvent] = []
    for number, record in records[1:-1]:
        where = f"{path}:{number}"
        kind = record.pop("kind", None) if isinstance(record, dict) else None
        if kind == "poll":
            polls.append(_parsed(where, Poll, record))
            _check_poll(where, polls[-1], header)
        elif kind == "move":
            moves.append(_parsed(where, MoveEvent, record))
        else:
            raise InputError(where, "kind poll or move", kind)
    if not polls:
        raise InputError(str(path), "at least one poll", "none")
    first = ClusterState.load(state_path(path))
    keys = tuple(d.key for d in first.spec.deployments)
    if keys != header.deployments:
        raise InputError(str(state_path(path)), f"the deployments of the log {header.deployments}", keys)
    return EventLog(header=header, first=first, polls=tuple(polls), moves=tuple(moves))


def _parsed(where: str, kind: Any, record: Any) -> Any:
    try:
        return TypeAdapter(kind).validate_python(record)
    except ValidationError as err:
        first = err.errors()[0]
        raise InputError(f"{where}: {'.'.join(map(str, first['loc']))}", first["msg"], first["input"]) from err


def _header(path: Path, records: list[tuple[int, Any]]) -> LogHeader:
    if not records or not isinstance(records[0][1], dict) or records[0][1].get("kind") != "header":
        raise InputError(f"{path}:1", "the header of an event log", records[0][1] if records else "an empty file")
    header = dict(records[0][1])
    if header.pop("format", None) != FORMAT_VERSION:
        raise InputError(f"{path}:1", f"log format {FORMAT_VERSION}", records[0][1].get("format"))
    number, last = records[-1]
    if not isinstance(last, dict) or last.get("kind") != "end":
        raise InputError(f"{path}:{number}", "the end mark", "another line: the log was cut")
    del header["kind"]
    parsed: LogHeader = _parsed(f"{path}:1", LogHeader, header)
    return parsed


def _check_poll(where: str, poll: Poll, header: LogHeader) -> None:
    num = len(header.deployments)
    if len(poll.targets) != num or len(poll.ongoing) != num:
        raise InputError(where, f"{num} targets and ongoing requests", (len(poll.targets), len(poll.ongoing)))
    for replica in poll.replicas:
        if not 0 <= replica.deployment_idx < num:
            raise InputError(where, f"a deployment below {num}", replica.deployment_idx)
