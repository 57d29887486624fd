"""The decider as a Ray Serve application of one replica on the head node.

It lives in the cluster it decides about, under the Serve proxy of that cluster; ``api.py`` is its HTTP interface.
"""

import json
import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI
from ray import serve

from rayfold.envs.safety import Limits
from rayfold.errors import ClusterError, InputError
from rayfold.policies.best_fit import BestFit
from rayfold.policies.protocol import Policy
from rayfold.serving import controller_view
from rayfold.serving.api import make_api
from rayfold.serving.decider import Decider
from rayfold.serving.decision import Mode
from rayfold.serving.executor import ServeExecutor, call_controller
from rayfold.serving.history import History
from rayfold.serving.journal import Journal
from rayfold.serving.lease import GcsStore, Lease
from rayfold.serving.live_settings import LiveSettings, merge_settings, parse_live_settings, settings_as_json
from rayfold.serving.metrics import Metrics, Sink
from rayfold.serving.ray_metrics import RayMetrics
from rayfold.serving.snapshot import OWN_APP, take_snapshot
from rayfold.serving.token_file import read_token

__all__ = ["DEPLOYMENT", "JOURNAL_NAME", "ROUTE", "DeciderConfig", "decider_application"]

log = logging.getLogger(__name__)

DEPLOYMENT, ROUTE = "Decider", f"/{OWN_APP}"
JOURNAL_NAME = "rayfold_journal.sqlite3"
_LEASE_TICKS = 3  # a lease outlives so many decision intervals
_STEERED = "steered"  # the journal's note of mode and settings as they were set over HTTP


@dataclass(frozen=True, slots=True, kw_only=True)
class DeciderConfig:
    """What the application is deployed with."""

    make_policy: Callable[[Limits], Policy]
    settings: LiveSettings
    mode: Mode
    token: str | Path  # bearer, or the file on the head node that holds it
    journal_path: Path | None = None  # on the head node; None = a file in Ray's session folder there
    seed: int = 0
    # A replica that Serve restarts takes up what was set over HTTP; a new deployment begins with its own.
    deployment_id: str = field(default_factory=lambda: secrets.token_hex(8))


def _session_dir() -> Path:
    """Where this Ray cluster keeps its files on this node: what lies there outlives the decider's process."""
    from ray._private.worker import global_worker

    node: Any = global_worker.node
    return Path(node.get_session_dir_path())


class LiveControls:
    """The decider on the cluster this process is connected to, with what it takes to steer it.

    Args:
        config: What it was deployed with.
        sink: Told the metrics.
    """

    def __init__(self, config: DeciderConfig, sink: Sink | None = None) -> None:
        self._id, history = config.deployment_id, History()
        self._journal = Journal(config.journal_path or _session_dir() / JOURNAL_NAME)
        mode, settings = self._as_steered(config)
        self._lease = Lease(GcsStore(), socket.gethostname(), _lease_ttl_s(settings), owner=config.deployment_id)
        self._executor = ServeExecutor(
            move_timeout_s=settings.move_timeout_s,
            fence_s=settings.limits.fence_s,
            node_types=settings.node_types,
            term=lambda: self._lease.term,
        )
        self.decider: Decider = Decider(
            make_policy=config.make_policy,
            make_fallback=BestFit,
            settings=settings,
            snapshot=lambda: take_snapshot(self.decider.settings, history),
            history=history,
            executor=self._executor,
            mode=mode,
            journal=self._journal,
            rng=np.random.default_rng(config.seed),
            may_act=self._may_act,
            stand_down=self._lease.release,
            metrics=Metrics(sink),
            after_step=lambda: self.decider.metrics.publish(self.decider.gauges(self.lease_held())),
        )

    def _as_steered(self, config: DeciderConfig) -> tuple[Mode, LiveSettings]:
        noted = json.loads(self._journal.noted(_STEERED) or "{}")
        if noted.get("deployment_id") != config.deployment_id:
            return config.mode, config.settings
        try:
            settings = parse_live_settings(noted["settings"], "the journal's settings")
        except InputError:
            log.exception("taking the settings of the deployment")
            settings = config.settings
        return Mode(noted["mode"]), settings

    def _note_steering(self) -> None:
        values = {"mode": self.decider.mode, "settings": settings_as_json(self.decider.settings)}
        self._journal.note(_STEERED, json.dumps({"deployment_id": self._id, **values}))

    def _may_act(self) -> str:
        if not self.decider.settings.act_beside_ray_compaction:
            why = str(call_controller(controller_view.own_compaction))
            if why:
                return f"{why}; set act_beside_ray_compaction to act all the same"
        return self._lease.hold()

    def lease_held(self) -> bool:
        """See ``Controls``."""
        return self._lease.term > 0

    def set_mode(self, mode: Mode) -> None:
        """See ``Controls``."""
        self.decider.set_mode(mode)
        self._note_steering()

    def apply_settings(self, content: Mapping[str, Any]) -> LiveSettings:
        """See ``Controls``."""
        made = merge_settings(self.decider.settings, content, "settings")
        self.decider.reconfigure(made)  # first: a policy may not take these limits
        self._executor.move_timeout_s, self._executor.fence_s = made.move_timeout_s, made.limits.fence_s
        self._executor.node_types = made.node_types
        self._lease.ttl_s = _lease_ttl_s(made)
        self._note_steering()
        return made

    def close(self) -> None:
        """After the loop has ended: leaves the controller as it was found."""
        try:
            self.decider.close()
        except ClusterError as err:
            log.warning("could not detach: %s", err)
        self._journal.close()


def _lease_ttl_s(settings: LiveSettings) -> float:
    return max(settings.lease_ttl_s, _LEASE_TICKS * settings.decision_interval_s)


@serve.deployment(
    name=DEPLOYMENT,
    num_replicas=1,
    graceful_shutdown_timeout_s=10,
    health_check_timeout_s=60,
)
@serve.ingress()
class DeciderService:
    """Runs the loop in a thread and answers questions about it."""

    def __init__(self, config: DeciderConfig) -> None:
        import torch

        # Numba and torch would otherwise take every core of the head node.
        torch.set_num_threads(1)
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        logging.getLogger("rayfold").setLevel(logging.INFO)
        self._token = read_token(config.token) if isinstance(config.token, Path) else config.token
        self._controls = LiveControls(config, RayMetrics())
        self._thread = threading.Thread(target=self._controls.decider.run, name="decider", daemon=True)
        self._thread.start()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve once the loop runs."""
        return make_api(self._controls, self._token)

    def check_health(self) -> None:
        """Called by Serve: a loop that has died is replaced."""
        if not self._thread.is_alive():
            raise RuntimeError("the decision loop has ended")

    def __del__(self) -> None:
        """Called by Serve when the replica stops."""
        if not hasattr(self, "_thread"):
            return
        self._controls.decider.stop()
        self._thread.join(5.0)
        self._controls.close()


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
