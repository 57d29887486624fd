"""How near heuristics come to the least number of nodes, where it is known.

``python benchmarks/known_optimum.py [--nodes 100,500,1000] [--policies …] [--seeds 3] [--json F]``. Every move is
done at once and costs nothing, and the room that it leaves may be used: this is about how a policy packs.
"""

import argparse
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from rayfold.envs.known_optimum import AWKWARD, MIXED, known_optimum
from rayfold.envs.safety import Limits
from rayfold.policies.by_name import HEURISTICS, make_policy
from rayfold.policies.consolidation import consolidate

LIMITS = Limits(max_concurrent_moves=8, deployment_cooldown_s=0.0)
REUSE = LIMITS._replace(fence_s=0.0)  # for exact: it uses the room that moves leave only where nothing fences it
# A node is worth any number of moves here, and moves take no time.
SETTINGS = {
    "exact": "exact(look_ahead_s=14400,min_saving_frac=0,max_moves=1000000,max_effort=1e9,time_limit_s=300)",
    "patient": "patient(wait_s=0,max_nodes=4)",
}
POLICIES = tuple(name for name in HEURISTICS if name != "ray_serve")  # it waits between moves
SIZES = {"mixed": MIXED, "awkward": AWKWARD}


def measure(num_nodes: int, sizes: str, name: str, num_seeds: int) -> dict[str, Any]:
    """One row: mean over ``num_seeds`` states."""
    used, begin_s = [], time.perf_counter()
    for seed in range(num_seeds):
        state, optimum = known_optimum(num_nodes, np.random.default_rng(seed), SIZES[sizes])
        policy = make_policy(SETTINGS.get(name, name), REUSE if name == "exact" else LIMITS)
        end = consolidate(policy, state, LIMITS, np.random.default_rng(seed))
        used.append(int((end.arrays.node_num_held > 0).sum()))
    return {
        "nodes": num_nodes,
        "sizes": sizes,
        "policy": name,
        "optimum": optimum,
        "mean_nodes_left": float(np.mean(used)),
        "over_optimum": float(np.mean(used)) / optimum - 1.0,
        "s_per_state": round((time.perf_counter() - begin_s) / num_seeds, 2),
    }


def main() -> None:
    """Prints one line per number of nodes, sizes and policy."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--nodes", default="100,500,1000")
    parser.add_argument("--policies", default=",".join(POLICIES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    for num_nodes, sizes, name in itertools.product(args.nodes.split(","), SIZES, args.policies.split(",")):
        rows.append(measure(int(num_nodes), sizes, name, args.seeds))
        sys.stdout.write(json.dumps(rows[-1]) + "\n")
        sys.stdout.flush()
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
