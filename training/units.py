"""An evaluation as units of (policy, seed), run here or as Ray tasks; what is done already is not run again."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from rayfold.envs.scenario import Scenario, Split
from rayfold.training.episode_result import EpisodeResult, run_episode
from rayfold.training.evaluation import Evaluation
from rayfold.training.policy_choice import PolicyChoice
from rayfold.training.unit_store import UnitStore, scenario_digest, unit_key
from rayfold.training.workers import HERE, Workers, run_all

__all__ = ["Unit", "evaluate_units"]


class Unit(NamedTuple):
    """One policy on one episode."""

    policy: PolicyChoice
    seed: int
    is_recorded: bool


def evaluate_units(
    scenario: Scenario,
    policies: Sequence[PolicyChoice],
    seeds: Sequence[int],
    split: Split,
    *,
    days: str = "",
    store: UnitStore | None = None,
    workers: Workers = HERE,
    is_recorded: bool = True,
    on_unit: Callable[[Unit], None] = lambda unit: None,
) -> Evaluation:
    """Runs every policy on every seed, policies side by side.

    Args:
        scenario: What to simulate.
        policies: Each a column, by its name.
        seeds: One episode each.
        split: Which days the traffic is drawn from.
        days: The same as the user said it.
        store: Where finished units are kept and looked for.
        workers: Where to run the rest.
        is_recorded: Keep every tick of the first seed, for the report.
        on_unit: Called after each unit, for progress.
    """
    store, digest = store or UnitStore(None), scenario_digest(scenario)
    units = {
        (policy.name, seed): Unit(policy, seed, is_recorded and i == 0)
        for i, seed in enumerate(seeds)
        for policy in policies
    }
    keys = {
        place: unit_key(digest, split, unit.policy, unit.seed, is_recorded=unit.is_recorded)
        for place, unit in units.items()
    }
    done: dict[tuple[str, int], EpisodeResult] = {}
    for place, unit in units.items():
        kept = store.load(keys[place])
        if kept is not None:
            done[place] = kept
            on_unit(unit)
    left = [unit for place, unit in units.items() if place not in done]
    for unit, result in run_all(_run, (scenario, split), left, workers):
        place = (unit.policy.name, unit.seed)
        store.save(keys[place], result)
        done[place] = result
        on_unit(unit)
    results = {policy.name: tuple(done[policy.name, seed] for seed in seeds) for policy in policies}
    return Evaluation(scenario=scenario, split=split, days=days, seeds=tuple(seeds), results=results)


def _run(shared: tuple[Scenario, Split], unit: Unit) -> EpisodeResult:
    scenario, split = shared
    policy = unit.policy.make(scenario)
    scheduling = unit.policy.scheduling
    return run_episode(scenario, policy, unit.seed, split, scheduling=scheduling, is_recorded=unit.is_recorded)
