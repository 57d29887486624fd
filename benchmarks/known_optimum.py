"""How near heuristics come to the least number of nodes, where it is known.

``python benchmarks/known_optimum.py [--nodes 100,500,1000] [--seeds 3] [--json F]``. Every move is done at once
and costs nothing: this is about how a policy packs.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

from rayfold.envs.known_optimum import known_optimum
from rayfold.envs.safety import Limits
from rayfold.policies.by_name import make_policy
from rayfold.policies.consolidation import consolidate

LIMITS = Limits(max_concurrent_moves=8, deployment_cooldown_s=0.0)
POLICIES = ("none", "best_fit", "dearest_first", "ray_serve")


def main() -> None:
    """Prints one line per size and policy."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nodes", default="100,500,1000")
    parser.add_argument("--policies", default=",".join(POLICIES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    for num_nodes in map(int, args.nodes.split(",")):
        for name in args.policies.split(","):
            used, begin_s = [], time.perf_counter()
            for seed in range(args.seeds):
                state, optimum = known_optimum(num_nodes, np.random.default_rng(seed))
                policy = make_policy(name, LIMITS)
                end = consolidate(policy, state, LIMITS, np.random.default_rng(seed))
                used.append(int((end.arrays.node_num_held > 0).sum()))
            rows.append(
                {
                    "nodes": num_nodes,
                    "optimum": optimum,
                    "policy": name,
                    "mean_nodes_left": float(np.mean(used)),
                    "over_optimum": float(np.mean(used)) / optimum - 1.0,
                    "s_per_state": (time.perf_counter() - begin_s) / args.seeds,
                }
            )
            sys.stdout.write(json.dumps(rows[-1]) + "\n")
            sys.stdout.flush()
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
