"""Random clusters for the comparisons: small, crowded, with the ties and the shapes that rules stumble over."""

from dataclasses import replace
from typing import Any

import numpy as np

from rayfold.envs.cluster import (
    AutoscalingConfig,
    ClusterSettings,
    ClusterSpec,
    Deployment,
    Interval,
    NodeType,
    PlacementGroupStrategy,
    ReplicaShape,
    SchedulingStrategy,
)
from rayfold.envs.groups import hold_group
from rayfold.envs.placement import let_go
from rayfold.envs.safety import Reason, capacity_reason
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase
from tests.envs.clusters import add_node, add_replica, empty_state

__all__ = ["NOW_S", "random_cluster", "random_spec", "settle"]

NOW_S = 10_000.0
NUM_NODES, NUM_REPLICAS = 7, 40
STRATEGIES = (PlacementGroupStrategy.PACK, PlacementGroupStrategy.SPREAD)


def random_spec(
    draw: np.random.Generator, *, gpus: tuple[float, ...] = (0.0, 1.0, 2.0), num_gangs: int = 0
) -> ClusterSpec:
    """One to three node types, two to five deployments, and so many gangs beside them.

    At most one resource beside GPU, CPU and memory: with two, Ray compares them in the order of a set of strings.
    That is either a custom resource or one deployment's ``max_replicas_per_node``.
    """
    extra = draw.choice(["none", "custom", "limit"])
    quick = {"startup_s": Interval(30.0, 30.0), "drain_s": Interval(10.0, 10.0)}
    types = []
    for t in range(int(draw.integers(1, 4))):
        resources = {
            "GPU": float(draw.choice([1, 2, 4])),
            "CPU": float(draw.choice([4, 8])),
            "memory_gib": float(draw.choice([16, 31.6, 32, 64])),
        }
        if extra == "custom" and draw.random() < 0.7:
            resources["disk"] = float(draw.choice([1, 2]))
        labels = {"zone": str(draw.choice(["a", "b"]))} if draw.random() < 0.6 else {}
        types.append(NodeType(name=f"t{t}", resources=resources, price_usd_per_h=1.0 + t, labels=labels, max_nodes=9))
    deployments = []
    for d in range(int(draw.integers(2, 6)) + num_gangs):
        bundle = {"GPU": float(draw.choice(gpus)), "CPU": float(draw.choice([1, 1, 2, 3]))}
        if draw.random() < 0.4:
            bundle["memory_gib"] = float(draw.choice([4, 8, 15.5]))
        if extra == "custom" and draw.random() < 0.4:
            bundle["disk"] = float(draw.choice([0.5, 1]))
        more: dict[str, Any] = {}
        if extra == "limit" and d == 0:
            more["max_replicas_per_node"] = int(draw.integers(1, 4))
        if draw.random() < 0.3:
            more["label_selector"] = {"zone": str(draw.choice(["a", "b"]))}
            more["label_fallbacks"] = [(), ({},), ({"zone": "a"}, {"zone": "b"})][int(draw.integers(3))]
        scaling = AutoscalingConfig(min_replicas=0, max_replicas=30)
        shape = ReplicaShape(bundles=({k: v for k, v in bundle.items() if v > 0},))
        deployments.append(Deployment(name=f"d{d}", shape=shape, autoscaling=scaling, **quick, **more))  # type: ignore[arg-type]
    for d in range(len(deployments) - num_gangs, len(deployments)):
        more = {"gang_size": int(draw.integers(2, 5)), "gang_strategy": STRATEGIES[int(draw.integers(2))]}
        deployments[d] = replace(deployments[d], max_replicas_per_node=0, label_selector={}, label_fallbacks=(), **more)
    deployments = [deployments[d] for d in draw.permutation(len(deployments))] if num_gangs else deployments
    return ClusterSpec(
        node_types=tuple(types),
        deployments=tuple(deployments),
        settings=ClusterSettings(scheduling=SchedulingStrategy.PACK),
    )


def random_cluster(
    draw: np.random.Generator,
    *,
    gpus: tuple[float, ...] = (0.0, 1.0, 2.0),
    phases: tuple[ReplicaPhase, ...] = (ReplicaPhase.RUNNING,),
    head_prob: float = 0.3,
    num_gangs: int = 0,
) -> ClusterState:
    """Random nodes of a random spec, filled to a random degree; replicas fit, devices included."""
    spec = random_spec(draw, gpus=gpus, num_gangs=num_gangs)
    state = empty_state(spec, now_s=NOW_S, num_nodes=NUM_NODES, num_replicas=NUM_REPLICAS)
    st = state.arrays
    for n in range(int(draw.integers(2, NUM_NODES + 1))):
        add_node(state, n, int(draw.integers(len(spec.node_types))))
    if draw.random() < head_prob:
        st.node_is_head[0] = True
    alive = np.flatnonzero(st.node_phase == NodePhase.ALIVE)
    for _ in range(int(draw.integers(1, 6 * len(alive)))):
        d, n = int(draw.integers(spec.num_deployments)), int(draw.choice(alive))
        if spec.deployments[d].gang_size > 1:
            _add_gang(state, d)
        elif capacity_reason(spec.arrays, st, d, n) == Reason.ALLOWED:
            add_replica(state, d, n, phases[int(draw.integers(len(phases)))])
    for r in np.flatnonzero((st.replica_phase != ReplicaPhase.EMPTY) & (draw.random(NUM_REPLICAS) < draw.random() / 2)):
        st.deployment_target[st.replica_deployment[r]] -= 1  # leaves shares of devices behind
        let_go(spec.arrays, st, int(r), NOW_S)
    return settle(state)


def _add_gang(state: ClusterState, d: int) -> None:
    """A running gang, if there is room for one."""
    st = state.arrays
    r = int(np.flatnonzero(st.replica_phase == ReplicaPhase.EMPTY)[0])
    st.replica_deployment[r], st.replica_phase[r] = d, ReplicaPhase.PENDING
    if hold_group(state.spec.arrays, st, state.now_s, r):
        st.replica_phase[r], st.replica_since_s[r] = ReplicaPhase.RUNNING, state.now_s
        st.deployment_target[d] += 1
    else:
        let_go(state.spec.arrays, st, r, state.now_s)


def settle(state: ClusterState) -> ClusterState:
    """Nothing has changed for an hour."""
    state.arrays.deployment_changed_s[:] = state.now_s - 3600.0
    return state
