"""Ray's own replica compaction and rayfold, one after the other, on the same scenarios of a real local cluster.

python benchmarks/live_compare.py [--json out/live_compare.json]

Three 4-GPU nodes, full; then every application is scaled down to half, which leaves two GPUs in use on each, so that
two nodes would do. In the scenario ``plain`` all replicas are actors of one GPU; in ``group`` the third node holds a
placement group (PACK) of two bundles instead. Everywhere Serve packs (RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY=1), the
autoscaler releases a node that was idle for 10 s, and ten closed-loop users with keep-alive ask all the time. Counted
from the end of the scale-down: when the autoscaler takes a node, the replicas replaced, and the requests lost.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from live import NODE_TYPE, SETTINGS, num_nodes, request_nodes, snapshot, tell, wait_until
from ray import serve

from rayfold.cli_checks import check_output
from rayfold.envs.state import ReplicaPhase
from rayfold.errors import ClusterError
from rayfold.policies.best_fit import BestFit
from rayfold.serving import controller_view
from rayfold.serving.attach import deploy_decider
from rayfold.serving.decision import Mode
from rayfold.serving.demo_apps import deploy_echo, scale_echo
from rayfold.serving.executor import call_controller
from rayfold.serving.load import HttpLoad
from rayfold.serving.local_cluster import LocalCluster, free_port
from rayfold.training.report import write_atomically

NUM_USERS, NUM_NODES = 10, 3
BUNDLES = [{"GPU": 1.0, "CPU": 1.0}] * 2
# Applications in the order in which they are deployed, two replicas each, and the bundles of each replica.
SCENARIOS: dict[str, dict[str, list[dict[str, float]] | None]] = {
    "plain": {"a": None, "b": None, "c": None, "d": None, "e": None, "f": None},
    "group": {"a": None, "b": None, "c": None, "d": None, "g": BUNDLES},
}


class Arm(NamedTuple):
    """Who compacts."""

    name: str
    environment: Mapping[str, str]  # of the Serve controller
    is_rayfold: bool
    patience_s: float  # without a release that long, there is none


SOON = {"RAY_SERVE_NODE_COMPACTION_DELAY_S": "10"}
RAY = Arm("Ray, as it is (quiet for 300 s)", {}, False, 600.0)
RAY_SOON = Arm("Ray, quiet for 10 s", SOON, False, 180.0)
RAYFOLD = Arm("rayfold, best_fit, a decision every 2 s", {}, True, 180.0)
RUNS = [("plain", RAY), ("plain", RAY_SOON), ("plain", RAYFOLD), ("group", RAY_SOON), ("group", RAYFOLD)]


def has_settled(num_replicas: int) -> Callable[[], bool]:
    """Whether so many replicas exist, all of them serving."""

    def look() -> bool:
        phases = snapshot().arrays.replica_phase.tolist()
        return len(phases) == num_replicas and all(phase == ReplicaPhase.RUNNING for phase in phases)

    return look


def start(address: str, scenario: str) -> str:
    """Full nodes; the base URL of the proxy."""
    request_nodes(address, NUM_NODES)
    wait_until("nodes to join", lambda: num_nodes() == NUM_NODES)
    port = free_port()
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    for app, bundles in SCENARIOS[scenario].items():
        deploy_echo(app, 2, bundles)
    wait_until("replicas to serve", has_settled(2 * len(SCENARIOS[scenario])))
    request_nodes(address, 0)
    return f"http://127.0.0.1:{port}"


def scale_down(scenario: str) -> set[str]:
    """One replica of each application is left; their ids.

    Raises:
        ClusterError: They are not on three nodes.
    """
    for app in SCENARIOS[scenario]:
        scale_echo(app, 1)
    wait_until("the scale-down", has_settled(len(SCENARIOS[scenario])))
    state = snapshot()
    occupied = set(state.arrays.replica_node.tolist())
    if len(occupied) != NUM_NODES:
        raise ClusterError(f"the scenario begins with replicas on {NUM_NODES} nodes, got {len(occupied)}")
    return set(state.replica_ids)


def released_after(patience_s: float) -> float | None:
    """Seconds until the autoscaler has taken a node, None if it does not."""
    begun_s = time.monotonic()
    while num_nodes() == NUM_NODES:
        if time.monotonic() - begun_s > patience_s:
            return None
        time.sleep(0.3)
    return time.monotonic() - begun_s


def run(scenario: str, arm: Arm) -> dict[str, Any]:
    """One scenario under one compactor."""
    tell(f"{scenario}: {arm.name}")
    environment = {"RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY": "1", **arm.environment}
    load_before = os.getloadavg()[0]
    with LocalCluster(node_types=[NODE_TYPE], idle_timeout_s=SETTINGS.idle_timeout_s, extra_env=environment) as cluster:
        cluster.connect()
        base = start(cluster.address, scenario)
        urls = {f"{base}/{app}": app for app in SCENARIOS[scenario]}
        with HttpLoad(list(urls), num_clients=NUM_USERS, bodies=urls) as users:
            before = scale_down(scenario)
            users.begin("compaction")
            ray_compacts = call_controller(controller_view.own_compaction)
            if arm.is_rayfold:
                settings = replace(SETTINGS, act_beside_ray_compaction=True)
                deploy_decider(
                    address=cluster.address, make_policy=BestFit, settings=settings, mode=Mode.ACT, token="benchmark"
                )
            seconds = released_after(arm.patience_s)
            wait_until("replicas to serve", has_settled(len(before)))
            after = set(snapshot().replica_ids)
        counted = [users.stats(phase) for phase in ("start", "compaction")]
        if arm.is_rayfold:
            serve.delete("rayfold")
    return {
        "scenario": scenario,
        "compactor": arm.name,
        "ray_says_of_its_own": ray_compacts or "off",
        "released_after_s": None if seconds is None else round(seconds, 1),
        "waited_s": round(arm.patience_s if seconds is None else seconds, 1),
        "replaced_replicas": len(after - before),
        "requests": counted[1].requests,
        "failed": sum(c.failed for c in counted),
        "errors": [*counted[0].errors, *counted[1].errors],
        "p99_ms": {"before": counted[0].p99_ms, "compaction": counted[1].p99_ms},
        "load_average": [load_before, os.getloadavg()[0]],
    }


def main() -> None:
    """Prints what became of each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    check_output("--json", args.json)
    results = []
    for scenario, arm in RUNS:
        results.append(run(scenario, arm))
        text = json.dumps(results, indent=1) + "\n"
        if args.json:
            write_atomically(args.json, text.encode())
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
