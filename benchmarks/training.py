"""What the parts of training are worth: the network trained without one of them, on validation days.

``python benchmarks/training.py [--variants ...] [--seeds 2] [--steps 60000] [--jobs 2] [--json F]`` trains each variant
with each training seed on ``llm_api``, and plays the same validation episodes with every network alone and with
``exact`` as tuned for the scenario. All train for as many steps, however long that takes, in batches of a quarter of
those of the shipped recipe, so that there are as many updates as in four times as many of its steps. Ctrl-C ends it,
and what is done is told.

Variants: ``whole`` (as in the recipe: two rounds of answers of the planner, then waits of five intervals, no improbable
moves, a low rate); ``no PPO`` (one batch of it); ``waits of one interval``; ``improbable moves`` (PPO tries them
too); ``usual rate`` (and entropy); ``one round`` (as many answers, but all in states that the planner's own plans lead
to); ``warm start from a rule`` (``dearest_first``); ``no warm start`` (and improbable moves, or it would never begin);
``no input-dependent baseline`` (rollouts of the same traffic are not compared); ``no semi-MDP discount`` (RLlib's own
advantage, which discounts moves too and has no such baseline either); ``no trust region`` (PPO's clip alone); ``no
evacuations`` (single moves only); ``no traffic`` (load, trend and calm of deployments read as 0); ``narrow`` (half the
width); ``other worlds`` (start-ups, prices and limits drawn for every episode).
"""

import argparse
import contextlib
import dataclasses
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from arena import interval

from rayfold.envs.scenario import Scenario, Split, load_scenario
from rayfold.policies.bundle import load_bundle
from rayfold.policies.exact import Exact, ExactSettings
from rayfold.policies.learned import LearnedPolicy
from rayfold.policies.network import CompactionNet, NetworkConfig
from rayfold.policies.protocol import Policy
from rayfold.policies.tuned import tuned_settings
from rayfold.training.bootstrap import mean_of, relative
from rayfold.training.episode_result import run_episode
from rayfold.training.leader_training import PLANNER
from rayfold.training.ppo import train
from rayfold.training.provenance import git_commit
from rayfold.training.report import write_json
from rayfold.training.train_config import TrainConfig
from rayfold.training.workers import Workers, run_all

TRAINED_ON = ("llm_api",)
PLAYED = "llm_api,llm_api_pack_groups,slow_start"
REFERENCE, WHOLE = "exact, tuned", "whole"
TRIES_ALL: dict[str, Any] = {"min_p": 0.0, "min_act_p": 0.0}
VARIANTS: dict[str, dict[str, Any]] = {
    WHOLE: {},
    "no PPO": {"stop_steps": 1},
    "waits of one interval": {"wait_intervals": 1},
    "improbable moves": TRIES_ALL,
    "usual rate": {"lr": 3e-4, "entropy_coeff": 0.002},
    "one round": {"warm_start_rounds": 1, "warm_start_steps": 12_000},
    "warm start from a rule": {"warm_start": "dearest_first"},
    "no warm start": {"warm_start": "", **TRIES_ALL},
    "no input-dependent baseline": {"group_size": 1},
    "no semi-MDP discount": {"semi_mdp": False, "group_size": 1},
    "no trust region": {"wait_kl_coeff": 0.0},
    "no evacuations": {"network": NetworkConfig(evacuates=False)},
    "no traffic": {"network": NetworkConfig(unseen=("load", "load_slow", "wanted_rel", "calm"))},
    "narrow": {"network": NetworkConfig(dim=32)},
    "other worlds": {"vary_worlds": True},
}
SHOWN = ("total_usd", "moves", "undone_moves", "unserved_request_s")


class Unit(NamedTuple):
    """One network to train and to play with; the reference is not trained."""

    variant: str
    seed: int


class Job(NamedTuple):
    """What all units share."""

    traces: Path
    steps: int
    played: dict[str, Scenario]
    episodes: int


def config_of(unit: Unit, job: Job, run_dir: Path) -> TrainConfig:
    """The settings of a variant."""
    base = TrainConfig(
        run_dir=run_dir,
        scenarios=TRAINED_ON,
        traces_dir=job.traces,
        seed=unit.seed,
        stop_minutes=None,
        stop_steps=job.steps,
        batch_steps=2048,
        warm_start=PLANNER,
        warm_start_steps=6000,
        warm_start_rounds=2,
        wait_intervals=5,
        min_p=0.2,
        min_act_p=0.02,
        lr=1e-4,
        entropy_coeff=0.0005,
        evaluation_episodes=4,
    )
    return dataclasses.replace(base, **VARIANTS[unit.variant])


def trained(job: Job, unit: Unit) -> CompactionNet:
    """The network that a variant chose.

    Raises:
        KeyboardInterrupt: The run was interrupted, which it ends in order: what it has learned by then does not count.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = train(config_of(unit, job, Path(folder)))
        if result.interrupted:
            raise KeyboardInterrupt
        return load_bundle(result.bundle_dir).net


def play(job: Job, unit: Unit) -> dict[str, list[dict[str, float]]]:
    """Metrics by scenario and episode."""
    net = None if unit.variant == REFERENCE else trained(job, unit)

    def policy(scenario: Scenario) -> Policy:
        if net is not None:
            return LearnedPolicy(net, scenario.limits)
        return Exact(scenario.limits, ExactSettings(**tuned_settings(scenario.name).get(Exact.name, {})))

    return {
        name: [run_episode(s, policy(s), k, Split.VALIDATION).metrics for k in range(job.episodes)]
        for name, s in job.played.items()
    }


def rows(done: dict[Unit, dict[str, list[dict[str, float]]]]) -> list[dict[str, Any]]:
    """One row per scenario and variant: the bill against the reference's on the same episodes, over all seeds."""
    theirs, out = done[Unit(REFERENCE, 0)], []
    for name in theirs:
        for variant in dict.fromkeys(unit.variant for unit in done):
            runs = [done[unit][name] for unit in sorted(done) if unit.variant == variant]
            # A training seed is as much luck as an episode is: the mean over episodes of each, then over the seeds.
            by_episode = np.array([[m["total_usd"] for m in run] for run in runs]).mean(0)
            bill = mean_of(list(by_episode))
            against = relative(bill, mean_of([m["total_usd"] for m in theirs[name]]))
            seeds = [sum(m["total_usd"] for m in r) / sum(m["total_usd"] for m in theirs[name]) - 1.0 for r in runs]
            shown = {key: float(np.mean([m[key] for run in runs for m in run])) for key in SHOWN}
            row = {"scenario": name, "variant": variant, "by_training_seed": seeds, **shown}
            out.append({**row, "against_tuned_exact": against.as_json()})
    return out


def table(found: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        f"| scenario | variant | against tuned exact % | by training seed % | {' | '.join(SHOWN)} |",
        f"|---|---|---|---|{'---|' * len(SHOWN)}",
    ]
    for row in found:
        told = interval(row["against_tuned_exact"], 100.0)
        seeds = ", ".join(f"{100 * seed:+.1f}" for seed in row["by_training_seed"])
        shown = " | ".join(f"{row[key]:,.0f}" for key in SHOWN)
        lines.append(f"| {row['scenario']} | {row['variant']} | {told} | {seeds} | {shown} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Trains, plays and tells."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", default=",".join(VARIANTS), help="comma-separated")
    parser.add_argument("--scenarios", default=PLAYED, help="to play")
    parser.add_argument("--seeds", type=int, default=2, help="of training")
    parser.add_argument("--steps", type=int, default=60_000, help="of the environment, per network")
    parser.add_argument("--episodes", type=int, default=4, help="of validation days, per scenario")
    parser.add_argument("--horizon-h", type=float, default=12.0, help="longest episode")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    variants = args.variants.split(",")
    if unknown := set(variants) - set(VARIANTS):
        parser.error(f"--variants: expected some of {', '.join(VARIANTS)}, got {', '.join(sorted(unknown))}")
    traces = Path(os.environ.get("RAYFOLD_TRACES", "traces"))
    loaded = {name: load_scenario(name, traces) for name in args.scenarios.split(",")}
    played = {name: s.with_horizon(min(s.horizon_s, 3600.0 * args.horizon_h)) for name, s in loaded.items()}
    job = Job(traces.resolve(), args.steps, played, args.episodes)
    units = [Unit(REFERENCE, 0), *(Unit(variant, seed) for seed in range(args.seeds) for variant in variants)]
    begun, done = time.monotonic(), dict[Unit, dict[str, list[dict[str, float]]]]()
    with contextlib.suppress(KeyboardInterrupt):  # what is done is told
        for unit, metrics in run_all(play, job, units, Workers(jobs=args.jobs)):
            done[unit] = metrics
            sys.stderr.write(f"\r{len(done)} of {len(units)} networks, {time.monotonic() - begun:.0f} s ")
    found = rows(done) if Unit(REFERENCE, 0) in done else []
    sys.stdout.write(f"\nCommit {git_commit()}, {time.monotonic() - begun:.0f} s\n\n{table(found)}")
    if args.json:
        write_json(args.json, {"rows": found})


if __name__ == "__main__":
    main()
