"""Time of one decision by cluster size, for each policy and for Ray's own scan in the same run.

``python benchmarks/decision_time.py [--nodes 10,100,300,1000] [--policies ...] [--json F]``. Half-empty 8-GPU nodes
with four replicas of one GPU each, of 50 deployments; one process, one thread, CPU time; each policy is asked a hundred
times, or for ten seconds, and median and 99th percentile are told. Ray's
``DeploymentScheduler._find_best_node_to_compact`` (2.60) runs inside Serve's controller loop; at 1000 nodes it takes
more than a minute.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # Ray's scheduler over a state lives with the tests

import numpy as np

from rayfold.envs.cluster import AutoscalingConfig, ClusterSpec, Deployment, NodeType, ReplicaShape
from rayfold.envs.node_autoscaler import add_node
from rayfold.envs.placement import hold
from rayfold.envs.safety import Limits
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase, StateArrays
from rayfold.policies.by_name import HEURISTICS, LEARNED, NETWORK, make_policy
from rayfold.training.report import write_json
from tests.ray_oracle.clock import Clock
from tests.ray_oracle.scheduler import packing, scheduler_of

PER_NODE, NUM_DEPLOYMENTS, REPEATS, ENOUGH_S = 4, 50, 100, 10.0
RAYS_SCAN = "Ray's scan"


def half_empty(num_nodes: int) -> ClusterState:
    """Every node holds four replicas of one GPU and has four GPUs free; quiet for an hour."""
    resources = {"GPU": 8.0, "CPU": 96.0, "memory_gib": 1152.0}
    one = {name: amount / 8 for name, amount in resources.items()}
    spec = ClusterSpec(
        node_types=(NodeType(name="node", resources=resources, price_usd_per_h=27.44705, max_nodes=num_nodes),),
        deployments=tuple(
            Deployment(
                name=f"d{d}",
                shape=ReplicaShape(bundles=(one,)),
                autoscaling=AutoscalingConfig(min_replicas=1, max_replicas=8 * num_nodes),
            )
            for d in range(NUM_DEPLOYMENTS)
        ),
    )
    rng, st = np.random.default_rng(0), StateArrays.empty(spec, num_nodes, PER_NODE * num_nodes + 16)
    for _ in range(num_nodes):
        add_node(spec.arrays, st, 0, int(NodePhase.ALIVE), -3600.0)
    for r in range(PER_NODE * num_nodes):
        st.replica_deployment[r] = rng.integers(NUM_DEPLOYMENTS)
        st.replica_phase[r] = int(ReplicaPhase.RUNNING)
        hold(spec.arrays, st, r, r // PER_NODE)
    running = st.replica_phase == ReplicaPhase.RUNNING
    st.deployment_target[:] = np.bincount(st.replica_deployment[running], minlength=NUM_DEPLOYMENTS)
    return ClusterState(spec=spec, now_s=0.0, arrays=st)


def times_s(decide: Callable[[], object]) -> list[float]:
    """CPU time of decisions; the first one, which may compile, is left out unless it takes long anyway."""
    times: list[float] = []
    while len(times) <= REPEATS and sum(times) < ENOUGH_S:
        begun = time.process_time()
        decide()
        times.append(time.process_time() - begun)
    return times[1:] or times


def rays_scan(state: ClusterState) -> Callable[[], object]:
    """Ray's own search for a node to empty."""

    def scan() -> object:
        with packing(Clock()):
            return scheduler._find_best_node_to_compact()

    with packing(Clock()):
        scheduler: Any = scheduler_of(state)
    return scan


def main() -> None:
    """One line per number of nodes and policy."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--nodes", default="10,100,300,1000")
    parser.add_argument("--policies", default=",".join([RAYS_SCAN, *HEURISTICS, LEARNED, NETWORK]))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    limits, rows = Limits(), []
    for num_nodes in map(int, args.nodes.split(",")):
        state = half_empty(num_nodes)
        for name in args.policies.split(","):
            if name == RAYS_SCAN:
                decide = rays_scan(state)
            else:
                policy = make_policy(name, limits)

                def decide(policy: Any = policy, state: ClusterState = state) -> object:
                    policy.reset()
                    return policy.plan(state, np.random.default_rng(0))

            p50_s, p99_s = map(float, np.percentile(times := times_s(decide), [50, 99]))
            row = {"nodes": num_nodes, "replicas": PER_NODE * num_nodes, "policy": name, "asked": len(times)}
            row |= {"s": p50_s, "p99_s": p99_s}
            rows.append(row)
            sys.stdout.write(json.dumps(row) + "\n")
            sys.stdout.flush()
    if args.json:
        write_json(args.json, {"rows": rows})


if __name__ == "__main__":
    main()
