"""Tuning: the settings with which a heuristic does best on training days, found with Ray Tune.

Every heuristic gets the same budget: as many settings, tried on the same episodes of the train split. The first ones
tried are its defaults, so that the result is never worse on those episodes; the rest is drawn at random from the
ranges in ``policies.settings``.
"""

import datetime
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from ray import tune

from rayfold.envs.scenario import Scenario, Split
from rayfold.errors import InputError
from rayfold.policies.by_name import Heuristic
from rayfold.policies.settings import Between, OneOf, parse_settings, search_space
from rayfold.policies.tuned import TunedFile, TunedPolicy, read_tuned
from rayfold.training.evaluation import run_episode
from rayfold.training.provenance import command_line, git_commit
from rayfold.training.report import write_atomically
from rayfold.training.tune_search import search

__all__ = ["Budget", "mean_total_usd", "tune_heuristic", "write_tuned"]

METRIC = "total_usd"


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How much is tried; the same for every heuristic."""

    num_samples: int = 32  # settings, the default ones among them
    num_seeds: int = 4  # episodes for each of them
    search_seed: int = 0  # draws the settings
    jobs: int = 1  # trials at once, one CPU each; does not change what is tried


def mean_total_usd(scenario: Scenario, heuristic: Heuristic, settings: Mapping[str, Any], num_seeds: int) -> float:
    """Mean bill of an episode of the training days.

    Args:
        scenario: What to simulate.
        heuristic: The rule.
        settings: By field; defaults for those not given.
        num_seeds: Episodes, seeds 0 on.
    """
    policy = heuristic.make(scenario.limits, parse_settings(heuristic.settings_type, settings, "settings"))
    bills = [run_episode(scenario, policy, seed, Split.TRAIN).metrics[METRIC] for seed in range(num_seeds)]
    return float(np.mean(bills))


def tune_heuristic(
    scenario: Scenario,
    name: str,
    heuristic: Heuristic,
    budget: Budget,
    run_dir: Path,
    on_trial: Callable[[], None] = lambda: None,
) -> TunedPolicy:
    """Searches, or goes on with a search.

    Args:
        scenario: What to simulate.
        name: Of the heuristic.
        heuristic: The rule.
        budget: How much is tried.
        run_dir: Its folder ``name`` holds the search.
        on_trial: Called after each trial that this call has run, for progress.

    Raises:
        InputError: The heuristic has nothing to tune, or the folder holds the search of something else.
        RuntimeError: A trial failed.
    """
    space = search_space(heuristic.settings_type)
    if not space:
        raise InputError("--policies", "heuristics with settings", name)
    defaults = _defaults(heuristic, space)
    tried = search(
        tune.with_parameters(_trial, scenario=scenario, heuristic=heuristic, num_seeds=budget.num_seeds),
        {field: _domain(heuristic, field, allowed) for field, allowed in space.items()},
        defaults,
        metric=METRIC,
        num_samples=budget.num_samples,
        search_seed=budget.search_seed,
        jobs=budget.jobs,
        folder=run_dir / name,
        what={
            "scenario": scenario.name,
            "traffic": scenario.traffic_name,
            "horizon_s": scenario.horizon_s,
            "space": {field: list(allowed) for field, allowed in space.items()},
            "budget": {field: value for field, value in asdict(budget).items() if field != "jobs"},
        },
        on_trial=on_trial,
    )
    scores = [(float(t.metrics[METRIC]), t.settings) for t in tried]
    best_usd, best = min(scores, key=lambda score: score[0])
    return TunedPolicy(
        settings=_plain(best),
        total_usd=round(best_usd, 4),
        default_total_usd=round(next(usd for usd, settings in scores if settings == defaults), 4),
        num_samples=budget.num_samples,
        num_seeds=budget.num_seeds,
        horizon_s=scenario.horizon_s,
        search_seed=budget.search_seed,
        command=command_line(),
        git_commit=git_commit(),
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    )


def _trial(settings: dict[str, Any], *, scenario: Scenario, heuristic: Heuristic, num_seeds: int) -> dict[str, float]:
    return {METRIC: mean_total_usd(scenario, heuristic, settings, num_seeds)}


def _domain(heuristic: Heuristic, field: str, allowed: Between | OneOf) -> Any:
    if isinstance(allowed, OneOf):
        return tune.choice(list(allowed.values))
    low, high = allowed.low, allowed.high
    if isinstance(getattr(heuristic.settings_type(), field), int):
        draw = tune.lograndint if allowed.is_log else tune.randint
        return draw(int(low), int(high) + 1)  # the upper end is left out
    return (tune.loguniform if allowed.is_log else tune.uniform)(low, high)


def _defaults(heuristic: Heuristic, space: Mapping[str, Between | OneOf]) -> dict[str, Any]:
    settings = heuristic.settings_type()
    return {field: getattr(settings, field) for field in space}


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Python's own types, numbers to four digits: the others are noise."""
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in settings.items()}
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in plain.items()}


def write_tuned(path: Path, scenario: Scenario, found: Mapping[str, TunedPolicy]) -> None:
    """Writes what was found; other heuristics that the file holds for the same scenario stay in it.

    Args:
        path: A YAML file.
        scenario: What was simulated.
        found: By name of heuristic.

    Raises:
        InputError: The file is there and is not such a file, or is another scenario's.
    """
    known: dict[str, TunedPolicy] = {}
    if path.exists():
        before = read_tuned(path)
        if (before.scenario, before.traffic) != (scenario.name, scenario.traffic_name):
            raise InputError(str(path), f"a file of {scenario.name} with its traffic", before.scenario)
        known = before.policies
    file = TunedFile(scenario=scenario.name, traffic=scenario.traffic_name, policies={**known, **found})
    text = yaml.safe_dump(file.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)
    write_atomically(path, text.encode())
