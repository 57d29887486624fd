"""The decider's own brakes, applied after the safety filter: pure functions over a state and the journal's moves.

The filter says what is safe at this moment; these say how much may be done to a live cluster over time.
"""

import enum
from collections.abc import Sequence

import numpy as np

from rayfold.envs.moves import Move
from rayfold.envs.safety import Limits
from rayfold.envs.state import ClusterState, NodePhase
from rayfold.envs.transition import with_move
from rayfold.serving.freeze import is_frozen, parse_window, parse_zone
from rayfold.serving.live_moves import NEW_NODE, MoveRecord, RecordedPhase, destination_id
from rayfold.serving.live_settings import Brakes

__all__ = ["HOUR_S", "Brake", "brake", "churn", "memory_s"]

HOUR_S = 3600.0


class Brake(enum.StrEnum):
    """Why a move that the safety filter allows is not made."""

    FREEZE_WINDOW = "freeze_window"
    MOVES_PER_HOUR = "moves_per_hour"
    MOVES_OF_DEPLOYMENT_PER_HOUR = "moves_of_deployment_per_hour"
    TOO_MUCH_OF_DEPLOYMENT_AT_ONCE = "too_much_of_deployment_at_once"
    MOVED_LATELY = "moved_lately"
    NO_HEADROOM = "no_headroom"
    LAUNCH_FAILED_LATELY = "launch_failed_lately"


def memory_s(brakes: Brakes) -> float:
    """How far back the moves matter to ``brake`` and ``churn``."""
    return max(HOUR_S, brakes.min_run_s, brakes.undone_window_s)


def brake(
    state: ClusterState, move: Move, records: Sequence[MoveRecord], brakes: Brakes, limits: Limits, now_s: float
) -> Brake | None:
    """Why a move is not made, None if it may be.

    Args:
        state: With the moves that have begun; the safety filter allows the move on it.
        move: The move.
        records: Moves of the last ``memory_s`` and all open ones, those decided before this one at this tick included.
        brakes: What is allowed.
        limits: Of the safety filter: how long a node is fenced.
        now_s: Unix time.
    """
    d = int(state.arrays.replica_deployment[move.replica_idx])
    key = state.spec.deployments[d].key
    zone = parse_zone(brakes.freeze_zone, "brakes.freeze_zone")
    if is_frozen((parse_window(text, "brakes.freeze") for text in brakes.freeze), now_s, zone):
        return Brake.FREEZE_WINDOW
    lately = [r for r in records if r.started_s > now_s - HOUR_S]
    if len(lately) >= brakes.moves_per_h:
        return Brake.MOVES_PER_HOUR
    if sum(r.deployment == key for r in lately) >= brakes.moves_per_deployment_h:
        return Brake.MOVES_OF_DEPLOYMENT_PER_HOUR
    moving = sum(r.deployment == key and not r.is_final for r in records)
    if moving >= max(1, int(brakes.moving_frac * state.arrays.deployment_target[d])):
        return Brake.TOO_MUCH_OF_DEPLOYMENT_AT_ONCE
    replica_id = state.replica_ids[move.replica_idx]
    if any(r.replacement_id == replica_id and now_s - r.phase_s < brakes.min_run_s for r in records if r.is_final):
        return Brake.MOVED_LATELY
    if _launch_failed(destination_id(state, move), lately):
        return Brake.LAUNCH_FAILED_LATELY
    if brakes.headroom_gpus > 0.0 and _free_gpus(state, move, limits) < brakes.headroom_gpus:
        return Brake.NO_HEADROOM
    return None


def _launch_failed(to_node: str, records: Sequence[MoveRecord]) -> bool:
    """Whether a move that was to launch such a node came to nothing: the cloud may have none."""
    failed = (RecordedPhase.FAILED, RecordedPhase.CANCELLED)
    return to_node.startswith(NEW_NODE) and any(r.to_node == to_node and r.phase in failed for r in records)


def _free_gpus(state: ClusterState, move: Move, limits: Limits) -> float:
    """Free GPUs on the nodes that stay, once the move has begun."""
    st = with_move(state, move, limits).arrays
    stays = (st.node_phase == NodePhase.ALIVE) & ~st.node_is_head & (st.node_fenced_until_s <= state.now_s)
    stays[state.arrays.replica_node[move.replica_idx]] = False
    return float(np.sum(st.node_free[stays, 0]))  # the first resource is always GPU


def churn(records: Sequence[MoveRecord], brakes: Brakes, since_s: float, now_s: float) -> str:
    """Why the decider should pause itself, empty if it should not.

    Args:
        records: Moves of the last ``memory_s``.
        brakes: What is allowed.
        since_s: Moves undone before do not count: the decider was resumed then.
        now_s: Unix time.
    """
    begin_s = max(since_s, now_s - brakes.undone_window_s)
    undone = sum(r.undone_s is not None and r.undone_s > begin_s for r in records if r.phase == RecordedPhase.DONE)
    if undone <= brakes.undone_limit:
        return ""
    return f"{undone} moves were undone within {brakes.undone_window_s / 3600:g} h (limit {brakes.undone_limit})"
