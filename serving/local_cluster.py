"""A real multi-node Ray cluster on this machine, with Ray's own autoscaler v2 and logical GPUs.

Worker nodes are raylets on the loopback address, launched on demand and terminated when idle; Ray itself moves
the head (``ray start``) from the loopback to the machine's own address. The cluster has its
own ports and its own temporary directory, so it can run beside another Ray; only its own processes are ended.
It has its own authentication token, which only this process and its children know.
"""

import json
import logging
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ray
import ray._raylet as raylet
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

from rayfold.envs.cluster import CPU, MEMORY_GIB, NodeType
from rayfold.errors import ClusterError
from rayfold.serving import processes
from rayfold.serving.local_provider import LOOPBACK

__all__ = ["HEAD_TYPE", "LocalCluster", "free_port"]

log = logging.getLogger(__name__)

HEAD_TYPE = "ray.head.default"
_OBJECT_STORE_BYTES = 80 * 2**20
_START_TIMEOUT_S = 90.0
_NO_COMMANDS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
    "cluster_synced_files",
    "rsync_exclude",
    "rsync_filter",
)


def free_port() -> int:
    """A TCP port of the loopback address that nothing listens on now."""
    with socket.socket() as s:
        s.bind((LOOPBACK, 0))
        return int(s.getsockname()[1])


def _set_ray_env(values: Mapping[str, str | None]) -> None:
    """Sets (None: removes) environment variables that Ray has read before, and makes it read them again."""
    for name, value in values.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    compiled: Any = raylet
    compiled.Config.initialize("")
    compiled.AuthenticationTokenLoader.instance().reset_cache()


def _ray_resources(node_type: NodeType) -> dict[str, float]:
    resources = {k: v for k, v in node_type.resources.items() if k != MEMORY_GIB}
    if MEMORY_GIB in node_type.resources:
        resources["memory"] = int(node_type.resources[MEMORY_GIB] * 2**30)
    return {**resources, "object_store_memory": _OBJECT_STORE_BYTES}


def autoscaler_config(
    node_types: Sequence[NodeType], *, head_cpus: int, head_id: str, address: str, idle_timeout_s: float
) -> dict[str, Any]:
    """Ray's autoscaler configuration for these node types.

    Args:
        node_types: Worker types.
        head_cpus: Logical CPUs of the head node.
        head_id: Node id of the head.
        address: ``host:port`` of the GCS.
        idle_timeout_s: An empty node is released after this long.
    """
    workers = {
        t.name: {
            "resources": _ray_resources(t),
            "labels": dict(t.labels),
            "node_config": {},
            "min_workers": t.min_nodes,
            "max_workers": t.max_nodes,
        }
        for t in node_types
    }
    head = {"resources": {CPU: head_cpus}, "node_config": {}, "max_workers": 0}
    provider = {
        "type": "external",
        "module": "rayfold.serving.local_provider.LocalNodeProvider",
        "launch_multiple": True,
        "head_node_id": head_id,
        "gcs_address": address,
    }
    return {
        **{name: [] for name in _NO_COMMANDS},
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        "cluster_name": "rayfold-local",
        "max_workers": sum(t.max_nodes for t in node_types),
        "upscaling_speed": 20.0,
        "idle_timeout_minutes": idle_timeout_s / 60.0,
        "provider": provider,
        "head_node_type": HEAD_TYPE,
        "available_node_types": {**workers, HEAD_TYPE: head},
    }


class LocalCluster:
    """Context manager: the cluster lives as long as the block.

    Args:
        node_types: What the autoscaler may launch; ``min_nodes`` of each are launched at once.
        idle_timeout_s: An empty node is released after this long.
        head_cpus: Logical CPUs of the head node, which has no GPU.
        extra_env: Environment of every process of the cluster, on top of the present one.
        has_dashboard: Starts Ray's dashboard too, which ``serve deploy`` talks to.

    Attributes:
        dashboard_url: Of the dashboard, whether it runs or not.
        address: ``host:port`` for ``ray.init(address=...)``.
        client_env: What another process must have in its environment to connect.
    """

    def __init__(
        self,
        *,
        node_types: Sequence[NodeType],
        idle_timeout_s: float = 15.0,
        head_cpus: int = 4,
        extra_env: Mapping[str, str] | None = None,
        has_dashboard: bool = False,
    ) -> None:
        self.node_types = tuple(node_types)
        self.idle_timeout_s = idle_timeout_s
        self.address = f"{LOOPBACK}:{free_port()}"
        self._dashboard_port, self._has_dashboard = free_port(), has_dashboard
        self.dashboard_url = f"http://{LOOPBACK}:{self._dashboard_port}"
        self._head_cpus = head_cpus
        self.client_env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self._outer_env: dict[str, str | None] | None = None
        self._mark = f"rayfold-{secrets.token_hex(8)}"
        self._extra_env = dict(extra_env or {})
        self._temp_dir: Path | None = None

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _start(self) -> None:
        # A unix socket path holds about 100 characters, most of which Ray uses: keep the directory short.
        self._temp_dir = Path(tempfile.mkdtemp(prefix="rf", dir="/tmp" if os.name == "posix" else None))
        config_path = self._temp_dir / "autoscaler.json"
        config = autoscaler_config(
            self.node_types,
            head_cpus=self._head_cpus,
            head_id=FAKE_HEAD_NODE_ID,
            address=self.address,
            idle_timeout_s=self.idle_timeout_s,
        )
        config_path.write_text(json.dumps(config))
        command = self._start_command(config_path)
        log_path = self._temp_dir / "start.log"
        with log_path.open("w") as out:
            done = subprocess.run(
                command, env=self._environment(), stdout=out, stderr=out, timeout=_START_TIMEOUT_S, check=False
            )
        if done.returncode:
            tail = " | ".join(log_path.read_text().splitlines()[-5:])
            raise ClusterError(f"the local Ray cluster did not start (exit {done.returncode}): {tail}")
        log.info("local cluster at %s, files in %s", self.address, self._temp_dir)

    def _start_command(self, config_path: Path) -> list[str]:
        host, port = self.address.split(":")
        options: dict[str, object] = {
            "node-ip-address": host,
            "port": port,
            "autoscaling-config": config_path,
            "num-cpus": self._head_cpus,
            "num-gpus": 0,
            "object-store-memory": _OBJECT_STORE_BYTES,
            "temp-dir": self._temp_dir,
            "include-dashboard": str(self._has_dashboard).lower(),
            "dashboard-host": LOOPBACK,
            "dashboard-port": self._dashboard_port,
            "ray-client-server-port": free_port(),
            "dashboard-agent-listen-port": 0,
            "min-worker-port": 0,
            "max-worker-port": 0,
        }
        flags = [f"--{name}={value}" for name, value in options.items()]
        ray = [sys.executable, "-m", "ray.scripts.scripts"]
        return [*ray, "start", "--head", "--disable-usage-stats", *flags]

    def _environment(self) -> dict[str, str]:
        # The present process may itself be attached to a cluster; none of that may leak in.
        outer = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_NAMESPACE")}
        return {
            **outer,
            **self._extra_env,
            **self.client_env,
            processes.MARK: self._mark,
            "RAY_worker_niceness": "0",  # Ray's 15 starves the replicas beside anything else that is busy here
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        }

    def connect(self) -> None:
        """Connects this process as a driver, with the cluster's token, until ``stop``."""
        self._outer_env = {name: os.environ.get(name) for name in self.client_env}
        _set_ray_env(self.client_env)
        ray.init(address=self.address, log_to_driver=False, logging_level=logging.WARNING)

    def _disconnect(self) -> None:
        if self._outer_env is not None:
            ray.shutdown()
            _set_ray_env(self._outer_env)
            self._outer_env = None

    def stop(self, grace_s: float = 5.0) -> None:
        """Ends every process of this cluster and removes its files. Safe to call twice.

        Args:
            grace_s: Time to end by themselves before they are killed.
        """
        self._disconnect()
        if self._temp_dir is None:
            return
        left = processes.end(self._mark, self._temp_dir, grace_s=grace_s, clock=time.monotonic)
        if left:
            log.warning("processes %s of the local cluster did not end", sorted(left))
        shutil.rmtree(self._temp_dir, ignore_errors=True)
        self._temp_dir = None
