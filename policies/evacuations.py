"""Evacuations a heuristic can choose from: every node that could be emptied now, with its moves and price."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rayfold.envs.evacuation import move_price_usd, new_workspace, plan_evacuation, prepare
from rayfold.envs.moves import Candidate, Move, Plan
from rayfold.envs.safety import Limits, check_move, moves_in_flight
from rayfold.envs.state import ClusterState, NodePhase
from rayfold.envs.transition import with_move
from rayfold.policies.destinations import masks

__all__ = [
    "Evacuation",
    "candidates",
    "evacuations",
    "first_moves",
    "moves_in_order",
    "moves_price_usd",
    "new_evacuation",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evacuation:
    """One way to empty a node."""

    node_idx: int
    moves: tuple[Move, ...]  # largest replica first
    price_usd: float  # expected disruption of all moves
    node_usd_per_h: float  # what releasing the node saves
    is_underway: bool  # replicas have been moved off it lately: it is fenced

    def as_candidate(self, score: float, reason: str) -> Candidate:
        """As a plan lists it."""
        return Candidate(
            moves=self.moves,
            score=score,
            price_usd=self.price_usd,
            saving_usd_per_h=self.node_usd_per_h,
            reason=reason,
        )


def new_evacuation(state: ClusterState, node_idx: int, moves: Sequence[Move]) -> Evacuation:
    """The evacuation of a node by these moves."""
    st = state.arrays
    return Evacuation(
        node_idx=node_idx,
        moves=tuple(moves),
        price_usd=moves_price_usd(state, moves),
        node_usd_per_h=float(state.spec.arrays.type_price_usd_per_h[st.node_type[node_idx]]),
        is_underway=bool(st.node_fenced_until_s[node_idx] > state.now_s),
    )


def evacuations(state: ClusterState, limits: Limits) -> list[Evacuation]:
    """All nodes that can be emptied onto other occupied nodes, by best fit.

    Args:
        state: The cluster.
        limits: What the safety filter allows; its limit on concurrent moves does not restrict this list.

    Returns:
        One entry per node with at least one replica left to move, in order of node rows.
    """
    st, spec = state.arrays, state.spec.arrays
    may_take, work = masks(state, limits).destination.astype(np.float32), new_workspace(st)
    prepare(spec, st, state.now_s, limits, work)
    found = []
    for n in map(int, np.flatnonzero(st.node_phase == NodePhase.ALIVE)):
        if plan_evacuation(spec, st, may_take, n, work) <= 0:
            continue
        part = slice(work.begin[n], work.begin[n + 1])
        rows, destination = work.rows[part], work.destination[part]
        moves = [Move(int(r), int(to)) for r, to in zip(rows, destination, strict=True)]
        found.append(new_evacuation(state, n, moves))
    return found


def moves_price_usd(state: ClusterState, moves: Sequence[Move]) -> float:
    """Expected disruption of all of these moves, US dollars."""
    spec, prices = state.spec.arrays, state.spec.settings.prices
    deployments = (state.arrays.replica_deployment[move.replica_idx] for move in moves)
    return float(sum(move_price_usd(spec, d, prices.move_frac, prices.disruption_scale) for d in deployments))


def candidates(
    found: Sequence[Evacuation], score: Callable[[Evacuation], float], reason: Callable[[Evacuation], str]
) -> tuple[Candidate, ...]:
    """As a plan lists them: best score first."""
    ordered = sorted(found, key=lambda e: (-score(e), e.node_idx))
    return tuple(e.as_candidate(score(e), reason(e)) for e in ordered)


def first_moves(
    state: ClusterState, chosen: Evacuation, limits: Limits, reason: str, weighed: tuple[Candidate, ...] = ()
) -> Plan:
    """The part of an evacuation that the limit on concurrent moves leaves room for now."""
    room = max(0, limits.max_concurrent_moves - moves_in_flight(state.arrays))
    scores = (-chosen.price_usd,) * min(room, len(chosen.moves))
    return Plan(moves=chosen.moves[:room], scores=scores, reason=reason, candidates=weighed)


def moves_in_order(state: ClusterState, chosen: Sequence[Evacuation], limits: Limits) -> tuple[Move, ...]:
    """Moves of several evacuations, one after another, as far as the filter allows them together."""
    moves: list[Move] = []
    for evacuation in chosen:
        for move in evacuation.moves:
            if not check_move(state, move, limits).allowed:
                break
            state = with_move(state, move, limits)
            moves.append(move)
    return tuple(moves)
