"""Records the event log of a live cluster: ``rayfold.envs.event_log`` tells the format.

Written to a temporary name and renamed at the end, so that a log under its own name is whole.
"""

import dataclasses
import gzip
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from rayfold.envs.event_log import FORMAT_VERSION, LogHeader, MoveEvent, Poll, SeenNode, SeenReplica, state_path
from rayfold.envs.moves import Move, MovePhase
from rayfold.envs.state import ClusterState
from rayfold.serving.executor import MoveStatus
from rayfold.serving.history import History
from rayfold.serving.live_settings import LiveSettings
from rayfold.serving.raw_cluster import RawCluster, fetch_cluster
from rayfold.serving.snapshot import build_state

__all__ = ["Recorder", "poll_of"]

_FINAL = (MovePhase.DONE, MovePhase.FAILED, MovePhase.CANCELLED)


def poll_of(raw: RawCluster, state: ClusterState, begun_s: float, deployments: tuple[str, ...]) -> Poll:
    """What the log keeps of a snapshot.

    Args:
        raw: The raw view.
        state: The state built from it.
        begun_s: Unix time of the first poll.
        deployments: Keys, in the order of the log; those that are gone count as 0.
    """
    st, spec = state.arrays, state.spec
    row = {d.key: i for i, d in enumerate(spec.deployments)}
    created_s = {r.replica_id: r.start_s for r in raw.replicas}
    # The placeholder id of a booting node is no identity: it changes hands when another one has joined.
    nodes = [
        SeenNode(node_id if phase == 2 else "", spec.node_types[t].name, phase)
        for node_id, t, phase in zip(state.node_ids, st.node_type.tolist(), st.node_phase.tolist(), strict=True)
    ]
    replicas = []
    for r, replica_id in enumerate(state.replica_ids):
        key, n = spec.deployments[int(st.replica_deployment[r])].key, int(st.replica_node[r])
        if key in deployments:
            node_id = state.node_ids[n] if n >= 0 else ""
            since_s = round(created_s[replica_id] - begun_s, 2)
            idx, phase = deployments.index(key), int(st.replica_phase[r])
            replicas.append(SeenReplica(replica_id, idx, node_id, phase, since_s))  # type: ignore[arg-type]
    return Poll(
        t_s=round(raw.now_s - begun_s, 3),
        nodes=tuple(nodes),
        replicas=tuple(replicas),
        targets=tuple(int(st.deployment_target[row[key]]) if key in row else 0 for key in deployments),
        ongoing=tuple(round(float(st.deployment_ongoing[row[key]]), 3) if key in row else 0.0 for key in deployments),
    )


class Recorder:
    """Context manager that writes one log; an error inside the block leaves no log under its name.

    Args:
        path: Of the log; ``.gz`` at its end compresses it.
        settings: For the snapshots.
        poll_s: Time between polls that is aimed at; the caller keeps it.
        fence_s: Of the executor whose moves are noted.
        title: What the run was.
        ray_version: Of the cluster.
        fetch: Where raw views come from.
    """

    def __init__(
        self,
        path: Path,
        settings: LiveSettings,
        *,
        poll_s: float,
        fence_s: float,
        title: str,
        ray_version: str,
        fetch: Callable[[], RawCluster] = fetch_cluster,
    ) -> None:
        self._path, self._settings, self._fetch = path, settings, fetch
        self._about = {"poll_s": poll_s, "fence_s": fence_s, "title": title, "ray_version": ray_version}
        self._part = path.with_name(path.name + ".part")
        self._history = History()
        self._header: LogHeader | None = None
        self._begun_s = 0.0
        self._open_moves: dict[str, MoveEvent] = {}
        self._file: TextIO | None = None

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        is_gz = self._path.suffix == ".gz"
        self._file = gzip.open(self._part, "wt") if is_gz else self._part.open("w")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        if error is None:
            self._write("end", {})
        self._file.close()
        if error is None:
            self._part.replace(self._path)

    def _write(self, kind: str, values: Mapping[str, Any]) -> None:
        assert self._file is not None
        self._file.write(json.dumps({"kind": kind, **values}, separators=(",", ":")) + "\n")

    def _begin(self, state: ClusterState) -> LogHeader:
        header = LogHeader(
            node_types=tuple(t.name for t in state.spec.node_types),
            deployments=tuple(d.key for d in state.spec.deployments),
            idle_timeout_s=self._settings.idle_timeout_s,
            **self._about,  # type: ignore[arg-type]
        )
        state.save(state_path(self._path))
        self._write("header", {"format": FORMAT_VERSION, **dataclasses.asdict(header)})
        self._begun_s = state.now_s
        return header

    def poll(self) -> ClusterState:
        """Takes a snapshot, writes it down and returns it.

        Raises:
            ClusterError: The cluster does not answer.
        """
        raw = self._fetch()
        state = build_state(raw, self._settings, self._history)
        if self._header is None:
            self._header = self._begin(state)
        poll = poll_of(raw, state, self._begun_s, self._header.deployments)
        self._write("poll", dataclasses.asdict(poll))
        return state

    def note_start(self, move_id: str, state: ClusterState, move: Move, now_s: float) -> None:
        """Writes down that a move has begun.

        Args:
            move_id: Of the executor.
            state: The last snapshot, on whose rows the move was made.
            move: The move.
            now_s: Unix time.
        """
        assert self._header is not None
        st = state.arrays
        key = state.spec.deployments[int(st.replica_deployment[move.replica_idx])].key
        event = MoveEvent(
            t_s=round(now_s - self._begun_s, 3),
            move_id=move_id,
            phase=MovePhase.STARTING.value,
            deployment_idx=self._header.deployments.index(key),
            replica_id=state.replica_ids[move.replica_idx],
            from_node=state.node_ids[int(st.replica_node[move.replica_idx])],
            to_node=state.node_ids[move.node_idx],
        )
        self._open_moves[move_id] = event
        self._write("move", dataclasses.asdict(event))

    def note_statuses(self, statuses: Mapping[str, MoveStatus], now_s: float) -> None:
        """Writes down which moves have ended since the last call.

        Args:
            statuses: Of the executor.
            now_s: Unix time.
        """
        for move_id, event in list(self._open_moves.items()):
            status = statuses[move_id]
            if status.phase in _FINAL:
                del self._open_moves[move_id]
                ended = dataclasses.replace(
                    event,
                    t_s=round(now_s - self._begun_s, 3),
                    phase=status.phase.value,
                    replacement_id=status.replacement_id or "",
                    detail=status.detail,
                )
                self._write("move", dataclasses.asdict(ended))
