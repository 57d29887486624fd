"""Worlds like a scenario with other start-up times, prices and limits: what is learned must not hold in one only."""

import dataclasses

import numpy as np

from rayfold.envs.cluster import Interval
from rayfold.envs.scenario import Scenario

__all__ = ["at_prices", "scaled", "vary"]


def scaled(scenario: Scenario, *, startup: float = 1.0, prices: float = 1.0) -> Scenario:
    """Another world.

    Args:
        scenario: Stays as it is.
        startup: Times as long start-ups take.
        prices: Times as much disruption and unserved demand cost.
    """
    spec, old = scenario.spec, scenario.spec.settings.prices
    deployments = tuple(
        dataclasses.replace(d, startup_s=Interval(d.startup_s.min_s * startup, d.startup_s.max_s * startup))
        for d in spec.deployments
    )
    new = dataclasses.replace(
        old, disruption_scale=old.disruption_scale * prices, unserved_factor=old.unserved_factor * prices
    )
    settings = dataclasses.replace(spec.settings, prices=new)
    return dataclasses.replace(scenario, spec=dataclasses.replace(spec, deployments=deployments, settings=settings))


def at_prices(scenario: Scenario, factor: float) -> Scenario:
    """A scenario where disruption and unserved demand cost ``factor`` times as much, itself at 1.

    It has a name of its own, as ``slow_start_prices_x4``: what is tuned for one price is not taken for another's.
    """
    if factor == 1.0:
        return scenario
    return dataclasses.replace(scaled(scenario, prices=factor), name=f"{scenario.name}_prices_x{factor:g}")


def vary(scenario: Scenario, rng: np.random.Generator) -> Scenario:
    """A world drawn at random.

    In half of them start-ups take a half to three times as long; in half of them, each drawn apart, disruption and
    unserved demand have a quarter of their price or four times it; and in half of them moves launch no nodes.
    """
    startup = float(np.exp(rng.uniform(np.log(0.5), np.log(3.0)))) if rng.random() < 0.5 else 1.0
    prices = float(rng.choice([0.25, 4.0])) if rng.random() < 0.5 else 1.0
    world = scaled(scenario, startup=startup, prices=prices)
    if rng.random() < 0.5:
        return world
    return dataclasses.replace(world, limits=world.limits._replace(allow_new_nodes=False))
