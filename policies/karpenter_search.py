"""Consolidations as Karpenter looks for them: can these nodes go, if what is on them goes elsewhere?

Ported from ``computeConsolidation`` and ``filterOutSameType`` (sigs.k8s.io/karpenter, v1.0,
``pkg/controllers/disruption/consolidation.go`` and ``multinodeconsolidation.go``): replicas are laid out anew, largest
first, on the other occupied nodes; if not all fit, the rest has to fit on *one* new node that is cheaper than all that
go. Karpenter's emptiness controller takes empty nodes before, so they are no destinations.

Dims: N nodes, D deployments, K resources, T node types.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.devices import take_gpus
from rayfold.envs.evacuation import new_workspace, prepare
from rayfold.envs.moves import Move
from rayfold.envs.safety import Limits, capacity_reason, count_nodes
from rayfold.envs.state import ClusterState, NodePhase, StateArrays
from rayfold.policies.destinations import fullest_first, masks
from rayfold.policies.evacuations import move_prices_usd, moves_price_usd

__all__ = ["Consolidation", "Search"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Consolidation:
    """Nodes that can go together."""

    nodes: tuple[int, ...]
    moves: tuple[Move, ...]  # largest replica first
    new_type: int  # of the one new node, -1 = none is needed
    price_usd: float  # expected disruption of all moves
    saving_usd_per_h: float  # of the nodes, less the price of the new one


class Search:
    """One state, prepared for many questions.

    Args:
        state: The cluster.
        limits: What the safety filter allows; its limit on concurrent moves does not restrict the search.
        going: Nodes that consolidations under way empty: neither sources nor destinations.
    """

    def __init__(self, state: ClusterState, limits: Limits, going: Set[int] = frozenset()) -> None:
        self.state = state
        spec, st = state.spec.arrays, state.arrays
        self._masks = masks(state, limits)
        self._work = new_workspace(st)
        prepare(spec, st, state.now_s, limits, self._work)
        self._is_going = np.isin(np.arange(len(st.node_type)), list(going))
        self._counts = count_nodes(st, len(state.spec.node_types)) - np.bincount(
            st.node_type[self._is_going & (st.node_type >= 0)], minlength=len(state.spec.node_types)
        )
        self._weight = _weights(state)

    def candidates(self) -> list[int]:
        """Nodes that hold something, all of which may leave; the least disruptive first."""
        may_go = ~self._work.is_blocked & ~self._is_going & (np.diff(self._work.begin) > 0)
        return sorted(map(int, np.flatnonzero(may_go)), key=lambda n: (self.disruption([n]), n))

    def disruption(self, nodes: Sequence[int]) -> float:
        """Karpenter's disruption cost: 1 per node, and per replica the price of its move over the mean price."""
        deployments = self.state.arrays.replica_deployment[self._rows(nodes)]
        return float(len(nodes) + self._weight[deployments].sum())

    def totals(self) -> tuple[float, float]:
        """Price per hour, and disruption cost, of all nodes together."""
        st, spec = self.state.arrays, self.state.spec.arrays
        is_alive = (st.node_phase == NodePhase.ALIVE) & ~st.node_is_head
        usd_per_h = spec.type_price_usd_per_h[st.node_type[is_alive]].sum()
        return float(usd_per_h), float(is_alive.sum() + st.node_held[is_alive].sum(axis=0) @ self._weight)

    def consolidate(self, nodes: Sequence[int]) -> Consolidation | str:
        """How these nodes can go, or what speaks against it."""
        spec, st = self.state.spec.arrays, self.state.arrays
        going = np.bincount(st.node_type[list(nodes)], minlength=len(self._counts))
        if ((self._counts - going < spec.type_min_nodes) & (going > 0)).any():
            return "so many nodes of its type have to stay"
        trial = _with_spare_node(st)
        moves, left_over = self._lay_out(trial, nodes)
        new_type, saved_usd_per_h = -1, float(spec.type_price_usd_per_h[st.node_type[list(nodes)]].sum())
        if left_over:
            new_type = self._replacement(trial, nodes, left_over, saved_usd_per_h)
            if new_type < 0:
                return "not all replicas fit elsewhere"
            saved_usd_per_h -= float(spec.type_price_usd_per_h[new_type])
        num_nodes = len(st.node_type)
        all_moves = moves + [Move(r, num_nodes + new_type) for r in left_over]
        return Consolidation(
            nodes=tuple(nodes),
            moves=tuple(all_moves),
            new_type=new_type,
            price_usd=moves_price_usd(self.state, all_moves),
            saving_usd_per_h=saved_usd_per_h,
        )

    def _rows(self, nodes: Sequence[int]) -> NDArray[np.int64]:
        """What would have to leave, largest demand first, equal ones in order of rows."""
        begin, demand = self._work.begin, self.state.spec.arrays.demand
        rows = np.sort(np.concatenate([self._work.rows[begin[n] : begin[n + 1]] for n in nodes]))
        asked = -demand[self.state.arrays.replica_deployment[rows]]
        ordered: NDArray[np.int64] = rows[np.lexsort(asked.T[::-1])]
        return ordered

    def _lay_out(self, trial: StateArrays, nodes: Sequence[int]) -> tuple[list[Move], list[int]]:
        """Moves to occupied nodes, written into ``trial``, and the rows that fit on none of them."""
        spec, st = self.state.spec.arrays, self.state.arrays
        is_open = (st.node_num_held > 0) & ~self._is_going
        is_open[list(nodes)] = False
        moves: list[Move] = []
        left_over: list[int] = []
        touched: set[int] = set()
        for r in map(int, self._rows(nodes)):
            d = int(st.replica_deployment[r])
            takers = np.flatnonzero(is_open & self._masks.destination[:, d])
            for n in map(int, fullest_first(trial.node_free[:-1], takers)):
                if n not in touched or capacity_reason(spec, trial, d, n) == 0:
                    self._take(trial, d, n)
                    touched.add(n)
                    moves.append(Move(r, n))
                    break
            else:
                left_over.append(r)
                if not self._masks.new_node[:, d].any():
                    break  # nor can it go to a new one
        return moves, left_over

    def _take(self, trial: StateArrays, d: int, n: int) -> None:
        spec = self.state.spec.arrays
        demands = spec.demand[d, :1] if spec.sums_gpus[d] else spec.bundle[d, : spec.num_bundles[d], 0]
        for gpus in demands:
            take_gpus(trial.gpu_free, n, gpus)
        trial.node_free[n] -= spec.demand[d]
        trial.node_held[n, d] += 1

    def _replacement(self, trial: StateArrays, nodes: Sequence[int], rows: Sequence[int], below: float) -> int:
        """Cheapest type one new node of which takes all of ``rows``, cheaper than ``below`` USD/h; -1 = none.

        Where the types that would do include one that goes, only types cheaper than that are left: else that node had
        better stay. Spot nodes are not replaced by spot nodes (Karpenter's default).
        """
        spec, st = self.state.spec.arrays, self.state.arrays
        price, gone = spec.type_price_usd_per_h, st.node_type[list(nodes)]
        are_spot = bool(spec.type_is_spot[gone].all())
        would_do = [
            t
            for t in range(len(price))
            if price[t] < below and not (are_spot and spec.type_is_spot[t]) and self._takes_all(trial, t, rows)
        ]
        below = min([below, *(price[t] for t in would_do if t in gone)])
        return min((t for t in would_do if price[t] < below), key=lambda t: (price[t], t), default=-1)

    def _takes_all(self, trial: StateArrays, t: int, rows: Sequence[int]) -> bool:
        """Whether an empty node of type ``t`` takes all of ``rows``; the spare row of ``trial`` is written."""
        spec, spare = self.state.spec.arrays, len(self.state.arrays.node_type)
        trial.node_type[spare], trial.node_held[spare] = t, 0
        trial.node_free[spare] = spec.type_capacity[t]
        trial.gpu_free[spare] = np.arange(trial.gpu_free.shape[1]) < spec.type_num_gpus[t]
        for r in rows:
            d = int(self.state.arrays.replica_deployment[r])
            if not self._masks.new_node[t, d] or capacity_reason(spec, trial, d, spare) != 0:
                return False
            self._take(trial, d, spare)
        return True


def _with_spare_node(st: StateArrays) -> StateArrays:
    """What a trial writes is a copy, with one row more for a new node; the rest is shared."""
    return st._replace(
        node_type=np.append(st.node_type, -1),
        node_free=np.vstack([st.node_free, np.zeros_like(st.node_free[:1])]),
        gpu_free=np.vstack([st.gpu_free, np.zeros_like(st.gpu_free[:1])]),
        node_held=np.vstack([st.node_held, np.zeros_like(st.node_held[:1])]),
    )


def _weights(state: ClusterState) -> NDArray[np.float64]:
    """``(D,)`` price of a move over the mean price of a move of what is there; 1 where moves cost nothing."""
    price, held = move_prices_usd(state), state.arrays.node_held.sum(axis=0)
    total = held.sum()
    mean = float(price @ held) / total if total else 0.0
    return price / mean if mean > 0.0 else np.ones(len(price))
