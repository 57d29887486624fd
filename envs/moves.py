"""``Move``, ``Plan`` and the ``Executor`` protocol: what a policy asks for and who carries it out."""

import enum
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from rayfold.envs.state import ClusterState

__all__ = ["Candidate", "Executor", "Move", "MovePhase", "Plan"]


class Move(NamedTuple):
    """One replica to one destination, as rows of the ``ClusterState`` it was planned on."""

    replica_idx: int
    node_idx: int  # node row; with N rows of nodes, N + t is a new node of type t


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Something a policy could have done, and why it did or did not."""

    moves: tuple[Move, ...]  # in order; empty = nothing
    score: float  # higher is better; policy's own scale
    price_usd: float = 0.0  # expected disruption of the moves
    saving_usd_per_h: float = 0.0  # node price that is no longer paid if they succeed
    reason: str = ""  # "chosen", or what spoke against it


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Moves decided at one tick, in order."""

    moves: tuple[Move, ...] = ()
    scores: tuple[float, ...] = ()  # one per move, higher is better; policy's own scale
    expected_saving_usd: float = 0.0  # the policy's own estimate, 0 where it makes none
    reason: str = ""  # one line: why these moves, or why none
    candidates: tuple[Candidate, ...] = ()  # best first; empty where a policy weighs none


class MovePhase(enum.StrEnum):
    """Where a move is. The last three are final."""

    STARTING = "starting"  # the replacement is being created
    DRAINING = "draining"  # the replacement serves, the old replica finishes its requests
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Executor(Protocol):
    """Carries moves out. The simulator and the live cluster each have one."""

    def start(self, state: ClusterState, move: Move) -> str:
        """Starts a move and returns its id without waiting.

        Raises:
            ExecutorError: The move cannot be started.
        """
        ...

    def phase(self, move_id: str) -> MovePhase:
        """Where the move is now."""
        ...

    def cancel(self, move_id: str) -> None:
        """Stops the replacement and leaves the old replica serving; no effect on a final move."""
        ...
