"""Which node is emptied, and when: ``RayServe`` beside ``get_node_to_compact`` and the quiet time of its caller.

The caller is the real ``DeploymentStateManager.update``, with stand-ins for the deployments that it asks about health
and hands the node to. A sequence is a world that changes at random: time passes, replicas come, go and move, nodes
die, are released or launched. Both sides are asked after each change.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np
from ray.serve._private import deployment_state
from ray.serve._private.common import DeploymentID, DeploymentStatus, ReplicaID
from ray.serve._private.deployment_state import DeploymentStateManager

from rayfold.envs.safety import Limits
from rayfold.envs.state import ClusterState, ReplicaPhase
from rayfold.policies.ray_compaction import find_node
from rayfold.policies.ray_serve import RayServe
from tests.ray_oracle.clock import Clock
from tests.ray_oracle.scheduler import (
    RaysScheduler,
    deployment_id,
    node_id,
    node_row,
    packing,
    replica_id,
    replica_row,
    request,
    scheduler_of,
)
from tests.ray_oracle.states import random_cluster
from tests.ray_oracle.tally import Tally
from tests.ray_oracle.world import World

__all__ = ["LIMITS", "RaysManager", "agree", "destinations", "find_nodes", "sequences"]

LIMITS = Limits(max_concurrent_moves=100, deployment_cooldown_s=0.0, fence_s=1e6)
GPU_SHARES = (0.0, 0.25, 0.5, 1.0, 2.0)
STEPS = 60


def find_nodes(num_states: int, seed: int) -> Tally:
    """``_find_best_node_to_compact`` on random states, shares of devices included."""
    mismatches, found = [], 0
    for i in range(num_states):
        draw = np.random.default_rng([seed, i])
        phases = (ReplicaPhase.RUNNING,) * 5 + ((ReplicaPhase.STARTING, ReplicaPhase.STOPPING) if i % 3 == 0 else ())
        state = random_cluster(draw, gpus=GPU_SHARES, phases=phases)
        with packing(Clock()):
            rays = scheduler_of(state)._find_best_node_to_compact()
        ours = int(find_node(state.spec.arrays, state.arrays, np.zeros(state.spec.num_deployments, np.bool_)))
        found += rays is not None
        if ours != (-1 if rays is None else node_row(rays)):
            mismatches.append(f"seed {seed}, state {i}: ours {ours}, Ray's {rays}")
    assert num_states < 500 or 0.1 * num_states < found < 0.95 * num_states, (
        f"{found} of {num_states} states had such a node"
    )
    return Tally(num_states, num_states, tuple(mismatches))


def destinations(num_states: int, seed: int) -> Tally:
    """Where the replacements go, all started at once, beside ``schedule`` under a compaction; whole GPUs, no head."""
    mismatches, found, decisions = [], 0, 0
    for i in range(num_states):
        draw = np.random.default_rng([seed, i])
        state = random_cluster(draw, head_prob=0.0)
        st, ours = state.arrays, RayServe(LIMITS)
        chosen: dict[str, Any] = {}
        own = sorted((int(st.replica_deployment[m.replica_idx]), m.node_idx) for m in ours.plan(state, draw).moves)
        with packing(Clock(state.now_s)):
            scheduler = scheduler_of(state)
            node = scheduler.get_node_to_compact(allow_new_compaction=True)
            if node is None:
                continue
            upscales: dict[DeploymentID, list[Any]] = {}
            for r in np.flatnonzero((st.replica_node == node_row(node[0])) & (st.replica_phase != ReplicaPhase.EMPTY)):
                d = int(st.replica_deployment[r])
                key = deployment_id(state.spec.deployments[d])
                replacement = ReplicaID(f"{d} {len(upscales.get(key, []))}", key)
                upscales.setdefault(key, []).append(request(state, replacement, d, chosen))
            scheduler.schedule(dict(sorted(upscales.items(), key=lambda item: item[0].name)), {})
        rays = sorted((int(name.split()[0]), node_row(s.node_id)) for name, s in chosen.items())
        found, decisions = found + 1, decisions + len(rays)
        if own != rays or ours.node != node_row(node[0]):
            mismatches.append(f"seed {seed}, state {i}: ours {ours.node}: {own}, Ray's {node_row(node[0])}: {rays}")
    assert num_states < 500 or found > 0.2 * num_states, f"{found} of {num_states} states had such a node"
    return Tally(num_states, decisions, tuple(mismatches))


class _Deployment:
    """One deployment as ``DeploymentStateManager.update`` asks for it."""

    def __init__(self, manager: "RaysManager", d: int) -> None:
        self._manager, self._d, self.target_version = manager, d, None
        self._replicas = self

    def count(self) -> int:
        """All replicas, whatever their phase."""
        return int((self._manager.state.arrays.replica_deployment == self._d).sum())

    def get_num_running_replicas(self, version: object) -> int:
        """Those that serve."""
        st = self._manager.state.arrays
        return int(((st.replica_deployment == self._d) & (st.replica_phase == ReplicaPhase.RUNNING)).sum())

    @property
    def target_num_replicas(self) -> int:
        """Wanted."""
        return int(self._manager.state.arrays.deployment_target[self._d])

    @property
    def curr_status_info(self) -> Any:
        """HEALTHY once the target is met, as ``check_curr_status`` would say."""
        is_met = self.count() == self.get_num_running_replicas(None) == self.target_num_replicas
        return SimpleNamespace(status=DeploymentStatus.HEALTHY if is_met else DeploymentStatus.UPSCALING)

    def check_curr_status(self) -> tuple[bool, bool]:
        """Neither deleted nor recovering."""
        return False, False

    def scale_deployment_replicas(self, **kwargs: object) -> tuple[list[Any], None]:
        """Asks for the replicas that are PENDING and that Ray has not heard of."""
        st, scheduler = self._manager.state.arrays, self._manager.scheduler
        is_pending = (st.replica_deployment == self._d) & (st.replica_phase == ReplicaPhase.PENDING)
        rows = [int(r) for r in np.flatnonzero(is_pending)]
        key = deployment_id(self._manager.state.spec.deployments[self._d])
        known = {*scheduler._pending_replicas[key], *scheduler._launching_replicas[key]}
        new = [replica for r in rows if (replica := self._manager.name(self._manager.state, r)) not in known]
        return [request(self._manager.state, replica, self._d, self._manager.chosen) for replica in new], None

    def __getattr__(self, name: str) -> Any:
        """The rest of ``update`` concerns actors, broadcasts and autoscaling, and there are none."""
        return lambda *args, **kwargs: False


class RaysManager:
    """Ray's ``DeploymentStateManager.update`` and its real scheduler, on one state after another."""

    def __init__(self, state: ClusterState) -> None:
        self.state, self.chosen = state, {}  # type: ClusterState, dict[str, Any]
        self.scheduler: RaysScheduler = scheduler_of(state)
        self._lives = [0] * len(state.arrays.replica_phase)
        manager: Any = DeploymentStateManager.__new__(DeploymentStateManager)
        manager._deployment_states = {
            deployment_id(deployment): _Deployment(self, d) for d, deployment in enumerate(state.spec.deployments)
        }
        manager._cluster_node_info_cache = self.scheduler._cluster_node_info_cache
        manager._deployment_scheduler = self.scheduler
        manager._all_deployments_healthy = False
        manager._last_became_stable_at = None
        manager._reserve_gang_placement_groups = dict
        manager._handle_scheduling_request_failures = lambda *a: None
        manager._deployment_status_gauge = SimpleNamespace(set=lambda *a, **k: None)
        self.manager = manager

    def name(self, state: ClusterState, r: int) -> ReplicaID:
        """Ray's name of the replica that has row ``r`` now."""
        return replica_id(state, r, self._lives[r])

    @property
    def node(self) -> int | None:
        """Row of the node that Ray empties."""
        info = self.scheduler._compacting_node
        return None if info is None else node_row(info.target_node_id)

    def look(self, state: ClusterState) -> dict[int, int]:
        """One update of Ray on what the cluster has become.

        Returns:
            Node rows that Ray has just chosen, for PENDING rows.
        """
        self.tell(state)
        self.chosen.clear()
        self.manager.update()
        return {replica_row(r): node_row(s.node_id) for r, s in self.chosen.items() if hasattr(s, "node_id")}

    def tell(self, state: ClusterState) -> None:
        """Tells Ray's scheduler what has changed, without asking it anything."""
        before, self.state = self.state, state
        self.manager._cluster_node_info_cache.state = state
        for r in range(len(state.arrays.replica_phase)):
            self._tell(before, state, r)

    def _tell(self, before: ClusterState, after: ClusterState, r: int) -> None:
        old, new = before.arrays, after.arrays
        known = (ReplicaPhase.PENDING, ReplicaPhase.STARTING, ReplicaPhase.RUNNING)
        is_same = old.replica_deployment[r] == new.replica_deployment[r]
        is_older = is_same and old.replica_phase[r] <= new.replica_phase[r] <= ReplicaPhase.RUNNING
        if old.replica_phase[r] in known and not is_older:
            self.scheduler.on_replica_stopping(self.name(before, r))
            self._lives[r] += 1
        if new.replica_phase[r] == ReplicaPhase.STARTING:
            self.scheduler._on_replica_launching(self.name(after, r), target_node_id=node_id(new.replica_node[r]))
        elif new.replica_phase[r] == ReplicaPhase.RUNNING:
            self.scheduler.on_replica_running(self.name(after, r), node_id(new.replica_node[r]))


def agree(ours: RayServe, rays: RaysManager) -> bool:
    """Same node, same failures in a row, same times before which nothing is begun."""
    theirs = rays.scheduler
    return (ours.node, ours.num_failures, ours.not_before_s, ours.next_scan_s) == (
        rays.node,
        theirs._num_consecutive_failed_compactions,
        theirs._next_allowed_compaction_timestamp_s,
        theirs._next_compaction_scan_timestamp_s,
    )


def sequences(num_states: int, seed: int, max_mismatches: int = 1000) -> Tally:
    """Nodes, failures, back-off and scans over random worlds of ``STEPS`` looks each."""
    mismatches: list[str] = []
    begun = ended = 0
    for i in range(max(1, num_states // STEPS)):
        if len(mismatches) >= max_mismatches:
            return Tally(i * STEPS, i * STEPS, tuple(mismatches))
        draw, clock = np.random.default_rng([seed, i]), Clock()
        with packing(clock), clock.read_by(deployment_state, RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY=True):
            world = World(random_cluster(draw, gpus=GPU_SHARES), draw)
            clock.now_s = world.state.now_s - 3600.0
            rays, ours = RaysManager(world.snapshot()), RayServe(LIMITS)
            rays.look(world.snapshot())
            for step in range(STEPS):
                previous = ours.node
                clock.now_s = world.advance(ours.node)
                world.place(rays.look(world.snapshot()))
                ours.plan(world.snapshot(), draw)
                begun, ended = begun + (previous != ours.node is not None), ended + (previous is not None != ours.node)
                if not agree(ours, rays):
                    mismatches.append(f"seed {seed}, world {i}, step {step}: ours {ours.node}, Ray's {rays.node}")
                    break
    assert mismatches or num_states < 10 * STEPS or min(begun, ended) > num_states / STEPS / 2, (
        f"{begun} begun, {ended} ended"
    )
    return Tally(num_states // STEPS * STEPS, num_states // STEPS * STEPS, tuple(mismatches))
