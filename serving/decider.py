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
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from rayfold.envs.moves import Move, Plan
from rayfold.envs.safety import check_move
from rayfold.envs.state import ClusterState
from rayfold.envs.transition import with_move
from rayfold.errors import ExecutorError
from rayfold.policies.protocol import Policy
from rayfold.serving.decision import CheckedMove, ConsideredPlan, Decision, Mode, checked_move, refused
from rayfold.serving.history import History
from rayfold.serving.journal import Journal
from rayfold.serving.live_moves import LiveExecutor, MoveRecord, RecordedPhase
from rayfold.serving.live_settings import LiveSettings
from rayfold.serving.undone import NodeWatch, present_nodes, watch_nodes

__all__ = ["Decider"]

log = logging.getLogger(__name__)

_DAY_S = 86400.0
_MAX_CANDIDATES = 50  # recorded per decision
_NODES = "nodes"  # the journal's note of the nodes seen last


class Decider:
    """Decides, checks, records and acts.

    Args:
        policy: Makes the plan.
        fallback: Makes it where the policy fails or is late.
        settings: Interval, limits and deadline.
        snapshot: The cluster now.
        history: Memory of the snapshots; told of moves.
        executor: Carries moves out in mode ``act``.
        mode: Mode to begin with.
        journal: Where decisions and moves are recorded, and where the moves of an earlier decider are found.
        rng: Randomness of the policy.
        clock: Unix time in seconds.
        may_act: Why nothing may be moved now, asked right before acting; empty = it may.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        fallback: Policy,
        settings: LiveSettings,
        snapshot: Callable[[], ClusterState],
        history: History,
        executor: LiveExecutor,
        mode: Mode,
        journal: Journal,
        rng: np.random.Generator,
        clock: Callable[[], float] = time.time,
        may_act: Callable[[], str] = lambda: "",
    ) -> None:
        self.mode, self.settings, self.journal = mode, settings, journal
        self.last_decision: Decision | None = None
        self.last_state: ClusterState | None = None
        self.last_error = ""
        self._policy, self._fallback = policy, fallback
        self._snapshot, self._history, self._executor = snapshot, history, executor
        self._rng, self._clock, self._may_act = rng, clock, may_act
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="policy")
        self._running: Future[Plan] | None = None
        self._is_recovered = False
        self._seen = NodeWatch.from_json(journal.noted(_NODES))
        self._stop = threading.Event()

    def recover(self) -> None:
        """Takes over what the journal says was under way: finished if it has begun, closed if it has not.

        Raises:
            ClusterError: The cluster does not answer; nothing is decided before it does.
        """
        begun = self.journal.open_moves()
        if begun:
            log.warning("%d moves of an earlier decider are under way", len(begun))
            self._executor.adopt(begun)
        for record in self.journal.moves_since(self._clock() - _DAY_S):
            self._history.note_move(record.deployment, record.started_s)
        self._is_recovered = True

    def decide(self, state: ClusterState) -> tuple[Plan, str]:
        """The plan and the name of the policy that made it."""
        try:
            if self._running is not None and not self._running.done():
                raise TimeoutError("the policy is still busy with an earlier tick")
            self._running = self._pool.submit(self._policy.plan, state, self._rng)
            return self._running.result(self.settings.plan_deadline_s), self._policy.name
        except Exception as err:  # a policy may raise anything; the fallback answers for it
            log.exception("policy %s failed, falling back to %s", self._policy.name, self._fallback.name)
            failure = f"{self._policy.name} failed ({type(err).__name__}: {err})"
        try:
            # The policy's generator may be in use by its own late thread.
            plan = self._fallback.plan(state, np.random.default_rng(0))
        except Exception:  # the last resort is to leave the cluster as it is
            log.exception("fallback %s failed too: no moves", self._fallback.name)
            return Plan(reason=f"{failure}, and so did {self._fallback.name}: no moves"), ""
        return dataclasses.replace(plan, reason=f"{failure}; {plan.reason}"), self._fallback.name

    def check(self, state: ClusterState, moves: Sequence[Move], scores: Sequence[float] = ()) -> list[CheckedMove]:
        """The verdict on each move, each with the allowed ones before it begun."""
        checked: list[CheckedMove] = []
        for i, move in enumerate(moves):
            reason = self._why_not(state, move)
            score = float(scores[i]) if i < len(scores) else 0.0
            checked.append(checked_move(state, move, allowed=not reason, reason=reason or "allowed", score=score))
            if not reason:
                state = with_move(state, move, self.settings.limits)
        return checked

    def _why_not(self, state: ClusterState, move: Move) -> str:
        """Why a move is refused on this state, empty if it is allowed."""
        verdict = check_move(state, move, self.settings.limits)
        return "" if verdict.allowed else verdict.reason.name.lower()

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
            state = _with_begun(state, earlier, self.settings)
        move = _same_move(state, item)
        if move is None:
            return refused(item, "the replica or the node is gone")
        reason = self._why_not(state, move)
        if reason:
            return refused(item, f"no longer allowed: {reason}")
        halted = self._halted()
        if halted:
            return refused(item, halted)
        record = MoveRecord(
            move_id=secrets.token_hex(8),
            decision_id=decision_id,
            deployment=item.deployment,
            replica_id=item.replica_id,
            from_node=state.node_ids[int(state.arrays.replica_node[move.replica_idx])],
            to_node=item.to_node,
            started_s=self._clock(),
        )
        self.journal.intend(record)
        try:
            self._executor.start(state, move, record.move_id)
        except ExecutorError as err:
            self.journal.set_phase(record.move_id, RecordedPhase.CANCELLED, self._clock(), detail=str(err))
            return refused(item, str(err))
        self.journal.set_phase(record.move_id, RecordedPhase.STARTING, self._clock())
        self._history.note_move(item.deployment, state.now_s)
        return dataclasses.replace(item, move=move, from_node=record.from_node, move_id=record.move_id)

    def _halted(self) -> str:
        """Why nothing at all may be moved now, empty if it may."""
        return f"the mode is {self.mode} now" if self.mode != Mode.ACT else self._may_act()

    def watch(self) -> None:
        """Follows the moves that have not ended."""
        begun = self.journal.open_moves()
        if not begun:
            return
        statuses = self._executor.statuses()
        for record in begun:
            seen = statuses.get(record.move_id)
            if seen is None:
                phase, detail, replacement = RecordedPhase.FAILED, "nobody knows of this move", None
            else:
                phase, detail, replacement = RecordedPhase(seen.phase.value), seen.detail, seen.replacement_id
            if (phase, replacement or "") != (record.phase, record.replacement_id):
                now_s = self._clock()
                self.journal.set_phase(record.move_id, phase, now_s, detail=detail, replacement_id=replacement or "")
                log.info("move %s of %s: %s %s", record.move_id, record.deployment, phase, detail)

    def _note_nodes(self, state: ClusterState) -> None:
        """Marks the moves whose nodes were released and launched again."""
        st = state.arrays
        names = [state.spec.node_types[t].name if t >= 0 else "" for t in st.node_type.tolist()]
        emptied = {r.from_node for r in self.journal.moves_since(state.now_s - _DAY_S)}
        before = self._seen
        self._seen, undone = watch_nodes(before, present_nodes(state.node_ids, names), emptied, state.now_s)
        for node in undone:
            if self.journal.mark_undone(node, state.now_s):
                self.journal.add_event("undone", f"node {node} was released and launched again", state.now_s)
        if self._seen != before:
            self.journal.note(_NODES, self._seen.to_json())

    def tick(self) -> Decision | None:
        """One decision; None in mode ``off``.

        Raises:
            ClusterError: The cluster cannot be read.
        """
        if not self._is_recovered:
            self.recover()
        self.watch()
        mode = self.mode
        if mode == Mode.OFF:
            return None
        state = self._snapshot()
        self._note_nodes(state)
        decision = self._decision(state, mode)
        if mode == Mode.ACT:
            halted = self._halted()
            if halted:
                stopped = tuple(refused(m, halted) if m.allowed else m for m in decision.moves)
                decision = dataclasses.replace(decision, moves=stopped)
        decision_id = self.journal.add_decision(decision.as_json(), state)
        if mode == Mode.ACT and any(m.allowed for m in decision.moves):
            decision = dataclasses.replace(decision, moves=tuple(self.act(decision.moves, decision_id)))
            self.journal.revise_decision(decision_id, decision.as_json())
        self.last_state, self.last_decision = state, decision
        started = sum(bool(m.move_id) for m in decision.moves)
        log.info("decision %d: %d moves, %d started (%s)", decision_id, len(decision.moves), started, decision.reason)
        return decision

    def _decision(self, state: ClusterState, mode: Mode) -> Decision:
        started_s = time.perf_counter()
        plan, name = self.decide(state)
        latency_s = time.perf_counter() - started_s
        present = state.arrays.node_type[state.arrays.node_phase > 0]
        return Decision(
            time_s=state.now_s,
            mode=mode,
            policy=name,
            reason=plan.reason,
            moves=tuple(self.check(state, plan.moves, plan.scores)),
            candidates=tuple(
                ConsideredPlan(candidate=c, moves=tuple(self.check(state, c.moves)))
                for c in plan.candidates[:_MAX_CANDIDATES]
            ),
            expected_saving_usd=plan.expected_saving_usd,
            num_nodes=len(present),
            usd_per_h=float(state.spec.arrays.type_price_usd_per_h[present].sum()),
            latency_s=latency_s,
            state_digest=state.digest(),
        )

    def run(self) -> None:
        """Ticks until ``stop``. The one broad except: an error costs this tick and is told by ``last_error``."""
        while not self._stop.is_set():
            try:
                self.tick()
                self.last_error = ""
            except Exception as err:
                log.exception("the tick failed; the cluster stays as it is")
                self.last_error = f"{type(err).__name__}: {err}"
                self._record_error()
            self._stop.wait(self.settings.decision_interval_s)

    def _record_error(self) -> None:
        try:
            self.journal.add_event("error", self.last_error, self._clock())
        except Exception:  # a journal that cannot be written may be what failed; the loop goes on and moves nothing
            log.exception("the journal cannot be written")

    def stop(self) -> None:
        """Ends ``run`` after the present tick."""
        self._stop.set()
        self._pool.shutdown(wait=False, cancel_futures=True)


def _same_move(state: ClusterState, item: CheckedMove) -> Move | None:
    """The move in the rows of another snapshot, None where its replica or node is gone."""
    try:
        return Move(state.replica_ids.index(item.replica_id), state.node_ids.index(item.to_node))
    except ValueError:
        return None


def _with_begun(state: ClusterState, earlier: CheckedMove, settings: LiveSettings) -> ClusterState:
    """Adds a move that the controller has taken but the snapshot does not show yet."""
    move = _same_move(state, earlier)
    if move is None:
        return state
    peer = int(state.arrays.replica_peer[move.replica_idx])
    if peer >= 0 and peer != move.replica_idx:
        return state
    return with_move(state, move, settings.limits)
