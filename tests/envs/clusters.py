"""Small clusters built by hand, for the tests of this room."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from rayfold.envs.cluster import (
    AutoscalingConfig,
    ClusterSettings,
    ClusterSpec,
    Deployment,
    Interval,
    NodeType,
    ReplicaShape,
    SchedulingStrategy,
)
from rayfold.envs.placement import hold
from rayfold.envs.safety import capacity_reason
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase, StateArrays
from rayfold.envs.traffic import Traffic

__all__ = [
    "add_node",
    "add_replica",
    "constant_traffic",
    "empty_state",
    "random_state",
    "small_spec",
    "varying_traffic",
]


def small_spec(
    scheduling: SchedulingStrategy = SchedulingStrategy.PACK, min_nodes: int = 0, idle_timeout_s: float = 60.0
) -> ClusterSpec:
    """4-GPU nodes at 4 USD/h, labelled 2-GPU nodes at 6 USD/h, and a deployment for each rule of the filter."""
    quick = {"startup_s": Interval(30.0, 30.0), "drain_s": Interval(10.0, 10.0)}
    scaling = AutoscalingConfig(
        min_replicas=1, max_replicas=6, target_ongoing_requests=2, upscale_delay_s=10, downscale_delay_s=20
    )

    def deployment(name: str, gpus: float, **more: object) -> Deployment:
        shape = ReplicaShape(bundles=({"GPU": gpus, "CPU": 1.0},))
        return Deployment(name=name, shape=shape, autoscaling=scaling, **quick, **more)  # type: ignore[arg-type]

    return ClusterSpec(
        node_types=(
            NodeType(
                name="plain",
                resources={"GPU": 4.0, "CPU": 8.0, "memory_gib": 64.0},
                price_usd_per_h=4.0,
                min_nodes=min_nodes,
                max_nodes=5,
                boot_s=Interval(40.0, 40.0),
            ),
            NodeType(
                name="gold",
                resources={"GPU": 2.0, "CPU": 8.0, "memory_gib": 64.0},
                price_usd_per_h=6.0,
                labels={"tier": "gold"},
                max_nodes=2,
                boot_s=Interval(40.0, 40.0),
            ),
        ),
        deployments=(
            deployment("one", 1.0),
            deployment("two", 2.0),
            deployment("half", 0.5),
            deployment("single", 1.0, max_replicas_per_node=1),
            deployment("golden", 1.0, label_selector={"tier": "gold"}),
            deployment("fixed", 1.0, is_movable=False),
        ),
        settings=ClusterSettings(
            scheduling=scheduling, idle_timeout_s=idle_timeout_s, decision_interval_s=10.0, substep_s=5.0
        ),
    )


def empty_state(spec: ClusterSpec, now_s: float = 1000.0, num_nodes: int = 5, num_replicas: int = 24) -> ClusterState:
    """No node and no replica."""
    return ClusterState(spec=spec, now_s=now_s, arrays=StateArrays.empty(spec, num_nodes, num_replicas))


def add_node(state: ClusterState, n: int, node_type: int = 0, phase: NodePhase = NodePhase.ALIVE) -> int:
    """Puts an empty node into row ``n``."""
    st, spec = state.arrays, state.spec.arrays
    st.node_type[n], st.node_phase[n] = node_type, int(phase)
    st.node_free[n] = spec.type_capacity[node_type]
    st.gpu_free[n, : spec.type_num_gpus[node_type]] = 1.0
    st.node_idle_since_s[n] = state.now_s
    return n


def add_replica(state: ClusterState, d: int, n: int, phase: ReplicaPhase = ReplicaPhase.RUNNING) -> int:
    """Puts a replica of deployment ``d`` onto node ``n``, without asking whether it fits."""
    st = state.arrays
    r = int(np.flatnonzero(st.replica_phase == ReplicaPhase.EMPTY)[0])
    st.replica_deployment[r], st.replica_phase[r], st.replica_since_s[r] = d, int(phase), state.now_s
    hold(state.spec.arrays, st, r, n)
    st.deployment_target[d] += 1
    return r


def random_state(rng: np.random.Generator, spec: ClusterSpec | None = None) -> ClusterState:
    """Random nodes and replicas that fit, some pending, starting or draining, some nodes fenced, pinned or the head."""
    spec = spec or small_spec()
    state = empty_state(spec)
    st = state.arrays
    for n in range(len(st.node_type)):
        if rng.random() < 0.85:
            phase = NodePhase.ALIVE if rng.random() < 0.9 else NodePhase.BOOTING
            add_node(state, n, int(rng.random() < 0.3), phase)
            st.node_fenced_until_s[n] = state.now_s + 100 if rng.random() < 0.15 else -np.inf
            st.node_releasable[n] = rng.random() < 0.9
    if rng.random() < 0.3:
        st.node_is_head[int(rng.integers(len(st.node_type)))] = True
    phases = [ReplicaPhase.RUNNING] * 6 + [ReplicaPhase.STARTING, ReplicaPhase.STOPPING]
    for _ in range(int(rng.integers(0, 20))):
        d, n = int(rng.integers(spec.num_deployments)), int(rng.integers(len(st.node_type)))
        if st.node_phase[n] == NodePhase.ALIVE and capacity_reason(spec.arrays, st, d, n) == 0:
            add_replica(state, d, n, phases[int(rng.integers(len(phases)))])
    st.deployment_moved_s[:] = np.where(rng.random(spec.num_deployments) < 0.3, state.now_s - 50.0, -np.inf)
    return state


def constant_traffic(spec: ClusterSpec, ongoing: dict[str, float], num_steps: int) -> Traffic:
    """The same offered load in every step; 0 for deployments not named."""
    row = np.array([ongoing.get(d.name, 0.0) for d in spec.deployments])
    steps = np.tile(row, (num_steps, 1))
    return Traffic.of_steps(
        steps,
        look_back_s=np.array([d.autoscaling.look_back_period_s for d in spec.deployments]),
        step_s=spec.settings.substep_s,
        tokens_per_ongoing_s=np.full(spec.num_deployments, 10.0),
    )


def varying_traffic(spec: ClusterSpec, ongoing: Mapping[str, ArrayLike], num_steps: int) -> Traffic:
    """Offered load step by step, 0 where not named; metrics look back on one step only: they show it at once."""
    steps = np.zeros((num_steps, spec.num_deployments))
    for d, deployment in enumerate(spec.deployments):
        steps[:, d] = ongoing.get(deployment.name, 0.0)
    return Traffic.of_steps(
        steps,
        look_back_s=np.full(spec.num_deployments, spec.settings.substep_s),
        step_s=spec.settings.substep_s,
        tokens_per_ongoing_s=np.full(spec.num_deployments, 10.0),
    )
