"""Worlds like a scenario."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayfold.envs.episode import Episode, scenario_layout
from rayfold.envs.scenario import Scenario, Split, load_scenario
from rayfold.envs.scenario_file import shipped_scenarios
from rayfold.training.worlds import Worlds, at_prices, name_and_prices, resized, vary


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
    assert [name_and_prices(s.name) for s in (scenario, dear)] == [("smoke", 1.0), ("smoke", 4.0)]
    assert (after.disruption_scale, after.unserved_factor) == (4 * before.disruption_scale, 4 * before.unserved_factor)
    assert after.move_frac == before.move_frac
    assert dear.spec.deployments == scenario.spec.deployments
    assert dear.limits == scenario.limits


def test_twice_the_size_by_hand() -> None:
    """Bounds, moves at once and traffic double; what a replica or a node is like stays, and the head is one."""
    scenario = load_scenario("local_demo", None, synthetic=True)
    twice = resized(scenario, 2.0)
    for before, after in zip(scenario.spec.node_types, twice.spec.node_types, strict=True):
        assert after.max_nodes == (before.max_nodes if before.is_head else 2 * before.max_nodes)
        assert dataclasses.replace(after, max_nodes=before.max_nodes, min_nodes=before.min_nodes) == before
    for old, new in zip(scenario.spec.deployments, twice.spec.deployments, strict=True):
        assert new.autoscaling.max_replicas == 2 * old.autoscaling.max_replicas
        assert new.autoscaling.min_replicas == 2 * old.autoscaling.min_replicas
        assert dataclasses.replace(new, autoscaling=old.autoscaling) == old
    assert twice.limits == scenario.limits._replace(max_concurrent_moves=2 * scenario.limits.max_concurrent_moves)
    load = [s.sample(np.random.default_rng(1), Split.TRAIN).ongoing.mean() for s in (scenario, twice)]
    assert load[1] == pytest.approx(2.0 * load[0], rel=0.1)


def test_a_size_of_one_is_the_scenario() -> None:
    """The same cluster and, drawn alike, the same traffic."""
    scenario = load_scenario("smoke", None, synthetic=True)
    same = resized(scenario, 1.0)
    assert (same.spec, same.limits) == (scenario.spec, scenario.limits)
    drawn = [s.sample(np.random.default_rng(3), Split.TRAIN).ongoing for s in (scenario, same)]
    np.testing.assert_array_equal(drawn[0], drawn[1])


@given(factor=st.floats(0.01, 30.0), name=st.sampled_from(sorted(shipped_scenarios())))
def test_a_resized_cluster_is_still_one(factor: float, name: str) -> None:
    """No bound that was positive becomes 0, none is upside down, and every move limit lets something move."""
    world = resized(_shipped(name), factor)
    for t, before in zip(world.spec.node_types, _shipped(name).spec.node_types, strict=True):
        assert (t.max_nodes > 0) == (before.max_nodes > 0)
        assert t.min_nodes <= t.max_nodes
    for d, old in zip(world.spec.deployments, _shipped(name).spec.deployments, strict=True):
        least, most = d.autoscaling.min_replicas, d.autoscaling.max_replicas
        assert 0 <= least <= most >= 1
        assert (least > 0) == (old.autoscaling.min_replicas > 0)
    assert world.limits.max_concurrent_moves >= 1


def test_sizes_are_drawn_and_fit_the_largest() -> None:
    """Between the least and the most, each of three octaves a third of the time; an episode of any of them begins."""
    scenario = load_scenario("smoke", None, synthetic=True)
    worlds = Worlds(num_nodes=(4, 32))
    layout = scenario_layout(worlds.largest(scenario))
    drawn = [worlds(scenario, np.random.default_rng(seed)) for seed in range(300)]
    num_nodes = np.array([w.spec.max_nodes for w in drawn])
    assert num_nodes.min() >= 4
    assert num_nodes.max() <= layout.num_nodes
    shares = np.histogram(num_nodes, [4, 8.5, 16.5, 40])[0] / len(drawn)
    assert shares == pytest.approx([1 / 3] * 3, abs=0.1)
    for world in (drawn[int(num_nodes.argmin())], drawn[int(num_nodes.argmax())]):
        episode = Episode(world, layout, Split.TRAIN, np.random.default_rng(0))
        assert not episode.act(0, 0).truncated


def test_without_sizes_worlds_are_those_of_before() -> None:
    """The draws of ``vary`` and no more, so that a run without sizes is what it was."""
    scenario = load_scenario("smoke", None, synthetic=True)
    for seed in range(20):
        plain, drawn = (draw(scenario, np.random.default_rng(seed)) for draw in (vary, Worlds(varies=True)))
        assert (plain.spec, plain.limits) == (drawn.spec, drawn.limits)
    assert Worlds()(scenario, np.random.default_rng(0)) is scenario
    assert Worlds().largest(scenario) is scenario


_LOADED: dict[str, Scenario] = {}


def _shipped(name: str) -> Scenario:
    if name not in _LOADED:
        _LOADED[name] = load_scenario(name, None, synthetic=True)
    return _LOADED[name]
