"""The raw view of a live cluster: the Serve controller's and the autoscaler's answers as plain dataclasses.

Fetching only; what it means is worked out in ``snapshot.py``, without Ray.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray._private.state import actors

from rayfold.serving import controller_view
from rayfold.serving.executor import call_controller
from rayfold.serving.tenants import find_tenants

__all__ = ["RawCluster", "RawDeployment", "RawNode", "RawReplica", "fetch_cluster", "parse_cluster"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RawNode:
    """One alive node, in Ray's own resource names and units."""

    node_id: str
    node_type: str = ""  # as the autoscaler names it; empty = it does not know the node
    total: Mapping[str, float]
    available: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)
    idle_s: float = 0.0  # as the raylet reports it
    is_head: bool = False
    is_draining: bool = False
    tenants: tuple[str, ...] = ()  # actors that keep it from being released: see ``tenants.py``


@dataclass(frozen=True, slots=True, kw_only=True)
class RawReplica:
    """One replica of Serve."""

    app: str
    name: str
    replica_id: str
    state: str  # Serve's ReplicaState
    node_id: str | None = None
    bundle_node_ids: tuple[str, ...] = ()  # one per bundle of its placement group, once reserved
    start_s: float = 0.0  # Unix time at which it was created


@dataclass(frozen=True, slots=True, kw_only=True)
class RawDeployment:
    """One deployment of Serve."""

    app: str
    name: str
    actor_resources: Mapping[str, float] = field(default_factory=dict)
    bundles: tuple[Mapping[str, float], ...] = ()
    strategy: str = "NONE"
    label_selector: Mapping[str, str] = field(default_factory=dict)
    max_replicas_per_node: int = 0
    pins_replicas: bool = False
    max_ongoing_requests: float = 5.0
    autoscaling: Mapping[str, Any] | None = None  # None = a fixed number of replicas
    target: int = 1
    ongoing: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RawCluster:
    """Everything fetched at one moment."""

    now_s: float  # Unix time
    nodes: tuple[RawNode, ...]
    deployments: tuple[RawDeployment, ...]
    replicas: tuple[RawReplica, ...]
    booting_types: tuple[str, ...] = ()  # type of each node being launched
    moves: tuple[Mapping[str, Any], ...] = ()  # whose replacement starts: old, replacement, node, not_on
    fences: Mapping[str, float] = field(default_factory=dict)  # node id to Unix time
    is_pack: bool = False


def _autoscaler_view(gcs_address: str) -> tuple[dict[str, tuple[str, float]], tuple[str, ...]]:
    """Type and idle time (s) by node id, and the types being launched."""
    from ray.autoscaler.v2.sdk import get_cluster_status

    try:
        status = get_cluster_status(gcs_address)
    except Exception as err:  # Ray raises gRPC and value errors alike where no autoscaler runs
        log.warning("the autoscaler does not answer (%s): node types are taken from labels", err)
        return {}, ()
    known: dict[str, tuple[str, float]] = {}
    for node in [*status.active_nodes, *status.idle_nodes]:
        idle_ms = node.resource_usage.idle_time_ms if node.resource_usage else 0
        is_named = not node.ray_node_type_name.startswith("node_")  # Ray's stand-in for "no type"
        known[str(node.node_id)] = (node.ray_node_type_name if is_named else "", idle_ms / 1e3)
    # A node that has joined may still be listed as pending for a moment, with the id of its instance only.
    booting = [n.ray_node_type_name for n in status.pending_nodes if not n.node_id]
    booting += [launch.ray_node_type_name for launch in status.pending_launches for _ in range(launch.count)]
    return known, tuple(booting)


def _placement_groups(raw: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Nodes of the bundles by name of the placement group, where any deployment has one."""
    if not any(d["bundles"] for d in raw["deployments"]):
        return {}
    table: dict[str, dict[str, Any]] = ray.util.placement_group_table()
    live = [group for group in table.values() if group["state"] in ("CREATED", "RESCHEDULING")]
    return {
        group["name"]: tuple(group["bundles_to_node_id"][i] for i in sorted(group["bundles_to_node_id"]))
        for group in live
    }


def parse_cluster(
    raw: Mapping[str, Any],
    types: Mapping[str, tuple[str, float]],
    booting_types: tuple[str, ...],
    groups: Mapping[str, tuple[str, ...]],
    tenants: Mapping[str, tuple[str, ...]],
) -> RawCluster:
    """Puts the answers together.

    Args:
        raw: Of ``read_controller``.
        types: Node id to its type and idle time (s).
        booting_types: Types being launched.
        groups: Name of a placement group to the nodes of its bundles.
        tenants: Of ``find_tenants``.
    """
    nodes = []
    for node in raw["nodes"]:
        node_type, idle_s = types.get(node["node_id"], ("", 0.0))
        kept_by = tenants.get(node["node_id"], ())
        nodes.append(RawNode(**node, node_type=node_type, idle_s=idle_s, tenants=kept_by))
    replicas = []
    for replica in raw["replicas"]:
        values = {k: v for k, v in replica.items() if k != "pg_name"}
        replicas.append(RawReplica(**values, bundle_node_ids=groups.get(replica["pg_name"], ())))
    deployments = [RawDeployment(**{**d, "bundles": tuple(d["bundles"])}) for d in raw["deployments"]]
    return RawCluster(
        now_s=raw["now_s"],
        nodes=tuple(nodes),
        deployments=tuple(deployments),
        replicas=tuple(replicas),
        booting_types=booting_types,
        moves=tuple(raw["moves"]),
        fences=raw["fences"],
        is_pack=raw["pack"],
    )


def fetch_cluster() -> RawCluster:
    """Asks the controller, the autoscaler and the GCS of the cluster this process is connected to.

    Raises:
        ClusterError: Serve does not run there or does not answer.
    """
    raw = call_controller(controller_view.read_controller)
    types, booting_types = _autoscaler_view(ray.get_runtime_context().gcs_address)
    tenants = find_tenants(actors(actor_state_name="ALIVE").values())
    return parse_cluster(raw, types, booting_types, _placement_groups(raw), tenants)
