"""An evaluation as units of (policy, seed), run here or as Ray tasks; what is done already is not run again."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from rayfold.envs.scenario import Scenario, Split
from rayfold.errors import InputError
from rayfold.training.episode_result import EpisodeResult, run_episode
from rayfold.training.evaluation import Evaluation
from rayfold.training.policy_choice import PolicyChoice
from rayfold.training.unit_store import UnitStore, scenario_digest, unit_key

__all__ = ["HERE", "Unit", "Workers", "evaluate_units"]


class Unit(NamedTuple):
    """One policy on one episode."""

    policy: PolicyChoice
    seed: int
    is_recorded: bool


class Workers(NamedTuple):
    """Where units run."""

    jobs: int = 1  # 1 = in this process, without Ray
    address: str = ""  # of a running Ray cluster; rayfold must be installed there


HERE = Workers()


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
    for unit, result in _run_all(scenario, split, left, workers):
        place = (unit.policy.name, unit.seed)
        store.save(keys[place], result)
        done[place] = result
        on_unit(unit)
    results = {policy.name: tuple(done[policy.name, seed] for seed in seeds) for policy in policies}
    return Evaluation(scenario=scenario, split=split, days=days, seeds=tuple(seeds), results=results)


def _run(scenario: Scenario, split: Split, unit: Unit) -> EpisodeResult:
    policy = unit.policy.make(scenario.limits)
    scheduling = unit.policy.scheduling
    return run_episode(scenario, policy, unit.seed, split, scheduling=scheduling, is_recorded=unit.is_recorded)


def _run_all(
    scenario: Scenario, split: Split, units: Sequence[Unit], workers: Workers
) -> Iterator[tuple[Unit, EpisodeResult]]:
    """Units in the order in which they end."""
    if not units:
        return
    if workers.jobs == 1 and not workers.address:
        for unit in units:
            yield unit, _run(scenario, split, unit)
        return
    import ray

    with _connected(workers):
        task = ray.remote(num_cpus=1)(_run)
        shared = ray.put(scenario)
        waiting, running = list(reversed(units)), dict[Any, Unit]()
        limit = workers.jobs if not workers.address else _num_cpus()
        try:
            while waiting or running:
                while waiting and len(running) < limit:
                    unit = waiting.pop()
                    running[task.remote(shared, split, unit)] = unit
                [ended], _ = ray.wait(list(running), num_returns=1)
                yield running.pop(ended), ray.get(ended)
        finally:
            for reference in running:
                ray.cancel(reference)


def _num_cpus() -> int:
    import ray

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray leaves it untyped
    return max(1, int(resources.get("CPU", 1)))


@contextlib.contextmanager
def _connected(workers: Workers) -> Iterator[None]:
    """A Ray of this process's own, or the one at the address, which is left running."""
    import ray

    from rayfold.training.ray_session import ray_session

    if not workers.address:
        with ray_session(workers.jobs):
            yield
        return
    try:
        ray.init(workers.address, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as err:
        raise InputError("--address", "a running Ray cluster", f"{workers.address}: {err}") from None
    try:
        yield
    finally:
        ray.shutdown()
