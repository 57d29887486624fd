"""What policies make of the VMR snapshot within 25, 50 and 100 moves, against proven optima.

``python benchmarks/vmr.py --file F.json.gz [--moves 25,50,100] [--policies …] [--json F]``; without ``--file`` the
folder in ``RAYFOLD_BENCHMARKS`` has it. Two optima for each number of moves: fewest fragments of 16 cores (the
paper's objective) and most machines freed; for all VMs, for those that may move here (see ``vmr_state``), and for
these without use of the room that others leave. Moves are done at once, so policies may use it.

Published for their own test set (EuroSys 2025), not for this file: the policy closes 97 % of the gap to the optimum
within 50 moves, at 0.57 s per move on one core (measured on this snapshot); their greedy rule closes 43 %.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.importers.vmr import VmrSnapshot, fragment_rate, read_vmr, vmr_state
from rayfold.envs.moves import Plan
from rayfold.envs.safety import Limits
from rayfold.envs.state import ClusterState
from rayfold.errors import InputError
from rayfold.policies.by_name import HEURISTICS, make_policy
from rayfold.policies.consolidation import consolidate
from rayfold.policies.protocol import Policy
from rayfold.policies.vmr_optimum import VmrGoal, vmr_optimum

FILE = "vmr_279pm_2089vm.json.gz"
MOVABLE = "VMs that may move"
LIMITS = Limits(max_concurrent_moves=1000, deployment_cooldown_s=0.0)
REUSE = LIMITS._replace(fence_s=0.0)  # for exact: it uses the room that moves leave only where nothing fences it
# A machine is worth any number of moves here, and no time passes in which a rule could wait.
SETTINGS = {
    "exact": "exact(look_ahead_s=14400,min_saving_frac=0,max_moves={moves},"
    "max_effort=1e9,time_limit_s=60,gap_frac=0.01)",
    "patient": "patient(wait_s=0,max_nodes=4)",
}


class _Timed:
    """A policy that measures how long it plans."""

    def __init__(self, policy: Policy) -> None:
        self.name, self._policy, self.plan_s, self.num_calls = policy.name, policy, 0.0, 0

    def reset(self) -> None:
        self._policy.reset()

    def plan(self, state: ClusterState, rng: np.random.Generator) -> Plan:
        begun_s = time.perf_counter()
        plan = self._policy.plan(state, rng)
        self.plan_s += time.perf_counter() - begun_s
        self.num_calls += 1
        return plan


def end_free(snapshot: VmrSnapshot, end: ClusterState) -> NDArray[np.int64]:
    """Free cores per socket, ``(P, 2)``; those of a freed machine are all free."""
    is_there = end.arrays.node_num_held > 0
    cores = np.round(end.arrays.gpu_free * snapshot.total).astype(np.int64)
    return np.where(is_there[:, None], cores, snapshot.total)


def measure(snapshot: VmrSnapshot, state: ClusterState, name: str, max_moves: int) -> dict[str, Any]:
    """One policy within so many moves."""
    policy = _Timed(make_policy(SETTINGS.get(name, name).format(moves=max_moves), REUSE if name == "exact" else LIMITS))
    end = consolidate(policy, state, LIMITS, np.random.default_rng(0), max_moves=max_moves)
    st, before = end.arrays, state.arrays
    num_moves = int(((st.replica_node != before.replica_node) & (before.replica_node >= 0)).sum())
    return {
        "moves_allowed": max_moves,
        "policy": name,
        "vms_moved": num_moves,
        "machines_freed": int((st.node_num_held == 0).sum() - (before.node_num_held == 0).sum()),
        "fragment_rate": round(fragment_rate(end_free(snapshot, end)), 4),
        "plan_s": round(policy.plan_s, 3),
        "plan_s_per_move": round(policy.plan_s / max(1, num_moves), 4),
    }


def optima(snapshot: VmrSnapshot, state: ClusterState, max_moves: int) -> list[dict[str, Any]]:
    """Both goals, for all VMs and for those that may move."""
    rows = []
    for goal in VmrGoal:
        for who, reuses_room in (("all VMs", True), (MOVABLE, True), (f"{MOVABLE}, no room reused", False)):
            begun_s = time.perf_counter()
            may_move = None if who == "all VMs" else state.spec.arrays.is_movable
            best = vmr_optimum(
                snapshot, goal, max_moves, may_move=may_move, reuses_room=reuses_room, time_limit_s=120.0
            )
            rows.append(
                {
                    "moves_allowed": max_moves,
                    "optimum": str(goal),
                    "of": who,
                    "vms_moved": int(best.takes.sum()),
                    "machines_freed": int((best.free == snapshot.total).all(1).sum()),
                    "fragment_rate": round(fragment_rate(best.free), 4),
                    "is_proven": best.is_optimal,
                    "solve_s": round(time.perf_counter() - begun_s, 2),
                }
            )
    return rows


def closed(rows: list[dict[str, Any]], begin: float) -> None:
    """Adds to policies which share of the way to each optimum they went, for the VMs that may move."""
    best = {
        (row["moves_allowed"], row["optimum"]): row for row in rows if row.get("of") == MOVABLE and row["is_proven"]
    }
    for row in rows:
        if "policy" in row:
            freed = best.get((row["moves_allowed"], "machines"))
            rate = best.get((row["moves_allowed"], "fragments"))
            if freed:
                row["closed_machines"] = round(row["machines_freed"] / max(1, freed["machines_freed"]), 3)
            if rate:
                row["closed_fragments"] = round((begin - row["fragment_rate"]) / (begin - rate["fragment_rate"]), 3)


def main() -> None:
    """Prints one line per optimum and per policy."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--file", type=Path)
    parser.add_argument("--moves", default="25,50,100")
    parser.add_argument("--policies", default=",".join(HEURISTICS))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    folder = os.environ.get("RAYFOLD_BENCHMARKS")
    if args.file is None and folder is None:
        sys.exit(str(InputError("--file", "the VMR snapshot, or its folder in RAYFOLD_BENCHMARKS", "neither")))
    try:
        snapshot = read_vmr(args.file or Path(str(folder)) / FILE)
    except InputError as err:
        sys.stderr.write(f"{err}\n")
        sys.exit(2)
    state, rows = vmr_state(snapshot), []
    for max_moves in map(int, args.moves.split(",")):
        found = optima(snapshot, state, max_moves)
        found += [measure(snapshot, state, name, max_moves) for name in args.policies.split(",")]
        closed(found, fragment_rate(snapshot.free))
        for row in found:
            sys.stdout.write(json.dumps(row) + "\n")
            sys.stdout.flush()
        rows += found
    if args.json:
        args.json.write_text(json.dumps({"begin_fragment_rate": fragment_rate(snapshot.free), "rows": rows}) + "\n")


if __name__ == "__main__":
    main()
