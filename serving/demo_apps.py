"""The applications of the live demo: each answers its own name after a short pause."""

import asyncio
from typing import Any

from ray import serve

__all__ = ["SERVICE_S", "echo"]

SERVICE_S = 0.05  # a request takes this long


class Echo:
    """Answers with its name."""

    def __init__(self, name: str) -> None:
        self._name = name

    async def __call__(self, request: Any) -> str:
        """Answers one request."""
        await asyncio.sleep(SERVICE_S)
        return self._name


def echo(name: str, num_replicas: int, bundles: list[dict[str, float]] | None = None) -> Any:
    """An application of one deployment, both called ``name``.

    Args:
        name: What it answers.
        num_replicas: How many.
        bundles: Placement group of one replica (PACK); None makes it an actor of one GPU and one CPU.
    """
    options: dict[str, Any] = {
        "name": name,
        "version": "1",  # same code: a new number of replicas restarts none
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
