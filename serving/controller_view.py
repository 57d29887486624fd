"""What the Serve controller knows, as plain values; run inside it, like ``controller_patch``, and only reads.

Imports nothing of rayfold, and travels by value.
"""

import time
from typing import Any

__all__ = ["own_compaction", "read_controller"]

_SCALING = (
    "min_replicas",
    "max_replicas",
    "initial_replicas",
    "target_ongoing_requests",
    "upscale_delay_s",
    "downscale_delay_s",
    "downscale_to_zero_delay_s",
    "look_back_period_s",
)


def _scaling(config: Any) -> dict[str, Any] | None:
    if config is None:
        return None
    values = {name: getattr(config, name, None) for name in _SCALING}
    # By Ray's own getters: it still honours the factors' deprecated names.
    values |= {"upscaling_factor": config.get_upscaling_factor(), "downscaling_factor": config.get_downscaling_factor()}
    return {name: value for name, value in values.items() if value is not None}


def _deployment(controller: Any, deployment_id: Any, state: Any) -> dict[str, Any]:
    manager = controller.deployment_state_manager
    info = manager._deployment_scheduler._deployments[deployment_id]
    config = state._target_state.info.deployment_config
    selectors = [dict(info.label_selector or {}), *(dict(s or {}) for s in info.bundle_label_selector or ())]
    requests = controller.autoscaling_state_manager.get_total_num_requests_for_deployment(deployment_id)
    return {
        "app": deployment_id.app_name,
        "name": deployment_id.name,
        "actor_resources": dict(info.actor_resources or {}),
        "bundles": [dict(b) for b in info.placement_group_bundles or ()],
        "strategy": info.placement_group_strategy or ("PACK" if info.placement_group_bundles else "NONE"),
        "label_selector": {k: v for selector in selectors for k, v in selector.items()},
        "max_replicas_per_node": info.max_replicas_per_node or 0,
        "pins_replicas": bool(info.pins_replicas or info.is_gang),
        "max_ongoing_requests": float(config.max_ongoing_requests),
        "autoscaling": _scaling(config.autoscaling_config),
        "target": int(state._target_state.target_num_replicas),
        "ongoing": float(requests or 0.0),
    }


def _replica(replica: Any) -> dict[str, Any]:
    actor = replica._actor
    return {
        "app": replica.replica_id.deployment_id.app_name,
        "name": replica.replica_id.deployment_id.name,
        "replica_id": replica.replica_id.unique_id,
        "state": str(replica.actor_details.state.value),
        "node_id": replica.actor_node_id,
        "pg_name": str(getattr(actor, "_actor_name", "")),
        "start_s": float(replica.actor_details.start_time_s or time.time()),
    }


def read_controller(controller: Any) -> dict[str, Any]:
    """Deployments, replicas, nodes, moves and fences.

    Returns:
        Plain dicts, lists, strings and numbers only.
    """
    from ray.serve._private.constants import RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY

    manager, cache = controller.deployment_state_manager, controller.cluster_node_info_cache
    states = {d: s for d, s in manager._deployment_states.items() if not s.deleting}
    desk = getattr(manager._deployment_scheduler, "_rayfold_desk", None)
    total, available = cache.get_total_resources_per_node(), cache.get_available_resources_per_node()
    nodes = [
        {
            "node_id": node_id,
            "total": dict(total.get(node_id, {})),
            "available": dict(available.get(node_id, {})),
            "labels": dict(cache.get_node_labels(node_id)),
            "is_head": node_id == controller._controller_node_id,
            "is_draining": node_id in cache.get_draining_nodes(),
        }
        for node_id in sorted(cache.get_alive_node_ids())
    ]
    moves = [] if desk is None else [m for m in desk.moves.values() if m["phase"] == "starting"]
    return {
        "now_s": time.time(),
        "pack": bool(RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY),
        "nodes": nodes,
        "deployments": [_deployment(controller, d, s) for d, s in states.items()],
        "replicas": [_replica(r) for s in states.values() for r in s._replicas.get()],
        "moves": [{key: m[key] for key in ("old", "replacement", "node", "not_on")} for m in moves],
        "fences": {} if desk is None else dict(desk.fences),
    }


def own_compaction(controller: Any) -> str:
    """Why Ray's own compaction must be reckoned with; empty where it is off or cannot do anything.

    In Ray 2.60 it has no switch of its own: ``RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY`` in the controller's environment
    turns on packing and compaction, and a PACK or SPREAD placement group anywhere turns both off
    (``deployment_scheduler.get_node_to_compact``).
    """
    scheduler = controller.deployment_state_manager._deployment_scheduler
    if scheduler._compacting_node is not None:
        return f"Ray is compacting node {scheduler._compacting_node.target_node_id}"
    if scheduler._use_pack_strategy():
        return "Ray's own compaction is on (RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY)"
    return ""
