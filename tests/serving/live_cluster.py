"""The real local Ray 2.60 cluster that the live tests share, and how they look at it.

Three logical 4-GPU nodes, four plain replicas and one PACK group of two bundles. Functions that say so run in the
Serve controller.
"""

import os
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from rayfold.envs.cluster import Interval, NodeType
from rayfold.envs.moves import MovePhase
from rayfold.envs.safety import Limits
from rayfold.envs.state import ClusterState, ReplicaPhase
from rayfold.errors import ClusterError
from rayfold.serving.executor import ServeExecutor, call_controller
from rayfold.serving.history import History
from rayfold.serving.live_settings import Brakes, DeploymentSettings, LiveSettings, NodeTypeSettings
from rayfold.serving.local_cluster import LocalCluster, free_port
from rayfold.serving.snapshot import take_snapshot
from tests.real_ray import wait_until
from tests.serving.permanent_form import WISH, attach_if_wished

NODE_TYPE = NodeType(
    name="gpu4",
    resources={"GPU": 4.0, "CPU": 8.0, "memory_gib": 4.0},
    price_usd_per_h=4.0,
    min_nodes=0,
    max_nodes=3,
)
_STARTUP = DeploymentSettings(startup_s=Interval(2.0, 5.0), drain_s=Interval(1.0, 2.0))
SETTINGS = LiveSettings(
    idle_timeout_s=10.0,
    decision_interval_s=2.0,
    move_timeout_s=60.0,
    node_types={"gpu4": NodeTypeSettings(price_usd_per_h=4.0, max_nodes=3)},
    deployments={"plain": _STARTUP, "pack": _STARTUP},
    limits=Limits(max_concurrent_moves=2, deployment_cooldown_s=1.0, fence_s=60.0),
    brakes=Brakes(moving_frac=1.0, min_run_s=0.0),
    lease_ttl_s=1.0,
)


def snapshot() -> ClusterState:
    """The cluster now."""
    return take_snapshot(SETTINGS, History())


def replicas_of(state: ClusterState, key: str) -> list[int]:
    """Rows of the running replicas of a deployment."""
    st = state.arrays
    d = [x.key for x in state.spec.deployments].index(key)
    running = (st.replica_deployment == d) & (st.replica_phase == ReplicaPhase.RUNNING)
    return [int(r) for r in running.nonzero()[0]]


def is_calm(state: ClusterState, num_replicas: int) -> bool:
    """Whether exactly so many replicas exist, all of them serving."""
    phases = state.arrays.replica_phase.tolist()
    return len(phases) == num_replicas and all(p == ReplicaPhase.RUNNING for p in phases)


def other_node(state: ClusterState, r: int, gpus: float) -> int:
    """The row of the node other than that of replica ``r`` with most free GPUs."""
    st = state.arrays
    rows = [n for n in range(len(st.node_type)) if n != st.replica_node[r]]
    best = max(rows, key=lambda n: st.node_free[n, 0])
    assert st.node_free[best, 0] >= gpus, "the test needs a node with room"
    return best


def finish(executor: ServeExecutor, move_id: str, timeout_s: float = 60.0) -> MovePhase:
    """Waits for a move to end."""
    final = (MovePhase.DONE, MovePhase.FAILED, MovePhase.CANCELLED)
    wait_until(f"move {move_id} to end", lambda: executor.phase(move_id) in final, timeout_s)
    return executor.phase(move_id)


class Live(NamedTuple):
    """The running cluster."""

    cluster: LocalCluster
    address: str
    url: str  # of Serve's HTTP proxy
    wish: Path  # see ``permanent_form``


def num_nodes() -> int:
    """Alive worker nodes."""
    import ray

    api: Any = ray
    return sum(bool(n["Alive"]) and n["Resources"].get("GPU", 0) > 0 for n in api.nodes())


def request_nodes(count: int) -> None:
    """Asks the autoscaler to keep ``count`` nodes; 0 takes the wish back."""
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=[{"GPU": 4.0}] * count)


def start_cluster(folder: Path) -> Iterator[Live]:
    """Starts the cluster and its applications; the generator's end ends them.

    Args:
        folder: For the file that wishes the permanent form.
    """
    with warnings.catch_warnings():
        # Importing and starting Ray Serve warns of its own deprecations and unclosed sockets.
        warnings.simplefilter("ignore")
        yield from _start(folder / "wish")


def _start(wish: Path) -> Iterator[Live]:
    from ray import serve

    from rayfold.serving import demo_apps

    # A raylet that was killed is missed after five checks that are refused; one that is slow has ten seconds for each.
    soon = {"RAY_health_check_period_ms": "1000"}
    with LocalCluster(
        node_types=[NODE_TYPE], idle_timeout_s=SETTINGS.idle_timeout_s, extra_env=soon, has_dashboard=True
    ) as cluster:
        cluster.connect()
        request_nodes(3)
        wait_until("three nodes to join", lambda: num_nodes() == 3, 90.0)
        port = free_port()
        # One address for all nodes: see the demo.
        environment = {
            "RAY_SERVE_CONTROLLER_CALLBACK_IMPORT_PATH": f"{attach_if_wished.__module__}:{attach_if_wished.__name__}",
            WISH: str(wish),
        }
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": "127.0.0.1", "port": port},
            controller_options={"runtime_env": {"env_vars": environment}},
        )
        bundles = [{"GPU": 1.0, "CPU": 1.0}] * 2
        demo_apps.deploy_echo("pack", 1, bundles)
        demo_apps.deploy_echo("plain", 4)
        wait_until("five replicas to serve", lambda: is_calm(snapshot(), 5), 60.0)
        yield Live(cluster, cluster.address, f"http://127.0.0.1:{port}", wish)


def scheduler_class(controller: Any) -> tuple[str, str, bool]:
    """Runs in the controller: names of the scheduler's class and of the patched method, and whether a desk is there."""
    from ray.serve._private import deployment_state as ds

    scheduler = controller.deployment_state_manager._deployment_scheduler
    method = ds.DeploymentState.migrate_replicas_on_draining_nodes
    return type(scheduler).__qualname__, method.__qualname__, hasattr(scheduler, "_rayfold_desk")


def fences_of(controller: Any) -> dict[str, float]:
    """Runs in the controller."""
    desk = getattr(controller.deployment_state_manager._deployment_scheduler, "_rayfold_desk", None)
    return dict(desk.fences) if desk else {}


def decider_pid(controller: Any) -> int | None:
    """Runs in the controller: process id of the running decider."""
    states = controller.deployment_state_manager._deployment_states
    replicas = [r for d, s in states.items() if d.app_name == "rayfold" for r in s._replicas.get()]
    running = [r.actor_details.pid for r in replicas if r.actor_details.state.value == "RUNNING"]
    return running[0] if running else None


def controller_pid(controller: Any) -> int:
    """Runs in the controller: its own process id."""
    import os

    return os.getpid()


def ask_controller(fn: Callable[[Any], Any]) -> Any:
    """What ``fn`` says in the Serve controller; None while that does not answer."""
    try:
        return call_controller(fn, timeout_s=5.0)
    except ClusterError:
        return None


def kill_controller() -> None:
    """Kill -9 of the Serve controller; returns when another is there."""
    pid = call_controller(controller_pid)
    os.kill(pid, signal.SIGKILL)
    wait_until("another controller", lambda: ask_controller(controller_pid) not in (None, pid))


def has_reattached(executor: ServeExecutor) -> bool:
    """Whether the executor has found that its controller restarted, and attached again."""
    try:
        return executor.keep_attached()
    except ClusterError:
        return False


def ask(url: str) -> Any:
    """The answer, None where there is none (yet)."""
    try:
        answer = httpx.get(url, timeout=10.0, trust_env=False)
    except httpx.HTTPError:
        return None
    return answer.json() if answer.status_code == 200 else None
