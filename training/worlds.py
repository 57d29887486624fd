"""Worlds like a scenario, of other sizes, start-up times, prices and limits: what is learned must not hold in one only.

An episode of training is played in a world that ``Worlds`` draws.
"""

import dataclasses
import math
from dataclasses import dataclass

import numpy as np

from rayfold.envs.cluster import AutoscalingConfig, Interval, NodeType
from rayfold.envs.scenario import Scenario
from rayfold.envs.traffic_source import TraceSource, TrafficSource

__all__ = ["PRICE_SCALES", "Worlds", "at_prices", "name_and_prices", "name_at_prices", "resized", "scaled", "vary"]

PRICE_SCALES = (0.25, 4.0)  # DESIGN §5: other prices of disruption and unserved demand
_AT_PRICES = "_prices_x"


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
    return dataclasses.replace(scaled(scenario, prices=factor), name=name_at_prices(scenario.name, factor))


def name_at_prices(name: str, factor: float) -> str:
    """What ``at_prices`` calls a scenario of this name."""
    return name if factor == 1.0 else f"{name}{_AT_PRICES}{factor:g}"


def name_and_prices(name: str) -> tuple[str, float]:
    """The scenario's own name, and the factor: what ``name_at_prices`` was made of."""
    own, _, factor = name.partition(_AT_PRICES)
    return own, float(factor or 1.0)


def vary(scenario: Scenario, rng: np.random.Generator) -> Scenario:
    """A world drawn at random.

    In half of them start-ups take a half to three times as long; in half of them, each drawn apart, disruption and
    unserved demand have a quarter of their price or four times it; and in half of them moves launch no nodes.
    """
    startup = float(np.exp(rng.uniform(np.log(0.5), np.log(3.0)))) if rng.random() < 0.5 else 1.0
    prices = float(rng.choice(PRICE_SCALES)) if rng.random() < 0.5 else 1.0
    world = scaled(scenario, startup=startup, prices=prices)
    if rng.random() < 0.5:
        return world
    return dataclasses.replace(world, limits=world.limits._replace(allow_new_nodes=False))


def resized(scenario: Scenario, factor: float) -> Scenario:
    """The same service for ``factor`` times as much traffic.

    Request rates, the bounds of replicas and of nodes, and the moves that may be under way at once go with it; shapes,
    times and prices stay. Bounds are whole numbers, of nodes rounded up, and none that was positive becomes 0.

    Args:
        scenario: Stays as it is.
        factor: Positive.
    """
    spec, limits = scenario.spec, scenario.limits
    deployments = tuple(
        dataclasses.replace(d, autoscaling=_resized_replicas(d.autoscaling, factor)) for d in spec.deployments
    )
    node_types = tuple(_resized_nodes(t, factor) for t in spec.node_types)
    return dataclasses.replace(
        scenario,
        spec=dataclasses.replace(spec, deployments=deployments, node_types=node_types),
        limits=limits._replace(max_concurrent_moves=_times(limits.max_concurrent_moves, factor)),
        source=_resized_traffic(scenario.source, factor),
    )


def _times(count: int, factor: float) -> int:
    return max(min(count, 1), math.floor(count * factor + 0.5))


def _resized_replicas(config: AutoscalingConfig, factor: float) -> AutoscalingConfig:
    initial = config.initial_replicas
    return dataclasses.replace(
        config,
        min_replicas=_times(config.min_replicas, factor),
        max_replicas=_times(config.max_replicas, factor),
        initial_replicas=None if initial is None else _times(initial, factor),
    )


def _resized_nodes(node_type: NodeType, factor: float) -> NodeType:
    if node_type.is_head:
        return node_type
    most = math.ceil(node_type.max_nodes * factor - 1e-9)
    return dataclasses.replace(node_type, min_nodes=_times(node_type.min_nodes, factor), max_nodes=most)


def _resized_traffic(source: TrafficSource, factor: float) -> TrafficSource:
    if isinstance(source, TraceSource):
        return dataclasses.replace(source, rates_rps=source.rates_rps * factor)
    settings = tuple(dataclasses.replace(s, mean_rps=s.mean_rps * factor) for s in source.settings)
    return dataclasses.replace(source, settings=settings)


@dataclass(frozen=True, slots=True)
class Worlds:
    """Draws the world of an episode; called with a scenario and a generator, it gives another scenario."""

    varies: bool = False  # start-ups, prices and limits, see ``vary``
    num_nodes: tuple[int, int] | None = None  # the least and the most nodes there may be, evenly drawn in the logarithm

    def __call__(self, scenario: Scenario, rng: np.random.Generator) -> Scenario:
        """One world; what does not change takes nothing from the generator."""
        if self.num_nodes is not None:
            least, most = np.log(self.num_nodes)
            scenario = self._with_nodes(scenario, math.exp(rng.uniform(least, most)))
        return vary(scenario, rng) if self.varies else scenario

    def largest(self, scenario: Scenario) -> Scenario:
        """The largest world that can be drawn: a layout that holds it holds all."""
        return scenario if self.num_nodes is None else self._with_nodes(scenario, self.num_nodes[1])

    @staticmethod
    def _with_nodes(scenario: Scenario, num_nodes: float) -> Scenario:
        return resized(scenario, num_nodes / sum(t.max_nodes for t in scenario.spec.node_types if not t.is_head))
