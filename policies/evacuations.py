"""Evacuations a heuristic can choose from: every node that could be emptied now, with its moves and price."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
    "move_prices_usd",
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
    return _evacuation(state, node_idx, tuple(moves), moves_price_usd(state, moves))


def _evacuation(state: ClusterState, node_idx: int, moves: tuple[Move, ...], price_usd: float) -> Evacuation:
    st = state.arrays
    return Evacuation(
        node_idx=node_idx,
        moves=moves,
        price_usd=price_usd,
        node_usd_per_h=float(state.spec.arrays.type_price_usd_per_h[st.node_type[node_idx]]),
        is_underway=bool(st.node_fenced_until_s[node_idx] > state.now_s),
    )


def evacuations(state: ClusterState, limits: Limits, node_idx: int | None = None) -> list[Evacuation]:
    """All nodes that can be emptied onto other occupied nodes, by best fit.

    Args:
        state: The cluster.
        limits: What the safety filter allows; its limit on concurrent moves does not restrict this list.
        node_idx: Look at this node only.

    Returns:
        One entry per node with at least one replica left to move, in order of node rows.
    """
    st, spec = state.arrays, state.spec.arrays
    usd, deployment = move_prices_usd(state).tolist(), st.replica_deployment.tolist()
    may_take, work = masks(state, limits).destination.astype(np.float32), new_workspace(st)
    prepare(spec, st, state.now_s, limits, work)
    found = []
    alive = np.flatnonzero(st.node_phase == NodePhase.ALIVE)
    for n in (alive if node_idx is None else alive[alive == node_idx]).tolist():
        if plan_evacuation(spec, st, may_take, n, work) <= 0:
            continue
        part = slice(work.begin[n], work.begin[n + 1])
        moves = tuple(map(Move, work.rows[part].tolist(), work.destination[part].tolist()))
        found.append(_evacuation(state, n, moves, float(sum(usd[deployment[r]] for r, _ in moves))))
    return found


def move_prices_usd(state: ClusterState) -> NDArray[np.float64]:
    """``(D,)`` expected disruption of moving one replica of each deployment, US dollars."""
    spec, prices = state.spec.arrays, state.spec.settings.prices
    return np.array(
        [move_price_usd(spec, d, prices.move_frac, prices.disruption_scale) for d in range(len(spec.demand))],
        np.float64,
    )


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
