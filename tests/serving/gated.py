"""An application and a policy that a test steers by files, so that a fault hits a move in the phase it should.

A gate is a file: what waits for it goes on once the file is there.
"""

import asyncio
import time
from pathlib import Path
from typing import Any

import numpy as np

from rayfold.envs.moves import Move, Plan
from rayfold.envs.safety import Limits
from rayfold.envs.state import ClusterState

__all__ = ["Gated", "WishPolicy", "deploy_gated"]

_POLL_S = 0.05


class Gated:
    """Starts when the gate ``start`` is open, fails to start while ``broken`` is there.

    Args:
        folder: Of the gates.
    """

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        while not (self._folder / "start").exists():
            if (self._folder / "broken").exists():
                raise RuntimeError("planted")
            time.sleep(_POLL_S)

    async def __call__(self, request: Any) -> str:
        """Answers at once, or, asked for ``hold``, when the gate ``answer`` is open."""
        if "hold" in request.query_params:
            (self._folder / "held").touch()
            while not (self._folder / "answer").exists():
                await asyncio.sleep(_POLL_S)
        return "gated"


def deploy_gated(folder: Path) -> None:
    """Deploys ``/gated``, one replica of one GPU, and waits until it serves."""
    from ray import serve

    (folder / "start").touch()
    deployment: Any = serve.deployment(
        name="gated",
        num_replicas=1,
        ray_actor_options={"num_cpus": 1, "num_gpus": 1},
        graceful_shutdown_wait_loop_s=0.2,
        graceful_shutdown_timeout_s=60.0,
        health_check_period_s=1.0,
    )(Gated)
    serve.run(deployment.bind(str(folder)), name="gated", route_prefix="/gated", external_scaler_enabled=True)


class WishPolicy:
    """Moves what the file ``wish`` names: the ids of a replica and of a node. Without the file, nothing.

    Args:
        folder: Of the file.
        limits: Taken as every policy takes them.
    """

    name = "wish"

    def __init__(self, folder: str, limits: Limits) -> None:
        self._path = Path(folder) / "wish"

    def reset(self) -> None:
        """Nothing to forget."""

    def plan(self, state: ClusterState, rng: np.random.Generator) -> Plan:
        """One move or none."""
        try:
            replica, node = self._path.read_text().split()
            move = Move(state.replica_ids.index(replica), state.node_ids.index(node))
        except (OSError, ValueError):
            return Plan(reason="no wish")
        return Plan(moves=(move,), scores=(1.0,), reason="as wished")
