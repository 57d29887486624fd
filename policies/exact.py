"""``exact``: the best set of evacuations for the present state, solved as a mixed-integer program, tick after tick.

Receding horizon: a plan is made of the state as it is, its first moves are started, what has been begun is finished,
and the next plan is made of the state that came of it. It knows nothing of traffic to come, but may wait until the
cluster has been quiet for a while, as Ray's own compaction does (``serve/_private/deployment_scheduler.py``, Ray 2.60):
what is started while a scale-up is under way is often undone by it. And where no node can be emptied at once it may
make room: the first moves of a repacking, whose others fit when the fences of these are over.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from rayfold.envs.moves import Candidate, Move, Plan
from rayfold.envs.safety import Limits, Reason, check_move, moves_in_flight
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase, StateArrays
from rayfold.envs.transition import with_move
from rayfold.policies.evacuations import moves_price_usd, new_evacuation
from rayfold.policies.exact_model import CountProblem, count_problem
from rayfold.policies.exact_order import order_evacuations
from rayfold.policies.exact_program import Solved, solve_counts
from rayfold.policies.exact_repacking import order_repacking, possible_at_once
from rayfold.policies.exact_search import search_counts
from rayfold.policies.exact_start import start_counts
from rayfold.policies.settings import between

__all__ = ["Exact", "ExactSettings", "is_busy", "make_problem", "solve_problem"]

_WAITS = {Reason.TOO_MANY_MOVES, Reason.DEPLOYMENT_COOLDOWN, Reason.DESTINATION_NOT_ALIVE}
_NO_ROOM = {Reason.NO_CAPACITY, Reason.NO_GPU_DEVICE, Reason.MAX_REPLICAS_PER_NODE}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExactSettings:
    """Of ``exact``. Shares lie within 0 to 1. The last six bound its effort, which is not tuned."""

    look_ahead_s: float = between(3600.0, 300.0, 14400.0, is_log=True)  # for which an emptied node's price is saved
    min_saving_frac: float = between(0.1, 0.0, 0.9)  # of that price, by which an evacuation must pay to be begun
    quiet_s: float = between(0.0, 0.0, 1800.0)  # without new replicas or nodes under way, before anything is begun
    quiet_frac: float = between(0.0, 0.0, 0.1)  # of the running replicas, or of the nodes, may be new meanwhile
    makes_room: bool = False  # on nodes there are, for replicas of others to be emptied later; too slow to be searched
    max_moves: int = 64  # of a plan
    max_new_nodes: int = 2  # of each type, where limits allow any
    max_effort: float = 50_000.0  # of a plan's search, see ``mip``: about a second and a half
    time_limit_s: float = 4.0  # of it too, where the machine is too slow for that; answers differ by machine then
    gap_frac: float = 1e-4  # ends the search: distance from the bound
    max_bins: int = 300  # nodes that are solved as a whole; beyond, neighbourhoods of a tenth of this many, at least 8


class _Step(NamedTuple):
    """A move to come, by what outlives a snapshot: live ids, or rows."""

    replica: object
    source: object
    destination: object


class Exact:
    """Empties the best set of nodes, as far as limits let it.

    Args:
        limits: What the safety filter allows.
        settings: Look-ahead, hysteresis and effort.
    """

    name = "exact"

    def __init__(self, limits: Limits, settings: ExactSettings | None = None) -> None:
        self._limits, self.settings = limits, settings or ExactSettings()
        self.reset()

    def reset(self) -> None:
        """Nothing has been begun."""
        self._steps: list[_Step] = []
        self._busy_s = -np.inf  # a new replica or node was last seen under way
        self._hopeless: CountProblem | None = None  # the last problem, if nothing paid in it
        self._repacking: tuple[CountProblem, Solved] | None = None  # the last one that was looked at to make room

    def plan(self, state: ClusterState, rng: np.random.Generator) -> Plan:
        """What is left of evacuations that have been begun; if nothing is, the first moves of the best ones."""
        if is_busy(state.arrays, self.settings.quiet_frac):
            self._busy_s = state.now_s
        if self._steps:
            moves, is_valid = self._continued(state)
            if moves:
                return Plan(moves=moves, scores=(0.0,) * len(moves), reason="go on with what has been begun")
            if is_valid:
                return Plan(reason="what has been begun waits")
            self._steps = []
        if moves_in_flight(state.arrays) >= self._limits.max_concurrent_moves:
            return Plan(reason="as many moves in flight as limits allow")
        if state.now_s - self._busy_s < self.settings.quiet_s:
            return Plan(reason=f"new replicas or nodes {state.now_s - self._busy_s:.0f} s ago")
        plan = self._evacuate(state, rng)
        is_tried = self._limits.fence_s <= 0.0  # a repacking needs no fences to be over then
        if plan.moves or is_tried or not self.settings.makes_room:
            return plan
        return self._make_room(state, rng, otherwise=plan)

    def _evacuate(self, state: ClusterState, rng: np.random.Generator) -> Plan:
        """The first moves of the best evacuations, if any pay."""
        problem = make_problem(state, self._limits, self.settings)
        if not problem.can_empty.any():
            return Plan(reason="no node can be emptied")
        if self._hopeless is not None and problem.equals(self._hopeless):
            return Plan(reason="no evacuation pays, as before")
        solved = solve_problem(state, self._limits, problem, self.settings, rng)
        if not solved.counts.empties.any() and solved.gap_frac <= self.settings.gap_frac:
            self._hopeless = problem
        return self._begin(state, problem, solved)

    def _begin(self, state: ClusterState, problem: CountProblem, solved: Solved) -> Plan:
        """The first moves of a solution; the rest is remembered."""
        weighed: tuple[Candidate, ...] = ()
        if problem.reuses_room:
            moves = order_repacking(state, problem, solved.counts, self.settings.max_moves)
            num_emptied = int(solved.counts.empties.sum())
        else:
            ordered = order_evacuations(state, self._limits, problem, solved.counts)
            weighed = tuple(self._candidate(state, e.node_idx, e.moves) for e in ordered)
            moves = tuple(move for e in ordered for move in e.moves)
            num_emptied = len(ordered)
        if not moves:
            return Plan(reason=f"no evacuation pays; gap {solved.gap_frac:.1%}")
        now = _allowed(state, moves, self._limits)
        begun = {int(state.arrays.replica_node[move.replica_idx]) for move in now}
        self._steps = [
            _step(state, move)
            for move in moves[len(now) :]
            if problem.reuses_room
            or (int(state.arrays.replica_node[move.replica_idx]) in begun and move.node_idx < problem.num_rows)
        ]
        told = f"empty {num_emptied} nodes by {len(moves)} moves"
        return replace(self._priced(state, problem, solved, moves, now, told), candidates=weighed)

    def _make_room(self, state: ClusterState, rng: np.random.Generator, otherwise: Plan) -> Plan:
        """The moves that a repacking begins with, where one pays; else the other plan.

        It is planned as if no node were fenced. Moves that need room which others leave are not remembered: when the
        fences are over they are found again, as evacuations, if they still pay.
        """
        later = replace(state, arrays=state.arrays.copy())
        later.arrays.node_fenced_until_s[:] = -np.inf
        limits = self._limits._replace(fence_s=0.0, allow_new_nodes=False)
        problem = make_problem(later, limits, self.settings)
        if self._repacking is None or not problem.equals(self._repacking[0]):
            self._repacking = problem, solve_problem(later, limits, problem, self.settings, rng)
        solved = self._repacking[1]
        moves = order_repacking(later, problem, solved.counts, self.settings.max_moves, may_park=False)
        first = possible_at_once(state, moves, self._limits)
        now = _allowed(state, first, self._limits)
        if not now:
            return otherwise
        self._steps = [_step(state, move) for move in first[len(now) :]]
        num_emptied = int(solved.counts.empties.sum())
        told = f"make room by {len(first)} moves to empty {num_emptied} nodes by {len(moves)}"
        return self._priced(state, problem, solved, moves, now, told)

    def _priced(
        self,
        state: ClusterState,
        problem: CountProblem,
        solved: Solved,
        moves: Sequence[Move],
        now: tuple[Move, ...],
        told: str,
    ) -> Plan:
        """The plan to make some of the moves now; all of them save what emptied nodes cost, less what is opened."""
        saved_h = self.settings.look_ahead_s / 3600.0
        price = state.spec.arrays.type_price_usd_per_h[problem.node_type[solved.counts.empties]].sum()
        opened = (solved.counts.takes.sum(1) > 0) @ problem.opening_usd
        saving = float(price * saved_h - opened) - moves_price_usd(state, moves)
        return Plan(
            moves=now,
            scores=(saving / len(moves),) * len(now),
            expected_saving_usd=saving,
            reason=f"{told}, {saving:.2f} USD in {saved_h:g} h, gap {solved.gap_frac:.1%}",
        )

    def _candidate(self, state: ClusterState, node_idx: int, moves: tuple[Move, ...]) -> Candidate:
        e = new_evacuation(state, node_idx, moves)
        return e.as_candidate(e.node_usd_per_h * self.settings.look_ahead_s / 3600.0 - e.price_usd, "chosen")

    def _continued(self, state: ClusterState) -> tuple[tuple[Move, ...], bool]:
        """Moves of the remembered steps that may start now, and whether the others can still be waited for."""
        moves, steps, is_waiting = [], [], False
        for step in self._steps:
            move = _move_of(state, step)
            if move is None:
                continue  # scaled down, or moved by someone else
            reason = check_move(state, move, self._limits).reason
            if reason is Reason.ALLOWED and not (is_waiting and self._limits.fence_s <= 0.0):
                moves.append(move)
                state = with_move(state, move, self._limits)
                continue
            if reason not in _WAITS | {Reason.ALLOWED} and not (reason in _NO_ROOM and self._makes_room(state)):
                return tuple(moves), False
            is_waiting = True
            steps.append(step)
        self._steps = steps
        return tuple(moves), bool(steps)

    def _makes_room(self, state: ClusterState) -> bool:
        """Whether replicas are leaving whose room the plan counts on."""
        st = state.arrays
        is_leaving = (st.replica_phase == ReplicaPhase.STOPPING) | (st.replica_peer >= 0)
        return self._limits.fence_s <= 0.0 and bool(is_leaving.any())


def make_problem(state: ClusterState, limits: Limits, settings: ExactSettings) -> CountProblem:
    """The problem of a state with these settings."""
    return count_problem(
        state,
        limits,
        look_ahead_s=settings.look_ahead_s,
        min_saving_frac=settings.min_saving_frac,
        max_moves=settings.max_moves,
        max_new_nodes=settings.max_new_nodes,
    )


def solve_problem(
    state: ClusterState, limits: Limits, problem: CountProblem, settings: ExactSettings, rng: np.random.Generator
) -> Solved:
    """Solves it as a whole, or by neighbourhoods where it is large; never worse than best fit."""
    start, s = start_counts(state, limits, problem), settings
    if len(problem.node) <= s.max_bins:
        return solve_counts(problem, start, time_limit_s=s.time_limit_s, max_effort=s.max_effort, gap_frac=s.gap_frac)
    return search_counts(
        problem,
        start,
        rng,
        num_bins=max(8, s.max_bins // 10),
        time_limit_s=s.time_limit_s,
        max_effort=s.max_effort,
        gap_frac=s.gap_frac,
    )


def is_busy(st: StateArrays, quiet_frac: float = 0.0) -> bool:
    """Whether more than a share of the replicas are new, and replace no other, or more than that of the nodes boot.

    In a large cluster some always are.

    Args:
        st: State.
        quiet_frac: The share, of running replicas and of nodes, up to which it is quiet.
    """
    is_new = (st.replica_phase == ReplicaPhase.PENDING) | (st.replica_phase == ReplicaPhase.STARTING)
    num_new, num_running = (is_new & (st.replica_peer < 0)).sum(), (st.replica_phase == ReplicaPhase.RUNNING).sum()
    num_booting, num_nodes = (st.node_phase == NodePhase.BOOTING).sum(), (st.node_phase != NodePhase.ABSENT).sum()
    return bool(num_new > quiet_frac * num_running or num_booting > quiet_frac * num_nodes)


def _allowed(state: ClusterState, moves: tuple[Move, ...], limits: Limits) -> tuple[Move, ...]:
    """The moves up to the first one that has to wait."""
    for i, move in enumerate(moves):
        if not check_move(state, move, limits).allowed:
            return moves[:i]
        state = with_move(state, move, limits)
    return moves


def _step(state: ClusterState, move: Move) -> _Step:
    source = int(state.arrays.replica_node[move.replica_idx])
    if state.node_ids and state.replica_ids:
        ids = state.node_ids
        return _Step(state.replica_ids[move.replica_idx], ids[source], ids[move.node_idx])
    return _Step(move.replica_idx, source, move.node_idx)


def _move_of(state: ClusterState, step: _Step) -> Move | None:
    """The move in rows of this state; None if its replica is gone or has moved."""
    rows = step
    if state.node_ids and state.replica_ids:
        try:
            rows = _Step(
                state.replica_ids.index(str(step.replica)),
                state.node_ids.index(str(step.source)),
                state.node_ids.index(str(step.destination)),
            )
        except ValueError:
            return None
    r, source, destination = (int(str(part)) for part in rows)
    st = state.arrays
    stays = st.replica_phase[r] == ReplicaPhase.RUNNING and st.replica_node[r] == source and st.replica_peer[r] < 0
    return Move(r, destination) if stays and st.node_phase[destination] != NodePhase.ABSENT else None
