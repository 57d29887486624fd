"""The decider as a Ray Serve application of one replica on the head node, with its HTTP interface.

``GET /healthz /state /plan /decisions /moves``, and ``POST /mode`` with a bearer token. It lives in the cluster it
decides about, under the Serve proxy of that cluster.
"""

import hmac
import logging
import math
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, Header, HTTPException
from pydantic import BaseModel
from ray import serve

from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase
from rayfold.errors import ClusterError
from rayfold.policies.best_fit import BestFit
from rayfold.policies.protocol import Policy
from rayfold.serving.decider import Decider
from rayfold.serving.decision import Mode
from rayfold.serving.executor import ServeExecutor
from rayfold.serving.history import History
from rayfold.serving.journal import Journal
from rayfold.serving.live_settings import LiveSettings
from rayfold.serving.snapshot import OWN_APP, take_snapshot

__all__ = ["DEPLOYMENT", "ROUTE", "DeciderConfig", "decider_application", "describe_state"]

log = logging.getLogger(__name__)

DEPLOYMENT, ROUTE = "Decider", f"/{OWN_APP}"
JOURNAL_NAME = "rayfold_journal.sqlite3"
_MAX_LISTED = 1000
_api = FastAPI(title="rayfold decider")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeciderConfig:
    """What the application is deployed with."""

    policy: Policy
    settings: LiveSettings
    mode: Mode
    token: str  # bearer of POST /mode
    journal_path: Path | None = None  # on the head node; None = a file in Ray's session folder there
    seed: int = 0


class _ModeRequest(BaseModel):
    mode: Mode


def _session_dir() -> Path:
    """Where this Ray cluster keeps its files on this node: what lies there outlives the decider's process."""
    from ray._private.worker import global_worker

    node: Any = global_worker.node
    return Path(node.get_session_dir_path())


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def describe_state(state: ClusterState) -> dict[str, Any]:
    """A state in words, for people: JSON values only."""
    st, spec = state.arrays, state.spec
    types = {n: spec.node_types[int(st.node_type[n])] for n in np.flatnonzero(st.node_phase > 0)}
    nodes = [
        {
            "node_id": state.node_ids[n],
            "node_type": node_type.name,
            "phase": NodePhase(int(st.node_phase[n])).name.lower(),
            "free": dict(zip(spec.resource_names, st.node_free[n].tolist(), strict=True)),
            "releasable": bool(st.node_releasable[n]),
            "fenced": bool(st.node_fenced_until_s[n] > state.now_s),
            "idle_s": _finite(state.now_s - st.node_idle_since_s[n]),
            "price_usd_per_h": node_type.price_usd_per_h,
        }
        for n, node_type in types.items()
    ]
    replicas = [
        {
            "replica_id": state.replica_ids[r],
            "deployment": spec.deployments[int(st.replica_deployment[r])].key,
            "node_id": state.node_ids[st.replica_node[r]] if st.replica_node[r] >= 0 else None,
            "phase": ReplicaPhase(int(st.replica_phase[r])).name.lower(),
            "moving": bool(st.replica_peer[r] >= 0),
        }
        for r in range(len(state.replica_ids))
    ]
    deployments = [
        {"deployment": d.key, "target": int(st.deployment_target[i]), "ongoing": float(st.deployment_ongoing[i])}
        for i, d in enumerate(spec.deployments)
    ]
    return {"now_s": state.now_s, "nodes": nodes, "replicas": replicas, "deployments": deployments}


@serve.deployment(
    name=DEPLOYMENT,
    num_replicas=1,
    graceful_shutdown_timeout_s=10,
    health_check_timeout_s=60,
)
@serve.ingress(_api)
class DeciderService:
    """Runs the loop in a thread and answers questions about it."""

    def __init__(self, config: DeciderConfig) -> None:
        import torch

        # Numba and torch would otherwise take every core of the head node.
        torch.set_num_threads(1)
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        logging.getLogger("rayfold").setLevel(logging.INFO)
        settings, history = config.settings, History()
        self._token = config.token
        self._journal = Journal(config.journal_path or _session_dir() / JOURNAL_NAME)
        self._executor = ServeExecutor(move_timeout_s=settings.move_timeout_s, fence_s=settings.limits.fence_s)
        self._decider = Decider(
            policy=config.policy,
            fallback=BestFit(settings.limits),
            settings=settings,
            snapshot=lambda: take_snapshot(settings, history),
            history=history,
            executor=self._executor,
            mode=config.mode,
            journal=self._journal,
            rng=np.random.default_rng(config.seed),
        )
        self._thread = threading.Thread(target=self._decider.run, name="decider", daemon=True)
        self._thread.start()

    def check_health(self) -> None:
        """Called by Serve: a loop that has died is replaced."""
        if not self._thread.is_alive():
            raise RuntimeError("the decision loop has ended")

    def __del__(self) -> None:
        """Called by Serve when the replica stops: leaves the controller as it was found."""
        if not hasattr(self, "_thread"):
            return
        self._decider.stop()
        self._thread.join(5.0)
        try:
            if self._executor.is_attached:
                self._executor.detach()
            self._decider.watch()
        except ClusterError as err:
            log.warning("could not detach: %s", err)
        self._journal.close()

    @_api.get("/healthz")
    def healthz(self) -> dict[str, Any]:
        """Mode, time of the last decision (Unix s) and error of the last tick."""
        last = self._decider.last_decision
        return {
            "status": "failing" if self._decider.last_error else "ok",
            "mode": self._decider.mode,
            "last_decision_s": last.time_s if last else None,
            "error": self._decider.last_error,
        }

    @_api.get("/state")
    def state(self) -> dict[str, Any]:
        """The last snapshot."""
        state = self._decider.last_state
        return describe_state(state) if state else {}

    @_api.get("/plan")
    def plan(self) -> dict[str, Any]:
        """The last decision."""
        last = self._decider.last_decision
        return last.as_json() if last else {}

    @_api.get("/decisions")
    def decisions(self, limit: int = 50) -> list[dict[str, Any]]:
        """The newest decisions, oldest first."""
        return self._journal.decisions(min(limit, _MAX_LISTED))

    @_api.get("/moves")
    def moves(self) -> list[dict[str, Any]]:
        """The newest moves with their phases, oldest first."""
        return self._journal.moves(_MAX_LISTED)

    @_api.post("/mode")
    def set_mode(self, request: _ModeRequest, authorization: str = Header(default="")) -> dict[str, str]:
        """Changes the mode; only ``act`` touches the cluster, and leaving it detaches from the controller."""
        if not hmac.compare_digest(authorization.encode(), f"Bearer {self._token}".encode()):
            raise HTTPException(status_code=401, detail="a bearer token is required")
        if request.mode == Mode.ACT:
            try:
                self._executor.attach()
            except ClusterError as err:
                raise HTTPException(status_code=409, detail=str(err)) from err
        before, self._decider.mode = self._decider.mode, request.mode
        if before == Mode.ACT and request.mode != Mode.ACT:
            self._executor.detach()
        return {"mode": request.mode}


def decider_application(config: DeciderConfig, runtime_env: dict[str, Any] | None = None) -> Any:
    """The application to ``serve.run``.

    Args:
        config: What it is deployed with.
        runtime_env: Ships rayfold to a cluster that does not have it.
    """
    # The head cannot be released anyway, so there the decider keeps no node from being released.
    options: dict[str, Any] = {"num_cpus": 0.1, "resources": {"node:__internal_head__": 0.001}}
    if runtime_env:
        options["runtime_env"] = runtime_env
    deployment: Any = DeciderService
    return deployment.options(ray_actor_options=options).bind(config)
