"""The live half of the demo: scale one deployment down on a real local cluster, and let a policy tidy up.

Four logical 4-GPU nodes, three Serve applications, HTTP load all along. The same cluster is described for training by
``envs/scenarios/local_demo.yaml``.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import ray

from rayfold.envs.cluster import Interval, NodeType
from rayfold.envs.safety import Limits
from rayfold.errors import ClusterError
from rayfold.policies.by_name import policy_maker
from rayfold.policies.protocol import Policy
from rayfold.serving.attach import NUM_CANDIDATES, deploy_decider
from rayfold.serving.decision import Mode
from rayfold.serving.demo_apps import deploy_echo, scale_echo
from rayfold.serving.history import History
from rayfold.serving.live_settings import Brakes, DeploymentSettings, LiveSettings, NodeTypeSettings
from rayfold.serving.load import HttpLoad
from rayfold.serving.local_cluster import LocalCluster, free_port
from rayfold.serving.snapshot import take_snapshot
from rayfold.serving.state_view import describe_state
from rayfold.serving.token_file import read_token

__all__ = ["DemoDeployment", "DemoSpec", "LiveDemoResult", "demo_spec", "run_live_demo"]

log = logging.getLogger(__name__)

_POLL_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoDeployment:
    """One application of the demo: app and deployment share the name."""

    name: str
    num_gpus: int  # bundles of one GPU and one CPU; more than one makes a PACK placement group
    replicas_before: int
    replicas_after: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSpec:
    """The demo's cluster."""

    node_type: NodeType
    num_nodes: int
    deployments: tuple[DemoDeployment, ...]
    settings: LiveSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveDemoResult:
    """What the live demo saw. Nodes are worker nodes; ``before`` is just after the scale-down."""

    policy: str
    nodes_before: int
    nodes_after: int
    usd_per_h_before: float
    usd_per_h_after: float
    moves: tuple[dict[str, Any], ...]  # as GET /moves tells them
    requests: int  # while replicas moved
    failed: int  # of all requests, before and during
    p50_ms_before: float
    p99_ms_before: float
    p50_ms_during: float
    p99_ms_during: float
    took_s: float  # from the decider's start to the first released node, or the time-out
    errors: tuple[str, ...]  # of failed requests, the first few
    listing_before: tuple[str, ...]
    listing_after: tuple[str, ...]


def demo_spec() -> DemoSpec:
    """Node type, deployments and settings of the demo."""
    startup = DeploymentSettings(startup_s=Interval(2.0, 5.0), drain_s=Interval(1.0, 2.0))
    node_type = NodeType(
        name="gpu4",
        resources={"GPU": 4.0, "CPU": 8.0, "memory_gib": 8.0},
        price_usd_per_h=4.0,
        max_nodes=4,
        boot_s=Interval(8.0, 15.0),
    )
    return DemoSpec(
        node_type=node_type,
        num_nodes=4,
        deployments=(
            DemoDeployment(name="a", num_gpus=1, replicas_before=8, replicas_after=1),
            DemoDeployment(name="b", num_gpus=1, replicas_before=4, replicas_after=4),
            DemoDeployment(name="c", num_gpus=2, replicas_before=1, replicas_after=1),
        ),
        settings=LiveSettings(
            idle_timeout_s=15.0,
            decision_interval_s=5.0,
            move_timeout_s=60.0,
            node_types={"gpu4": NodeTypeSettings(price_usd_per_h=4.0, max_nodes=4, boot_s=Interval(8.0, 15.0))},
            deployments={name: startup for name in ("a", "b", "c")},
            limits=Limits(max_concurrent_moves=2, deployment_cooldown_s=10.0, fence_s=120.0),
            # A day's worth of moves in a few minutes.
            brakes=Brakes(moves_per_h=100, moves_per_deployment_h=100, moving_frac=0.5, min_run_s=30.0),
            lease_ttl_s=15.0,
        ),
    )


def _deploy(spec: DemoSpec) -> None:
    # Largest first: a PACK group that finds no node with room for all of it would span nodes, and stay.
    for d in sorted(spec.deployments, key=lambda d: -d.num_gpus):
        bundles = [{"GPU": 1.0, "CPU": 1.0}] * d.num_gpus if d.num_gpus > 1 else None
        deploy_echo(d.name, d.replicas_before, bundles)


def _listing(state: Any) -> tuple[str, ...]:
    """One line per node: its replicas."""
    told = describe_state(state)
    lines = []
    for node in told["nodes"]:
        held = sorted(r["deployment"] for r in told["replicas"] if r["node_id"] == node["node_id"])
        lines.append(f"{node['node_type']} {node['node_id'][:8]}: {', '.join(held) or '(empty)'}")
    return tuple(lines)


def _num_workers() -> int:
    api: Any = ray
    return sum(bool(n["Alive"]) and n["Resources"].get("GPU", 0) > 0 for n in api.nodes())


def _wait(what: str, is_done: Callable[[], bool], timeout_s: float) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not is_done():
        if time.monotonic() > deadline_s:
            raise ClusterError(f"the demo waited {timeout_s:.0f} s in vain: {what}")
        time.sleep(_POLL_S)


def _is_settled(spec: DemoSpec, settings: LiveSettings, counts: dict[str, int]) -> bool:
    told = describe_state(take_snapshot(settings, History()))["replicas"]
    serving = {d.name: [r for r in told if r["deployment"] == f"{d.name}/{d.name}"] for d in spec.deployments}
    return all(
        len(rows) == counts[name] and all(r["phase"] == "running" for r in rows) for name, rows in serving.items()
    )


def _moves(url: str) -> tuple[dict[str, Any], ...]:
    return tuple(httpx.get(f"{url}/moves", timeout=10.0, trust_env=False).json())


def run_live_demo(
    bundle: Path | None,
    progress: Callable[[str], None],
    *,
    spec: DemoSpec | None = None,
    release_timeout_s: float = 240.0,
    num_clients: int = 6,
) -> LiveDemoResult:
    """Starts the cluster, scales deployment ``a`` down, lets the policy act, and waits for a released node.

    Args:
        bundle: Directory of a policy bundle; None takes the best-fit heuristic.
        progress: Told each step.
        spec: The cluster.
        release_timeout_s: How long to wait for a node to be released.
        num_clients: Closed-loop HTTP clients.

    Raises:
        InputError: The bundle is not usable.
        ClusterError: The cluster did not start or did not settle.
    """
    spec = spec or demo_spec()
    name = "best_fit" if bundle is None else str(bundle)
    make = policy_maker(name, num_candidates=NUM_CANDIDATES)
    workers = NodeType(
        name=spec.node_type.name,
        resources=spec.node_type.resources,
        price_usd_per_h=spec.node_type.price_usd_per_h,
        max_nodes=spec.node_type.max_nodes,
    )
    progress("starting a local Ray cluster")
    with LocalCluster(node_types=[workers], idle_timeout_s=spec.settings.idle_timeout_s) as cluster:
        cluster.connect()
        port = _start_serve(cluster.address, spec, progress)
        urls = [f"http://127.0.0.1:{port}/{d.name}" for d in spec.deployments]
        with HttpLoad(urls, num_clients=num_clients) as load:
            return _scale_down_and_compact(spec, make, cluster.address, load, progress, release_timeout_s)


def _start_serve(address: str, spec: DemoSpec, progress: Callable[[str], None]) -> int:
    """Deploys the applications, waits until they serve, and returns the HTTP port."""
    from ray import serve

    _request_nodes(address, spec, spec.num_nodes)
    _wait("nodes to join", lambda: _num_workers() >= spec.num_nodes, 120.0)
    port = free_port()
    # All nodes share one address here: clients would reach any node's proxy, and lose their connection to
    # that of a released node. A load balancer in front of a real cluster drains such a proxy first.
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    before = {d.name: d.replicas_before for d in spec.deployments}
    _deploy(spec)
    _wait("replicas to serve", lambda: _is_settled(spec, spec.settings, before), 180.0)
    _request_nodes(address, spec, 0)
    progress(f"{_num_workers()} nodes, {sum(before.values())} replicas serving")
    return port


def _request_nodes(address: str, spec: DemoSpec, num_nodes: int) -> None:
    """Asks the autoscaler for so many nodes, whatever runs on them; 0 takes the request back.

    ``ray.autoscaler.sdk.request_resources`` does the same but remembers for the whole process which autoscaler the
    first cluster had that it spoke to (``is_autoscaler_v2``), which need not be this one's.
    """
    from ray.autoscaler.v2.sdk import request_cluster_resources

    bundle = {"resources": {"GPU": spec.node_type.resources["GPU"]}, "label_selector": {}}
    request_cluster_resources(address, [bundle] * num_nodes)


def _scale_down_and_compact(
    spec: DemoSpec,
    make_policy: Callable[[Limits], Policy],
    address: str,
    load: HttpLoad,
    progress: Callable[[str], None],
    release_timeout_s: float,
) -> LiveDemoResult:
    after = {d.name: d.replicas_after for d in spec.deployments}
    load.begin("before")
    for d in spec.deployments:
        if d.replicas_after != d.replicas_before:
            scale_echo(d.name, d.replicas_after)
    _wait("the scale-down", lambda: _is_settled(spec, spec.settings, after), 90.0)
    first = take_snapshot(spec.settings, History())
    nodes_before, listing_before = _num_workers(), _listing(first)
    progress(f"scaled down: {nodes_before} nodes hold {sum(after.values())} replicas")
    started_s = time.monotonic()
    name = make_policy(spec.settings.limits).name
    url = deploy_decider(
        address=address, make_policy=make_policy, settings=spec.settings, mode=Mode.ACT, token=read_token(None)
    )
    load.begin("during")
    progress(f"{name} decides, at {url}")
    _watch(url, nodes_before, progress, started_s + release_timeout_s)
    took_s = time.monotonic() - started_s
    last, moves = take_snapshot(spec.settings, History()), _moves(url)
    before_load, during_load = load.stats("before"), load.stats("during")
    return LiveDemoResult(
        policy=name,
        nodes_before=nodes_before,
        nodes_after=_num_workers(),
        usd_per_h_before=nodes_before * spec.node_type.price_usd_per_h,
        usd_per_h_after=_num_workers() * spec.node_type.price_usd_per_h,
        moves=moves,
        requests=during_load.requests,
        failed=before_load.failed + during_load.failed,
        p50_ms_before=before_load.p50_ms,
        p99_ms_before=before_load.p99_ms,
        p50_ms_during=during_load.p50_ms,
        p99_ms_during=during_load.p99_ms,
        took_s=took_s,
        errors=(*before_load.errors, *during_load.errors),
        listing_before=listing_before,
        listing_after=_listing(last),
    )


def _is_tidy(url: str) -> bool:
    """Whether the decider sees no empty node and has nothing more to move."""
    with httpx.Client(base_url=url, timeout=10.0, trust_env=False) as client:
        state, decision = client.get("/state").json(), client.get("/plan").json()
    occupied = {r["node_id"] for r in state.get("replicas", ())}
    return not decision.get("moves") and all(n["node_id"] in occupied for n in state.get("nodes", ()))


def _watch(url: str, nodes_before: int, progress: Callable[[str], None], deadline_s: float) -> None:
    """Waits until a node is gone and no other is about to go, or until the deadline (monotonic seconds)."""
    told: dict[str, str] = {}
    num_nodes = nodes_before
    while time.monotonic() < deadline_s:
        moves = _moves(url)
        for move in moves:
            if told.get(move["move_id"]) != move["phase"]:
                told[move["move_id"]] = move["phase"]
                progress(f"move {move['deployment']} to {move['to_node'][:8]}: {move['phase']}")
        if _num_workers() < num_nodes:
            num_nodes = _num_workers()
            progress(f"the autoscaler has released {nodes_before - num_nodes} node(s)")
        is_quiet = all(m["phase"] in ("done", "failed", "cancelled") for m in moves)
        if is_quiet and num_nodes < nodes_before and _is_tidy(url):
            return
        time.sleep(_POLL_S)
    progress(f"time is up with {num_nodes} of {nodes_before} nodes left")
