"""The applications of the live demo: each answers its own name after a short pause, or a stream of numbers."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import ray
from ray import serve
from ray.serve._private.common import DeploymentID
from starlette.responses import StreamingResponse

from rayfold.serving.executor import serve_controller

__all__ = ["SERVICE_S", "STREAMED", "deploy_echo", "deploy_stream", "scale_echo"]

SERVICE_S = 0.05  # a request takes this long
_CHUNKS, _CHUNK_S = 20, 0.05
STREAMED = "".join(f"{i}\n" for i in range(_CHUNKS))  # what a stream amounts to


class Echo:
    """Answers with its name."""

    def __init__(self, name: str) -> None:
        self._name = name

    async def __call__(self, request: Any) -> str:
        """Answers one request."""
        await asyncio.sleep(SERVICE_S)
        return self._name


class Stream:
    """Answers with ``STREAMED``, a line at a time."""

    async def __call__(self, request: Any) -> StreamingResponse:
        """Answers one request, for about a second."""
        return StreamingResponse(self._lines(), media_type="text/plain")

    async def _lines(self) -> AsyncIterator[str]:
        for line in STREAMED.splitlines(keepends=True):
            await asyncio.sleep(_CHUNK_S)
            yield line


def _options(
    name: str, num_replicas: int, num_gpus: float, bundles: list[dict[str, float]] | None = None
) -> dict[str, Any]:
    """Of a deployment.

    Args:
        name: Its name.
        num_replicas: How many.
        num_gpus: Of an actor, which has one CPU too.
        bundles: Placement group of one replica (PACK); None makes it such an actor.
    """
    options: dict[str, Any] = {
        "name": name,
        "num_replicas": num_replicas,
        "ray_actor_options": {"num_cpus": 1, "num_gpus": num_gpus},
        "max_ongoing_requests": 5,
        "graceful_shutdown_wait_loop_s": 1.0,
        "graceful_shutdown_timeout_s": 10.0,
    }
    if bundles is not None:
        options |= {"placement_group_bundles": bundles, "placement_group_strategy": "PACK"}
    return options


def deploy_echo(
    name: str, num_replicas: int, bundles: list[dict[str, float]] | None = None, num_gpus: float = 1.0
) -> None:
    """Deploys ``/name``, which answers ``name``, and waits until it serves; see ``_options`` for the arguments."""
    deployment: Any = serve.deployment(**_options(name, num_replicas, num_gpus, bundles))(Echo)
    serve.run(deployment.bind(name), name=name, route_prefix=f"/{name}", external_scaler_enabled=True)


def deploy_stream(name: str, num_replicas: int) -> None:
    """Deploys ``/name``, which answers ``STREAMED``, and waits until it serves."""
    deployment: Any = serve.deployment(**_options(name, num_replicas, 1.0))(Stream)
    serve.run(deployment.bind(), name=name, route_prefix=f"/{name}", external_scaler_enabled=True)


def scale_echo(name: str, num_replicas: int) -> None:
    """Changes the number of replicas without restarting any; does not wait."""
    deployment_id = DeploymentID(name=name, app_name=name)
    ray.get(serve_controller().update_deployment_replicas.remote(deployment_id, num_replicas), timeout=20.0)
