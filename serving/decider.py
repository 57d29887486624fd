"""The decision loop of a live cluster: decide → check → record → act, once per interval.

It knows nothing of Ray: snapshot, executor, clock and policy come from outside. Whatever goes wrong, the cluster
stays as it is: a policy's error or overtime means the heuristic, the heuristic's error means no moves, and what
cannot be written into the journal is not begun.
"""

import dataclasses
import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from rayfold.envs.moves import Move
from rayfold.envs.safety import Limits, check_move
from rayfold.envs.state import ClusterState
from rayfold.envs.state_bound import bound_usd_per_h
from rayfold.envs.transition import with_move
from rayfold.errors import ClusterError, ExecutorError
from rayfold.policies.protocol import Policy
from rayfold.serving.budgets import brake, churn, memory_s
from rayfold.serving.decision import (
    CheckedMove,
    ConsideredPlan,
    Decision,
    Mode,
    checked_move,
    refused,
    same_move,
    with_begun,
)
from rayfold.serving.history import History
from rayfold.serving.journal import Journal
from rayfold.serving.live_moves import LiveExecutor, MoveRecord, RecordedPhase, destination_id
from rayfold.serving.live_settings import LiveSettings
from rayfold.serving.metrics import Gauges, Metrics
from rayfold.serving.moves_under_way import MovesUnderWay
from rayfold.serving.plan_maker import PlanMaker
from rayfold.serving.plausible import implausible_plan, implausible_prices
from rayfold.serving.undone import UndoneMoves

__all__ = ["Decider"]

log = logging.getLogger(__name__)

_DAY_S = 86400.0
_MAX_CANDIDATES = 50  # recorded per decision
_WATCH_S = 5.0  # moves are looked at so often between ticks
# The journal's notes: why the decider is paused, when it was resumed, whether it is attached.
_PAUSED, _RESUMED_S, _ATTACHED = "paused", "resumed_s", "attached"


class Decider:
    """Decides, checks, records and acts.

    Args:
        make_policy: From limits the policy that makes the plan.
        make_fallback: The one that makes it where the policy fails or is late.
        settings: Interval, limits and deadline.
        snapshot: The cluster now.
        history: Memory of the snapshots; told of moves.
        executor: Carries moves out in mode ``act``.
        mode: Mode to begin with.
        journal: Where decisions and moves are recorded, and where the moves of an earlier decider are found.
        rng: Randomness of the policy.
        clock: Unix time in seconds.
        may_act: Why nothing may be moved now, asked right before acting; empty = it may.
        stand_down: Called when it no longer acts, after the executor has let the cluster go.
        metrics: Told what happens.
        after_step: Called after each tick and each look at the moves.
    """

    def __init__(
        self,
        *,
        make_policy: Callable[[Limits], Policy],
        make_fallback: Callable[[Limits], Policy],
        settings: LiveSettings,
        snapshot: Callable[[], ClusterState],
        history: History,
        executor: LiveExecutor,
        mode: Mode,
        journal: Journal,
        rng: np.random.Generator,
        clock: Callable[[], float] = time.time,
        may_act: Callable[[], str] = lambda: "",
        stand_down: Callable[[], None] = lambda: None,
        metrics: Metrics | None = None,
        after_step: Callable[[], None] = lambda: None,
    ) -> None:
        self.mode, self.settings, self.journal = mode, settings, journal
        self.metrics = metrics or Metrics()
        self.last_decision: Decision | None = None
        self.last_state: ClusterState | None = None
        self.last_error = ""
        self._make_policy, self._make_fallback = make_policy, make_fallback
        self._plans = PlanMaker(make_policy(settings.limits), make_fallback(settings.limits), rng)
        self._snapshot, self._history, self._executor = snapshot, history, executor
        self._clock, self._may_act, self._stand_down = clock, may_act, stand_down
        self._after_step = after_step
        self._is_recovered = False
        self._undone = UndoneMoves(journal)
        self._under_way = MovesUnderWay(journal, executor, self.metrics, clock)
        self._stop, self._wake = threading.Event(), threading.Event()

    def recover(self) -> None:
        """Takes over what the journal says was under way: finished if it has begun, closed if it has not.

        Raises:
            ClusterError: The cluster does not answer; nothing is decided before it does.
        """
        self._under_way.adopt()
        for record in self.journal.moves_since(self._clock() - _DAY_S):
            self._history.note_move(record.deployment, record.started_s)
        self._is_recovered = True

    def check(
        self, state: ClusterState, moves: Sequence[Move], scores: Sequence[float] = (), unbelievable: str = ""
    ) -> list[CheckedMove]:
        """The verdict on each move, each with the allowed ones before it begun.

        Args:
            state: The moves are rows of it.
            moves: In order.
            scores: Of the policy; may be fewer.
            unbelievable: Why none of them is made, empty = for no such reason.
        """
        checked: list[CheckedMove] = []
        records = self._records()
        for i, move in enumerate(moves):
            reason = unbelievable or self._why_not(state, move, records)
            score = float(scores[i]) if i < len(scores) else 0.0
            checked.append(checked_move(state, move, allowed=not reason, reason=reason or "allowed", score=score))
            if not reason:
                records.append(self._record(state, move, 0))
                state = with_move(state, move, self.settings.limits)
        return checked

    def _records(self) -> list[MoveRecord]:
        return self.journal.moves_since(self._clock() - memory_s(self.settings.brakes))

    def _why_not(self, state: ClusterState, move: Move, records: Sequence[MoveRecord]) -> str:
        """Why a move is refused on this state, by its prices, the safety filter or a brake; empty = allowed."""
        unbelievable = implausible_prices(state)
        if unbelievable:
            return unbelievable
        verdict = check_move(state, move, self.settings.limits)
        if not verdict.allowed:
            return verdict.reason.name.lower()
        return brake(state, move, records, self.settings.brakes, self.settings.limits, self._clock()) or ""

    def _record(self, state: ClusterState, move: Move, decision_id: int) -> MoveRecord:
        """The intent of an allowed move."""
        st, now_s = state.arrays, self._clock()
        return MoveRecord(
            move_id=secrets.token_hex(8),
            decision_id=decision_id,
            deployment=state.spec.deployments[int(st.replica_deployment[move.replica_idx])].key,
            replica_id=state.replica_ids[move.replica_idx],
            from_node=state.node_ids[int(st.replica_node[move.replica_idx])],
            to_node=destination_id(state, move),
            started_s=now_s,
            phase_s=now_s,
        )

    def act(self, checked: Sequence[CheckedMove], decision_id: int) -> list[CheckedMove]:
        """Starts the allowed moves; each is checked again on a fresh snapshot right before it starts."""
        done: list[CheckedMove] = []
        begun: list[CheckedMove] = []
        for item in checked:
            done.append(self._start(item, begun, decision_id) if item.allowed else item)
            if done[-1].move_id:
                begun.append(done[-1])
        return done

    def _start(self, item: CheckedMove, begun: Sequence[CheckedMove], decision_id: int) -> CheckedMove:
        state = self._snapshot()
        for earlier in begun:
            state = with_begun(state, earlier, self.settings.limits)
        move = same_move(state, item)
        if move is None:
            return refused(item, "the replica or the node is gone")
        reason = self._why_not(state, move, self._records())
        if reason:
            return refused(item, f"no longer allowed: {reason}")
        halted = self._halted()
        if halted:
            return refused(item, halted)
        record = self._record(state, move, decision_id)
        self.journal.intend(record)
        try:
            self._executor.start(state, move, record.move_id)
        except ExecutorError as err:
            self._under_way.set_phase(record, RecordedPhase.CANCELLED, str(err))
            return refused(item, str(err))
        self._under_way.set_phase(record, RecordedPhase.STARTING)
        self._history.note_move(item.deployment, state.now_s)
        return dataclasses.replace(item, move=move, from_node=record.from_node, move_id=record.move_id)

    def _halted(self) -> str:
        """Why nothing at all may be moved now, empty if it may."""
        if self._stop.is_set():
            return "the decider is being stopped"
        if self.mode != Mode.ACT:
            return f"the mode is {self.mode} now"
        why = self._may_act()  # a paused decider keeps the lease, or another would go on where it stopped
        return f"paused: {self.paused}" if self.paused else why

    def set_mode(self, mode: Mode) -> None:
        """Changes the mode; the loop, woken, lets the cluster go where it no longer acts.

        Raises:
            ClusterError: It cannot act on this cluster.
        """
        if mode == Mode.ACT:
            self._executor.check()
        self.mode = mode
        self.journal.add_event("mode", str(mode), self._clock())
        self._wake.set()

    def reconfigure(self, settings: LiveSettings) -> None:
        """Takes other settings from the next tick on; other limits make the policies anew, without their memory."""
        if settings.limits != self.settings.limits:
            self._plans.take(self._make_policy(settings.limits), self._make_fallback(settings.limits))
        self.settings = settings
        self.journal.add_event("settings", "changed", self._clock())
        self._wake.set()

    def cancel(self, move_id: str) -> bool:
        """Asks a move that still starts to end; False where the journal has no such move.

        Raises:
            ClusterError: The cluster does not answer.
        """
        is_known = self._under_way.cancel(move_id)
        self._wake.set()
        return is_known

    @property
    def paused(self) -> str:
        """Why nothing is moved until ``resume``, empty if it is not paused. It outlives this process."""
        return self.journal.noted(_PAUSED) or ""

    def pause(self, why: str) -> None:
        """Moves nothing more until ``resume``; what is under way goes on, and decisions are recorded as before."""
        self.journal.note(_PAUSED, why)
        self.journal.add_event("paused", why, self._clock())
        log.warning("paused: %s", why)

    def resume(self) -> None:
        """Ends a pause; moves undone before no longer count for the churn breaker."""
        self.journal.note(_RESUMED_S, repr(self._clock()))
        self.journal.note(_PAUSED, "")
        self.journal.add_event("resumed", "", self._clock())

    def _break_churn(self) -> None:
        since_s = float(self.journal.noted(_RESUMED_S) or "-inf")
        why = churn(self._records(), self.settings.brakes, since_s, self._clock())
        if why and not self.paused:
            self.pause(f"{why}; nothing is moved until it is resumed")

    def gauges(self, holds_lease: bool) -> Gauges:
        """How it stands, for ``Metrics``."""
        is_paused, num_open = bool(self.paused), len(self.journal.open_moves())
        return Gauges(mode=self.mode, is_paused=is_paused, holds_lease=holds_lease, moves_open=num_open)

    def tenants(self, node_id: str) -> tuple[str, ...]:
        """Actors that kept a node from being released at the last snapshot."""
        return self._history.tenants(node_id)

    def watch(self) -> None:
        """Follows the moves that have not ended."""
        self._under_way.watch()

    def tick(self) -> Decision | None:
        """One decision; None in mode ``off``.

        Raises:
            ClusterError: The cluster cannot be read.
        """
        if not self._is_recovered:
            self.recover()
        self.watch()
        mode = self.mode
        if mode != Mode.ACT:
            self._let_go()
        if mode == Mode.OFF:
            return None
        state = self._snapshot()
        self.metrics.saw_undone(self._undone.look(state))
        self._break_churn()
        decision = self._decision(state, mode)
        if mode == Mode.ACT:
            halted = self._halted() or self._keep_attached()
            if halted:
                stopped = tuple(refused(m, halted) if m.allowed else m for m in decision.moves)
                decision = dataclasses.replace(decision, moves=stopped)
        decision_id = self.journal.add_decision(decision.as_json(), state)
        if mode == Mode.ACT and any(m.allowed for m in decision.moves):
            decision = dataclasses.replace(decision, moves=tuple(self.act(decision.moves, decision_id)))
            self.journal.revise_decision(decision_id, decision.as_json())
        self.metrics.saw_decision(decision, is_fallback=decision.policy != self._plans.policy.name)
        self.last_state, self.last_decision = state, decision
        started = sum(bool(m.move_id) for m in decision.moves)
        log.info("decision %d: %d moves, %d started (%s)", decision_id, len(decision.moves), started, decision.reason)
        return decision

    def _decision(self, state: ClusterState, mode: Mode) -> Decision:
        started_s = time.perf_counter()
        plan, name = self._plans.plan(state, self.settings.plan_deadline_s)
        latency_s = time.perf_counter() - started_s
        present = state.arrays.node_type[state.arrays.node_phase > 0]
        return Decision(
            time_s=state.now_s,
            mode=mode,
            policy=name,
            reason=plan.reason,
            moves=tuple(self.check(state, plan.moves, plan.scores, implausible_plan(plan))),
            candidates=tuple(
                ConsideredPlan(candidate=c, moves=tuple(self.check(state, c.moves)))
                for c in plan.candidates[:_MAX_CANDIDATES]
            ),
            expected_saving_usd=plan.expected_saving_usd,
            num_nodes=len(present),
            usd_per_h=float(state.spec.arrays.type_price_usd_per_h[present].sum()),
            bound_usd_per_h=bound_usd_per_h(state.spec.arrays, state.arrays),
            latency_s=latency_s,
            state_digest=state.digest(),
        )

    def run(self) -> None:
        """Ticks until ``stop``, and follows the moves between ticks."""
        while not self._stop.is_set():
            if self._try(self.tick):
                self.last_error = ""
            self._try(self._after_step)
            next_s = time.monotonic() + self.settings.decision_interval_s
            while not self._wake.wait(max(0.0, min(_WATCH_S, next_s - time.monotonic()))):
                if time.monotonic() >= next_s:
                    break
                self._try(self.watch)
                self._try(self._after_step)
            self._wake.clear()

    def _try(self, step: Callable[[], object]) -> bool:
        """The one broad except: an error costs this step and is told by ``last_error``. Whether there was none."""
        try:
            step()
        except Exception as err:
            log.exception("the tick failed; the cluster stays as it is")
            self.last_error = f"{type(err).__name__}: {err}"
            self.metrics.saw_error()
            self._record_error()
            return False
        return True

    def _record_error(self) -> None:
        try:
            self.journal.add_event("error", self.last_error, self._clock())
        except Exception:  # a journal that cannot be written may be what failed; the loop goes on and moves nothing
            log.exception("the journal cannot be written")

    def _keep_attached(self) -> str:
        """Why the cluster cannot be acted on, empty if it can."""
        try:
            was_lost = self._executor.keep_attached()
        except ClusterError as err:
            return str(err)
        if was_lost:
            log.warning("the controller is another than before: attached again")
            self.journal.add_event("reattached", "the Serve controller had restarted", self._clock())
        if not self.journal.noted(_ATTACHED):
            self.journal.note(_ATTACHED, "yes")
        return ""

    def _let_go(self) -> None:
        """Leaves the cluster to whoever acts next. Cancels what still starts, of an earlier decider's too."""
        if self.journal.noted(_ATTACHED):
            if not self._may_act():
                self._executor.keep_attached()  # a dead decider's attachment is ours to undo, unless another acts
            if self._executor.detach():
                self.journal.note(_ATTACHED, "")
        self._stand_down()

    def close(self) -> None:
        """After ``run`` has ended: lets the cluster go and records how the last moves ended.

        Raises:
            ClusterError: The cluster does not answer.
        """
        self._let_go()
        self.watch()

    def stop(self) -> None:
        """Ends ``run`` after the present tick."""
        self._stop.set()
        self._wake.set()
        self._plans.stop()
