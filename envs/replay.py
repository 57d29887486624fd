"""An event log replayed in the simulator: same first state, same load, same moves at the same times.

Reality and simulation become a ``Trajectory`` each, over the same *slots*: a node of the first state is a slot by its
id, a launched one by its type and its turn among those of the type that joined. Dims: P moments, S slots,
D deployments.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.event_log import EventLog, MoveEvent
from rayfold.envs.moves import Move, MovePhase
from rayfold.envs.safety import Limits
from rayfold.envs.simulator import Simulator
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase
from rayfold.envs.traffic import Traffic
from rayfold.errors import ExecutorError

__all__ = ["Replay", "Slot", "Trajectory", "offered_ongoing", "real_trajectory", "recorded_traffic", "replay_log"]

REPORT_S = 10.0  # Serve's handles report this often (``metrics_interval_s``)

Slot = tuple[str, str]  # (node type, id of a first node or "#1", "#2", ... of a launched one)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trajectory:
    """What a cluster looked like over time."""

    times_s: NDArray[np.float64]  # (P,)
    slots: tuple[Slot, ...]  # (S,)
    alive: NDArray[np.bool_]  # (P, S)
    running: NDArray[np.int64]  # (P, S, D) replicas that serve
    targets: NDArray[np.int64]  # (P, D)

    def until(self, end_s: float) -> "Trajectory":
        """The part up to ``end_s``."""
        rows = self.times_s <= end_s
        return Trajectory(
            times_s=self.times_s[rows],
            slots=self.slots,
            alive=self.alive[rows],
            running=self.running[rows],
            targets=self.targets[rows],
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Replay:
    """A finished replay."""

    trajectory: Trajectory
    moves_as_recorded: int  # from and to the very same nodes
    moves_from_elsewhere: int  # a replica of the deployment on another node went there
    moves_skipped: int  # none could
    refusals: tuple[str, ...]  # why, for each skipped move


class _Slots:
    """Gives every node its slot, and collects who is where."""

    def __init__(self, num_deployments: int) -> None:
        self._index: dict[Slot, int] = {}
        self._num_joined: dict[str, int] = {}
        self._num_deployments = num_deployments
        self._moments: list[tuple[list[int], list[tuple[int, int]], list[int]]] = []

    def first(self, type_name: str, node_id: str) -> Slot:
        return self._add((type_name, node_id))

    def joined(self, type_name: str) -> Slot:
        turn = self._num_joined[type_name] = self._num_joined.get(type_name, 0) + 1
        return self._add((type_name, f"#{turn}"))

    def _add(self, slot: Slot) -> Slot:
        self._index.setdefault(slot, len(self._index))
        return slot

    def note(self, alive: list[Slot], serving: list[tuple[Slot, int]], targets: list[int]) -> None:
        self._moments.append(([self._index[s] for s in alive], [(self._index[s], d) for s, d in serving], targets))

    def trajectory(self, times_s: NDArray[np.float64]) -> Trajectory:
        num_times, num_slots = len(self._moments), len(self._index)
        alive = np.zeros((num_times, num_slots), np.bool_)
        running = np.zeros((num_times, num_slots, self._num_deployments), np.int64)
        for i, (nodes, serving, _) in enumerate(self._moments):
            alive[i, nodes] = True
            for s, d in serving:
                running[i, s, d] += 1
        return Trajectory(
            times_s=times_s,
            slots=tuple(self._index),
            alive=alive,
            running=running,
            targets=np.array([targets for _, _, targets in self._moments], np.int64),
        )


def _real_slots(log: EventLog) -> tuple[_Slots, dict[str, Slot]]:
    slots = _Slots(len(log.header.deployments))
    of_node: dict[str, Slot] = {}
    for i, poll in enumerate(log.polls):
        alive = [n for n in poll.nodes if n.phase == NodePhase.ALIVE]
        for node in alive:
            if node.node_id not in of_node:
                slot = slots.first(node.node_type, node.node_id) if i == 0 else slots.joined(node.node_type)
                of_node[node.node_id] = slot
        serving = [
            (of_node[r.node_id], r.deployment_idx)
            for r in poll.replicas
            if r.phase == ReplicaPhase.RUNNING and r.node_id in of_node
        ]
        slots.note([of_node[n.node_id] for n in alive], serving, list(poll.targets))
    return slots, of_node


def real_trajectory(log: EventLog) -> Trajectory:
    """What really happened, at the polls of the log."""
    return _real_slots(log)[0].trajectory(log.times_s())


def offered_ongoing(log: EventLog) -> NDArray[np.float64]:
    """``(P, D)`` the recorded ongoing requests without the dips that Serve's own stopping of replicas brings about.

    Serve forgets what was reported of a replica as soon as it stops (``DeploymentAutoscalingState.
    _collect_handle_running_requests`` counts running replicas only), and learns where those requests are now from the
    next report and, in full, one look-back period later. Until then the count is taken to be no less than the lower
    of its values just before the stop and at the end of that time.
    """
    times_s = log.times_s()
    recorded = np.array([p.ongoing for p in log.polls], np.float64)
    out = recorded.copy()
    serving = [
        {(r.deployment_idx, r.replica_id) for r in p.replicas if r.phase == ReplicaPhase.RUNNING} for p in log.polls
    ]
    until = np.zeros(out.shape[1], np.int64)
    before = np.zeros(out.shape[1])
    for i in range(1, len(times_s)):
        for d in {d for d, _ in serving[i - 1] - serving[i]}:
            if until[d] <= i:
                before[d] = recorded[i - 1, d]
            blind_s = log.first.spec.deployments[d].autoscaling.look_back_period_s + REPORT_S
            until[d] = np.searchsorted(times_s, times_s[i] + blind_s)
            end = min(int(until[d]), len(times_s) - 1)
            out[i:end, d] = np.maximum(recorded[i:end, d], min(before[d], recorded[end, d]))
    return out


def recorded_traffic(log: EventLog, step_s: float, *, as_recorded: bool = False) -> Traffic:
    """The recorded ongoing requests as traffic: row ``i`` is what was last seen at the end of step ``i``.

    Args:
        log: The log.
        step_s: Length of a simulator step.
        as_recorded: Leave the dips in, see ``offered_ongoing``.
    """
    times_s = log.times_s()
    num_steps = int(np.floor(times_s[-1] / step_s + 1e-9))
    ends_s = (np.arange(num_steps) + 1) * step_s
    rows = np.searchsorted(times_s, ends_s + 1e-9, side="right") - 1
    seen = np.array([p.ongoing for p in log.polls], np.float64) if as_recorded else offered_ongoing(log)
    ongoing = seen[rows]
    num_deployments = ongoing.shape[1]
    return Traffic.of_steps(
        ongoing,
        look_back_s=np.full(num_deployments, step_s),  # Serve has looked back already
        step_s=step_s,
        tokens_per_ongoing_s=np.zeros(num_deployments),
    )


class _Player:
    """The simulator beside the log: slots of its rows, and the recorded moves."""

    def __init__(self, log: EventLog, state: ClusterState, rng: np.random.Generator, as_recorded: bool) -> None:
        limits = Limits(max_concurrent_moves=10**6, deployment_cooldown_s=0.0, fence_s=log.header.fence_s)
        self.step_s = state.spec.settings.substep_s
        traffic = recorded_traffic(log, self.step_s, as_recorded=as_recorded)
        self.sim = Simulator(state, traffic, limits, rng)
        self.slots = _Slots(state.spec.num_deployments)
        self._types = [t.name for t in state.spec.node_types]
        self._slot_of_real = _real_slots(log)[1]
        self._slot_of_row: dict[int, Slot] = {}
        for n in np.flatnonzero(state.arrays.node_phase == NodePhase.ALIVE).tolist():
            self._slot_of_row[n] = self.slots.first(self._types[state.arrays.node_type[n]], state.node_ids[n])
        self.counts = [0, 0, 0]  # as recorded, from elsewhere, skipped
        self.refusals: list[str] = []

    def note(self) -> None:
        st = self.sim.view.arrays
        alive_rows = np.flatnonzero(st.node_phase == NodePhase.ALIVE).tolist()
        for n in self._slot_of_row.keys() - set(alive_rows):
            del self._slot_of_row[n]
        for n in alive_rows:
            if n not in self._slot_of_row:
                self._slot_of_row[n] = self.slots.joined(self._types[st.node_type[n]])
        serving = [
            (self._slot_of_row[int(st.replica_node[r])], int(st.replica_deployment[r]))
            for r in np.flatnonzero(st.replica_phase == ReplicaPhase.RUNNING)
        ]
        self.slots.note([self._slot_of_row[n] for n in alive_rows], serving, st.deployment_target.tolist())

    def start(self, event: MoveEvent) -> None:
        row_of = {slot: n for n, slot in self._slot_of_row.items()}
        source = row_of.get(self._slot_of_real[event.from_node], -1)
        destination = row_of.get(self._slot_of_real[event.to_node], -1)
        st = self.sim.view.arrays
        is_own = (st.replica_deployment == event.deployment_idx) & (st.replica_phase == ReplicaPhase.RUNNING)
        candidates = np.flatnonzero(is_own & (st.replica_peer < 0) & (st.replica_node != destination)).tolist()
        candidates.sort(key=lambda r: st.replica_node[r] != source)
        why = "no such replica" if destination >= 0 else f"no node {self._slot_of_real[event.to_node]}"
        for r in candidates if destination >= 0 else []:
            is_exact = int(st.replica_node[r]) == source
            try:
                self.sim.start(self.sim.view, Move(r, destination))
            except ExecutorError as err:
                why = str(err)
                continue
            self.counts[0 if is_exact else 1] += 1
            return
        self.counts[2] += 1
        self.refusals.append(f"{event.t_s:.0f} s: {why}")


def replay_log(log: EventLog, state: ClusterState, rng: np.random.Generator, *, as_recorded: bool = False) -> Replay:
    """Simulates the time of a log.

    Args:
        log: Its load is offered and its moves are made.
        state: Where to begin: ``fitted_state`` of the log.
        rng: Draws the times.
        as_recorded: See ``recorded_traffic``.
    """
    player = _Player(log, state, rng, as_recorded)
    begins = [m for m in log.moves if m.phase == MovePhase.STARTING]
    player.note()
    num_steps = player.sim.num_steps_left
    for i in range(num_steps):
        while begins and begins[0].t_s <= i * player.step_s:
            player.start(begins.pop(0))
        player.sim.advance(1)
        player.note()
    exact, elsewhere, skipped = player.counts
    return Replay(
        trajectory=player.slots.trajectory(player.step_s * np.arange(num_steps + 1, dtype=np.float64)),
        moves_as_recorded=exact,
        moves_from_elsewhere=elsewhere,
        moves_skipped=skipped,
        refusals=tuple(player.refusals),
    )
