"""Gangs beside ``DeploymentScheduler``: what one asks for, which one a downscale stops, what it is to the others."""

from typing import Any

import numpy as np
from ray.serve._private.common import GangPlacementGroupRequest
from ray.serve._private.deployment_scheduler import DeploymentDownscaleRequest

from rayfold.envs.cluster import Deployment, PlacementGroupStrategy, ReplicaShape
from rayfold.envs.state import ClusterState, ReplicaPhase
from rayfold.policies.ray_compaction import find_node
from tests.ray_oracle import ours
from tests.ray_oracle.clock import Clock
from tests.ray_oracle.placement import add_pending, rays_nodes
from tests.ray_oracle.scheduler import as_ray, deployment_id, node_row, packing, replica_id, replica_row, scheduler_of
from tests.ray_oracle.states import STRATEGIES, random_cluster
from tests.ray_oracle.tally import Tally

__all__ = ["beside_gangs", "gang_groups", "gangs_to_stop", "node_without_gang"]


def _cluster(draw: np.random.Generator) -> ClusterState:
    return random_cluster(draw, num_gangs=int(draw.integers(1, 3)))


def gangs_to_stop(num_states: int, seed: int) -> Tally:
    """``_get_replicas_to_stop`` by one to three gangs, or replicas of a deployment beside them."""
    mismatches, decisions, spanning = [], 0, 0
    for i in range(num_states):
        draw = np.random.default_rng([seed, i])
        state = _cluster(draw)
        st = state.arrays
        present = st.replica_deployment[st.replica_phase != ReplicaPhase.EMPTY]
        if not len(present):
            continue
        d = int(draw.choice(present))
        rows = [int(r) for r in np.flatnonzero(st.replica_deployment == d)]
        count, size = min(int(draw.integers(1, 4)), len(rows)), state.spec.deployments[d].gang_size
        members = {r: [replica_id(state, r, j) for j in range(size)] for r in rows}
        by_gang: dict[str, Any] = {
            "gang_id_by_replica": {name: str(r) for r, names in members.items() for name in names},
            "replicas_by_gang_id": {str(r): set(names) for r, names in members.items()},
            "gang_size": size,
        }
        key = deployment_id(state.spec.deployments[d])
        asked = DeploymentDownscaleRequest(key, count * size, **(by_gang if size > 1 else {}))
        with packing(Clock(state.now_s)):
            rays = scheduler_of(state).schedule({}, {key: asked})[key]
        theirs = sorted({replica_row(name.unique_id) for name in rays})
        spanning += int(st.replica_spans[rows].any())
        own = sorted(ours.stop(state, d, count, np.arange(len(st.replica_phase))))
        decisions += 1
        if own != theirs or len(rays) != count * size:
            mismatches.append(f"seed {seed}, state {i}: ours {own}, Ray's {theirs}")
    assert num_states < 500 or spanning > 0.05 * num_states, f"{spanning} states with a gang on several nodes"
    return Tally(num_states, decisions, tuple(mismatches))


def beside_gangs(num_states: int, seed: int) -> Tally:
    """Pack placement of batches in clusters with gangs: their nodes count as in use, and Serve still packs."""
    mismatches, decisions = [], 0
    for i in range(num_states):
        draw = np.random.default_rng([seed, i])
        state = _cluster(draw)
        add_pending(state, draw, [d for d, x in enumerate(state.spec.deployments) if x.gang_size == 1])
        decisions += int((state.arrays.replica_phase == ReplicaPhase.PENDING).sum())
        before = ClusterState(spec=state.spec, now_s=state.now_s, arrays=state.arrays.copy())
        rays, own = rays_nodes(before), ours.place(state)
        if rays != own:
            mismatches.append(f"seed {seed}, state {i}: ours {own}, Ray's {rays}")
    return Tally(num_states, decisions, tuple(mismatches))


def node_without_gang(num_states: int, seed: int) -> Tally:
    """``_find_best_node_to_compact``: never a node that a member of a gang runs on, and such nodes are in use."""
    mismatches, found = [], 0
    for i in range(num_states):
        state = _cluster(np.random.default_rng([seed, i]))
        with packing(Clock()):
            rays = scheduler_of(state)._find_best_node_to_compact()
        is_gang = np.array([d.gang_size > 1 for d in state.spec.deployments])
        own = int(find_node(state.spec.arrays, state.arrays, is_gang))
        found += rays is not None
        if own != (-1 if rays is None else node_row(rays)):
            mismatches.append(f"seed {seed}, state {i}: ours {own}, Ray's {rays}")
    assert num_states < 500 or found > 0.02 * num_states, f"{found} of {num_states} states had such a node"
    return Tally(num_states, num_states, tuple(mismatches))


def gang_groups(num_states: int, seed: int) -> Tally:
    """The placement group that Serve asks the GCS for, one per gang: bundles in order, strategy."""
    mismatches = []
    state = random_cluster(np.random.default_rng(seed))
    for i in range(num_states):
        draw = np.random.default_rng([seed, i])
        bundles = tuple({"GPU": float(g), "CPU": 1.0} for g in draw.choice([0.5, 1, 2], int(draw.integers(1, 4))))
        strategy = PlacementGroupStrategy.NONE if len(bundles) == 1 else PlacementGroupStrategy.PACK
        gang = Deployment(
            name="gang",
            shape=ReplicaShape(bundles=bundles, strategy=strategy),
            gang_size=int(draw.integers(2, 6)),
            gang_strategy=STRATEGIES[int(draw.integers(2))],
        )
        asked: list[Any] = []
        scheduler, count = scheduler_of(state), int(draw.integers(1, 4))
        scheduler._create_placement_group_fn = asked.append
        each = [as_ray(dict(b)) for b in bundles]
        with packing(Clock()):
            scheduler.schedule_gang_placement_groups(
                {
                    deployment_id(gang): GangPlacementGroupRequest(
                        deployment_id=deployment_id(gang),
                        gang_size=gang.gang_size,
                        gang_placement_strategy=gang.gang_strategy.value,
                        num_replicas_to_add=count * gang.gang_size,
                        replica_resource_dict=each[0],
                        replica_placement_group_bundles=each if len(each) > 1 else None,
                    )
                }
            )
        own = [([as_ray(dict(b)) for b in gang.bundles], gang.strategy.value)] * count
        theirs = [(a.bundles, a.strategy) for a in asked]
        if own != theirs:
            mismatches.append(f"seed {seed}, state {i}: ours {own}, Ray's {theirs}")
    return Tally(num_states, num_states, tuple(mismatches))
