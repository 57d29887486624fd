"""``Simulator``: a cluster that can be started from any ``ClusterState`` and advanced in time.

A thin shell over ``dynamics.step``; it also is the simulated ``Executor``. Deterministic for a seed: the traffic
is drawn beforehand and does not depend on what the policy does.
"""

import copy

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.batch import World
from rayfold.envs.devices import EPS
from rayfold.envs.dynamics import fresh_tally, launch_move, step
from rayfold.envs.encoding import encoder_constants, parts_of
from rayfold.envs.evacuation import new_workspace
from rayfold.envs.hidden import CURSOR, LOG_CANCELLED, NUM_ENDED, Hidden, constants_of, fresh_hidden
from rayfold.envs.initial_state import num_replica_rows
from rayfold.envs.layout import ObsLayout
from rayfold.envs.ledger import Ledger
from rayfold.envs.moves import Move, MovePhase
from rayfold.envs.node_life import GRACEFUL_SHUTDOWN_S, plan_life
from rayfold.envs.process import NOW_S, ROW, act
from rayfold.envs.replica_life import drop_move, is_on_draining_node, migrate_replica
from rayfold.envs.safety import Limits, check_move
from rayfold.envs.spec_arrays import SpecArrays
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase, StateArrays
from rayfold.envs.state_bound import bound_usd_per_h, relaxed_bound_usd_per_h
from rayfold.envs.traffic import Traffic
from rayfold.errors import ExecutorError

__all__ = ["Simulator"]

_ENDS = (MovePhase.DONE, MovePhase.FAILED, MovePhase.CANCELLED)  # by LOG_DONE, LOG_FAILED, LOG_CANCELLED


class Simulator:
    """One simulated cluster.

    Args:
        state: Where to start; copied. Its rows are kept, and rows are added so that replicas can be created.
        traffic: Offered load from ``state.now_s`` on.
        limits: For the fence of a move.
        rng: Draws start-up, drain and boot times, failures and interruptions.
        skips_quiet_steps: False evaluates every rule at every step: the same result, slower.
    """

    def __init__(
        self,
        state: ClusterState,
        traffic: Traffic,
        limits: Limits,
        rng: np.random.Generator,
        *,
        skips_quiet_steps: bool = True,
    ) -> None:
        self.spec, self.traffic = state.spec, traffic
        self.limits = limits
        st, spec = state.arrays, state.spec
        self._arrays = st.with_rows(
            spec, max(0, spec.max_nodes - len(st.node_type)), max(0, num_replica_rows(spec) - len(st.replica_phase))
        )
        self._const = constants_of(spec, limits.fence_s, skips_quiet_steps=skips_quiet_steps)
        self._hidden = _draw_hidden(state, self._arrays, traffic, rng)
        _ask_replacements(self.spec.arrays, self._arrays, self._hidden, state.now_s)
        self._work = new_workspace(self._arrays)
        self._tally = fresh_tally(spec.num_deployments)
        self._clock = np.array([state.now_s, traffic.num_before], np.float64)  # now, next row of the traffic
        self._ledger = Ledger.zeros()
        self._sources: dict[str, int] = {}  # moves under way: id -> row of the replica that leaves
        self._ended: dict[str, MovePhase] = {}  # rows are used again, so an end is kept

    @property
    def now_s(self) -> float:
        """The clock."""
        return float(self._clock[NOW_S])

    @property
    def view(self) -> ClusterState:
        """The present state, sharing the simulator's arrays: valid until the next call that changes it."""
        return ClusterState(spec=self.spec, now_s=self.now_s, arrays=self._arrays)

    def state(self) -> ClusterState:
        """A copy of the present state."""
        return ClusterState(spec=self.spec, now_s=self.now_s, arrays=self._arrays.copy())

    def ledger(self) -> Ledger:
        """A copy of the ledger."""
        return Ledger(values=self._ledger.copy())

    def deployment_ledger(self) -> NDArray[np.float64]:
        """A copy of what is counted per deployment: ``(len(DeploymentEntry), D)``."""
        return self._hidden.deployment_ledger.copy()

    @property
    def num_steps_left(self) -> int:
        """Steps of traffic left."""
        return len(self.traffic.ongoing) - int(self._clock[ROW])

    @property
    def bound_usd_per_h(self) -> float:
        """Lower bound on the present hourly node bill."""
        return float(bound_usd_per_h(self.spec.arrays, self._arrays))

    @property
    def relaxed_bound_usd_per_h(self) -> float:
        """A lower one, which an observation tells."""
        return float(relaxed_bound_usd_per_h(self.spec.arrays, self._arrays))

    def fork(self) -> "Simulator":
        """A second simulator in the same state, with the same future: neither sees what the other does from now on.

        What happens is the same in both as long as the same is done in both; draws that follow a difference differ.
        """
        twin = copy.copy(self)
        twin._arrays, twin._hidden = self._arrays.copy(), Hidden._make(a.copy() for a in self._hidden)
        twin._tally = type(self._tally)._make(a.copy() for a in self._tally)
        twin._work = new_workspace(twin._arrays)
        twin._clock, twin._ledger = self._clock.copy(), self._ledger.copy()
        twin._sources, twin._ended = dict(self._sources), dict(self._ended)
        return twin

    def advance(self, num_steps: int) -> None:
        """Lets ``num_steps`` steps of ``settings.substep_s`` pass.

        Raises:
            ValueError: The traffic is at its end.
        """
        if num_steps > self.num_steps_left:
            raise ValueError(f"num_steps must be <= {self.num_steps_left}, got {num_steps}")
        self._tally.rows[:] = -1  # the arrays may have been written from outside
        self._clock[NOW_S] = step(
            self.spec.arrays,
            self._arrays,
            self._hidden,
            self._tally,
            self.now_s,
            num_steps,
            self.traffic.ongoing,
            int(self._clock[ROW]),
            self.traffic.window,
            self.traffic.tokens_per_ongoing_s,
            self._const,
            self._ledger,
        )
        self._clock[ROW] += num_steps
        self._read_ended()

    def _read_ended(self) -> None:
        counters, ended = self._hidden.counters, self._hidden.ended
        for move_id, how in ended[: counters[NUM_ENDED]].tolist():
            self._ended[str(move_id)] = _ENDS[how]
            self._sources.pop(str(move_id), None)
        counters[NUM_ENDED] = 0

    def start(self, state: ClusterState, move: Move) -> str:
        """Starts a move (``Executor``); rows of ``state`` are the simulator's own rows.

        Returns:
            Id of the move.

        Raises:
            ExecutorError: The safety filter refuses it now.
        """
        verdict = check_move(self.view, move, self.limits)
        if not verdict.allowed:
            raise ExecutorError(f"{move} refused: {verdict.reason.name}")
        r, n = move
        spec, st, hidden = self.spec.arrays, self._arrays, self._hidden
        row = launch_move(spec, st, hidden, self._const, self.now_s, r, n, self._ledger)
        if row < 0:
            raise ExecutorError("no replica row is unused")
        move_id = str(hidden.replica_serial[row])
        self._sources[move_id] = r
        self._read_ended()
        return move_id

    def act(self, layout: ObsLayout, source: int, destination: int, num_steps: int) -> int:
        """One action of the decision process: moves, or ``num_steps`` steps if it is NOOP; see ``process.act``.

        Raises:
            ValueError: The traffic is at its end.
        """
        if num_steps > self.num_steps_left:
            raise ValueError(f"num_steps must be <= {self.num_steps_left}, got {num_steps}")
        self._tally.rows[:] = -1
        started = act(
            self.spec.arrays,
            self._arrays,
            self._hidden,
            self._tally,
            self._const,
            self.limits,
            layout,
            source,
            destination,
            num_steps,
            self._clock,
            self.traffic.ongoing,
            self.traffic.window,
            self.traffic.tokens_per_ongoing_s,
            self._work,
            self._ledger,
        )
        self._read_ended()
        return int(started)

    def world(self, layout: ObsLayout, steps_per_tick: int) -> World:
        """The simulator's own arrays for ``batch.step_batch``; valid as long as the simulator is."""
        self._work.seen[0] = -1  # `last` is new: nothing has been encoded into it
        return World(
            spec=self.spec.arrays,
            st=self._arrays,
            hidden=self._hidden,
            tally=self._tally,
            work=self._work,
            const=self._const,
            limits=self.limits,
            encoder=encoder_constants(self.spec),
            last=parts_of(np.zeros(layout.size, np.float32), layout),
            layout=layout,
            steps_per_tick=steps_per_tick,
            clock=self._clock,
            ongoing=self.traffic.ongoing,
            window=self.traffic.window,
            tokens_per_ongoing_s=self.traffic.tokens_per_ongoing_s,
            ledger=self._ledger,
        )

    def phase(self, move_id: str) -> MovePhase:
        """Where the move is (``Executor``)."""
        if move_id in self._ended:
            return self._ended[move_id]
        is_draining = self._arrays.replica_phase[self._sources[move_id]] == ReplicaPhase.STOPPING
        return MovePhase.DRAINING if is_draining else MovePhase.STARTING

    def cancel(self, move_id: str) -> None:
        """Drops the replacement before it serves (``Executor``)."""
        if self.phase(move_id) is MovePhase.STARTING:
            row = int(self._arrays.replica_peer[self._sources[move_id]])
            drop_move(self.spec.arrays, self._arrays, self._hidden, self.now_s, row, LOG_CANCELLED, self._ledger)
            self._read_ended()


def _draw_hidden(state: ClusterState, st: StateArrays, traffic: Traffic, rng: np.random.Generator) -> Hidden:
    """Due times of what is under way, drawn given how long it has been.

    Args:
        state: Where to start.
        st: Its arrays with spare rows.
        traffic: For the look-back period.
        rng: Source of randomness.
    """
    spec, now_s = state.spec.arrays, state.now_s
    hidden = fresh_hidden(state.spec, len(st.node_type), len(st.replica_phase), rng)
    hidden.lookback_sum[:] = traffic.lookback_sum()
    for n in map(int, np.flatnonzero(st.node_phase != NodePhase.ABSENT)):
        t, ready_s = st.node_type[n], now_s
        if st.node_phase[n] == NodePhase.BOOTING:
            begun_s = min(now_s, float(st.node_idle_since_s[n]))
            ready_s = max(now_s, begun_s + rng.uniform(*spec.type_boot_s[t]))
        plan_life(spec, st, hidden, n, ready_s)
        if st.node_phase[n] == NodePhase.DRAINING:
            hidden.node_end_s[n] = now_s + spec.type_notice_s[t]
            hidden.node_notice_s[n] = hidden.node_end_s[n] - GRACEFUL_SHUTDOWN_S
        if st.node_others[n].any() and spec.type_other_work_prob[t] > 0.0:
            hidden.node_work_until_s[n] = now_s + rng.uniform(*spec.type_other_work_s[t])
            hidden.node_work_gpus[n] = _devices_of_others(spec, st, n, int(spec.type_num_gpus[t]))
    for phase, times_s in ((ReplicaPhase.STARTING, spec.startup_s), (ReplicaPhase.STOPPING, spec.drain_s)):
        for r in np.flatnonzero(st.replica_phase == phase):
            due_s = st.replica_since_s[r] + rng.uniform(*times_s[st.replica_deployment[r]])
            hidden.replica_due_s[r] = max(now_s, due_s)
    placed = np.flatnonzero(st.replica_node >= 0)
    if len(placed):  # Ray's spread goes on behind the node that took the newest replica
        newest = placed[np.argmax(st.replica_since_s[placed])]
        hidden.counters[CURSOR] = (st.replica_node[newest] + 1) % len(st.node_type)
    moving = np.flatnonzero((st.replica_phase == ReplicaPhase.RUNNING) & (st.replica_peer >= 0))
    np.add.at(hidden.node_moves_out, st.replica_node[moving], 1)
    return hidden


def _ask_replacements(spec: SpecArrays, st: StateArrays, hidden: Hidden, now_s: float) -> None:
    """What Serve is about to replace gets its replacement: a snapshot shows a migration before it shows that."""
    for r in map(int, np.flatnonzero(st.replica_phase == ReplicaPhase.RUNNING)):
        is_asked_for = st.replica_peer[r] == r
        if is_asked_for:
            st.replica_peer[r] = -1
        if is_asked_for or (st.replica_peer[r] < 0 and is_on_draining_node(spec, st, r)):
            migrate_replica(st, hidden, now_s, r)


def _devices_of_others(spec: SpecArrays, st: StateArrays, n: int, num_gpus: int) -> int:
    """Bit mask of the devices of ``n`` of which replicas hold less than is in use."""
    used: NDArray[np.float64] = 1.0 - st.gpu_free[n, :num_gpus]
    for r in np.flatnonzero(st.replica_phase != ReplicaPhase.EMPTY):
        used -= _held_by(spec, st, int(r), n, num_gpus)
    return sum(1 << int(g) for g in np.flatnonzero(used > EPS))


def _held_by(spec: SpecArrays, st: StateArrays, r: int, n: int, num_gpus: int) -> NDArray[np.float64]:
    """``(num_gpus,)`` share of each device of ``n`` that replica ``r`` holds."""
    d, shares = st.replica_deployment[r], np.zeros(num_gpus)
    for j, mask in enumerate(st.replica_gpus[r]):
        node = st.replica_bundle_node[r, j] if st.replica_spans[r] else st.replica_node[r]
        asked = spec.demand[d, 0] if spec.sums_gpus[d] and not st.replica_spans[r] else spec.bundle[d, j, 0]
        if node == n:
            shares += min(1.0, asked) * ((int(mask) >> np.arange(num_gpus)) & 1)
    return shares
