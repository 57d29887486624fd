"""How much tighter the packing bound is than the dearest resource alone, and what no policy could undercut.

``python benchmarks/bounds.py [--scenarios a,b] [--clairvoyant two_node,smoke,low_scale] [--seeds 2] [--json F]``, with
``RAYFOLD_TRACES`` where a scenario names traces. The mean is over every step of the episodes of the validation days,
under no moves; the clairvoyant optimum is of episodes of at most ``--hours``, beside what policies paid for them.
"""

import argparse
import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from rayfold.envs.bound import bound_of
from rayfold.envs.episode import Episode, scenario_layout
from rayfold.envs.ledger import Entry
from rayfold.envs.scenario import Scenario, Split, load_scenario
from rayfold.envs.simulator import Simulator
from rayfold.policies.by_name import make_policy
from rayfold.policies.clairvoyant import clairvoyant, watch_demand
from rayfold.policies.free_repacking import FreeRepacking
from rayfold.policies.rollout import roll_out

TIGHTNESS = "llm_api,fractional,tight,mixed_fleet"
SMALL = "two_node,smoke,low_scale"
POLICIES = ("none", "best_fit", "ray_serve")


def begin(scenario: Scenario, seed: int) -> Simulator:
    """One episode of the validation days."""
    return Episode(scenario, scenario_layout(scenario), Split.VALIDATION, np.random.default_rng(seed)).simulator


def tightness(scenario: Scenario, num_seeds: int) -> dict[str, Any]:
    """The mean bounds of the episodes, per hour, and how long the packing bound took to prepare."""
    begun = time.perf_counter()
    arrays = dataclasses.replace(scenario.spec).arrays
    prepare_s = time.perf_counter() - begun
    resource_usd, packing_usd, cost_usd, hours = 0.0, 0.0, 0.0, 0.0
    for seed in range(num_seeds):
        sim = begin(scenario, seed)
        while sim.num_steps_left:
            st = sim.view.arrays
            live = np.bincount(st.replica_deployment[(st.replica_phase > 0) & (st.replica_phase < 4)])
            padded = np.zeros(scenario.spec.num_deployments, np.int64)
            padded[: len(live)] = live
            step_h = scenario.spec.settings.substep_s / 3600.0
            resource_usd += bound_of(arrays, padded) * step_h
            sim.advance(1)
        ledger = sim.ledger()
        packing_usd, cost_usd = packing_usd + ledger[Entry.BOUND_USD], cost_usd + ledger[Entry.COST_USD]
        hours += ledger[Entry.ELAPSED_S] / 3600.0
    return {
        "scenario": scenario.name,
        "resource_usd_per_h": round(resource_usd / hours, 3),
        "packing_usd_per_h": round(packing_usd / hours, 3),
        "tighter_frac": round(packing_usd / resource_usd - 1.0, 4),
        "none_usd_per_h": round(cost_usd / hours, 3),
        "planes": arrays.plane_usd_per_h.shape[1],
        "prepare_s": round(prepare_s, 3),
    }


def optimum(scenario: Scenario, seed: int, time_limit_s: float) -> dict[str, Any]:
    """The clairvoyant bound of one episode beside the bills of policies."""
    sim, slot_s = begin(scenario, seed), scenario.spec.settings.decision_interval_s
    first = sim.state().arrays
    demand = watch_demand(sim, slot_s)
    found = clairvoyant(scenario.spec, first, demand, slot_s, time_limit_s)
    bills = {
        "free_repacking": roll_out(begin(scenario, seed), FreeRepacking(), np.random.default_rng(0)).ledger.total_usd
    }
    for name in POLICIES:
        policy = make_policy(name, scenario.limits)
        bills[name] = roll_out(begin(scenario, seed), policy, np.random.default_rng(0)).ledger.total_usd
    return {
        "scenario": scenario.name,
        "seed": seed,
        "hours": scenario.horizon_s / 3600.0,
        "clairvoyant_bound_usd": round(found.bound_usd, 4),
        "packing_usd": round(demand.packing_usd + demand.unserved_usd, 4),
        "best_solution_usd": round(found.best_usd, 4),
        "gap_frac": round(found.gap_frac, 4),
        "solve_s": round(found.solve_s, 1),
        **{f"{name}_usd": round(usd, 4) for name, usd in bills.items()},
    }


def main() -> None:
    """Prints one line per scenario, then one per small scenario and seed."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--scenarios", default=TIGHTNESS)
    parser.add_argument("--clairvoyant", default=SMALL)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--time-limit-s", type=float, default=60.0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    traces, rows = Path(os.environ.get("RAYFOLD_TRACES") or "traces"), []

    def tell(row: dict[str, Any]) -> None:
        rows.append(row)
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()

    for name in filter(None, args.scenarios.split(",")):
        tell(tightness(load_scenario(name, traces), args.seeds))
    for name in filter(None, args.clairvoyant.split(",")):
        scenario = load_scenario(name, traces)
        shorter = scenario.with_horizon(min(scenario.horizon_s, args.hours * 3600.0))
        for seed in range(args.seeds):
            tell(optimum(shorter, seed, args.time_limit_s))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
