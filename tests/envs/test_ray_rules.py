"""Rules ported from Ray Serve, run beside Ray's own classes on random states."""

import random
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st_
from ray.serve import autoscaling_policy
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve._private.deployment_scheduler import AvailableNodeResources, DeploymentScheduler, RequestedResources
from ray.serve.config import AutoscalingConfig

from rayfold.envs.placement import next_to_stop, pack_node
from rayfold.envs.replica_autoscaler import decide_target
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase
from tests.envs.clusters import random_state

# Ray ships no types for these.
NodeRoom: Any = AvailableNodeResources
Need: Any = RequestedResources


class Clock:
    """Stands in for the module ``time`` that Ray's policy reads."""

    now_s = 1000.0

    def time(self) -> float:
        """Present time."""
        return self.now_s


class Context:
    """The fields of ``AutoscalingContext`` that the policy reads."""

    def __init__(self, config: AutoscalingConfig, running: int, target: int, total: float, state: dict[str, Any]):
        self.config, self.policy_state = config, state
        self.current_num_replicas, self.target_num_replicas, self.total_num_requests = running, target, total


@settings(max_examples=150, deadline=None, derandomize=True)
@given(seed=st_.integers(0, 10**9))
def test_decide_target_is_rays_default_policy(seed: int) -> None:
    """Forty decisions in a row agree: factors, delays, bounds, scale from zero, with time that goes on unevenly."""
    rng = random.Random(seed)
    low, high = rng.choice([0, 1, 2]), rng.randint(3, 12)
    config = AutoscalingConfig(
        min_replicas=low,
        max_replicas=high,
        target_ongoing_requests=rng.choice([1, 2, 5, 7.5]),
        upscale_delay_s=rng.choice([0, 5, 30]),
        downscale_delay_s=rng.choice([0, 20, 60]),
        upscaling_factor=rng.choice([0.5, 1.0, 2.0]),
        downscaling_factor=rng.choice([0.3, 1.0]),
    )
    policy = autoscaling_policy._apply_autoscaling_config(autoscaling_policy._core_replica_queue_length_policy)
    clock = Clock()
    ray_state: dict[str, Any] = {}
    target = ray_target = rng.randint(low, high)
    since_s, direction, running = float("inf"), 0, target
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autoscaling_policy, "time", clock)
        for _ in range(40):
            clock.now_s += rng.choice([0.5, 5.0, 10.0])
            total = rng.choice([0.0, rng.uniform(0, 60)])
            target, since_s, direction = decide_target(
                clock.now_s,
                total,
                running,
                target,
                since_s,
                direction,
                config.get_target_ongoing_requests(),
                config.get_upscaling_factor(),
                config.get_downscaling_factor(),
                config.upscale_delay_s,
                config.downscale_delay_s,
                config.downscale_delay_s,
                low,
                high,
            )
            decided, ray_state = policy(Context(config, running, ray_target, total, ray_state))  # type: ignore[arg-type]
            ray_target = max(low, min(high, decided))
            assert target == ray_target
            running = rng.randint(0, target)


class NodeInfo:
    """Ray's ``ClusterNodeInfoCache`` over one of our states: unit tests of Ray mock it likewise."""

    def __init__(self, state: ClusterState) -> None:
        self.state = state

    def get_active_node_ids(self) -> set[str]:
        """Nodes that are alive."""
        return {str(n) for n in np.flatnonzero(self.state.arrays.node_phase == NodePhase.ALIVE)}

    def get_node_labels(self, node_id: str) -> dict[str, str]:
        """Labels of a node's type."""
        return dict(self.state.spec.node_types[self.state.arrays.node_type[int(node_id)]].labels)


def rays_scheduler(state: ClusterState) -> DeploymentScheduler:
    """Ray's scheduler that knows the replicas of a state; row r is replica ``str(r)``, created in order of rows."""
    st = state.arrays
    head = next((str(n) for n in np.flatnonzero(st.node_is_head)), "none")
    scheduler = DeploymentScheduler(NodeInfo(state), head, lambda *a, **k: None)  # type: ignore[arg-type]
    for deployment in state.spec.deployments:
        deployment_id = DeploymentID(name=deployment.name, app_name=deployment.app)
        scheduler.on_deployment_created(deployment_id, None)  # type: ignore[arg-type]
        scheduler._deployments[deployment_id].label_selector = dict(deployment.label_selector) or None
    for r in np.flatnonzero(st.replica_phase == ReplicaPhase.RUNNING):
        deployment = state.spec.deployments[st.replica_deployment[r]]
        deployment_id = DeploymentID(name=deployment.name, app_name=deployment.app)
        scheduler.on_replica_running(ReplicaID(str(r), deployment_id), str(st.replica_node[r]))
    return scheduler


def test_pack_node_is_rays_choice() -> None:
    """On 300 random states, for every whole-GPU deployment: the same node, or none on both sides."""
    chosen = 0
    for seed in range(300):
        state = random_state(np.random.default_rng(seed))
        st, spec = state.arrays, state.spec
        st.node_fenced_until_s[:] = -np.inf  # Ray has no fences
        st.node_is_head[:] = False
        # Ray sums shares of devices; without them both see the same room.
        for r in np.flatnonzero(st.replica_deployment == 2):
            st.node_free[st.replica_node[r], 0] -= 0.5
            st.gpu_free[st.replica_node[r]][np.argmin(st.gpu_free[st.replica_node[r]] % 1.0 == 0)] = 0.0
        scheduler = rays_scheduler(state)
        held: Any = defaultdict(set)
        for r in np.flatnonzero(st.replica_node >= 0):
            held[str(st.replica_node[r])].add(str(r))
        for d in (0, 1, 4):
            deployment = spec.deployments[d]
            room = {
                str(n): NodeRoom(
                    {"GPU": float((st.gpu_free[n] >= 1).sum()), "CPU": st.node_free[n, 1], "memory": st.node_free[n, 2]}
                )
                for n in np.flatnonzero(st.node_phase == NodePhase.ALIVE)
            }
            st.node_free[:, 0] = (st.gpu_free >= 1).sum(1)
            need = Need({"GPU": deployment.shape.total("GPU"), "CPU": deployment.shape.total("CPU")})
            labels = [dict(deployment.label_selector)] if deployment.label_selector else None
            rays = scheduler._find_best_fit_node_for_pack(
                need,
                room,
                held,
                required_labels_list=labels,
                node_labels={n: NodeInfo(state).get_node_labels(n) for n in room},
            )
            ours = pack_node(spec.arrays, st, state.now_s, d)
            assert (None if ours < 0 else str(ours)) == rays or tie(room, ours, rays, held), (seed, d, ours, rays)
            chosen += ours >= 0
    assert chosen > 200


def tie(room: dict[str, Any], ours: int, rays: str | None, held: dict[str, set[str]]) -> bool:
    """Equal room on equally occupied nodes: Ray then takes whichever its dict lists first."""
    if ours < 0 or rays is None:
        return False
    same_room = not (room[str(ours)] < room[rays]) and not (room[rays] < room[str(ours)])
    return same_room and bool(held[str(ours)]) == bool(held[rays])


def test_next_to_stop_is_rays_choice() -> None:
    """On 300 random states without moves: the first replica to stop is one that Ray would stop first."""
    compared = 0
    for seed in range(300):
        state = random_state(np.random.default_rng(seed))
        st = state.arrays
        # Ray knows no node of a replica that is not running; only running ones are compared.
        for r in np.flatnonzero((st.replica_phase != ReplicaPhase.RUNNING) & (st.replica_phase != ReplicaPhase.EMPTY)):
            st.replica_deployment[r], st.replica_node[r], st.replica_phase[r] = -1, -1, ReplicaPhase.EMPTY
        scheduler, serial = rays_scheduler(state), np.arange(len(st.replica_phase))
        for d, deployment in enumerate(state.spec.deployments):
            rows = np.flatnonzero(st.replica_deployment == d)
            if not len(rows):
                continue
            rays = scheduler._get_replicas_to_stop(DeploymentID(name=deployment.name, app_name=deployment.app), 1)
            ours = int(next_to_stop(st, d, serial))
            first = int(next(iter(rays)).unique_id)
            compared += 1
            assert ours == first or stop_key(state, ours) == stop_key(state, first), (seed, d)
    assert compared > 300


def stop_key(state: ClusterState, r: int) -> tuple[bool, int]:
    """What Ray orders nodes by; equal nodes come in the order of its dict."""
    st = state.arrays
    n = st.replica_node[r]
    return bool(st.node_is_head[n]), int((st.replica_node == n).sum())
