"""A live cluster as ``ClusterState``: what the raw view means. Pure, so that it is tested without Ray.

Of two views of a node, the scheduler's and the sum of the known replicas, the worse one counts. What no replica of
Serve explains, resources or actors, is non-Serve work, and such a node is not releasable. A head node without replicas,
and rayfold's own application, are left out: nothing is decided about them.
"""

import logging
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.cluster import (
    AutoscalingConfig,
    ClusterSettings,
    ClusterSpec,
    Deployment,
    NodeType,
    PlacementGroupStrategy,
    ReplicaShape,
    SchedulingStrategy,
)
from rayfold.envs.devices import EPS, NO_DEVICES, take_gpus
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase, StateArrays
from rayfold.serving.history import History
from rayfold.serving.live_moves import NEW_NODE
from rayfold.serving.live_settings import LiveSettings, NodeTypeSettings
from rayfold.serving.raw_cluster import RawCluster, RawDeployment, RawNode, RawReplica, fetch_cluster

__all__ = ["OWN_APP", "build_state", "take_snapshot"]

log = logging.getLogger(__name__)

OWN_APP = "rayfold"
_GIB = 2.0**30
_PHASES = {
    "STARTING": ReplicaPhase.STARTING,
    "RECOVERING": ReplicaPhase.STARTING,
    "UPDATING": ReplicaPhase.STARTING,
    "RUNNING": ReplicaPhase.RUNNING,
    "PENDING_MIGRATION": ReplicaPhase.RUNNING,
    "STOPPING": ReplicaPhase.STOPPING,
}


def _resources(ray_resources: Mapping[str, float]) -> dict[str, float]:
    """Ray's names to ours; drops what identifies a node or is not asked for by replicas."""
    out = {}
    for name, amount in ray_resources.items():
        if name == "memory":
            out["memory_gib"] = amount / _GIB
        elif (
            name != "object_store_memory" and not name.startswith(("node:", "bundle_group_")) and "_group_" not in name
        ):
            out[name] = float(amount)
    return out


def _type_name(node: RawNode, settings: LiveSettings) -> str:
    return node.node_type or node.labels.get(settings.node_type_label, "") or "unknown"


def _node_type(name: str, nodes: list[RawNode], num_coming: int, settings: LiveSettings) -> NodeType:
    """A type of which there are ``nodes``, or which a move may launch."""
    told, launch = settings.node_types.get(name, NodeTypeSettings()), settings.launchable().get(name)
    resources, labels = dict(launch.resources if launch else {}), dict(launch.labels if launch else {})
    if nodes:
        seen = _resources(nodes[0].total)
        resources = {n: v for n, v in seen.items() if not n.startswith("accelerator_type:")}
        # Labels that are the node's own say nothing about its type.
        labels |= {k: v for k, v in nodes[0].labels.items() if k not in ("ray.io/node-id",)}
    max_nodes = told.max_nodes
    if settings.limits.allow_new_nodes and launch is None:
        max_nodes = max(told.min_nodes, len(nodes) + num_coming)  # no move launches one more
    price = told.price_usd_per_h
    if price is None:
        price = settings.usd_per_gpu_h * resources.get("GPU", 0.0)
        log.warning("no price is set for node type %r: taking %.2f USD/h", name, price)
    return NodeType(
        name=name,
        resources=resources,
        price_usd_per_h=price,
        labels=labels,
        min_nodes=told.min_nodes,
        max_nodes=max_nodes,
        boot_s=told.boot_s,
    )


def _spans_nodes(replica: RawReplica) -> bool:
    return len(set(replica.bundle_node_ids)) > 1


def _deployment(raw: RawDeployment, settings: LiveSettings) -> Deployment:
    told = settings.of_deployment(raw.app, raw.name)
    bundles = tuple(_resources(b) for b in raw.bundles) or (_resources(raw.actor_resources),)
    known = raw.strategy in PlacementGroupStrategy.__members__
    strategy = raw.strategy if known else "SPREAD"  # STRICT_SPREAD
    scaling = {"min_replicas": raw.target, "max_replicas": max(1, raw.target)} | dict(raw.autoscaling or {})
    return Deployment(
        name=raw.name,
        app=raw.app,
        shape=ReplicaShape(bundles=bundles, strategy=PlacementGroupStrategy(strategy)),
        autoscaling=AutoscalingConfig(**scaling),
        max_ongoing_requests=raw.max_ongoing_requests,
        max_replicas_per_node=raw.max_replicas_per_node,
        label_selector=dict(raw.label_selector),
        startup_s=told.startup_s,
        drain_s=told.drain_s,
        is_movable=told.is_movable and known and not raw.pins_replicas,
    )


def _spec(raw: RawCluster, nodes: list[RawNode], coming: list[str], settings: LiveSettings) -> ClusterSpec:
    present: dict[str, list[RawNode]] = {name: [] for name in settings.launchable()}
    for node in nodes:
        present.setdefault(_type_name(node, settings), []).append(node)
    deployments = [_deployment(d, settings) for d in sorted(raw.deployments, key=lambda d: f"{d.app}/{d.name}")]
    scheduling = SchedulingStrategy.PACK if raw.is_pack else SchedulingStrategy.SPREAD
    return ClusterSpec(
        node_types=tuple(_node_type(name, of, coming.count(name), settings) for name, of in sorted(present.items())),
        deployments=tuple(deployments),
        settings=ClusterSettings(
            scheduling=scheduling,
            idle_timeout_s=settings.idle_timeout_s,
            decision_interval_s=settings.decision_interval_s,
            prices=settings.prices,
        ),
    )


def _without_own(raw: RawCluster) -> RawCluster:
    return RawCluster(
        now_s=raw.now_s,
        nodes=raw.nodes,
        deployments=tuple(d for d in raw.deployments if d.app != OWN_APP),
        replicas=tuple(r for r in raw.replicas if r.app != OWN_APP and r.state in _PHASES),
        booting_types=raw.booting_types,
        moves=raw.moves,
        fences=raw.fences,
        is_pack=raw.is_pack,
    )


def _home(replica: RawReplica, pins: Mapping[str, str]) -> str | None:
    """The node of a replica: where it is, where its first bundle is reserved, or where it is pinned to."""
    if replica.node_id:
        return replica.node_id
    return replica.bundle_node_ids[0] if replica.bundle_node_ids else pins.get(replica.replica_id)


def _coming(raw: RawCluster, nodes: list[RawNode], settings: LiveSettings) -> list[str]:
    """Type of each node that is being launched; one that a move waits for is, before the autoscaler says so."""
    known = {_type_name(node, settings) for node in nodes} | set(settings.launchable())
    coming = [name for name in raw.booting_types if name in known]
    placed = {r.replica_id for r in raw.replicas if r.node_id or r.bundle_node_ids}
    for move in raw.moves:
        name = move["node"].removeprefix(NEW_NODE)
        has_joined = any(_type_name(n, settings) == name and n.node_id not in move["not_on"] for n in nodes)
        if name in known and name not in coming and not has_joined and move["replacement"] not in placed:
            coming.append(name)
    return coming


def _pin_to_new_nodes(raw: RawCluster, spec: ClusterSpec, st: StateArrays, nodes: list[RawNode]) -> None:
    """A replacement that a node is launched for may start on that node only, be it under way or just there."""
    types = {t.name: i for i, t in enumerate(spec.node_types)}
    rows = {replica.replica_id: r for r, replica in enumerate(raw.replicas)}
    for move in raw.moves:
        r, t = rows.get(move["replacement"] or "", -1), types.get(move["node"].removeprefix(NEW_NODE), -1)
        if r < 0 or t < 0 or st.replica_node[r] >= 0:
            continue
        is_new = [n >= len(nodes) or nodes[n].node_id not in move["not_on"] for n in range(len(st.node_type))]
        found = np.flatnonzero((st.node_type == t) & is_new)
        st.replica_pinned_node[r] = found[0] if len(found) else -1


def _fill_replicas(
    raw: RawCluster, spec: ClusterSpec, st: StateArrays, node_row: Mapping[str, int]
) -> dict[str, ReplicaPhase]:
    row_of = {d.key: i for i, d in enumerate(spec.deployments)}
    pins = {m["replacement"]: m["node"] for m in raw.moves if m["replacement"]}
    phases = {}
    for r, replica in enumerate(raw.replicas):
        node = _home(replica, pins)
        phase = _PHASES[replica.state]
        if phase == ReplicaPhase.STARTING and node not in node_row:
            phase = ReplicaPhase.PENDING
        st.replica_deployment[r] = row_of[f"{replica.app}/{replica.name}"]
        st.replica_node[r] = node_row.get(node or "", -1)
        st.replica_phase[r] = phase
        st.replica_spans[r] = _spans_nodes(replica)
        if st.replica_spans[r]:
            for j, bundle_node in enumerate(replica.bundle_node_ids[: spec.max_bundles]):
                st.replica_bundle_node[r, j] = node_row.get(bundle_node, -1)
        phases[replica.replica_id] = phase
    rows = {replica.replica_id: r for r, replica in enumerate(raw.replicas)}
    for move in raw.moves:
        old, new = rows.get(move["old"]), rows.get(move["replacement"] or "")
        if old is not None:
            # A replacement that does not exist yet still is a move in flight: the link points at the row itself.
            st.replica_peer[old] = old if new is None else new
            if new is not None:
                st.replica_peer[new] = old
    return phases


class _Holding(NamedTuple):
    """What a replica, or one of its bundles, holds on a node."""

    replica: int
    bundle: int  # column of ``StateArrays.replica_gpus``
    node: int
    amount: NDArray[np.float64]  # (K,)


def _holdings(spec: ClusterSpec, st: StateArrays) -> list[_Holding]:
    """What is held where, in order of replica rows; what a group holds on nodes that are left out is not told."""
    found = []
    for r, n in enumerate(st.replica_node.tolist()):
        d = int(st.replica_deployment[r])
        if n >= 0 and spec.arrays.sums_gpus[d] and not st.replica_spans[r]:
            found.append(_Holding(r, 0, n, spec.arrays.demand[d]))
        elif n >= 0:
            for j in range(spec.arrays.num_bundles[d]):
                node = int(st.replica_bundle_node[r, j]) if st.replica_spans[r] else n
                if node >= 0:
                    found.append(_Holding(r, j, node, spec.arrays.bundle[d, j]))
    return found


def _fill_devices(spec: ClusterSpec, st: StateArrays, holdings: list[_Holding]) -> None:
    """Hands out devices in order of replica rows; a node whose devices do not add up has none free."""
    for n, type_idx in enumerate(st.node_type):
        st.gpu_free[n, : spec.arrays.type_num_gpus[type_idx]] = 1.0
    for r, j, n, amount in holdings:
        mask = take_gpus(st.gpu_free, n, float(amount[0]))
        st.replica_gpus[r, j] = max(0, mask)
        if mask == NO_DEVICES:
            log.warning("the replicas on node row %d do not fit its GPUs: taking it as full", n)
            st.gpu_free[n] = 0.0
    for r, n in {(h.replica, h.node) for h in holdings}:
        st.node_held[n, st.replica_deployment[r]] += 1
        st.node_num_held[n] += 1
    for n in range(len(st.node_type)):
        # Other work may share a device in a way that is not known: each started GPU counts as a whole device.
        for _ in range(int(np.ceil(st.node_others[n, 0] - EPS))):
            free = np.flatnonzero(st.gpu_free[n] > EPS)
            if len(free):
                st.gpu_free[n, free[np.argmax(st.gpu_free[n, free])]] = 0.0


def _fill_nodes(
    raw: RawCluster,
    nodes: list[RawNode],
    coming: list[str],
    spec: ClusterSpec,
    st: StateArrays,
    settings: LiveSettings,
) -> None:
    types = {t.name: i for i, t in enumerate(spec.node_types)}
    for n, node in enumerate(nodes):
        name = _type_name(node, settings)
        told = settings.node_types.get(name, NodeTypeSettings())
        st.node_type[n], st.node_phase[n] = types[name], NodePhase.ALIVE
        st.node_fenced_until_s[n] = raw.fences.get(node.node_id, -np.inf)
        st.node_is_head[n] = node.is_head
        st.node_is_opted_out[n] = node.node_id in settings.opted_out_nodes
        st.node_releasable[n] = told.is_releasable and not node.is_head
        if node.is_draining:
            st.node_phase[n] = NodePhase.DRAINING
    for i, name in enumerate(coming):
        st.node_type[len(nodes) + i], st.node_phase[len(nodes) + i] = types[name], NodePhase.BOOTING


def _fill_free(nodes: list[RawNode], spec: ClusterSpec, st: StateArrays, holdings: list[_Holding]) -> None:
    on_node = np.zeros_like(st.node_free)
    for holding in holdings:
        on_node[holding.node] += holding.amount
    for n, node in enumerate(nodes):
        total, available = _resources(node.total), _resources(node.available)
        all_of = np.array([total.get(name, 0.0) for name in spec.resource_names])
        free = np.array([available.get(name, 0.0) for name in spec.resource_names])
        # Ray counts in steps of 1e-4; memory, in GiB here, is coarser still.
        others = np.where(all_of - free - on_node[n] > 1e-3, all_of - free - on_node[n], 0.0)
        st.node_others[n] = np.maximum(0.0, others)
        st.node_free[n] = np.maximum(0.0, np.minimum(free, all_of - on_node[n]))
        if st.node_others[n].any() or node.tenants:
            st.node_releasable[n] = False


def build_state(raw: RawCluster, settings: LiveSettings, history: History) -> ClusterState:
    """The state that a raw view describes; ``history`` takes the view in.

    Args:
        raw: The raw view.
        settings: What the cluster does not say of itself.
        history: Memory of earlier snapshots, changed.
    """
    raw = _without_own(raw)
    in_use = {_home(r, {}) for r in raw.replicas}
    nodes = [n for n in raw.nodes if not n.is_head or n.node_id in in_use]
    coming = _coming(raw, nodes, settings)
    spec = _spec(raw, nodes, coming, settings)
    st = StateArrays.empty(spec, len(nodes) + len(coming), len(raw.replicas))
    node_row = {node.node_id: n for n, node in enumerate(nodes)}
    _fill_nodes(raw, nodes, coming, spec, st, settings)
    phases = _fill_replicas(raw, spec, st, node_row)
    _pin_to_new_nodes(raw, spec, st, nodes)
    holdings = _holdings(spec, st)
    _fill_free(nodes, spec, st, holdings)
    _fill_devices(spec, st, holdings)
    is_empty = (st.node_num_held == 0) & ~st.node_others.any(axis=1)
    empty = {node.node_id for n, node in enumerate(nodes) if is_empty[n] and not node.tenants}
    history.observe(raw, phases, empty)
    st.replica_since_s[:] = [history.phase_since_s(r.replica_id) for r in raw.replicas]
    for n, node in enumerate(nodes):
        if node.node_id in empty:
            seen_s = history.empty_since_s(node.node_id)
            st.node_idle_since_s[n] = min(seen_s, raw.now_s - node.idle_s) if node.idle_s > 0.0 else seen_s
    by_key = {f"{d.app}/{d.name}": d for d in raw.deployments}
    for d, deployment in enumerate(spec.deployments):
        st.deployment_target[d] = by_key[deployment.key].target
        st.deployment_ongoing[d] = by_key[deployment.key].ongoing
        st.deployment_ongoing_slow[d] = history.slow_ongoing(deployment.key)
        st.deployment_moved_s[d] = history.moved_s(deployment.key)
        st.deployment_changed_s[d] = history.changed_s(deployment.key)
    booting_ids = tuple(f"booting-{i}" for i in range(len(coming)))
    return ClusterState(
        spec=spec,
        now_s=raw.now_s,
        arrays=st,
        node_ids=(*(n.node_id for n in nodes), *booting_ids),
        replica_ids=tuple(r.replica_id for r in raw.replicas),
    )


def take_snapshot(settings: LiveSettings, history: History) -> ClusterState:
    """The cluster this process is connected to, now.

    Raises:
        ClusterError: Serve does not run there or does not answer.
    """
    return build_state(fetch_cluster(), settings, history)
