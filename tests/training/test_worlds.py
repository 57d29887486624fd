"""Worlds like a scenario."""

import numpy as np

from rayfold.envs.scenario import load_scenario
from rayfold.training.worlds import vary


def test_worlds_vary_in_what_they_should() -> None:
    """Start-ups and prices change, each in about half of the worlds; the rest of the cluster stays."""
    scenario = load_scenario("smoke", None, synthetic=True)
    worlds = [vary(scenario, np.random.default_rng(seed)) for seed in range(200)]
    before = scenario.spec.deployments[0].startup_s
    factors = np.array([w.spec.deployments[0].startup_s.min_s / before.min_s for w in worlds])
    scales = np.array([w.spec.settings.prices.unserved_factor for w in worlds])
    scales /= scenario.spec.settings.prices.unserved_factor
    assert 0.35 < (factors == 1.0).mean() < 0.65
    assert factors.min() >= 0.5
    assert factors.max() <= 3.0
    assert set(scales) == {0.25, 1.0, 4.0}
    assert all(w.spec.node_types == scenario.spec.node_types and w.limits == scenario.limits for w in worlds)
