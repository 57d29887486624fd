"""Settings of training, searched with Ray Tune: which of them make the best policy in a given number of steps.

Every trial is a whole run of ``train`` in a folder of its own, from the same warm start, with the same seed; it is
judged by the weights that it chose, on the same episodes of the training days, which no training draws. A trial that
was cut off goes on from its newest checkpoint.
"""

import dataclasses
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from ray import tune

from rayfold.errors import InputError
from rayfold.training.checkpoints import has_checkpoint
from rayfold.training.ppo import train
from rayfold.training.progress import Phase, Progress
from rayfold.training.report import write_atomically
from rayfold.training.trackers import tune_callbacks
from rayfold.training.train_config import TrainConfig
from rayfold.training.tune_search import search

__all__ = ["METRIC", "SPACE", "BestTraining", "search_training", "write_recipe"]

METRIC, BUNDLE = "excess_frac", "bundle"
NAME, RUNS = "training", "runs"
_OF_THE_CALL = ("run_dir", "traces_dir", "trackers", "tracker_project", "resume")

# Fields of TrainConfig that have a flag, so that what is found is a recipe. Ranges around what has worked
# (docs/learning.md, 11 and 12); the trial's steps are the caller's.
SPACE = {
    "lr": tune.loguniform(3e-5, 1e-3),
    "entropy_coeff": tune.loguniform(1e-4, 1e-2),
    "min_p": tune.choice([0.0, 0.1, 0.2, 0.3]),
    "min_act_p": tune.choice([0.0, 0.02, 0.05]),
    "wait_intervals": tune.choice([1, 2, 5]),
    "group_size": tune.choice([1, 4, 8]),
}


class BestTraining(NamedTuple):
    """What came of a search."""

    settings: dict[str, Any]
    excess_frac: float  # mean bill above the lower bound
    default_excess_frac: float  # of the settings as given
    bundle: Path


def search_training(
    config: TrainConfig,
    num_samples: int,
    *,
    jobs: int = 1,
    on_trial: Callable[[], None] = lambda: None,
) -> BestTraining:
    """Searches, or goes on with a search, in ``config.run_dir``.

    Args:
        config: The run that is varied; its own settings are tried first, and its trackers told of every run.
        num_samples: Runs, the first one among them.
        jobs: Runs at once, each with a CPU for itself and one for each of its env runners.
        on_trial: Called after each run.

    Raises:
        InputError: A setting is wrong, or the folder holds another search.
        KeyboardInterrupt: It was interrupted; what is done is kept.
        RuntimeError: A run failed.
    """
    config.check()
    if config.stop_steps is None:
        raise InputError("--stop-steps", "how long runs are, so that they can be compared", "none")
    if config.evaluation_episodes < 1:
        raise InputError("--evaluation-episodes", "1 or more, by which runs are compared", config.evaluation_episodes)
    config.load_scenarios()
    trial = tune.with_parameters(_trial, config=_absolute(config))
    first = {name: getattr(config, name) for name in SPACE}
    fixed = {k: v for k, v in dataclasses.asdict(config).items() if k not in (*SPACE, *_OF_THE_CALL)}
    tried = search(
        tune.with_resources(trial, tune.PlacementGroupFactory(config.ray_bundles)),
        SPACE,
        first,
        metric=METRIC,
        num_samples=num_samples,
        search_seed=config.seed,
        jobs=jobs,
        folder=config.run_dir / NAME,
        what={"config": fixed, "first": first, "space": list(SPACE), "num_samples": num_samples},
        callbacks=tune_callbacks(config.trackers, config.tracker_project),
        on_trial=on_trial,
    )
    best = min(tried, key=lambda t: float(t.metrics[METRIC]))
    default = next(t for t in tried if t.settings == first)
    return BestTraining(
        settings=best.settings,
        excess_frac=float(best.metrics[METRIC]),
        default_excess_frac=float(default.metrics[METRIC]),
        bundle=Path(best.metrics[BUNDLE]),
    )


def _absolute(config: TrainConfig) -> TrainConfig:
    """The same with absolute paths: Tune runs a trial in a folder of its own."""
    return dataclasses.replace(
        config,
        run_dir=config.run_dir.resolve(),
        traces_dir=config.traces_dir.resolve() if config.traces_dir is not None else None,
        scenarios=tuple(str(Path(name).resolve()) if Path(name).is_file() else name for name in config.scenarios),
        warm_start=str(Path(config.warm_start).resolve()) if _is_folder(config.warm_start) else config.warm_start,
    )


def _is_folder(name: str) -> bool:
    return bool(name) and Path(name).is_dir()


def _trial(settings: dict[str, Any], *, config: TrainConfig) -> dict[str, Any]:
    # Not the trial's own folder, which Ray removes with its session.
    run_dir = config.run_dir / RUNS / str(tune.get_context().get_trial_id())
    goes_on = has_checkpoint(run_dir)
    if not goes_on:
        shutil.rmtree(run_dir, ignore_errors=True)
    config = dataclasses.replace(config, **settings, run_dir=run_dir, resume=goes_on, trackers=())

    def report(progress: Progress) -> None:
        if progress.phase is Phase.PPO and progress.metrics:
            tune.report({METRIC: math.nan, "steps": progress.steps, **progress.metrics})

    result = train(config, report)
    return {METRIC: result.evaluation_excess_frac[result.chosen], BUNDLE: str(result.bundle_dir)}


def write_recipe(path: Path, config: TrainConfig, found: BestTraining) -> None:
    """Writes the best settings as a recipe of one lesson, for ``rayfold train --recipe``.

    Args:
        path: A YAML file.
        config: What was varied.
        found: What was found.
    """
    best, default = dataclasses.replace(config, **found.settings), TrainConfig(run_dir=config.run_dir)
    lesson: dict[str, Any] = {"scenario": ",".join(best.scenarios)}
    for name, flag in _FLAGS.items():
        value = getattr(best, name)
        if value is not None and (value != getattr(default, name) or name.startswith("stop_")):
            lesson[flag] = float(f"{value:.4g}") if isinstance(value, float) else value
    if best.horizon_s is not None:
        lesson["horizon-h"] = best.horizon_s / 3600.0
    if best.num_nodes is not None:
        lesson["num-nodes"] = "{}-{}".format(*best.num_nodes)
    write_atomically(path, yaml.safe_dump({"train": lesson}, sort_keys=False).encode())


_FLAGS = {
    name: name.replace("_", "-")
    for name in (
        *SPACE,
        "vary_worlds",
        "warm_start",
        "warm_start_steps",
        "warm_start_rounds",
        "stop_steps",
        "stop_minutes",
        "batch_steps",
        "num_envs",
        "evaluation_episodes",
        "num_env_runners",
        "num_learners",
        "num_gpus_per_learner",
        "seed",
    )
}
