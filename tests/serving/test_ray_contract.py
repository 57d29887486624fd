"""Every internal of Ray that the live decider touches, by name. A new Ray that lacks one fails here, loudly.

The code that runs in the Serve controller is read too: an attribute it uses that is not named here fails as well.
"""

import ast
import inspect
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray._raylet as raylet
from ray._private.label_utils import validate_label_selector

from rayfold.serving import controller_patch

SERVING = Path(controller_patch.__file__).parent
_SERVE = "ray.serve._private"

# Class to what is used of it: methods, and attributes that its ``__init__`` or a property makes.
CLASSES: dict[str, tuple[str, ...]] = {
    f"{_SERVE}.controller.ServeController": (
        "_controller_node_id",
        "autoscaling_state_manager",
        "cluster_node_info_cache",
        "deployment_state_manager",
        "get_http_config",
        "get_serve_instance_details",
    ),
    f"{_SERVE}.deployment_state.DeploymentStateManager": ("_deployment_scheduler", "_deployment_states"),
    f"{_SERVE}.deployment_state.DeploymentState": (
        "_id",
        "_is_gang_deployment",
        "_replicas",
        "_stop_replica",
        "_target_state",
        "deleting",
        "is_ingress_request_router",
        "migrate_replicas_on_draining_nodes",
    ),
    f"{_SERVE}.deployment_state.DeploymentTargetState": ("info", "target_num_replicas", "version"),
    f"{_SERVE}.deployment_state.ReplicaStateContainer": ("add", "get", "remove"),
    f"{_SERVE}.deployment_state.DeploymentReplica": (
        "_actor",
        "actor_details",
        "actor_node_id",
        "replica_id",
        "version",
    ),
    f"{_SERVE}.deployment_state.ActorReplicaWrapper": ("_actor_name",),
    f"{_SERVE}.deployment_scheduler.DeploymentScheduler": (
        "_cluster_node_info_cache",
        "_compacting_node",
        "_deployments",
        "_find_best_fit_node_for_pack",
        "_get_available_resources_per_node",
        "_schedule_replica",
        "_use_pack_strategy",
        "get_node_to_compact",
    ),
    f"{_SERVE}.deployment_scheduler.CompactingNodeInfo": ("target_node_id",),
    f"{_SERVE}.deployment_scheduler.DeploymentSchedulingInfo": (
        "actor_resources",
        "bundle_label_selector",
        "is_gang",
        "label_selector",
        "max_replicas_per_node",
        "pins_replicas",
        "placement_group_bundles",
        "placement_group_strategy",
    ),
    f"{_SERVE}.deployment_scheduler.ReplicaSchedulingRequest": (
        "actor_options",
        "gang_placement_group",
        "placement_group_bundle_label_selector",
        "placement_group_bundles",
        "replica_id",
        "requested_resources",
        "target_node_id",
    ),
    f"{_SERVE}.deployment_scheduler.RequestedResources": ("can_fit",),
    f"{_SERVE}.cluster_node_info_cache.ClusterNodeInfoCache": (
        "get_active_node_ids",
        "get_alive_node_ids",
        "get_available_resources_per_node",
        "get_draining_nodes",
        "get_node_labels",
        "get_total_resources_per_node",
    ),
    f"{_SERVE}.autoscaling_state.AutoscalingStateManager": ("get_total_num_requests_for_deployment",),
    f"{_SERVE}.common.ReplicaID": ("deployment_id", "unique_id"),
    f"{_SERVE}.common.DeploymentID": ("app_name", "name"),
    f"{_SERVE}.common.ReplicaState": ("PENDING_MIGRATION",),
    f"{_SERVE}.deployment_info.DeploymentInfo": ("deployment_config",),
    "ray.serve.config.AutoscalingConfig": ("get_downscaling_factor", "get_upscaling_factor"),
    "ray.serve.schema.ReplicaDetails": ("start_time_s", "state"),
    f"{_SERVE}.config.DeploymentConfig": ("autoscaling_config", "max_ongoing_requests"),
}

# Module to what is imported from it anywhere in ``serving/``, beside the classes above.
NAMES: dict[str, tuple[str, ...]] = {
    f"{_SERVE}.constants": (
        "RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY",
        "SERVE_CONTROLLER_NAME",
        "SERVE_NAMESPACE",
    ),
    f"{_SERVE}.common": ("DeploymentID", "ReplicaState"),
    _SERVE: ("default_impl", "deployment_scheduler", "deployment_state"),
    f"{_SERVE}.default_impl": ("create_deployment_scheduler",),
    f"{_SERVE}.replica": ("SERVE_BUILD_ASGI_APP_METHOD",),
    "ray._raylet": ("AuthenticationTokenLoader", "Config", "node_labels_match_selector"),
    "ray._private.state": ("actors",),
    "ray._private.worker": ("global_worker",),
    "ray._private.node": ("Node",),
    "ray._private.parameter": ("RayParams",),
    "ray._private.ray_constants": (),
    "ray.autoscaler._private.fake_multi_node.node_provider": ("FAKE_HEAD_NODE_ID", "FakeMultiNodeProvider"),
    "ray.autoscaler.tags": (
        "NODE_KIND_WORKER",
        "STATUS_UP_TO_DATE",
        "TAG_RAY_NODE_KIND",
        "TAG_RAY_NODE_NAME",
        "TAG_RAY_NODE_STATUS",
        "TAG_RAY_USER_NODE_TYPE",
    ),
    "ray.autoscaler.v2.sdk": ("get_cluster_status", "request_cluster_resources"),
    "ray.experimental.internal_kv": (
        "_internal_kv_del",
        "_internal_kv_get",
        "_internal_kv_list",
        "_internal_kv_put",
    ),
}

# What is overridden or called with arguments: its parameters as tested.
SIGNATURES: dict[str, tuple[str, ...]] = {
    f"{_SERVE}.deployment_state.DeploymentState.migrate_replicas_on_draining_nodes": (
        "self",
        "draining_nodes",
        "compacting_node_id",
    ),
    f"{_SERVE}.deployment_state.DeploymentState._stop_replica": ("self", "replica", "graceful_stop"),
    f"{_SERVE}.deployment_scheduler.DeploymentScheduler._schedule_replica": (
        "self",
        "scheduling_request",
        "default_scheduling_strategy",
        "target_node_id",
    ),
    f"{_SERVE}.deployment_scheduler.DeploymentScheduler.get_node_to_compact": ("self", "allow_new_compaction"),
    "ray.experimental.internal_kv._internal_kv_put": ("key", "value", "overwrite", "namespace"),
}

# Of Python and of rayfold's own desk: no internals of Ray.
OWN = {
    *("_rayfold_desk", "_step_starting", "active", "bind", "fenced", "fences", "moves", "step", "term", "token"),
    *("original_class", "original_migrate", "DeploymentState", "RequestedResources", "node_labels_match_selector"),
    *("__class__", "__module__", "__name__", "__version__", "time", "token_hex", "value"),
    *("append", "items", "join", "values"),
}


def _find(path: str) -> Any:
    parts = path.split(".")
    for i in range(len(parts), 0, -1):
        try:
            found: Any = import_module(".".join(parts[:i]))
        except ModuleNotFoundError:
            continue
        for part in parts[i:]:
            found = getattr(found, part)
        return found
    raise AssertionError(f"{path} is gone")


def _has(cls: type, name: str) -> bool:
    """Whether instances have it: as a member, a field, or set on ``self`` by the class or a base of it."""
    fields = {*getattr(cls, "__annotations__", {}), *getattr(cls, "model_fields", {})}
    if hasattr(cls, name) or name in fields:
        return True
    sources = [inspect.getsource(base) for base in cls.__mro__ if base.__module__.startswith("ray.")]
    return any(f"self.{name} = " in source or f"self.{name}: " in source for source in sources)


@pytest.mark.parametrize("path", CLASSES)
def test_class_has_what_is_used_of_it(path: str) -> None:
    """Each attribute, in the Ray that is installed."""
    found = _find(path)
    assert [name for name in CLASSES[path] if not _has(found, name)] == []


def test_names_are_where_they_are_imported_from() -> None:
    """Each module and name."""
    for path, names in NAMES.items():
        module = import_module(path)
        assert [name for name in names if not hasattr(module, name)] == [], path
    assert _find(f"{_SERVE}.replica.SERVE_BUILD_ASGI_APP_METHOD") == "__serve_build_asgi_app__"


def test_parameters_are_as_tested() -> None:
    """What is overridden takes the same arguments, and ``graceful_stop`` still is a keyword."""
    for path, expected in SIGNATURES.items():
        assert tuple(inspect.signature(_find(path)).parameters)[: len(expected)] == expected, path


def test_has_finds_what_is_missing() -> None:
    """The check itself: a name that no class has is told."""
    for path in (f"{_SERVE}.deployment_state.DeploymentReplica", f"{_SERVE}.common.ReplicaState"):
        assert not _has(_find(path), "_no_such_thing")


@pytest.mark.parametrize("name", ["controller_patch.py", "controller_recovery.py", "controller_view.py"])
def test_code_in_the_controller_uses_nothing_else(name: str) -> None:
    """Each attribute it reads is in this list."""
    tree = ast.parse((SERVING / name).read_text())
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    listed = {attribute for attributes in CLASSES.values() for attribute in attributes}
    assert used - listed - OWN == set()


@pytest.mark.parametrize("not_on", [[], ["aa"], ["aa", "bb"]])
@pytest.mark.parametrize("bundles", [None, [{"GPU": 1.0}] * 2])
def test_selectors_of_a_new_node_are_ray_s(not_on: list[str], bundles: list[dict[str, float]] | None) -> None:
    """A replacement that waits for a new node, the first of its type too, asks for it in words that Ray takes."""
    matches: Any = raylet.node_labels_match_selector  # type: ignore[attr-defined]  # compiled, untyped
    own = {"zone": "a"}
    request = SimpleNamespace(
        placement_group_bundles=bundles,
        placement_group_bundle_label_selector=[own] * 2 if bundles else None,
        actor_options={"label_selector": own},
    )
    controller_patch._pin(request, {"labels": {"size": "small"}, "not_on": not_on, "node": "new:small"})
    selectors = request.placement_group_bundle_label_selector or [request.actor_options["label_selector"]]
    assert len(selectors) == len(bundles or [1])
    for selector in selectors:
        assert validate_label_selector(selector) is None
        assert matches({"ray.io/node-id": "cc", "size": "small", "zone": "a"}, selector)
        assert not matches({"ray.io/node-id": "cc", "size": "large", "zone": "a"}, selector)
        for node in not_on:
            assert not matches({"ray.io/node-id": node, "size": "small", "zone": "a"}, selector)
    assert validate_label_selector({"ray.io/node-id": "!in()"}) is not None, "the reason why `_pin` asks for none"


def test_internals_are_imported_from_listed_modules_only() -> None:
    """Each import of a private or experimental module of Ray in ``serving/`` is in this list."""
    for path in sorted(SERVING.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and _is_internal(node.module):
                unlisted = {alias.name for alias in node.names} - set(NAMES.get(node.module, ()))
                assert unlisted == set(), (path.name, node.module)
            if isinstance(node, ast.Import):
                unknown = [a.name for a in node.names if _is_internal(a.name) and a.name not in NAMES]
                assert unknown == [], path.name


def _is_internal(module: str) -> bool:
    parts = module.split(".")
    return parts[0] == "ray" and (
        any(p.startswith("_") for p in parts) or parts[1:2] in (["autoscaler"], ["experimental"])
    )


def test_installed_ray_is_a_tested_one() -> None:
    """The version that this list was checked against is the one that may be acted on."""
    assert ray.__version__ in controller_patch.TESTED_RAY
