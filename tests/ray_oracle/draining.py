"""Nodes that will be interrupted, beside Ray's ``DeploymentState``: what moves off them, what stops, and when.

The real methods decide on one update of random clusters: replicas with and without replacements, some of which come
to serve just then, notices that come in, deadlines that are near, a target that falls. Stand-ins are the replicas and
what creates them.
"""

import itertools
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from ray.serve._private import deployment_state
from ray.serve._private.common import ReplicaState
from ray.serve._private.deployment_state import DeploymentState, ReplicaStateContainer

from rayfold.envs.groups import hold_group
from rayfold.envs.node_life import GRACEFUL_SHUTDOWN_S
from rayfold.envs.placement import hold, member_node
from rayfold.envs.safety import Limits, Reason, capacity_reason
from rayfold.envs.simulator import Simulator
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase
from rayfold.envs.traffic import Traffic
from tests.ray_oracle import ours
from tests.ray_oracle.clock import Clock
from tests.ray_oracle.placement import add_pending, rays_nodes
from tests.ray_oracle.scheduler import (
    RaysScheduler,
    deployment_id,
    node_id,
    packing,
    replica_id,
    replica_row,
    scheduler_of,
)
from tests.ray_oracle.states import random_cluster
from tests.ray_oracle.tally import Tally

__all__ = ["Look", "Outcome", "migrations", "our_outcome", "placement"]

STEP_S = 5.0


class Look(NamedTuple):
    """What an update is about."""

    state: ClusterState
    is_due: np.ndarray  # (R,) bool: STARTING, and serves from now on
    notice_s: np.ndarray  # (N,) of nodes that are alive
    end_s: np.ndarray  # (N,)
    target: np.ndarray  # (D,)


class Outcome(NamedTuple):
    """What it led to."""

    stopped: list[int]  # rows that served
    waiting: list[int]  # (D,) replicas, or gangs, that do not serve yet


def placement(num_states: int, seed: int) -> Tally:
    """Pack placement of batches where nodes drain or boot: neither takes any, and a draining one counts for no one."""
    mismatches, decisions = [], 0
    for i in range(num_states):
        draw = np.random.default_rng([seed, i])
        state = random_cluster(draw)
        away = draw.random(len(state.arrays.node_phase)) < 0.4
        state.arrays.node_phase[away & (state.arrays.node_phase == NodePhase.ALIVE)] = NodePhase.DRAINING
        add_pending(state, draw)
        decisions += int((state.arrays.replica_phase == ReplicaPhase.PENDING).sum())
        before = ClusterState(spec=state.spec, now_s=state.now_s, arrays=state.arrays.copy())
        rays, own = rays_nodes(before), ours.place(state)
        if rays != own:
            mismatches.append(f"seed {seed}, state {i}: ours {own}, Ray's {rays}")
    return Tally(num_states, decisions, tuple(mismatches))


def migrations(num_states: int, seed: int) -> Tally:
    """One update of random clusters with draining nodes, gangs included: which replicas stop, how many are started."""
    mismatches, stopped = [], 0
    for i in range(num_states):
        look = _random_look(np.random.default_rng([seed, i]))
        theirs, own = _rays(look), our_outcome(look)
        stopped += len(theirs.stopped)
        if own != theirs:
            mismatches.append(f"seed {seed}, state {i}: ours {own}, Ray's {theirs}")
    assert num_states < 500 or stopped > 0.3 * num_states, f"{stopped} replicas stopped"
    return Tally(num_states, num_states * 2, tuple(mismatches))


def _random_look(draw: np.random.Generator) -> Look:
    state = random_cluster(draw, num_gangs=int(draw.integers(0, 2)), head_prob=0.2)
    spec, st = state.spec.arrays, state.arrays
    nodes = draw.permutation(np.flatnonzero((st.node_phase == NodePhase.ALIVE) & ~st.node_is_head))
    draining = nodes[: int(draw.integers(1, 3))]
    st.node_phase[draining] = NodePhase.DRAINING
    notice_s, end_s = np.full(len(st.node_type), np.inf), np.full(len(st.node_type), np.inf)
    end_s[draining] = (
        state.now_s + GRACEFUL_SHUTDOWN_S + draw.choice([2.0, 3.0, 4.0, 60.0, 61.0, 62.0], len(draining), False)
    )
    late = nodes[2:][: int(draw.integers(0, 2))]
    notice_s[late], end_s[late] = state.now_s + 1.0, state.now_s + 120.0
    for r in map(int, np.flatnonzero(st.replica_phase == ReplicaPhase.RUNNING)):
        if any(member_node(spec, st, r, j) in draining for j in range(spec.gang_size[st.replica_deployment[r]])):
            row = _wait(state, draw, int(st.replica_deployment[r]))
            st.replica_peer[row], st.replica_peer[r] = r, row
    for _ in range(int(draw.integers(0, 4))):
        d = int(draw.integers(state.spec.num_deployments))
        _wait(state, draw, d)
        st.deployment_target[d] += 1
    is_late = np.array(
        [
            any(member_node(spec, st, r, j) in late for j in range(spec.gang_size[st.replica_deployment[r]]))
            if st.replica_node[r] >= 0
            else False
            for r in range(len(st.replica_node))
        ]
    )
    is_due = (st.replica_phase == ReplicaPhase.STARTING) & (draw.random(len(is_late)) < 0.5) & ~is_late
    target = st.deployment_target.copy()
    if draw.random() < 0.4:
        d = int(draw.integers(len(target)))
        target[d] = int(draw.integers(0, target[d] + 1))
    return Look(state, is_due, notice_s, end_s, target)


def _wait(state: ClusterState, draw: np.random.Generator, d: int) -> int:
    """A replica, or gang, that starts on some node, or is pending."""
    spec, st = state.spec.arrays, state.arrays
    r = int(np.flatnonzero(st.replica_phase == ReplicaPhase.EMPTY)[0])
    st.replica_deployment[r], st.replica_phase[r], st.replica_since_s[r] = d, ReplicaPhase.PENDING, state.now_s
    alive = [int(n) for n in np.flatnonzero(st.node_phase == NodePhase.ALIVE)]
    nodes = [n for n in alive if capacity_reason(spec, st, d, n) == Reason.ALLOWED]
    if draw.random() < 0.2:
        return r
    if state.spec.deployments[d].gang_size > 1:
        if hold_group(spec, st, state.now_s, r):
            st.replica_phase[r] = ReplicaPhase.STARTING
    elif nodes:
        hold(spec, st, r, int(draw.choice(nodes)))
        st.replica_phase[r] = ReplicaPhase.STARTING
    return r


def our_outcome(look: Look) -> Outcome:
    """One step of the simulator, with targets that bounds force upon the autoscaler."""
    state, settings = look.state, look.state.spec.settings
    look_back_s = np.array([d.autoscaling.look_back_period_s for d in state.spec.deployments])
    nothing = np.zeros((1, state.spec.num_deployments))
    traffic = Traffic.of_steps(
        nothing, look_back_s=look_back_s, step_s=settings.substep_s, tokens_per_ongoing_s=np.ones(nothing.shape[1])
    )
    assert settings.substep_s == STEP_S
    sim = Simulator(state, traffic, Limits(), np.random.default_rng(0))
    state.spec.arrays.min_replicas[:] = state.spec.arrays.max_replicas[:] = look.target
    hidden, num = sim._hidden, len(look.is_due)
    hidden.replica_due_s[:num] = np.where(look.is_due, state.now_s + 1.0, np.inf)
    is_draining = state.arrays.node_phase == NodePhase.DRAINING
    hidden.node_notice_s[: len(is_draining)] = np.where(is_draining, look.end_s - GRACEFUL_SHUTDOWN_S, look.notice_s)
    hidden.node_end_s[: len(is_draining)] = look.end_s
    served = np.flatnonzero((state.arrays.replica_phase == ReplicaPhase.RUNNING) | look.is_due)
    sim.advance(1)
    st = sim.view.arrays
    waits = (st.replica_phase == ReplicaPhase.PENDING) | (st.replica_phase == ReplicaPhase.STARTING)
    waiting = np.bincount(st.replica_deployment[waits], minlength=len(look.target))
    return Outcome([int(r) for r in served if st.replica_phase[r] == ReplicaPhase.STOPPING], waiting.tolist())


def _rays(look: Look) -> Outcome:
    """``migrate_replicas_on_draining_nodes`` and ``scale_deployment_replicas`` of each, then ``schedule``."""
    st, clock = look.state.arrays, Clock(look.state.now_s + STEP_S)
    is_draining = (st.node_phase == NodePhase.DRAINING) | (look.notice_s <= clock.now_s)
    deadlines_ms = {node_id(n): 1000.0 * look.end_s[n] for n in np.flatnonzero(is_draining)}
    with packing(clock), clock.read_by(deployment_state):
        scheduler = _scheduler(look)
        deployments = [_Deployment(look, d, scheduler) for d in range(look.state.spec.num_deployments)]
        for deployment in deployments:
            deployment.migrate_replicas_on_draining_nodes(deadlines_ms)
        asked = {x._id: x.scale_deployment_replicas()[1] for x in deployments}
        downscales = {key: request for key, request in asked.items() if request is not None}
        for key, names in scheduler.schedule({}, downscales).items():
            next(x for x in deployments if x._id == key).stop(names)
    served = {
        r for x in deployments for r in x.stopped if st.replica_phase[r] == ReplicaPhase.RUNNING or look.is_due[r]
    }
    return Outcome(sorted(served), [x.num_waiting for x in deployments])


def _scheduler(look: Look) -> RaysScheduler:
    """Knows every replica; those that have just come to serve are the newest."""
    state, spec, st = look.state, look.state.spec, look.state.arrays
    scheduler = scheduler_of(state)
    for r in map(
        int, np.flatnonzero((st.replica_phase == ReplicaPhase.PENDING) | (st.replica_phase == ReplicaPhase.STARTING))
    ):
        for j in range(spec.deployments[st.replica_deployment[r]].gang_size):
            scheduler._on_replica_launching(replica_id(state, r, j))
    for r in map(int, np.flatnonzero(look.is_due)):
        for j in range(spec.deployments[st.replica_deployment[r]].gang_size):
            scheduler.on_replica_running(replica_id(state, r, j), node_id(member_node(spec.arrays, st, r, j)))
    return scheduler


class _Replica:
    """One replica, or member of a gang."""

    def __init__(self, look: Look, r: int, j: int) -> None:
        st, spec = look.state.arrays, look.state.spec
        size = spec.deployments[st.replica_deployment[r]].gang_size
        self.replica_id, self.version = replica_id(look.state, r, j), None
        self.actor_node_id = node_id(member_node(spec.arrays, st, r, j)) if st.replica_node[r] >= 0 else None
        self.gang_context = SimpleNamespace(gang_id=str(r), world_size=size)
        self.actor_details = SimpleNamespace(state=None)
        self._actor = SimpleNamespace(graceful_shutdown_timeout_s=GRACEFUL_SHUTDOWN_S)

    def update_state(self, state: ReplicaState) -> None:
        """As Ray does."""
        self.actor_details.state = state


class _Deployment(DeploymentState):
    """One deployment as Ray sees it after ``check_and_update_replicas``."""

    def __init__(self, look: Look, d: int, scheduler: RaysScheduler) -> None:
        st, self._gang_size = look.state.arrays, look.state.spec.deployments[d].gang_size
        any_: Any = SimpleNamespace
        self._id, self._deployment_scheduler = deployment_id(look.state.spec.deployments[d]), scheduler
        self._target_state = any_(target_num_replicas=int(look.target[d]) * self._gang_size, deleting=False)
        self._in_transition, self.stopped, self._num_new = True, set(), 0  # type: bool, set[int], int
        container: Any = ReplicaStateContainer
        self._replicas: Any = container()
        names = {}
        order = np.argsort(look.is_due, kind="stable")  # those that serve from now on come last
        for r, j in itertools.product(order[st.replica_deployment[order] == d].tolist(), range(self._gang_size)):
            replica: Any = _Replica(look, r, j)
            names[replica.replica_id] = str(r)
            was_told = st.replica_phase[r] == ReplicaPhase.RUNNING and st.replica_peer[r] >= 0
            serves = st.replica_phase[r] == ReplicaPhase.RUNNING or look.is_due[r]
            state = (
                ReplicaState.PENDING_MIGRATION
                if was_told
                else ReplicaState.RUNNING
                if serves
                else ReplicaState.STARTING
            )
            self._replicas.add(state, replica)
        self._gang_id_by_replica: Any = names
        self._replicas_by_gang_id: Any = {g: {n for n, of in names.items() if of == g} for g in names.values()}

    @property
    def num_waiting(self) -> int:
        """Replicas or gangs that do not serve yet."""
        waiting = self._replicas.count(states=[ReplicaState.STARTING]) + self._num_new
        assert waiting % self._gang_size == 0
        return int(waiting // self._gang_size)

    @property
    def _is_gang_deployment(self) -> bool:
        return self._gang_size > 1

    def get_gang_config(self) -> Any:
        """Of its size only."""
        return SimpleNamespace(gang_size=self._gang_size)

    def is_ingress_request_router(self) -> bool:
        """No."""
        return False

    def _stop_replica(self, replica: Any, graceful_stop: bool = True) -> None:
        self._replicas.add(ReplicaState.STOPPING, replica)
        self._deployment_scheduler.on_replica_stopping(replica.replica_id)
        self.stopped.add(replica_row(replica.replica_id.unique_id))

    def stop(self, names: Any) -> None:
        """What a downscale has chosen."""
        for replica in self._replicas.remove(names):
            self._stop_replica(replica)

    def _get_upscale_replicas(self, to_add: int, *args: object, **kwargs: object) -> list[Any]:
        self._num_new += to_add
        return []

    def _surge_rollout_in_progress(self) -> bool:
        return False

    def _check_and_stop_outdated_version_replicas(self) -> bool:
        return False

    def stop_deployment_actors_if_needed(self) -> None:
        """There are none."""

    def _get_deployment_actors_configs(self, version: object = None) -> list[Any]:
        return []
