"""Demonstrations are what the heuristic did, or told a student to do, and the network learns to do it."""

import dataclasses

import numpy as np
import pytest
import torch

from rayfold.envs.episode import Episode, scenario_layout
from rayfold.envs.layout import NOOP
from rayfold.envs.scenario import Scenario, Split, load_scenario
from rayfold.policies.best_fit import BestFit
from rayfold.policies.learned import LearnedPolicy
from rayfold.policies.network import CompactionNet, NetworkConfig
from rayfold.policies.none import NoMoves
from rayfold.policies.protocol import Policy
from rayfold.training.evaluation import run_episode
from rayfold.training.imitation import TEACHER_FRAC, Demonstrations, ImitationConfig, demonstrate, imitate
from rayfold.training.ray_session import ray_session
from rayfold.training.workers import HERE, Workers
from rayfold.training.worlds import scaled, vary

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


def test_a_student_plays_and_the_teacher_tells(scenario: Scenario) -> None:
    """Beside a student that never moves, each label is what the heuristic plans in the state that waiting led to.

    The other route plays the same episodes again and asks the heuristic itself; a quarter are the teacher's own.
    """
    layout, student = scenario_layout(scenario), CompactionNet(NetworkConfig(dim=8, heads=1, noop_bias=50.0)).eval()
    shown = demonstrate([scenario], layout, BestFit, np.random.default_rng(5), CONFIG, student=student)
    rng, row, num_own, num_told = np.random.default_rng(5), 0, 0, 0
    while row < len(shown.obs):
        episode_rng, policy_rng, _ = rng.spawn(1)[0].spawn(3)
        episode, policy = Episode(scenario, layout, Split.TRAIN, episode_rng), BestFit(scenario.limits)
        is_own, dt, truncated = policy_rng.random() < TEACHER_FRAC, 0.0, False
        num_own += is_own
        while not truncated:
            np.testing.assert_array_equal(shown.obs[row], episode.encode(dt))
            moves = policy.plan(episode.simulator.state(), policy_rng).moves
            told = episode.to_action(moves[0]) if moves else (NOOP, 0)
            if not is_own or (not moves and shown.actions[row][0] == NOOP):
                assert tuple(shown.actions[row]) == told
                num_told += bool(moves) and not is_own
            outcome = episode.act(*(shown.actions[row] if is_own else (NOOP, 0)))
            dt, truncated, row = outcome.dt_intervals, outcome.truncated, row + 1
    assert row == len(shown.obs) == len(shown.actions)
    assert 0 < num_own < num_told


@pytest.mark.cluster
def test_two_workers_show_what_one_does(scenario: Scenario) -> None:
    """Ray tasks end in any order; what comes of them is in the order of the episodes, one of each scenario in turn."""
    both = [scenario, load_scenario("smoke")]
    layout, student = scenario_layout(*both), CompactionNet(NetworkConfig(dim=8, heads=1)).eval()
    config = dataclasses.replace(CONFIG, num_steps=300)

    def shown(workers: Workers) -> Demonstrations:
        rng = np.random.default_rng(3)
        return demonstrate(both, layout, BestFit, rng, config, vary=vary, student=student, workers=workers)

    here = shown(HERE)
    with ray_session(2):
        there = shown(Workers(jobs=2))
    for mine, theirs in zip(here, there, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_worlds_are_drawn_for_demonstrations(scenario: Scenario) -> None:
    """Each episode is in the world that was drawn for it."""
    seen = []

    def dearer(world: Scenario, rng: np.random.Generator) -> Scenario:
        seen.append(scaled(world, prices=float(rng.uniform(1.0, 4.0))))
        return seen[-1]

    layout, config = scenario_layout(scenario), dataclasses.replace(CONFIG, num_steps=100)
    shown = demonstrate([scenario], layout, BestFit, np.random.default_rng(0), config, vary=dearer)
    plain = demonstrate([scenario], layout, BestFit, np.random.default_rng(0), config)
    assert len(seen) > 1
    assert np.nanmean(shown.returns) < np.nanmean(plain.returns)


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
