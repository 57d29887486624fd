"""The decision loop of a live cluster: decide → check → act, once per interval.

It knows nothing of Ray: snapshot, executor, clock and policy come from outside. Whatever goes wrong, the cluster
stays as it is: a policy's error or overtime means the heuristic, the heuristic's error means no moves.
"""

import enum
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayfold.envs.moves import Executor, Move, MovePhase, Plan
from rayfold.envs.safety import check_move
from rayfold.envs.state import ClusterState
from rayfold.envs.transition import with_move
from rayfold.errors import ExecutorError
from rayfold.policies.protocol import Policy
from rayfold.serving.history import History
from rayfold.serving.journal import Journal
from rayfold.serving.live_settings import LiveSettings

__all__ = ["CheckedMove", "Decider", "Decision", "Mode"]

log = logging.getLogger(__name__)

_FINAL = (MovePhase.DONE, MovePhase.FAILED, MovePhase.CANCELLED)


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
    to_node: str
    allowed: bool
    reason: str  # of the safety filter, or of the executor where it refused
    move_id: str = ""  # empty = not started

    def as_json(self) -> dict[str, Any]:
        """Without the row numbers, which mean nothing outside their snapshot."""
        names = [name for name in self.__slots__ if name != "move"]
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One tick."""

    time_s: float  # Unix time
    mode: Mode
    policy: str  # name of the one that made the plan; empty = none could
    reason: str
    moves: tuple[CheckedMove, ...] = ()
    num_nodes: int = 0
    usd_per_h: float = 0.0  # what the nodes cost now
    latency_s: float = 0.0  # of the plan

    def as_json(self) -> dict[str, Any]:
        """JSON values only."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {**values, "mode": str(self.mode), "moves": [m.as_json() for m in self.moves]}


class Decider:
    """Decides, checks and acts.

    Args:
        policy: Makes the plan.
        fallback: Makes it where the policy fails or is late.
        settings: Interval, limits and deadline.
        snapshot: The cluster now.
        history: Memory of the snapshots; told of moves.
        executor: Carries moves out in mode ``act``.
        mode: Mode to begin with.
        journal: Where decisions are recorded.
        rng: Randomness of the policy.
        clock: Unix time in seconds.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        fallback: Policy,
        settings: LiveSettings,
        snapshot: Callable[[], ClusterState],
        history: History,
        executor: Executor,
        mode: Mode,
        journal: Journal,
        rng: np.random.Generator,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.mode, self.settings, self.journal = mode, settings, journal
        self.last_decision: Decision | None = None
        self.last_state: ClusterState | None = None
        self.last_error = ""
        self.moves: dict[str, dict[str, Any]] = {}
        self._policy, self._fallback = policy, fallback
        self._snapshot, self._history, self._executor = snapshot, history, executor
        self._rng, self._clock = rng, clock
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="policy")
        self._running: Future[Plan] | None = None
        self._stop = threading.Event()

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
        reason = f"{failure}; {plan.reason}"
        return Plan(moves=plan.moves, scores=plan.scores, reason=reason), self._fallback.name

    def check(self, state: ClusterState, plan: Plan) -> list[CheckedMove]:
        """The safety filter's verdict on each move, each with the allowed ones before it begun."""
        checked = []
        for move in plan.moves:
            verdict = check_move(state, move, self.settings.limits)
            checked.append(_checked(state, move, verdict.allowed, verdict.reason.name.lower()))
            if verdict.allowed:
                state = with_move(state, move, self.settings.limits)
        return checked

    def act(self, checked: list[CheckedMove]) -> list[CheckedMove]:
        """Starts the allowed moves; each is checked again on a fresh snapshot right before it starts."""
        done: list[CheckedMove] = []
        begun: list[CheckedMove] = []
        for item in checked:
            done.append(self._start(item, begun) if item.allowed else item)
            if done[-1].move_id:
                begun.append(done[-1])
        return done

    def _start(self, item: CheckedMove, begun: list[CheckedMove]) -> CheckedMove:
        state = self._snapshot()
        for earlier in begun:
            state = _with_begun(state, earlier, self.settings)
        move = _same_move(state, item)
        if move is None:
            return _refused(item, "the replica or the node is gone")
        verdict = check_move(state, move, self.settings.limits)
        if not verdict.allowed:
            return _refused(item, f"no longer allowed: {verdict.reason.name.lower()}")
        if self.mode != Mode.ACT:
            return _refused(item, f"the mode is {self.mode} now")
        try:
            move_id = self._executor.start(state, move)
        except ExecutorError as err:
            return _refused(item, str(err))
        self._history.note_move(item.deployment, state.now_s)
        self.moves[move_id] = {**item.as_json(), "move_id": move_id, "started_s": state.now_s, "phase": "starting"}
        return _checked(state, move, True, "allowed", move_id)

    def watch(self) -> None:
        """Follows the moves that have not ended."""
        for move_id, entry in self.moves.items():
            if entry["phase"] not in _FINAL:
                phase = self._executor.phase(move_id)
                if phase != entry["phase"]:
                    entry["phase"] = str(phase)
                    self.journal.add({"time_s": self._clock(), "move_id": move_id, "phase": str(phase)})
                    log.info("move %s of %s: %s", move_id, entry["deployment"], phase)

    def tick(self) -> Decision | None:
        """One decision; None in mode ``off``.

        Raises:
            ClusterError: The cluster cannot be read.
        """
        self.watch()
        mode = self.mode
        if mode == Mode.OFF:
            return None
        state = self._snapshot()
        started_s = time.perf_counter()
        plan, name = self.decide(state)
        latency_s = time.perf_counter() - started_s
        checked = self.check(state, plan)
        if mode == Mode.ACT:
            checked = self.act(checked)
        present = state.arrays.node_type[state.arrays.node_phase > 0]
        decision = Decision(
            time_s=state.now_s,
            mode=mode,
            policy=name,
            reason=plan.reason,
            moves=tuple(checked),
            num_nodes=len(present),
            usd_per_h=float(state.spec.arrays.type_price_usd_per_h[present].sum()),
            latency_s=latency_s,
        )
        self.last_state, self.last_decision = state, decision
        self.journal.add(decision.as_json())
        log.info("%s", decision.as_json())
        return decision

    def run(self) -> None:
        """Ticks until ``stop``. The one broad except: an error costs this tick and is told by ``last_error``."""
        while not self._stop.is_set():
            try:
                self.tick()
                self.last_error = ""
            except Exception as err:
                log.exception("the tick failed; the cluster stays as it is")
                self.last_error = f"{type(err).__name__}: {err}"
                self.journal.add({"time_s": self._clock(), "error": self.last_error})
            self._stop.wait(self.settings.decision_interval_s)

    def stop(self) -> None:
        """Ends ``run`` after the present tick."""
        self._stop.set()
        self._pool.shutdown(wait=False, cancel_futures=True)


def _checked(state: ClusterState, move: Move, allowed: bool, reason: str, move_id: str = "") -> CheckedMove:
    st = state.arrays
    r, n = move
    known = 0 <= r < len(state.replica_ids) and st.replica_deployment[r] >= 0
    source = int(st.replica_node[r]) if known else -1
    return CheckedMove(
        move=move,
        deployment=state.spec.deployments[int(st.replica_deployment[r])].key if known else "",
        replica_id=state.replica_ids[r] if known else "",
        from_node=state.node_ids[source] if source >= 0 else "",
        to_node=state.node_ids[n] if 0 <= n < len(state.node_ids) else "",
        allowed=allowed,
        reason=reason,
        move_id=move_id,
    )


def _refused(item: CheckedMove, reason: str) -> CheckedMove:
    values = {name: getattr(item, name) for name in item.__slots__}
    return CheckedMove(**{**values, "allowed": False, "reason": reason})


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
