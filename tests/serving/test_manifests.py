"""What is deployed by file: Ray takes the Serve configs, their arguments build a decider, and their paths agree."""

import functools
import json
import operator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
import yaml
from ray._common.utils import import_attr
from ray.serve._private import default_impl, deployment_state
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve._private.deployment_scheduler import DeploymentScheduler
from ray.serve.schema import ServeDeploySchema

import rayfold.serving
from rayfold.errors import InputError
from rayfold.serving import controller_patch, permanent
from rayfold.serving.decider_app import DEPLOYMENT, ROUTE, DeciderConfig
from rayfold.serving.decision import Mode
from rayfold.serving.serve_config import DeployArgs, build
from rayfold.serving.snapshot import OWN_APP

_build: Any = call_user_app_builder_with_args_if_necessary  # its annotation knows plain functions only
SERVING = Path(rayfold.serving.__file__).parent
DATA = Path(__file__).parents[1] / "data"
_CALLBACK = "RAY_SERVE_CONTROLLER_CALLBACK_IMPORT_PATH"


def _serve_config() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((SERVING / "config.yaml").read_text())
    return loaded


def _ray_service() -> dict[str, Any]:
    loaded: dict[str, Any] = next(yaml.safe_load_all((SERVING / "manifests" / "rayservice.yaml").read_text()))
    return loaded


def _serve_config_of_ray_service() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(_ray_service()["spec"]["serveConfigV2"])
    return loaded


def _config_of(application: Any) -> DeciderConfig:
    (config,) = application._bound_deployment.init_args
    assert isinstance(config, DeciderConfig)
    return config


@pytest.mark.parametrize("read", [_serve_config, _serve_config_of_ray_service])
def test_ray_takes_the_config_and_builds_the_decider(read: Any) -> None:
    """As ``serve deploy`` does: the schema, the import path, the arguments, one deployment on the head node."""
    schema = ServeDeploySchema.model_validate(read())
    (app,) = schema.applications
    assert (app.name, app.route_prefix) == (OWN_APP, ROUTE)
    made = _build(import_attr(app.import_path), app.args)
    deployment = made._bound_deployment
    assert deployment.name == DEPLOYMENT
    options: Any = deployment.ray_actor_options
    assert "node:__internal_head__" in options["resources"]
    config = _config_of(made)
    assert config.mode == Mode.RECOMMEND, "what is deployed from an example must not act"
    assert config.make_policy(config.settings.limits).name == "learned"


def test_paths_of_the_ray_service_are_mounted() -> None:
    """Token and journal lie where the head has volumes; names, versions and time-outs agree with each other."""
    spec = _ray_service()["spec"]
    args = _serve_config_of_ray_service()["applications"][0]["args"]
    cluster = spec["rayClusterConfig"]
    head = cluster["headGroupSpec"]["template"]["spec"]
    mounts = {mount["mountPath"]: mount["name"] for mount in head["containers"][0]["volumeMounts"]}
    assert {str(Path(args[name]).parent) for name in ("token_file", "journal")} == set(mounts)
    assert set(mounts.values()) == {volume["name"] for volume in head["volumes"]}
    assert cluster["rayVersion"] in controller_patch.TESTED_RAY
    (worker,) = cluster["workerGroupSpecs"]
    ((group, settings),) = args["settings"]["node_types"].items()
    assert (group, settings["max_nodes"]) == (worker["groupName"], worker["maxReplicas"])
    assert args["settings"]["idle_timeout_s"] == cluster["autoscalerOptions"]["idleTimeoutSeconds"]
    images = {pod["template"]["spec"]["containers"][0]["image"] for pod in (cluster["headGroupSpec"], worker)}
    assert len(images) == 1


def _faults(manifest: dict[str, Any]) -> list[str]:
    """What KubeRay's own schema has against it, fields that it does not know included."""
    schema = json.loads((DATA / "kuberay" / "rayservice_v1_schema.json").read_text())
    return [fault.message for fault in jsonschema.Draft202012Validator(schema).iter_errors(manifest)]


def test_ray_service_is_what_kuberay_takes() -> None:
    """By the schema of its custom resource: no fault, and a planted one is found on each level."""
    assert _faults(_ray_service()) == []
    for path, value, told in (
        (("spec", "serveConfig"), "", "'serveConfig' was unexpected"),
        (("spec", "rayClusterConfig", "autoscalerOptions", "idleTimeoutSeconds"), "300", "is not of type 'integer'"),
        (("spec", "rayClusterConfig", "headGroupSpec", "template", "spec", "volumes"), {}, "is not of type 'array'"),
        (("spec", "rayClusterConfig", "workerGroupSpecs", 0, "maxReplica"), 3, "'maxReplica' was unexpected"),
    ):
        planted: Any = _ray_service()
        *parents, last = path
        inner = functools.reduce(operator.getitem, parents, planted)
        inner[last] = value
        (fault,) = _faults(planted)
        assert told in fault


def test_wrong_arguments_are_told(tmp_path: Path) -> None:
    """An unknown one, a mode that is none, a wrong setting, no such policy: before anything is deployed."""
    for args in ({"modus": "act"}, {"mode": "dance"}):
        with pytest.raises(ValueError, match="DeployArgs"):
            _build(build, args)
    with pytest.raises(InputError, match=r"args.settings: brakes.moves_per_h"):
        build(DeployArgs(policy="none", settings={"brakes": {"moves_per_h": -1}}))
    with pytest.raises(InputError, match="best_fit"):
        build(DeployArgs(policy="worst_fit"))
    token_file = tmp_path / "token"
    assert _config_of(build(DeployArgs(policy="none", token_file=token_file))).token == token_file
    one, other = (_config_of(build(DeployArgs(policy="none"))).token for _ in range(2))
    assert one != other, "without a file nobody knows the token"


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts back what an attachment of this process changes."""
    cls: Any = deployment_state.DeploymentState
    monkeypatch.setattr(default_impl, "create_deployment_scheduler", default_impl.create_deployment_scheduler)
    monkeypatch.setattr(cls, "migrate_replicas_on_draining_nodes", cls.migrate_replicas_on_draining_nodes)


def _new_scheduler() -> Any:
    """As a controller makes its own."""
    make: Any = default_impl.create_deployment_scheduler
    return make(SimpleNamespace(), head_node_id_override="head", create_placement_group_fn_override=lambda: None)


@pytest.mark.usefixtures("untouched")
def test_permanent_form_attaches_to_the_controller_s_scheduler() -> None:
    """The callback that the manifest names: once, to the next scheduler, and a detach leaves it as Serve makes it."""
    path = _serve_config_of_ray_service()["controller_options"]["runtime_env"]["env_vars"][_CALLBACK]
    callback = import_attr(path)
    assert callback is permanent.attach_at_start
    callback()
    scheduler = _new_scheduler()
    manager = SimpleNamespace(_deployment_scheduler=scheduler, _deployment_states={})
    controller = SimpleNamespace(deployment_state_manager=manager)
    assert len(controller_patch.patched(controller)) == 3
    assert controller_patch.attach(controller).startswith("already attached ")
    assert controller_patch.detach(controller) == "detached"
    assert controller_patch.patched(controller) == []
    assert type(_new_scheduler()) is DeploymentScheduler, "only the controller's own"


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("broken", ["create_deployment_scheduler", "attach_scheduler"])
def test_permanent_form_never_keeps_serve_from_starting(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With another Ray, or a fault of our own, the scheduler is Serve's own."""

    def fail(*args: Any, **keywords: Any) -> str:
        raise RuntimeError("planted")

    if broken == "attach_scheduler":
        monkeypatch.setattr(controller_patch, "attach_scheduler", fail)
        permanent.attach_at_start()
        assert type(_new_scheduler()) is DeploymentScheduler
    else:
        monkeypatch.delattr(default_impl, "create_deployment_scheduler")
        permanent.attach_at_start()


@pytest.mark.usefixtures("untouched")
def test_permanent_form_refuses_an_untested_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the attachment does."""
    monkeypatch.setattr("ray.__version__", "2.61.0")
    permanent.attach_at_start()
    assert type(_new_scheduler()) is DeploymentScheduler
