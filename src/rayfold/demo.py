"""``rayfold demo``: the whole loop once, on this machine.

Trains for some minutes, evaluates on days it has not seen, then starts a real local Ray cluster, scales one
application down and lets the trained bundle act. Nothing here decides anything; it calls the rooms in turn.
"""

import dataclasses
from pathlib import Path
from typing import Any

from rich.console import Console

from rayfold.envs.scenario import load_scenario
from rayfold.errors import InputError
from rayfold.policies.best_fit import BestFit
from rayfold.policies.bundle import load_bundle
from rayfold.policies.learned import LearnedPolicy
from rayfold.policies.none import NoMoves
from rayfold.policies.protocol import Policy
from rayfold.policies.ray_serve import RayServe
from rayfold.serving.demo_cluster import LiveDemoResult, run_live_demo
from rayfold.training.evaluation import Evaluation, evaluate
from rayfold.training.ppo import TrainResult, train
from rayfold.training.progress import ProgressDisplay
from rayfold.training.report import table, write_json, write_png
from rayfold.training.train_config import TrainConfig

__all__ = ["DEMO_SCENARIOS", "is_goal_reached", "run_demo"]

# The published case, the article's example, and the cluster that the live half starts: one policy for all three.
DEMO_SCENARIOS = ("llm_api", "low_scale", "local_demo")
EVALUATION_SCENARIO = "llm_api"
FIRST_SEED = 1000  # training draws other streams


def run_demo(
    *,
    json_path: Path | None,
    train_minutes: float,
    num_seeds: int,
    run_dir: Path,
    traces_dir: Path,
    synthetic: bool,
    console: Console | None = None,
) -> bool:
    """Runs the demo.

    Args:
        json_path: Where to write what was measured; None = nowhere.
        train_minutes: Wall time of the training.
        num_seeds: Evaluation episodes.
        run_dir: The training's folder; the picture goes there too.
        traces_dir: Folder with trace files.
        synthetic: Generated traffic, even if the traces are there.
        console: Where to show it.

    Returns:
        Whether a node was released and no request failed.
    """
    console = console or Console()
    synthetic = synthetic or not _has_traces(traces_dir, console)
    console.rule(f"1. Train for {train_minutes:g} minutes")
    trained = _train(run_dir, train_minutes, traces_dir, synthetic, console)
    console.rule("2. Evaluate on days the policy has not seen")
    evaluation = _evaluate(trained.bundle_dir, num_seeds, traces_dir, synthetic)
    console.print(table(evaluation))
    picture = run_dir / "evaluation.png"
    write_png(picture, evaluation)
    console.print(f"picture: {picture}")
    console.rule("3. Act on a real local Ray cluster")
    live = run_live_demo(trained.bundle_dir, lambda text: console.print(text, highlight=False))
    _show(live, console)
    if json_path is not None:
        write_json(json_path, _record(trained, evaluation, live))
        console.print(f"measured: {json_path}")
    is_good = is_goal_reached(live)
    console.print("a node was released and no request failed" if is_good else "the demo did NOT reach its goal")
    return is_good


def is_goal_reached(live: LiveDemoResult) -> bool:
    """Whether a node was released while requests were served, and none of them failed."""
    return live.nodes_after < live.nodes_before and live.requests > 0 and live.failed == 0


def _has_traces(traces_dir: Path, console: Console) -> bool:
    """Whether the evaluation scenario finds its traces; says so where it does not."""
    try:
        load_scenario(EVALUATION_SCENARIO, traces_dir)
    except InputError as err:
        console.print(f"{err}\nGenerated traffic is used instead.", highlight=False, soft_wrap=True)
        return False
    return True


def _train(run_dir: Path, minutes: float, traces_dir: Path, synthetic: bool, console: Console) -> TrainResult:
    config = TrainConfig(
        run_dir=run_dir,
        scenarios=DEMO_SCENARIOS,
        stop_minutes=minutes,
        evaluation_episodes=2,
        traces_dir=traces_dir,
        synthetic=synthetic,
    )
    with ProgressDisplay(console) as display:
        result = train(config, display)
    if result.interrupted:
        raise KeyboardInterrupt
    console.print(f"bundle: {result.bundle_dir} ({result.chosen} weights, {result.position.steps} PPO steps)")
    return result


def _evaluate(bundle_dir: Path, num_seeds: int, traces_dir: Path, synthetic: bool) -> Evaluation:
    scenario = load_scenario(EVALUATION_SCENARIO, traces_dir, synthetic=synthetic)
    policies: dict[str, Policy] = {
        "none": NoMoves(),
        "best_fit": BestFit(scenario.limits),
        "ray_serve": RayServe(scenario.limits),
        "learned": LearnedPolicy(load_bundle(bundle_dir).net, scenario.limits),
    }
    return evaluate(scenario, policies, range(FIRST_SEED, FIRST_SEED + num_seeds))


def _show(live: LiveDemoResult, console: Console) -> None:
    for title, listing in (("before", live.listing_before), ("after", live.listing_after)):
        console.print(f"nodes {title}:")
        for line in listing:
            console.print(f"  {line}", highlight=False)
    console.print(
        f"nodes {live.nodes_before} -> {live.nodes_after}, {len(live.moves)} moves, "
        f"{live.requests} requests while moving, {live.failed} failed\n"
        f"latency ms: p50 {live.p50_ms_before:.1f} before, {live.p50_ms_during:.1f} during; "
        f"p99 {live.p99_ms_before:.1f} before, {live.p99_ms_during:.1f} during",
        highlight=False,
    )
    for error in live.errors:
        console.print(f"failed request: {error}", highlight=False)


def _record(trained: TrainResult, evaluation: Evaluation, live: LiveDemoResult) -> dict[str, Any]:
    return {
        **dataclasses.asdict(live),
        "moves": len(live.moves),
        "move_details": live.moves,
        "train_minutes": trained.position.minutes,
        "train_steps": trained.position.steps,
        "evaluation": evaluation.to_json(),
    }
