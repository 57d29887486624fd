"""A live move's record, its status, and the protocol of what carries it out. Knows nothing of Ray."""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from rayfold.envs.moves import Move, MovePhase
from rayfold.envs.state import ClusterState

__all__ = ["FINAL", "NEW_NODE", "LiveExecutor", "MoveRecord", "MoveStatus", "RecordedPhase", "destination_id"]

FINAL = (MovePhase.DONE, MovePhase.FAILED, MovePhase.CANCELLED)
NEW_NODE = "new:"  # what the destination of a move begins with that launches a node; its type follows


def destination_id(state: ClusterState, move: Move) -> str:
    """Ray's id of the node a move goes to, or ``new:`` and the type that it launches; empty where there is none."""
    num_nodes = len(state.arrays.node_type)
    if 0 <= move.node_idx < min(num_nodes, len(state.node_ids)):
        return state.node_ids[move.node_idx]
    is_new = num_nodes <= move.node_idx < num_nodes + len(state.spec.node_types)
    return NEW_NODE + state.spec.node_types[move.node_idx - num_nodes].name if is_new else ""


class RecordedPhase(enum.StrEnum):
    """Phases of a recorded move: those of ``MovePhase``, and the intent before them."""

    INTENDED = "intended"  # written down, the controller may not know of it yet
    STARTING = "starting"
    DRAINING = "draining"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class MoveStatus(NamedTuple):
    """What is known of one move."""

    phase: MovePhase
    detail: str  # why it failed or was cancelled
    replica_id: str
    replacement_id: str | None
    node_id: str
    ready_s: float = 0.0  # the replacement served then (Unix time), 0 = not yet


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveRecord:
    """One move as the journal holds it. Times are Unix seconds, ids are Ray's."""

    move_id: str
    decision_id: int
    deployment: str  # app/name
    replica_id: str
    from_node: str
    to_node: str  # or ``new:`` and a node type
    started_s: float  # the intent was written then
    phase: RecordedPhase = RecordedPhase.INTENDED
    phase_s: float = 0.0  # entered its phase then
    detail: str = ""  # why it failed or was cancelled
    replacement_id: str = ""
    undone_s: float | None = None  # the node it emptied was released, and one of its type launched again, then

    @property
    def is_final(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.phase.value in {phase.value for phase in FINAL}

    def as_json(self) -> dict[str, Any]:
        """JSON values only."""
        return {**{name: getattr(self, name) for name in self.__slots__}, "phase": str(self.phase)}


class LiveExecutor(Protocol):
    """An ``Executor`` whose moves are named before they start, so that a journal can name them first."""

    def start(self, state: ClusterState, move: Move, move_id: str = "") -> str:
        """Starts a move under this id; at most once per id.

        Raises:
            ExecutorError: The move cannot be started.
        """
        ...

    def adopt(self, moves: Sequence[MoveRecord]) -> None:
        """Takes over the moves of an earlier decider; those that the cluster does not know will never start.

        Raises:
            ClusterError: The cluster does not answer.
        """
        ...

    def statuses(self) -> Mapping[str, MoveStatus]:
        """Every move started or adopted, by id.

        Raises:
            ClusterError: The cluster does not answer.
        """
        ...

    def check(self) -> None:
        """Whether this cluster's replicas could be moved; touches nothing.

        Raises:
            ClusterError: They could not.
        """
        ...

    def keep_attached(self) -> bool:
        """Makes moves possible; True where the cluster had lost an attachment that was there before.

        Raises:
            ClusterError: The cluster does not answer.
        """
        ...

    def detach(self) -> bool:
        """Cancels what still starts and leaves the cluster as it was found; False where it is not attached.

        Raises:
            ClusterError: The cluster does not answer.
        """
        ...

    def cancel(self, move_id: str) -> None:
        """Stops the replacement and leaves the old replica serving; no effect on a final move."""
        ...
