"""What a tick comes to: the decision, its moves with their verdicts, and what else could have been done."""

import dataclasses
import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rayfold.envs.moves import Candidate, Move
from rayfold.envs.safety import Limits
from rayfold.envs.state import ClusterState
from rayfold.envs.transition import with_move
from rayfold.serving.live_moves import NEW_NODE, destination_id

__all__ = [
    "CheckedMove",
    "ConsideredPlan",
    "Decision",
    "Mode",
    "checked_move",
    "jsonable",
    "refused",
    "same_move",
    "with_begun",
]


class Mode(enum.StrEnum):
    """What the decider does with a plan."""

    OFF = "off"  # nothing, not even a snapshot
    OBSERVE = "observe"  # decide and record
    RECOMMEND = "recommend"  # decide, record, show
    ACT = "act"  # and carry it out


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedMove:
    """One move of a plan and what became of it. Ids are Ray's, full."""

    move: Move
    deployment: str  # app/name
    replica_id: str
    from_node: str
    to_node: str  # or ``new:`` and the type of a node to launch
    allowed: bool
    reason: str  # of the safety filter, of a brake, or of the executor where it refused
    score: float = 0.0  # the policy's own scale, higher is better
    move_id: str = ""  # empty = not started

    def as_json(self) -> dict[str, Any]:
        """Without the row numbers, which mean nothing outside their snapshot."""
        return {name: getattr(self, name) for name in self.__slots__ if name != "move"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsideredPlan:
    """A candidate of the policy, with the verdict on each of its moves."""

    candidate: Candidate
    moves: tuple[CheckedMove, ...]

    def as_json(self) -> dict[str, Any]:
        """Names instead of rows."""
        values = {f.name: getattr(self.candidate, f.name) for f in dataclasses.fields(self.candidate)}
        return {**values, "moves": [move.as_json() for move in self.moves]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One tick."""

    time_s: float  # Unix time
    mode: Mode
    policy: str  # name of the one that made the plan; empty = none could
    reason: str
    moves: tuple[CheckedMove, ...] = ()
    candidates: tuple[ConsideredPlan, ...] = ()
    expected_saving_usd: float = 0.0  # the policy's own estimate
    num_nodes: int = 0
    usd_per_h: float = 0.0  # what the nodes cost now
    bound_usd_per_h: float = 0.0  # least price of nodes that could hold the replicas: see ``envs/bound.py``
    latency_s: float = 0.0  # of the plan
    state_digest: str = ""

    def as_json(self) -> dict[str, Any]:
        """JSON values only."""
        values = {name: getattr(self, name) for name in self.__slots__}
        values |= {"mode": str(self.mode), "moves": [m.as_json() for m in self.moves]}
        cleaned: dict[str, Any] = jsonable({**values, "candidates": [c.as_json() for c in self.candidates]})
        return cleaned


def checked_move(
    state: ClusterState, move: Move, *, allowed: bool, reason: str, score: float = 0.0, move_id: str = ""
) -> CheckedMove:
    """The move by its ids; rows that do not exist have none."""
    st = state.arrays
    r = move.replica_idx
    known = 0 <= r < len(state.replica_ids) and st.replica_deployment[r] >= 0
    source = int(st.replica_node[r]) if known else -1
    return CheckedMove(
        move=move,
        deployment=state.spec.deployments[int(st.replica_deployment[r])].key if known else "",
        replica_id=state.replica_ids[r] if known else "",
        from_node=state.node_ids[source] if source >= 0 else "",
        to_node=destination_id(state, move),
        allowed=allowed,
        reason=reason,
        score=score,
        move_id=move_id,
    )


def refused(item: CheckedMove, reason: str) -> CheckedMove:
    """The same move, not allowed."""
    return dataclasses.replace(item, allowed=False, reason=reason)


def same_move(state: ClusterState, item: CheckedMove) -> Move | None:
    """The move in the rows of another snapshot, None where its replica, node or node type is gone."""
    try:
        row = state.replica_ids.index(item.replica_id)
        if not item.to_node.startswith(NEW_NODE):
            return Move(row, state.node_ids.index(item.to_node))
        types = [node_type.name for node_type in state.spec.node_types]
        return Move(row, len(state.arrays.node_type) + types.index(item.to_node.removeprefix(NEW_NODE)))
    except ValueError:
        return None


def with_begun(state: ClusterState, earlier: CheckedMove, limits: Limits) -> ClusterState:
    """Adds a move that the controller has taken but the snapshot does not show yet."""
    move = same_move(state, earlier)
    if move is None:
        return state
    peer = int(state.arrays.replica_peer[move.replica_idx])
    if peer >= 0 and peer != move.replica_idx:
        return state
    return with_move(state, move, limits)


def jsonable(value: Any) -> Any:
    """The same value as JSON can hold it: numbers that are not finite become None, numpy scalars plain numbers."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [jsonable(item) for item in value]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    number = float(value)
    return number if math.isfinite(number) else None
