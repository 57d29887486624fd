"""A scenario on the real local cluster, recorded: load that rises and falls, nodes that come and go, and moves.

The load is closed-loop, so that the number of ongoing requests is that of the clients, however many replicas there are.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import ray

from rayfold.envs.cluster import Interval, NodeType
from rayfold.envs.moves import Move
from rayfold.envs.safety import Limits, check_move
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase
from rayfold.errors import ClusterError, ExecutorError
from rayfold.serving.event_log import Recorder
from rayfold.serving.executor import ServeExecutor
from rayfold.serving.history import History
from rayfold.serving.live_settings import LiveSettings, NodeTypeSettings
from rayfold.serving.local_cluster import LocalCluster, free_port
from rayfold.serving.snapshot import take_snapshot

__all__ = ["ReplayApp", "ReplayScenario", "Stage", "VaryingLoad", "choose_move", "run_scenario", "ten_minutes"]

log = logging.getLogger(__name__)

SERVICE_S = 0.5  # a request takes this long
_POLL_S = 0.5
_SETTLE_TIMEOUT_S = 240.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayApp:
    """One application of one deployment, both called ``name``."""

    name: str
    num_gpus: int
    max_replicas: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """From ``at_s`` on so many clients ask each application."""

    at_s: float
    clients: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayScenario:
    """What happens when. Times are seconds after the first poll."""

    title: str
    node_types: tuple[NodeType, ...]  # each with min_nodes >= 1: the first snapshot must know its resources
    apps: tuple[ReplayApp, ...]
    stages: tuple[Stage, ...]  # the first at 0
    move_at_s: tuple[float, ...]
    duration_s: float
    target_ongoing: float = 2.0
    upscale_delay_s: float = 5.0
    downscale_delay_s: float = 25.0
    look_back_s: float = 12.0
    metrics_interval_s: float = 10.0  # Serve's default
    idle_timeout_s: float = 20.0
    fence_s: float = 60.0

    def limits(self) -> Limits:
        """For the choice of moves: as loose as the executor is."""
        return Limits(max_concurrent_moves=8, deployment_cooldown_s=0.0, fence_s=self.fence_s)


def ten_minutes() -> ReplayScenario:
    """Two ramps up and down on up to five nodes of two types, three deployments, six moves."""

    def node_type(name: str, gpus: int, most: int) -> NodeType:
        resources = {"GPU": float(gpus), "CPU": 2.0 * gpus, "memory_gib": 2.0 * gpus}
        return NodeType(name=name, resources=resources, price_usd_per_h=float(gpus), min_nodes=1, max_nodes=most)

    def clients(a: int, b: int, c: int) -> dict[str, int]:
        return {"a": a, "b": b, "c": c}

    return ReplayScenario(
        title="ten minutes: two ramps, two node types, three deployments",
        node_types=(node_type("gpu4", 4, 3), node_type("gpu2", 2, 2)),
        apps=(
            ReplayApp(name="a", num_gpus=1, max_replicas=8),
            ReplayApp(name="b", num_gpus=1, max_replicas=4),
            ReplayApp(name="c", num_gpus=2, max_replicas=2),
        ),
        # Odd numbers of clients: half way between two numbers of replicas, so that noise does not flip the target.
        stages=(
            Stage(at_s=0.0, clients=clients(1, 1, 1)),
            Stage(at_s=30.0, clients=clients(7, 3, 1)),
            Stage(at_s=110.0, clients=clients(13, 5, 3)),
            Stage(at_s=220.0, clients=clients(5, 3, 1)),
            Stage(at_s=370.0, clients=clients(11, 3, 3)),
            Stage(at_s=460.0, clients=clients(1, 1, 1)),
        ),
        move_at_s=(90.0, 190.0, 265.0, 280.0, 295.0, 520.0, 535.0),
        duration_s=600.0,
    )


class VaryingLoad:
    """Context manager: closed-loop HTTP clients in a thread of their own, whose number may change at any time.

    Args:
        most: Largest number of clients by URL.
        service_timeout_s: An answer that takes longer is a failure.
    """

    def __init__(self, most: Mapping[str, int], service_timeout_s: float = 60.0) -> None:
        self._most, self._timeout_s = dict(most), service_timeout_s
        self._wanted = dict.fromkeys(most, 0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="varying-load", daemon=True)
        self.answered, self.failed = 0, 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(self._timeout_s + 5.0)

    def set_clients(self, url: str, count: int) -> None:
        """Makes ``count`` clients ask ``url`` from now on."""
        self._wanted[url] = min(count, self._most[url])

    async def _run(self) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(limits=limits, timeout=self._timeout_s, trust_env=False) as client:
            await asyncio.gather(*(self._client(client, u, i) for u, most in self._most.items() for i in range(most)))

    async def _client(self, client: httpx.AsyncClient, url: str, i: int) -> None:
        while not self._stop.is_set():
            if i >= self._wanted[url]:
                await asyncio.sleep(0.1)
                continue
            try:
                ok = (await client.get(url)).status_code == 200
            except httpx.HTTPError as err:
                log.warning("%s: %s: %s", url, type(err).__name__, err)
                ok = False
            self.answered += ok
            self.failed += not ok


class Sleeper:
    """Answers after ``SERVICE_S``."""

    async def __call__(self, request: Any) -> str:
        """Answers one request."""
        await asyncio.sleep(SERVICE_S)
        return "ok"


def _deploy(app: ReplayApp, scenario: ReplayScenario) -> None:
    from ray import serve

    deployment: Any = serve.deployment(
        name=app.name,
        ray_actor_options={"num_cpus": 1, "num_gpus": app.num_gpus},
        max_ongoing_requests=5,
        graceful_shutdown_wait_loop_s=1.0,
        graceful_shutdown_timeout_s=10.0,
        autoscaling_config={
            "min_replicas": 1,
            "max_replicas": app.max_replicas,
            "target_ongoing_requests": scenario.target_ongoing,
            "upscale_delay_s": scenario.upscale_delay_s,
            "downscale_delay_s": scenario.downscale_delay_s,
            "look_back_period_s": scenario.look_back_s,
            "metrics_interval_s": scenario.metrics_interval_s,
        },
    )(Sleeper)
    serve.run(deployment.bind(), name=app.name, route_prefix=f"/{app.name}", _local_testing_mode=False)


def choose_move(state: ClusterState, limits: Limits) -> Move | None:
    """An allowed move from the node with the fewest replicas to the one with the most, of one with room; None if none.

    Args:
        state: A live snapshot.
        limits: For the safety filter.
    """
    st = state.arrays
    counts = [int((st.replica_node == n).sum()) for n in range(len(st.node_type))]
    best, best_key = None, (0, 0)
    for r in range(len(st.replica_node)):
        for n in range(len(st.node_type)):
            if not check_move(state, Move(r, n), limits).allowed:
                continue
            key = (-counts[int(st.replica_node[r])], counts[n])
            if best is None or key > best_key:
                best, best_key = Move(r, n), key
    return best


def _settings(scenario: ReplayScenario) -> LiveSettings:
    types = {
        t.name: NodeTypeSettings(
            price_usd_per_h=t.price_usd_per_h, min_nodes=t.min_nodes, max_nodes=t.max_nodes, boot_s=Interval(5.0, 15.0)
        )
        for t in scenario.node_types
    }
    return LiveSettings(
        idle_timeout_s=scenario.idle_timeout_s, decision_interval_s=5.0, node_types=types, limits=scenario.limits()
    )


def _is_calm(state: ClusterState, scenario: ReplayScenario) -> bool:
    st = state.arrays
    num_nodes = sum(t.min_nodes for t in scenario.node_types)
    is_running = (st.replica_phase == ReplicaPhase.RUNNING).all()
    is_alive = (st.node_phase == NodePhase.ALIVE).all()
    return bool(
        len(st.replica_phase) == len(scenario.apps) and is_running and len(st.node_type) == num_nodes and is_alive
    )


def run_scenario(scenario: ReplayScenario, log_path: Path, progress: Callable[[str], None]) -> VaryingLoad:
    """Starts a cluster, runs the scenario on it, writes its log, and ends the cluster.

    Args:
        scenario: What happens.
        log_path: See ``Recorder``.
        progress: Told each step.

    Returns:
        The load, for its counts.

    Raises:
        ClusterError: The cluster did not start or did not settle.
    """
    from ray import serve

    settings = _settings(scenario)
    progress("starting a local Ray cluster")
    with LocalCluster(node_types=scenario.node_types, idle_timeout_s=scenario.idle_timeout_s) as cluster:
        cluster.connect()
        port = free_port()
        # All nodes share one address here, see the demo: one proxy, on the head, which stays.
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        for app in sorted(scenario.apps, key=lambda a: -a.num_gpus):
            _deploy(app, scenario)
        urls = {app.name: f"http://127.0.0.1:{port}/{app.name}" for app in scenario.apps}
        most = {urls[name]: max(s.clients[name] for s in scenario.stages) for name in urls}
        with VaryingLoad(most) as load:
            for name, count in scenario.stages[0].clients.items():
                load.set_clients(urls[name], count)
            _wait_calm(scenario, settings)
            progress("settled; recording")
            recorder = Recorder(
                log_path,
                settings,
                poll_s=_POLL_S,
                fence_s=scenario.fence_s,
                title=scenario.title,
                ray_version=ray.__version__,
            )
            with recorder:
                _play(scenario, recorder, load, urls, progress)
        progress(f"{load.answered} requests answered, {load.failed} failed")
    return load


def _wait_calm(scenario: ReplayScenario, settings: LiveSettings) -> None:
    deadline_s = time.monotonic() + _SETTLE_TIMEOUT_S
    while not _is_calm(take_snapshot(settings, History()), scenario):
        if time.monotonic() > deadline_s:
            raise ClusterError(f"the cluster did not settle within {_SETTLE_TIMEOUT_S:.0f} s")
        time.sleep(_POLL_S)


def _play(
    scenario: ReplayScenario,
    recorder: Recorder,
    load: VaryingLoad,
    urls: Mapping[str, str],
    progress: Callable[[str], None],
) -> None:
    executor = ServeExecutor(move_timeout_s=60.0, fence_s=scenario.fence_s)
    stages, moves = list(scenario.stages), list(scenario.move_at_s)
    begun_s = time.monotonic()
    while (t_s := time.monotonic() - begun_s) <= scenario.duration_s:
        state = recorder.poll()
        while stages and stages[0].at_s <= t_s:
            stage = stages.pop(0)
            progress(f"{t_s:.0f} s: clients {dict(stage.clients)}")
            for name, count in stage.clients.items():
                load.set_clients(urls[name], count)
        if moves and moves[0] <= t_s and _start_move(scenario, recorder, executor, state, progress):
            moves.pop(0)
        recorder.note_statuses(executor.statuses(), time.time())
        time.sleep(max(0.0, begun_s + t_s + _POLL_S - time.monotonic()))
    executor.detach()
    recorder.note_statuses(executor.statuses(), time.time())


def _start_move(
    scenario: ReplayScenario,
    recorder: Recorder,
    executor: ServeExecutor,
    state: ClusterState,
    progress: Callable[[str], None],
) -> bool:
    """Starts a move if one is possible now; else it is tried again at the next poll."""
    move = choose_move(state, scenario.limits())
    if move is None:
        return False
    now_s = time.time()
    try:
        move_id = executor.start(state, move)
    except ExecutorError as err:
        progress(f"refused: {err}")
        return False
    recorder.note_start(move_id, state, move, now_s)
    st = state.arrays
    deployment = state.spec.deployments[int(st.replica_deployment[move.replica_idx])].key
    source = state.node_ids[int(st.replica_node[move.replica_idx])]
    progress(f"move {move_id}: {deployment} from {source[:8]} to {state.node_ids[move.node_idx][:8]}")
    return True
