"""Worlds like a scenario."""

import dataclasses

import numpy as np

from rayfold.envs.scenario import load_scenario
from rayfold.training.worlds import at_prices, vary


def test_worlds_vary_in_what_they_should() -> None:
    """Start-ups, prices and whether moves launch nodes change, each in about half; the rest of the cluster stays."""
    scenario = load_scenario("smoke", None, synthetic=True)
    scenario = dataclasses.replace(scenario, limits=scenario.limits._replace(allow_new_nodes=True))
    worlds = [vary(scenario, np.random.default_rng(seed)) for seed in range(200)]
    before = scenario.spec.deployments[0].startup_s
    factors = np.array([w.spec.deployments[0].startup_s.min_s / before.min_s for w in worlds])
    scales = np.array([w.spec.settings.prices.unserved_factor for w in worlds])
    scales /= scenario.spec.settings.prices.unserved_factor
    assert 0.35 < (factors == 1.0).mean() < 0.65
    assert factors.min() >= 0.5
    assert factors.max() <= 3.0
    assert set(scales) == {0.25, 1.0, 4.0}
    assert 0.35 < np.mean([w.limits.allow_new_nodes for w in worlds]) < 0.65
    assert all(w.spec.node_types == scenario.spec.node_types for w in worlds)
    assert all(w.limits._replace(allow_new_nodes=True) == scenario.limits for w in worlds)


def test_other_prices_are_another_scenario() -> None:
    """With a name of its own, so that settings tuned for one price are not taken for another's; at 1 it is itself."""
    scenario = load_scenario("smoke", None, synthetic=True)
    assert at_prices(scenario, 1.0) is scenario
    dear = at_prices(scenario, 4.0)
    before, after = scenario.spec.settings.prices, dear.spec.settings.prices
    assert dear.name == "smoke_prices_x4"
    assert (after.disruption_scale, after.unserved_factor) == (4 * before.disruption_scale, 4 * before.unserved_factor)
    assert after.move_frac == before.move_frac
    assert dear.spec.deployments == scenario.spec.deployments
    assert dear.limits == scenario.limits
