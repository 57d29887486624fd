"""Evacuations a heuristic can choose from: every node that could be emptied now, with its moves and price."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rayfold.envs.evacuation import move_price_usd, new_workspace, plan_evacuation, prepare
from rayfold.envs.moves import Move, Plan
from rayfold.envs.safety import Limits, move_masks, moves_in_flight
from rayfold.envs.state import ClusterState, NodePhase

__all__ = ["Evacuation", "evacuations", "first_moves", "moves_price_usd"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evacuation:
    """One way to empty a node."""

    node_idx: int
    moves: tuple[Move, ...]  # largest replica first
    price_usd: float  # expected disruption of all moves
    node_usd_per_h: float  # what releasing the node saves
    is_underway: bool  # replicas have been moved off it lately: it is fenced


def evacuations(state: ClusterState, limits: Limits) -> list[Evacuation]:
    """All nodes that can be emptied onto other occupied nodes, by best fit.

    Args:
        state: The cluster.
        limits: What the safety filter allows; its limit on concurrent moves does not restrict this list.

    Returns:
        One entry per node with at least one replica left to move, in order of node rows.
    """
    st, spec = state.arrays, state.spec.arrays
    shape = (len(st.node_type), state.spec.num_deployments)
    source, may_take = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    new_node = np.zeros((len(state.spec.node_types), shape[1]), np.float32)
    move_masks(spec, st, state.now_s, limits, source, may_take, new_node)
    work = new_workspace(st)
    prepare(spec, st, state.now_s, limits, work)
    found = []
    for n in map(int, np.flatnonzero(st.node_phase == NodePhase.ALIVE)):
        if plan_evacuation(spec, st, may_take, n, work) <= 0:
            continue
        part = slice(work.begin[n], work.begin[n + 1])
        rows, destination = work.rows[part], work.destination[part]
        moves = tuple(Move(int(r), int(to)) for r, to in zip(rows, destination, strict=True))
        found.append(
            Evacuation(
                node_idx=n,
                moves=moves,
                price_usd=moves_price_usd(state, moves),
                node_usd_per_h=float(spec.type_price_usd_per_h[st.node_type[n]]),
                is_underway=bool(st.node_fenced_until_s[n] > state.now_s),
            )
        )
    return found


def moves_price_usd(state: ClusterState, moves: Sequence[Move]) -> float:
    """Expected disruption of all of these moves, US dollars."""
    spec, prices = state.spec.arrays, state.spec.settings.prices
    deployments = (state.arrays.replica_deployment[move.replica_idx] for move in moves)
    return float(sum(move_price_usd(spec, d, prices.move_frac, prices.disruption_scale) for d in deployments))


def first_moves(state: ClusterState, chosen: Evacuation, limits: Limits, reason: str) -> Plan:
    """The part of an evacuation that the limit on concurrent moves leaves room for now."""
    room = max(0, limits.max_concurrent_moves - moves_in_flight(state.arrays))
    return Plan(moves=chosen.moves[:room], scores=(-chosen.price_usd,) * min(room, len(chosen.moves)), reason=reason)
