"""``karpenter`` and ``karpenter_balanced``: consolidation by the disruption controller of Karpenter.

After sigs.k8s.io/karpenter (``pkg/controllers/disruption``), v1.0, ``Balanced`` as of v1.14 (pull requests 2942, 2962).
``WhenEmptyOrUnderutilized`` tries to let the first n candidates go at once, in order of disruption cost, and finds the
largest n by binary search (``MultiNodeConsolidation``, n from 2 to 100); failing that, one after another
(``SingleNodeConsolidation``). What it finds has to hold still 15 s later. ``consolidate_after_s`` after the last event
on a node, the node is a candidate; at most ``budget_frac`` of the nodes go at once, rounded up. ``Balanced`` also asks
that the share of the price that is saved be at least ``min_score`` times the share of the disruption that it takes.

What differs: the safety filter stays, so the moves of a consolidation may take several ticks; replicas start on their
new nodes before they stop. Only the first replica that goes to a new node launches it; the others follow when it is
alive. Pods cost the same by default, here replicas cost what their moves do. A replica that becomes ready is an event.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from rayfold.envs.moves import Candidate, Move, Plan
from rayfold.envs.safety import Limits, Reason, check_move, moves_in_flight
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase
from rayfold.envs.transition import with_move
from rayfold.policies.destinations import fullest_first, masks, why_it_stays
from rayfold.policies.karpenter_search import Consolidation, Search
from rayfold.policies.settings import between

__all__ = ["BalancedSettings", "Karpenter", "KarpenterBalanced", "KarpenterSettings"]

VALIDATION_S = 15.0  # consolidationTTL
MAX_NODES = 100  # in a multi-node consolidation
GIVE_UP_S = 600.0  # without a move or a replica that left: maxRetryDuration of the orchestration queue


@dataclass(frozen=True, slots=True, kw_only=True)
class KarpenterSettings:
    """As a NodePool has them."""

    consolidate_after_s: float = between(0.0, 0.0, 1800.0)  # since the last event on the node
    budget_frac: float = between(0.1, 0.01, 1.0)  # of the nodes may go at once


@dataclass(frozen=True, slots=True, kw_only=True)
class BalancedSettings(KarpenterSettings):
    """With the policy ``Balanced``."""

    min_score: float = between(0.5, 0.1, 4.0, is_log=True)  # 1 / consolidationThreshold


@dataclass(slots=True, kw_only=True)
class _Job:
    """A consolidation under way."""

    known: dict[int, frozenset[object]] = field(default_factory=dict)  # replicas by node that goes
    new_type: int = -1  # still to be launched
    progress_s: float = 0.0  # when it last got on


class Karpenter:
    """``WhenEmptyOrUnderutilized``.

    Args:
        limits: What the safety filter allows.
        settings: Of the node pool.
    """

    name = "karpenter"

    def __init__(self, limits: Limits, settings: KarpenterSettings | None = None) -> None:
        self._limits = limits
        self._settings = settings or KarpenterSettings()
        self.reset()

    def reset(self) -> None:
        """Nothing found, nothing under way, no event seen."""
        self._found: tuple[int, ...] = ()  # nodes whose consolidation is to be validated
        self._found_s = 0.0
        self._jobs: list[_Job] = []
        self._events: dict[int, tuple[frozenset[object], float]] = {}  # by node: its replicas, and since when

    def plan(self, state: ClusterState, rng: np.random.Generator) -> Plan:
        """Moves of the consolidations under way, one of which may have just been validated."""
        self._note_events(state)
        self._drop_ended(state)
        reason, candidates = self._decide(state)
        moves = self._go_on(state)
        return Plan(moves=moves, scores=(0.0,) * len(moves), reason=reason, candidates=candidates)

    def _objection(self, search: Search, found: Consolidation) -> str:
        """What speaks against a consolidation that is possible; empty if nothing."""
        return ""

    def _decide(self, state: ClusterState) -> tuple[str, tuple[Candidate, ...]]:
        """Validates what was found, or looks for something."""
        going = {n for job in self._jobs for n in job.known}
        search = Search(state, self._limits, going)
        if not self._found:
            return self._look(search, len(going))
        names = f"nodes {', '.join(map(str, self._found))}"
        if state.now_s - self._found_s < VALIDATION_S:
            return f"validating the consolidation of {names}", ()
        nodes, self._found = self._found, ()
        if not set(nodes) <= set(self._candidates(search)) or len(nodes) > self._budget(state, len(going)):
            return f"abandoned: {names} may not go any more", ()
        found = self._try(search, nodes)
        if isinstance(found, str):
            return f"abandoned: {names}: {found}", ()
        known = {n: _replicas_on(state, n) for n in nodes}
        self._jobs.append(_Job(known=known, new_type=found.new_type, progress_s=state.now_s))
        return f"consolidate {names}", (_candidate(found, "chosen"),)

    def _look(self, search: Search, num_going: int) -> tuple[str, tuple[Candidate, ...]]:
        budget = self._budget(search.state, num_going)
        if budget <= 0:
            return "as many nodes as the budget allows are under way", ()
        nodes = self._candidates(search)
        weighed: list[Candidate] = []
        found = self._multi(search, nodes[: min(budget, MAX_NODES)], weighed) or self._single(search, nodes, weighed)
        if found is None:
            return "nothing to consolidate", tuple(weighed)
        self._found, self._found_s = found.nodes, search.state.now_s
        reason = f"found that nodes {', '.join(map(str, found.nodes))} can go; to be validated"
        return reason, (_candidate(found, f"has to hold for {VALIDATION_S:.0f} s"), *weighed)

    def _multi(self, search: Search, nodes: list[int], weighed: list[Candidate]) -> Consolidation | None:
        """The most of the first nodes that can go at once, at least two (``firstNConsolidationOption``)."""
        best, low, high = None, 1, len(nodes) - 1
        while low <= high:
            mid = (low + high) // 2
            found = self._try(search, tuple(nodes[: mid + 1]))
            if isinstance(found, str):
                weighed.append(Candidate(moves=(), score=-float(mid + 1), reason=f"first {mid + 1} nodes: {found}"))
                high = mid - 1
            else:
                best, low = found, mid + 1
        return best

    def _single(self, search: Search, nodes: list[int], weighed: list[Candidate]) -> Consolidation | None:
        for n in nodes:
            found = self._try(search, (n,))
            if not isinstance(found, str):
                return found
            weighed.append(Candidate(moves=(), score=-search.disruption([n]), reason=f"node {n}: {found}"))
        return None

    def _try(self, search: Search, nodes: tuple[int, ...]) -> Consolidation | str:
        found = search.consolidate(nodes)
        return found if isinstance(found, str) else self._objection(search, found) or found

    def _candidates(self, search: Search) -> list[int]:
        """Nodes that have been without an event for long enough."""
        until_s = search.state.now_s - self._settings.consolidate_after_s
        return [n for n in search.candidates() if self._events[n][1] <= until_s]

    def _budget(self, state: ClusterState, num_going: int) -> int:
        num_alive = int((state.arrays.node_phase == NodePhase.ALIVE).sum())
        return math.ceil(round(self._settings.budget_frac * num_alive, 9)) - num_going

    def _note_events(self, state: ClusterState) -> None:
        """Takes down when the replicas of a node last changed; of a node not seen before, when the last one came."""
        st, events = state.arrays, {}
        for n in map(int, np.flatnonzero(st.node_phase == NodePhase.ALIVE)):
            replicas = _replicas_on(state, n)
            if n in self._events:
                seen, at_s = self._events[n]
                events[n] = (replicas, at_s if replicas == seen else state.now_s)
            else:
                events[n] = (replicas, float(st.replica_since_s[st.replica_node == n].max(initial=-np.inf)))
        self._events = events

    def _drop_ended(self, state: ClusterState) -> None:
        """Nodes that are empty, gone or in use again, and consolidations that have not got on for too long."""
        st = state.arrays
        for job in self._jobs:
            for n, known in list(job.known.items()):
                here = _replicas_on(state, n)
                if st.node_phase[n] != NodePhase.ALIVE or st.node_num_held[n] == 0 or here - known:
                    del job.known[n]
                elif here != known:
                    job.known[n], job.progress_s = here, state.now_s
        is_leaving = (st.replica_phase == ReplicaPhase.RUNNING) & (st.replica_peer >= 0)
        left = set(map(int, st.replica_node[is_leaving]))
        self._jobs = [
            job
            for job in self._jobs
            if job.known and (left & set(job.known) or state.now_s - job.progress_s < GIVE_UP_S)
        ]

    def _go_on(self, state: ClusterState) -> tuple[Move, ...]:
        """Moves off the nodes that go, largest replica first, as many as the limits let."""
        now = state
        moves: list[Move] = []
        going = [n for job in self._jobs for n in job.known]
        demand, st = state.spec.arrays.demand, state.arrays
        for job in self._jobs:
            is_there = np.isin(st.replica_node, list(job.known)) & (st.replica_phase == ReplicaPhase.RUNNING)
            rows = np.flatnonzero(is_there & (st.replica_peer < 0))
            for r in rows[np.lexsort(-demand[st.replica_deployment[rows]].T[::-1])]:
                if moves_in_flight(now.arrays) >= self._limits.max_concurrent_moves:
                    return tuple(moves)
                move = self._next_move(now, int(r), going, job)
                if move is None or not check_move(now, move, self._limits).allowed:
                    continue
                if move.node_idx >= len(st.node_type):
                    job.new_type = -1
                moves.append(move)
                now = with_move(now, move, self._limits)
        return tuple(moves)

    def _next_move(self, state: ClusterState, r: int, going: list[int], job: _Job) -> Move | None:
        """Best fit on the occupied nodes that stay, else the new node if it has not been launched yet."""
        if why_it_stays(state, r, self._limits) is not Reason.ALLOWED:
            return None
        st, d = state.arrays, state.arrays.replica_deployment[r]
        is_open = masks(state, self._limits).destination[:, d] & (st.node_num_held > 0)
        is_open[going] = False
        takers = fullest_first(st.node_free, np.flatnonzero(is_open))
        if len(takers):
            return Move(r, int(takers[0]))
        return Move(r, len(st.node_type) + job.new_type) if job.new_type >= 0 else None


class KarpenterBalanced(Karpenter):
    """``Balanced``: a consolidation has to save enough for what it disrupts (``ScoreMove``).

    Args:
        limits: What the safety filter allows.
        settings: Of the node pool.
    """

    name = "karpenter_balanced"

    def __init__(self, limits: Limits, settings: BalancedSettings | None = None) -> None:
        self._min_score = (settings or BalancedSettings()).min_score
        super().__init__(limits, settings or BalancedSettings())

    def _objection(self, search: Search, found: Consolidation) -> str:
        usd_per_h, disruption = search.totals()
        if found.saving_usd_per_h <= 0.0:
            return "it saves nothing"
        score = (found.saving_usd_per_h / usd_per_h) / (search.disruption(found.nodes) / disruption)
        return "" if score >= self._min_score - 1e-9 else f"score {score:.2f} is below {self._min_score:g}"


def _replicas_on(state: ClusterState, node: int) -> frozenset[object]:
    """Identities of the replicas that run or start on a node: live ids, or row and time, since rows are used again."""
    st = state.arrays
    is_there = (st.replica_node == node) & np.isin(st.replica_phase, (ReplicaPhase.STARTING, ReplicaPhase.RUNNING))
    rows = map(int, np.flatnonzero(is_there))
    return frozenset(state.replica_ids[r] if state.replica_ids else (r, float(st.replica_since_s[r])) for r in rows)


def _candidate(found: Consolidation, reason: str) -> Candidate:
    return Candidate(
        moves=found.moves,
        score=found.saving_usd_per_h,
        price_usd=found.price_usd,
        saving_usd_per_h=found.saving_usd_per_h,
        reason=reason,
    )
