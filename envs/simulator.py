"""``Simulator``: a cluster that can be started from any ``ClusterState`` and advanced in time.

A thin shell over ``dynamics.step``; it also is the simulated ``Executor``. Deterministic for a seed: the traffic
is drawn beforehand and does not depend on what the policy does.
"""

import numpy as np

from rayfold.envs.cluster import ClusterSpec
from rayfold.envs.dynamics import Constants, Hidden, add_pending, bound_usd_per_h, place_pending, step
from rayfold.envs.ledger import Entry, Ledger
from rayfold.envs.moves import Move, MovePhase
from rayfold.envs.node_autoscaler import add_node, choose_launches
from rayfold.envs.safety import Limits, check_move
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase, StateArrays
from rayfold.envs.traffic import Traffic
from rayfold.envs.transition import begin_move, cancel_move
from rayfold.errors import ExecutorError

__all__ = ["Simulator", "initial_state"]


def _num_rows(spec: ClusterSpec) -> int:
    """Replica rows that are always enough: every replica at its maximum, moving, and draining ones beside."""
    return 3 * sum(d.autoscaling.max_replicas for d in spec.deployments) + 8


def _fresh_hidden(num_nodes: int, num_replicas: int, num_deployments: int) -> Hidden:
    return Hidden(
        node_ready_s=np.full(num_nodes, np.inf),
        node_moves_out=np.zeros(num_nodes, np.int64),
        released_s=np.full(num_nodes, -np.inf),
        released_type=np.full(num_nodes, -1, np.int64),
        released_moves=np.zeros(num_nodes, np.int64),
        replica_due_s=np.full(num_replicas, np.inf),
        replica_serial=np.arange(num_replicas, dtype=np.int64),
        wish_since_s=np.full(num_deployments, np.inf),
        wish_direction=np.zeros(num_deployments, np.int64),
        counters=np.array([num_replicas, 0], np.int64),
    )


def initial_state(spec: ClusterSpec, traffic: Traffic, rng: np.random.Generator) -> ClusterState:
    """A cluster that already serves the traffic of the first step, as Serve would have placed it.

    Args:
        spec: Static description.
        traffic: Its first row sets the targets.
        rng: Draws the order in which deployments were placed.

    Returns:
        A state at ``now_s = 0`` with every replica running that fits.
    """
    arrays, st = spec.arrays, StateArrays.empty(spec, spec.max_nodes, _num_rows(spec))
    hidden = _fresh_hidden(spec.max_nodes, len(st.replica_phase), spec.num_deployments)
    wanted = np.ceil(traffic.ongoing_lookback[0] / arrays.target_ongoing).astype(np.int64)
    st.deployment_target[:] = np.clip(wanted, arrays.min_replicas, arrays.max_replicas)
    st.deployment_ongoing[:] = traffic.ongoing_lookback[0]
    st.deployment_ongoing_slow[:] = traffic.ongoing_slow[0]
    for t, count in enumerate(arrays.type_min_nodes):
        for _ in range(count):
            add_node(arrays, st, t, int(NodePhase.ALIVE), 0.0)
    pending = np.repeat(np.arange(spec.num_deployments), st.deployment_target)
    for d in rng.permutation(pending):
        add_pending(st, hidden, 0.0, int(d))
    place_pending(arrays, st, hidden, 0.0, spec.packs, rng)
    while (launches := choose_launches(arrays, st)).any():
        for t, count in enumerate(launches):
            for _ in range(count):
                add_node(arrays, st, t, int(NodePhase.ALIVE), 0.0)
        place_pending(arrays, st, hidden, 0.0, spec.packs, rng)
    st.replica_phase[st.replica_phase == ReplicaPhase.STARTING] = ReplicaPhase.RUNNING
    return ClusterState(spec=spec, now_s=0.0, arrays=st)


class Simulator:
    """One simulated cluster.

    Args:
        state: Where to start; copied. Its rows are kept, and rows are added so that replicas can be created.
        traffic: Offered load from ``state.now_s`` on.
        limits: For the fence of a move.
        rng: Draws start-up, drain and boot times.
    """

    def __init__(self, state: ClusterState, traffic: Traffic, limits: Limits, rng: np.random.Generator) -> None:
        self.spec, self.traffic, self.limits, self._rng = state.spec, traffic, limits, rng
        settings = self.spec.settings
        self._arrays = _with_spare_rows(state)
        self._hidden = self._draw_hidden(state.now_s)
        self._const = Constants(
            dt_s=settings.substep_s,
            is_pack=self.spec.packs,
            idle_timeout_s=settings.idle_timeout_s,
            unserved_factor=settings.prices.unserved_factor,
        )
        self.now_s = state.now_s
        self._row = 0  # next row of the traffic
        self._ledger = Ledger.zeros()
        self._moves: dict[str, tuple[int, int, int]] = {}  # under way: id -> replacement row, its serial, source row
        self._ended: dict[str, MovePhase] = {}  # rows are used again, so an end is kept

    def _draw_hidden(self, now_s: float) -> Hidden:
        """Due times of what is under way, drawn given how long it has been."""
        st, spec, rng = self._arrays, self.spec.arrays, self._rng
        hidden = _fresh_hidden(len(st.node_type), len(st.replica_phase), self.spec.num_deployments)
        for n in np.flatnonzero(st.node_phase == NodePhase.BOOTING):
            begun_s = min(now_s, float(st.node_idle_since_s[n]))
            hidden.node_ready_s[n] = max(now_s, begun_s + rng.uniform(*spec.type_boot_s[st.node_type[n]]))
        for phase, times_s in ((ReplicaPhase.STARTING, spec.startup_s), (ReplicaPhase.STOPPING, spec.drain_s)):
            for r in np.flatnonzero(st.replica_phase == phase):
                due_s = st.replica_since_s[r] + rng.uniform(*times_s[st.replica_deployment[r]])
                hidden.replica_due_s[r] = max(now_s, due_s)
        moving = (st.replica_phase == ReplicaPhase.RUNNING) & (st.replica_peer >= 0)
        np.add.at(hidden.node_moves_out, st.replica_node[moving], 1)
        return hidden

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

    @property
    def num_steps_left(self) -> int:
        """Steps of traffic left."""
        return len(self.traffic.ongoing) - self._row

    @property
    def bound_usd_per_h(self) -> float:
        """Lower bound on the present hourly node bill."""
        return float(bound_usd_per_h(self.spec.arrays, self._arrays))

    def advance(self, num_steps: int) -> None:
        """Lets ``num_steps`` steps of ``settings.substep_s`` pass.

        Raises:
            ValueError: The traffic is at its end.
        """
        if num_steps > self.num_steps_left:
            raise ValueError(f"num_steps must be <= {self.num_steps_left}, got {num_steps}")
        rows = slice(self._row, self._row + num_steps)
        self.now_s = step(
            self.spec.arrays,
            self._arrays,
            self._hidden,
            self.now_s,
            num_steps,
            self.traffic.ongoing[rows],
            self.traffic.ongoing_lookback[rows],
            self.traffic.ongoing_slow[rows],
            self.traffic.tokens_per_ongoing_s,
            self._const,
            self._ledger,
            self._rng,
        )
        self._row += num_steps
        for move_id in list(self._moves):
            self.phase(move_id)

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
        source_node = int(self._arrays.replica_node[r])
        row = begin_move(self.spec.arrays, self._arrays, self.now_s, self.limits.fence_s, r, n)
        if row < 0:
            raise ExecutorError("no replica row is unused")
        self._charge_move(row, n)
        serial = int(self._hidden.counters[0])
        self._hidden.counters[0] += 1
        self._hidden.replica_serial[row] = serial
        self._hidden.node_moves_out[source_node] += 1
        self._moves[str(serial)] = (row, serial, r)
        return str(serial)

    def _charge_move(self, row: int, n: int) -> None:
        """Draws the cold start of the replacement in ``row`` and books its price (DESIGN §5)."""
        spec, prices = self.spec.arrays, self.spec.settings.prices
        d, t = self._arrays.replica_deployment[row], self._arrays.node_type[n]
        startup_s = self._rng.uniform(*spec.startup_s[d])
        self._hidden.replica_due_s[row] = self.now_s + startup_s
        capacity = spec.type_capacity[t]
        share = float((spec.demand[d][capacity > 0] / capacity[capacity > 0]).max())
        replica_usd_per_h = share * float(spec.type_price_usd_per_h[t])
        usd = replica_usd_per_h * (startup_s / 3600.0 + prices.move_frac) * prices.disruption_scale
        self._ledger[Entry.DISRUPTION_USD] += usd
        self._ledger[Entry.COLD_START_GPU_H] += spec.demand[d, 0] * startup_s / 3600.0
        self._ledger[Entry.MOVES] += 1

    def phase(self, move_id: str) -> MovePhase:
        """Where the move is (``Executor``)."""
        if move_id in self._ended:
            return self._ended[move_id]
        phase = self._phase_under_way(*self._moves[move_id])
        if phase not in (MovePhase.STARTING, MovePhase.DRAINING):
            self._ended[move_id] = phase
            del self._moves[move_id]
        return phase

    def _phase_under_way(self, row: int, serial: int, source: int) -> MovePhase:
        st = self._arrays
        if self._hidden.replica_serial[row] != serial or st.replica_phase[row] == ReplicaPhase.EMPTY:
            return MovePhase.CANCELLED  # Serve scaled it away
        if st.replica_phase[row] == ReplicaPhase.STARTING:
            return MovePhase.STARTING
        return MovePhase.DRAINING if st.replica_phase[source] == ReplicaPhase.STOPPING else MovePhase.DONE

    def cancel(self, move_id: str) -> None:
        """Drops the replacement while it is still starting (``Executor``)."""
        if self.phase(move_id) is MovePhase.STARTING:
            row, _, source = self._moves.pop(move_id)
            self._hidden.node_moves_out[self._arrays.replica_node[source]] -= 1
            cancel_move(self.spec.arrays, self._arrays, self.now_s, row)
            self._ledger[Entry.CANCELLED_MOVES] += 1
            self._ended[move_id] = MovePhase.CANCELLED


def _with_spare_rows(state: ClusterState) -> StateArrays:
    """A copy with node rows for every node there can be and replica rows for every replica."""
    st, spec = state.arrays, state.spec
    spare = StateArrays.empty(
        spec, max(0, spec.max_nodes - len(st.node_type)), max(0, _num_rows(spec) - len(st.replica_phase))
    )
    grown = {
        name: np.concatenate([getattr(st, name), getattr(spare, name)])
        for name in StateArrays._fields
        if not name.startswith("deployment_")
    }
    return st.copy()._replace(**grown)
