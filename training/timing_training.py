"""Training of the timing (``policies/timing.py``): evolution strategies on whole episodes of the training days.

A policy search needs no gradient and no horizon: what counts is the bill of the whole episode. CMA-ES (Hansen 2016,
arXiv:1604.00772; the library is ``cmaes``) draws rules around its mean; all rules of a generation are tried on the same
episodes, one of each scenario, so that luck with the traffic cancels. Every second generation plays in worlds with
other start-up times and prices (``worlds.vary``). A generation that is done is kept and replayed when the same
command is given again.
"""

import contextlib
import datetime
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from cmaes import CMA
from numpy.typing import NDArray

from rayfold.envs.scenario import Scenario, Split
from rayfold.policies.exact import Exact
from rayfold.policies.none import NoMoves
from rayfold.policies.protocol import Policy
from rayfold.policies.timing import FEATURES, TimedExact, Timing
from rayfold.policies.timing_file import TimingCard, TrainedTiming
from rayfold.training.episode_result import run_episode
from rayfold.training.provenance import command_line, git_commit
from rayfold.training.ray_session import ray_session
from rayfold.training.report import write_atomically
from rayfold.training.unit_store import code_digest, scenario_digest
from rayfold.training.workers import HERE, Workers, run_all
from rayfold.training.worlds import vary

__all__ = ["Search", "train_timing"]

CHECK_SEEDS = range(10_000, 10_004)  # episodes that no generation sees


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """How long and how wide."""

    generations: int = 25
    population: int = 6
    sigma: float = 0.6  # first spread of each number of the rule
    seed: int = 0


class _Unit(NamedTuple):
    scenario: int  # row
    seed: int
    rule: Timing | str  # or the name of a policy to compare with


def train_timing(
    scenarios: Sequence[Scenario],
    search: Search,
    run_dir: Path,
    *,
    workers: Workers = HERE,
    on_generation: Callable[[int, float], None] = lambda generation, bill_frac: None,
) -> TrainedTiming:
    """The mean of the last generation, and what it is worth on training episodes that no generation has seen.

    Args:
        scenarios: With the horizon to use.
        search: How long and how wide.
        run_dir: Its file ``generations.json`` holds what is done.
        workers: Where episodes run.
        on_generation: Called after each with its number and the mean bill over that of ``none``.

    The card's metrics: the bill against ``exact`` with its defaults, minus 1, by scenario and in the mean.
    """
    path = run_dir / "generations.json"
    digest = _digest(scenarios, search)
    kept = _load(path, digest)
    dim = 1 + len(FEATURES)
    optimizer = CMA(
        mean=np.zeros(dim),
        sigma=search.sigma,
        bounds=np.tile([-4.0, 4.0], (dim, 1)),
        population_size=search.population,
        seed=search.seed,
    )
    is_private = workers.jobs > 1 and not workers.address
    with ray_session(workers.jobs) if is_private else contextlib.nullcontext():  # one Ray for all generations
        for generation in range(search.generations):
            drawn = [optimizer.ask() for _ in range(search.population)]
            if generation < len(kept):
                fitness = kept[generation]
            else:
                seed = search.seed * 1000 + generation
                fitness = _fitness(scenarios, [_rule(x) for x in drawn], seed, workers)
                kept.append(fitness)
                write_atomically(path, json.dumps({"digest": digest, "fitness": kept}).encode())
            optimizer.tell(list(zip(drawn, fitness, strict=True)))
            on_generation(generation + 1, float(np.mean(fitness)))
        rule = _rule(optimizer.mean)
        metrics = _checked(scenarios, rule, workers)
    card = TimingCard(
        scenarios=tuple(scenario.name for scenario in scenarios),
        generations=search.generations,
        episodes=search.generations * search.population * len(scenarios),
        seed=search.seed,
        command=command_line(),
        created_utc=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        git_commit=git_commit(),
        metrics=metrics,
    )
    return TrainedTiming(timing=rule, card=card)


def _rule(x: NDArray[np.float64]) -> Timing:
    bias, *weights = map(float, x)
    return Timing(bias, tuple(weights))  # type: ignore[arg-type]  # as many as there are features


def _fitness(scenarios: Sequence[Scenario], rules: Sequence[Timing], seed: int, workers: Workers) -> list[float]:
    """Mean over the scenarios of the bill over that of ``none``, per rule."""
    bills = _bills(scenarios, [NoMoves.name, *rules], [seed], workers)
    return [float(x) for x in (bills[:, 1:] / bills[:, :1]).mean(0)]


def _checked(scenarios: Sequence[Scenario], rule: Timing, workers: Workers) -> dict[str, float]:
    bills = _bills(scenarios, [Exact.name, rule], CHECK_SEEDS, workers).reshape(len(scenarios), len(CHECK_SEEDS), 2)
    worth = bills[:, :, 1].sum(1) / bills[:, :, 0].sum(1) - 1.0
    by_name = {scenario.name: float(w) for scenario, w in zip(scenarios, worth, strict=True)}
    return {**by_name, "mean": float(worth.mean())}


def _bills(
    scenarios: Sequence[Scenario], rules: Sequence[Timing | str], seeds: Sequence[int], workers: Workers
) -> NDArray[np.float64]:
    """``(scenarios x seeds, rules)`` US dollars."""
    units = [_Unit(i, seed, rule) for i in range(len(scenarios)) for seed in seeds for rule in rules]
    work = list(enumerate(units))
    bills = np.zeros(len(units))
    for (i, _), bill in run_all(_run, tuple(scenarios), work, workers):
        bills[i] = bill
    return bills.reshape(-1, len(rules))


def _run(scenarios: tuple[Scenario, ...], work: tuple[int, _Unit]) -> float:
    _, unit = work
    scenario = scenarios[unit.scenario]
    if unit.seed % 2:
        scenario = vary(scenario, np.random.default_rng([unit.seed, unit.scenario]))
    policy: Policy
    if isinstance(unit.rule, Timing):
        policy = TimedExact(unit.rule, scenario.limits)
    else:
        policy = NoMoves() if unit.rule == NoMoves.name else Exact(scenario.limits)
    return float(run_episode(scenario, policy, unit.seed, Split.TRAIN).metrics["total_usd"])


def _digest(scenarios: Sequence[Scenario], search: Search) -> str:
    shape = [search.population, search.sigma, search.seed]  # more generations go on from fewer
    parts: list[Any] = [code_digest(), *(scenario_digest(scenario) for scenario in scenarios), *shape]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _load(path: Path, digest: str) -> list[list[float]]:
    """Kept generations; none if there are none, of other code or scenarios, or the file is damaged."""
    try:
        found = json.loads(path.read_bytes())
        return [[float(f) for f in fitness] for fitness in found["fitness"]] if found["digest"] == digest else []
    except (OSError, ValueError, KeyError, TypeError):
        return []
