"""Ray's ``DeploymentScheduler`` that knows a ``ClusterState``.

Row r is replica ``replica_id(r)``, row n is node ``node_id(n)``. Only iteration orders are ours: nodes come by row, and
so do the replicas of a node, where Ray iterates over sets of strings.
"""

from typing import Any

import numpy as np
from ray.serve._private import deployment_scheduler
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve._private.deployment_scheduler import (
    DeploymentScheduler,
    ReplicaSchedulingRequest,
    RequestedResources,
    SpreadDeploymentSchedulingPolicy,
)

from rayfold.envs.cluster import BYTES_PER, Deployment
from rayfold.envs.placement import member_node
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase
from tests.ray_oracle.clock import Clock

__all__ = [
    "NodeInfo",
    "RaysScheduler",
    "deployment_id",
    "node_id",
    "node_row",
    "packing",
    "replica_id",
    "request",
    "scheduler_of",
]

_LIVES = 10_000
_RAY_NAME = {"memory_gib": "memory"}
Need: Any = RequestedResources  # Ray ships no types


def deployment_id(deployment: Deployment) -> DeploymentID:
    """Ray's name of a deployment."""
    return DeploymentID(name=deployment.name, app_name=deployment.app)


def node_id(n: "int | np.integer[Any]") -> str:
    """Ray's name of node row ``n``: it wants 28 bytes in hex."""
    return f"{n:056x}"


def node_row(name: str) -> int:
    """The row of ``node_id``."""
    return int(name, 16)


def replica_id(state: ClusterState, r: int, life: int = 0) -> ReplicaID:
    """Ray's name of replica row ``r``; ``life`` counts who has had the row before, since Ray uses no name twice.

    Of a gang it counts the members.
    """
    name = str(r + _LIVES * life)
    return ReplicaID(name, deployment_id(state.spec.deployments[state.arrays.replica_deployment[r]]))


def replica_row(name: str) -> int:
    """The row of a name."""
    return int(name) % _LIVES


def as_ray(resources: dict[str, float]) -> dict[str, float]:
    """Ray's names and units."""
    return {_RAY_NAME.get(name, name): value * BYTES_PER.get(name, 1.0) for name, value in resources.items()}


def packing(clock: Clock) -> Any:
    """While it lasts, Ray packs and reads this clock."""
    return clock.read_by(deployment_scheduler, RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY=True)


class NodeInfo:
    """Ray's ``ClusterNodeInfoCache`` over a state; ``state`` may be exchanged as time goes on."""

    def __init__(self, state: ClusterState) -> None:
        self.state = state

    def get_active_node_ids(self) -> Any:
        """Nodes that are alive and not draining, by row: keys of a dict are a set that keeps its order."""
        return dict.fromkeys(node_id(n) for n in np.flatnonzero(self.state.arrays.node_phase == NodePhase.ALIVE)).keys()

    def get_draining_nodes(self) -> dict[str, float]:
        """Nodes in a phase after ALIVE."""
        return {node_id(n): np.inf for n in np.flatnonzero(self.state.arrays.node_phase > NodePhase.ALIVE)}

    def get_node_labels(self, name: str) -> dict[str, str]:
        """Labels of a node's type."""
        return dict(self.state.spec.node_types[self.state.arrays.node_type[node_row(name)]].labels)

    def get_total_resources_per_node(self) -> dict[str, dict[str, float]]:
        """Capacity of the nodes."""
        st, types = self.state.arrays, self.state.spec.node_types
        return {n: as_ray(dict(types[st.node_type[node_row(n)]].resources)) for n in self.get_active_node_ids()}

    def get_available_resources_per_node(self) -> dict[str, dict[str, float]]:
        """What the GCS reports: whatever anyone holds is gone, shares of devices are added up."""
        st, names = self.state.arrays, self.state.spec.resource_names
        return {
            n: as_ray(dict(zip(names, map(float, st.node_free[node_row(n)]), strict=True)))
            for n in self.get_active_node_ids()
        }


class RaysScheduler(DeploymentScheduler):
    """With replicas of a node in order of deployments and rows, where Ray has a set of them."""

    def _movable_replicas(self, replica_ids: Any) -> Any:
        order = list(self._deployments)

        def key(r: ReplicaID) -> tuple[int, int]:
            return order.index(r.deployment_id), replica_row(r.unique_id)

        return dict.fromkeys(sorted(super()._movable_replicas(replica_ids), key=key)).keys()


def scheduler_of(state: ClusterState) -> RaysScheduler:
    """Knows deployments, RUNNING replicas and STARTING ones of the state; rows count as order of creation."""
    st = state.arrays
    head = next((node_id(n) for n in np.flatnonzero(st.node_is_head)), "none")
    info_cache: Any = NodeInfo(state)
    scheduler = RaysScheduler(info_cache, head, lambda *a, **k: None)
    for deployment in state.spec.deployments:
        key = deployment_id(deployment)
        scheduler.on_deployment_created(key, SpreadDeploymentSchedulingPolicy())
        # Ray's dicts list deployments in the order in which they first had such a replica: here that of their rows.
        assert not scheduler._pending_replicas[key]
        assert not scheduler._running_replicas[key]
        info = scheduler._deployments[key]
        info.actor_resources = Need(as_ray({n: deployment.shape.total(n) for n in state.spec.resource_names}))
        info.label_selector = dict(deployment.label_selector) or None
        info.fallback_strategy = _fallbacks(deployment)
        info.max_replicas_per_node = deployment.max_replicas_per_node or None
        info.is_gang = deployment.gang_size > 1
    for r in map(int, np.flatnonzero(st.replica_phase == ReplicaPhase.STARTING)):
        scheduler._on_replica_launching(replica_id(state, r), target_node_id=node_id(st.replica_node[r]))
    for r in map(int, np.flatnonzero(st.replica_phase == ReplicaPhase.RUNNING)):
        for j in range(state.spec.deployments[st.replica_deployment[r]].gang_size):
            node = node_id(member_node(state.spec.arrays, st, r, j))
            scheduler.on_replica_running(replica_id(state, r, j), node)
    return scheduler


def _fallbacks(deployment: Deployment) -> list[dict[str, Any]] | None:
    return [{"label_selector": dict(selector)} for selector in deployment.label_fallbacks] or None


class _ActorClass:
    """Takes the options that Ray would create an actor with."""

    def __init__(self) -> None:
        self.strategy: Any = None

    def options(self, *, scheduling_strategy: Any, **options: Any) -> "_ActorClass":
        self.strategy = scheduling_strategy
        return self

    def remote(self, *args: Any) -> "_ActorClass":
        return self


def request(state: ClusterState, replica: ReplicaID, d: int, chosen: dict[str, Any]) -> ReplicaSchedulingRequest:
    """Asks Ray for a replica of deployment ``d``; ``chosen`` gets the strategy it is created with, by its name."""
    deployment = state.spec.deployments[d]
    actor: Any = _ActorClass()
    return ReplicaSchedulingRequest(
        replica_id=replica,
        actor_def=actor,
        actor_resources=as_ray({n: deployment.shape.total(n) for n in state.spec.resource_names}),
        actor_options=(
            {"label_selector": dict(deployment.label_selector), "fallback_strategy": _fallbacks(deployment)}
            if deployment.label_selector
            else {}
        ),
        actor_init_args=(),
        on_scheduled=lambda handle, placement_group: chosen.__setitem__(replica.unique_id, actor.strategy),
        max_replicas_per_node=deployment.max_replicas_per_node or None,
    )
