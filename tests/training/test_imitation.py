"""Demonstrations are what the heuristic did, and the network learns to do it."""

import numpy as np
import pytest
import torch

from rayfold.envs.episode import scenario_layout
from rayfold.envs.layout import NOOP
from rayfold.envs.scenario import Scenario, Split, load_scenario
from rayfold.policies.best_fit import BestFit
from rayfold.policies.learned import LearnedPolicy
from rayfold.policies.network import CompactionNet, NetworkConfig
from rayfold.policies.none import NoMoves
from rayfold.policies.protocol import Policy
from rayfold.training.evaluation import run_episode
from rayfold.training.imitation import ImitationConfig, demonstrate, imitate

CONFIG = ImitationConfig(num_steps=1500, reward_scale=0.4, epochs=4, minibatch=64)


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    """The toy scenario."""
    return load_scenario("two_node")


def test_demonstrations_are_whole_episodes(scenario: Scenario) -> None:
    """No time passes a move and one interval after NOOP, the masks allow each action, and the returns end as NaN."""
    layout = scenario_layout(scenario)
    shown = demonstrate([scenario], layout, BestFit, np.random.default_rng(0), CONFIG)
    assert len(shown.obs) == len(shown.actions) == len(shown.returns) >= 1500
    parts = layout.split(shown.obs)
    moved = shown.actions[:, 0] != NOOP
    dt_after = parts["global"][1:, 0]
    ticks = round(scenario.horizon_s / scenario.spec.settings.decision_interval_s)
    is_last = (~moved).cumsum() % ticks == 0
    is_last &= ~moved
    inner = ~is_last[:-1]
    np.testing.assert_array_equal(dt_after[inner], (~moved[:-1])[inner])
    for row in np.flatnonzero(moved):
        n, d = divmod(shown.actions[row, 0] - 1, layout.num_deployments)
        assert parts["source_mask"][row, n, d] == 1
        assert parts["destination_mask"][row, shown.actions[row, 1], d] == 1
    assert 0 < moved.mean() < 0.2
    assert 0.3 < np.isnan(shown.returns).mean() < 0.7
    assert np.isnan(shown.returns[is_last]).all()


def test_the_network_learns_what_is_shown(scenario: Scenario) -> None:
    """After imitation it makes the heuristic's bill on new episodes; before, and imitating *none*, it does not."""
    layout = scenario_layout(scenario)

    def mean_bill(make_policy: type[BestFit] | type[NoMoves]) -> float:
        torch.manual_seed(0)
        net = CompactionNet(NetworkConfig(dim=32))
        shown = demonstrate([scenario], layout, lambda limits: _make(make_policy, scenario), rng, CONFIG)
        metrics = imitate(net, layout, shown, CONFIG)
        assert metrics["nll"] < 0.15
        policy = LearnedPolicy(net.eval(), scenario.limits)
        return float(
            np.mean([run_episode(scenario, policy, s, Split.VALIDATION).metrics["total_usd"] for s in range(8)])
        )

    rng = np.random.default_rng(0)
    heuristic = np.mean(
        [run_episode(scenario, BestFit(scenario.limits), s, Split.VALIDATION).metrics["total_usd"] for s in range(8)]
    )
    assert mean_bill(BestFit) < 1.1 * heuristic
    assert mean_bill(NoMoves) > 1.4 * heuristic


def _mean_bill(scenario: Scenario, policy: Policy) -> float:
    results = [run_episode(scenario, policy, seed, Split.VALIDATION) for seed in range(8)]
    return float(np.mean([result.metrics["total_usd"] for result in results]))


def _make(kind: type[BestFit] | type[NoMoves], scenario: Scenario) -> BestFit | NoMoves:
    return kind(scenario.limits) if kind is BestFit else NoMoves()


def test_the_value_learns_the_return(scenario: Scenario) -> None:
    """The value head explains most of the variance of the returns it was shown."""
    layout = scenario_layout(scenario)
    shown = demonstrate([scenario], layout, BestFit, np.random.default_rng(0), CONFIG)
    torch.manual_seed(0)
    metrics = imitate(CompactionNet(NetworkConfig(dim=32)), layout, shown, CONFIG)
    assert metrics["value_loss"] < 0.4 * np.nanvar(shown.returns)


def test_time_limit_and_stop(scenario: Scenario) -> None:
    """Without time, or told to stop, it does one episode and one minibatch and no more."""
    layout = scenario_layout(scenario)
    hurried = ImitationConfig(num_steps=10**9, max_s=0.0)
    shown = demonstrate([scenario], layout, BestFit, np.random.default_rng(0), hurried)
    assert 30 <= len(shown.actions) < 60
    calls: list[float] = []
    imitate(
        CompactionNet(NetworkConfig(dim=8, heads=1)),
        layout,
        shown,
        ImitationConfig(epochs=10**6, minibatch=8),
        on_progress=lambda done, metrics: calls.append(done),
        should_stop=lambda: True,
    )
    assert len(calls) == 1
