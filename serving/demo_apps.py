"""The applications of the live demo: each answers its own name after a short pause."""

import asyncio
from typing import Any

import ray
from ray import serve
from ray.serve._private.common import DeploymentID

from rayfold.serving.executor import serve_controller

__all__ = ["SERVICE_S", "deploy_echo", "scale_echo"]

SERVICE_S = 0.05  # a request takes this long


class Echo:
    """Answers with its name."""

    def __init__(self, name: str) -> None:
        self._name = name

    async def __call__(self, request: Any) -> str:
        """Answers one request."""
        await asyncio.sleep(SERVICE_S)
        return self._name


def _echo(name: str, num_replicas: int, bundles: list[dict[str, float]] | None = None) -> Any:
    """An application of one deployment, both called ``name``.

    Args:
        name: What it answers.
        num_replicas: How many.
        bundles: Placement group of one replica (PACK); None makes it an actor of one GPU and one CPU.
    """
    options: dict[str, Any] = {
        "name": name,
        "num_replicas": num_replicas,
        "ray_actor_options": {"num_cpus": 1, "num_gpus": 1},
        "max_ongoing_requests": 5,
        "graceful_shutdown_wait_loop_s": 1.0,
        "graceful_shutdown_timeout_s": 10.0,
    }
    if bundles is not None:
        options |= {"placement_group_bundles": bundles, "placement_group_strategy": "PACK"}
    deployment: Any = serve.deployment(**options)(Echo)
    return deployment.bind(name)


def deploy_echo(name: str, num_replicas: int, bundles: list[dict[str, float]] | None = None) -> None:
    """Deploys ``/name`` and waits until it serves; see ``_echo`` for the arguments."""
    application = _echo(name, num_replicas, bundles)
    serve.run(application, name=name, route_prefix=f"/{name}", external_scaler_enabled=True)


def scale_echo(name: str, num_replicas: int) -> None:
    """Changes the number of replicas without restarting any; does not wait."""
    deployment_id = DeploymentID(name=name, app_name=name)
    ray.get(serve_controller().update_deployment_replicas.remote(deployment_id, num_replicas), timeout=20.0)
