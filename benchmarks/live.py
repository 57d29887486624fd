"""Moves replicas of a real Serve cluster under load, round after round, and counts what was lost.

python benchmarks/live.py [--migrations 20] [--json out/live.json]

A local cluster of 4-GPU nodes with Ray's own autoscaler; four applications: plain actors, a PACK group of two bundles,
half GPUs, and one that streams. Ten closed-loop users with keep-alive, and one that reads streams. In each round a
third node is launched and replicas are moved onto it; then the decider, in mode act, puts them together again until
the autoscaler has taken a node away.
"""

import argparse
import functools
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import ray
from ray import serve

from rayfold.cli_checks import check_output
from rayfold.envs.cluster import Interval, NodeType
from rayfold.envs.moves import Move
from rayfold.envs.safety import Limits, check_move
from rayfold.envs.state import ClusterState, ReplicaPhase
from rayfold.errors import ClusterError
from rayfold.policies.best_fit import BestFit
from rayfold.serving import controller_patch
from rayfold.serving.attach import deploy_decider
from rayfold.serving.decision import Mode
from rayfold.serving.demo_apps import STREAMED, deploy_echo, deploy_stream
from rayfold.serving.executor import ServeExecutor, call_controller
from rayfold.serving.history import History
from rayfold.serving.live_moves import FINAL
from rayfold.serving.live_settings import Brakes, DeploymentSettings, LiveSettings, NodeTypeSettings
from rayfold.serving.load import HttpLoad
from rayfold.serving.local_cluster import LocalCluster, free_port
from rayfold.serving.snapshot import take_snapshot
from rayfold.training.report import write_atomically

NODE_TYPE = NodeType(
    name="gpu4", resources={"GPU": 4.0, "CPU": 8.0, "memory_gib": 4.0}, price_usd_per_h=4.0, max_nodes=3
)
APPS = {"plain": 3, "pack": 1, "half": 2, "stream": 1}  # 7 GPUs: two nodes hold them
ECHOES = ("plain", "pack", "half")
_STARTUP = DeploymentSettings(startup_s=Interval(2.0, 5.0), drain_s=Interval(1.0, 2.0))
SETTINGS = LiveSettings(
    idle_timeout_s=10.0,
    decision_interval_s=2.0,
    move_timeout_s=120.0,
    node_types={"gpu4": NodeTypeSettings(price_usd_per_h=4.0, max_nodes=3)},
    deployments={app: _STARTUP for app in APPS},
    limits=Limits(max_concurrent_moves=2, deployment_cooldown_s=1.0, fence_s=120.0),
    brakes=Brakes(
        moves_per_h=10_000, moves_per_deployment_h=10_000, moving_frac=1.0, min_run_s=0.0, undone_limit=10_000
    ),
    lease_ttl_s=1.0,
)
NUM_USERS, NUM_NODES, SPREAD_MOVES = 10, 3, 3
WAIT_S, BEFORE_S = 240.0, 20.0
TOKEN = "benchmark"


class Ended(NamedTuple):
    """A move that has ended."""

    app: str
    phase: str
    detail: str


def tell(text: str) -> None:
    """A step, with the time."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")


def wait_until(what: str, is_done: Callable[[], bool]) -> None:
    """Polls.

    Raises:
        ClusterError: It did not come true in time.
    """
    deadline_s = time.monotonic() + WAIT_S
    while not is_done():
        if time.monotonic() > deadline_s:
            raise ClusterError(f"waited {WAIT_S:.0f} s in vain for {what}")
        time.sleep(0.3)


def snapshot() -> ClusterState:
    """The cluster now."""
    return take_snapshot(SETTINGS, History())


def is_calm() -> bool:
    """All replicas of the applications serve, and there are no others."""
    phases = snapshot().arrays.replica_phase.tolist()
    return len(phases) == sum(APPS.values()) and all(p == ReplicaPhase.RUNNING for p in phases)


def num_nodes() -> int:
    """Alive worker nodes."""
    api: Any = ray
    return sum(bool(n["Alive"]) and n["Resources"].get("GPU", 0) > 0 for n in api.nodes())


def request_nodes(address: str, count: int) -> None:
    """Has the autoscaler keep so many nodes; 0 takes the wish back."""
    from ray.autoscaler.v2.sdk import request_cluster_resources

    request_cluster_resources(address, [{"resources": {"GPU": 4.0}, "label_selector": {}}] * count)


def start(address: str) -> str:
    """Nodes and applications; the base URL of the proxy."""
    request_nodes(address, NUM_NODES)
    wait_until("nodes to join", lambda: num_nodes() == NUM_NODES)
    port = free_port()
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    deploy_echo("pack", APPS["pack"], [{"GPU": 1.0, "CPU": 1.0}] * 2)
    deploy_echo("plain", APPS["plain"])
    deploy_echo("half", APPS["half"], num_gpus=0.5)
    deploy_stream("stream", APPS["stream"])
    wait_until("replicas to serve", is_calm)
    return f"http://127.0.0.1:{port}"


def _has_ended(executor: ServeExecutor, move_id: str) -> bool:
    return executor.phase(move_id) in FINAL


def spread(turn: int) -> list[Ended]:
    """Moves replicas of the applications, in turn, to the node with most room."""
    executor, ended = ServeExecutor(move_timeout_s=SETTINGS.move_timeout_s, fence_s=0.0), []
    lax = Limits(deployment_cooldown_s=0.0)
    for app in [list(APPS)[(turn + i) % len(APPS)] for i in range(SPREAD_MOVES)]:
        state = snapshot()
        st = state.arrays
        d = [x.app for x in state.spec.deployments].index(app)
        moves = [Move(r, n) for r in range(len(st.replica_phase)) for n in range(len(st.node_type))]
        allowed = [m for m in moves if st.replica_deployment[m.replica_idx] == d and check_move(state, m, lax).allowed]
        if not allowed:
            own = [m for m in moves if st.replica_deployment[m.replica_idx] == d]
            tell(f"no move of {app}: {Counter(check_move(state, m, lax).reason.name for m in own)}")
            continue
        move_id = executor.start(state, max(allowed, key=lambda m: st.node_free[m.node_idx, 0]))
        wait_until(f"move of {app}", functools.partial(_has_ended, executor, move_id))
        ended.append(Ended(app, executor.phase(move_id).value, executor.statuses()[move_id].detail))
    executor.detach()
    return ended


class DeciderApi(NamedTuple):
    """The decider over HTTP."""

    url: str

    def set_mode(self, mode: Mode) -> None:
        """Changes the mode, and waits until the controller is as that mode wants it."""
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        httpx.post(f"{self.url}/mode", json={"mode": mode}, headers=bearer, timeout=30.0).raise_for_status()
        acts = mode == Mode.ACT
        wait_until("attachment or detachment", lambda: bool(call_controller(controller_patch.patched)) == acts)

    def moves(self) -> list[dict[str, Any]]:
        """All it has made."""
        answer = httpx.get(f"{self.url}/moves", params={"limit": 1000}, timeout=30.0)
        moves: list[dict[str, Any]] = answer.raise_for_status().json()
        return moves


def run_rounds(address: str, decider: DeciderApi, wanted: int) -> tuple[list[Ended], int]:
    """Rounds until so many migrations are done; what became of each move, and how many nodes were released."""
    by_hand: list[Ended] = []
    released, turn = 0, 0

    def all_ended() -> list[Ended]:
        told = [Ended(m["deployment"].split("/")[0], m["phase"], m["detail"]) for m in decider.moves()]
        return [*by_hand, *told]

    while sum(m.phase == "done" for m in all_ended()) < wanted:
        request_nodes(address, NUM_NODES)
        wait_until("a node to join", lambda: num_nodes() == NUM_NODES)
        by_hand += spread(turn)
        wait_until("replicas to serve", is_calm)
        request_nodes(address, 0)
        decider.set_mode(Mode.ACT)
        wait_until("a node to be released", lambda: num_nodes() < NUM_NODES)
        released += 1
        wait_until("the moves to end", lambda: all(m.phase in FINAL for m in all_ended()))
        decider.set_mode(Mode.OBSERVE)
        wait_until("replicas to serve", is_calm)
        turn += SPREAD_MOVES
        done = sum(m.phase == "done" for m in all_ended())
        tell(f"{done} migrations, {released} nodes released")
    return all_ended(), released


def measure(wanted: int) -> dict[str, Any]:
    """The whole run."""
    begun_s = time.perf_counter()
    with LocalCluster(node_types=[NODE_TYPE], idle_timeout_s=SETTINGS.idle_timeout_s) as cluster:
        cluster.connect()
        base = start(cluster.address)
        tell("applications serve")
        url = deploy_decider(
            address=cluster.address, make_policy=BestFit, settings=SETTINGS, mode=Mode.OBSERVE, token=TOKEN
        )
        echoes = [f"{base}/{app}" for app in ECHOES]
        streams = [f"{base}/stream"]
        with (
            HttpLoad(
                echoes, num_clients=NUM_USERS, think_s=0.0, bodies=dict(zip(echoes, ECHOES, strict=True))
            ) as users,
            HttpLoad(streams, num_clients=1, think_s=0.0, bodies={streams[0]: STREAMED}) as reader,
        ):
            time.sleep(BEFORE_S)
            users.begin("moves")
            reader.begin("moves")
            ended, released = run_rounds(cluster.address, DeciderApi(url), wanted)
        before, during = users.stats("start"), users.stats("moves")
        read = [reader.stats(phase) for phase in ("start", "moves")]
        serve.delete("rayfold")
    done = [m for m in ended if m.phase == "done"]
    return {
        "migrations": len(done),
        "requests": before.requests + during.requests + sum(r.requests for r in read),
        "failed": before.failed + during.failed + sum(r.failed for r in read),
        "p99_ratio": during.p99_ms / before.p99_ms,
        "nodes_released": released,
        "by_app": dict(Counter(m.app for m in done)),
        "not_done": [m._asdict() for m in ended if m.phase != "done"],
        "streams": sum(r.requests for r in read),
        "p50_ms": {"before": before.p50_ms, "moves": during.p50_ms},
        "p99_ms": {"before": before.p99_ms, "moves": during.p99_ms},
        "errors": [*before.errors, *during.errors, *read[0].errors, *read[1].errors],
        "seconds": round(time.perf_counter() - begun_s, 1),
        "ray": ray.__version__,
    }


def main() -> None:
    """Prints the figures; exit code 1 if a request was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--migrations", type=int, default=20, help="at least so many")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    check_output("--json", args.json)
    figures = measure(args.migrations)
    text = json.dumps(figures, indent=1) + "\n"
    sys.stdout.write(text)
    if args.json:
        write_atomically(args.json, text.encode())
    if figures["failed"]:
        raise SystemExit("requests were lost")


if __name__ == "__main__":
    main()
