"""The learned policy plays the decision process as the environment does, for any cluster size."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch

from rayfold.envs.episode import Episode, scenario_layout
from rayfold.envs.layout import NOOP
from rayfold.envs.safety import check_move
from rayfold.envs.scenario import Scenario, Split, load_scenario
from rayfold.envs.state import ClusterState, StateArrays
from rayfold.envs.transition import with_move
from rayfold.policies.learned import MIN_P, LearnedPolicy
from rayfold.policies.network import CompactionNet, NetworkConfig
from rayfold.policies.protocol import Policy


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    """The small scenario."""
    return load_scenario("smoke")


@pytest.fixture(scope="module")
def net() -> CompactionNet:
    """An untrained net that likes to move."""
    torch.manual_seed(0)
    return CompactionNet(NetworkConfig(dim=16, heads=2, noop_bias=-2.0)).eval()


def new_episode(scenario: Scenario, seed: int = 0) -> Episode:
    """One episode."""
    return Episode(scenario, scenario_layout(scenario), Split.TRAIN, np.random.default_rng(seed))


@pytest.mark.parametrize("greedy", [False, True])
def test_every_move_is_allowed_where_it_is_made(scenario: Scenario, net: CompactionNet, greedy: bool) -> None:
    """Applied in order, no move of any plan of an episode is refused; the limit on moves is reached, not passed."""
    episode, policy = new_episode(scenario), LearnedPolicy(net, scenario.limits, greedy=greedy)
    rng, longest, truncated = np.random.default_rng(1), 0, False
    while not truncated:
        state = episode.simulator.state()
        plan = policy.plan(state, rng)
        assert len(plan.scores) == len(plan.moves)
        assert all(score <= 0 for score in plan.scores)
        longest = max(longest, len(plan.moves))
        for move in plan.moves:
            assert check_move(state, move, scenario.limits).allowed
            state = with_move(state, move, scenario.limits)
            assert episode.act(*episode.to_action(move)).num_moves
        truncated = episode.act(NOOP, 0).truncated
    assert longest == scenario.limits.max_concurrent_moves


def test_it_is_the_networks_own_play(scenario: Scenario, net: CompactionNet) -> None:
    """Playing the network in the environment action by action gives the same moves as the policy's plans (greedy)."""
    by_plan, by_action = new_episode(scenario), new_episode(scenario)
    policy, rng = LearnedPolicy(net, scenario.limits, greedy=True), np.random.default_rng(0)
    elapsed, truncated, num_moves = 0.0, False, 0
    while not truncated:
        plan = policy.plan(by_plan.simulator.state(), rng)
        planned = [by_plan.to_action(move) for move in plan.moves]
        for move in plan.moves:
            by_plan.act(*by_plan.to_action(move))
        by_plan.act(NOOP, 0)
        played = []
        while True:
            obs = torch.from_numpy(by_action.encode(elapsed)).unsqueeze(0)
            with torch.inference_mode():
                source, destination = net.act(by_action.layout.split(obs), greedy=True).actions[0].tolist()
            outcome = by_action.act(source, destination)
            elapsed = outcome.dt_intervals
            if not outcome.num_moves:
                break
            played.append((source, destination))
        assert planned == played
        num_moves += len(played)
        truncated = outcome.truncated
    assert num_moves > 0
    assert by_plan.simulator.state().digest() == by_action.simulator.state().digest()


def with_everything(scenario: Scenario) -> Scenario:
    """The scenario with moves to new nodes allowed."""
    return dataclasses.replace(scenario, limits=scenario.limits._replace(allow_new_nodes=True))


@pytest.mark.parametrize("name", ["smoke", "low_scale"])
def test_plans_are_the_environments_actions(name: str, net: CompactionNet) -> None:
    """Sampled with equal generators: cells, evacuations and new nodes make the same moves by plan and by action."""
    scenario = with_everything(load_scenario(name, synthetic=True))
    by_plan, by_action = new_episode(scenario, 1), new_episode(scenario, 1)
    policy, rngs = LearnedPolicy(net, scenario.limits), [np.random.default_rng(7) for _ in range(2)]
    layout, num_nodes = by_action.layout, len(by_action.simulator.view.arrays.node_type)
    assert layout.num_nodes == num_nodes
    elapsed, kinds = 0.0, Counter[str]()
    for _ in range(150):
        plan = policy.plan(by_plan.simulator.state(), rngs[0])
        for move in plan.moves:
            by_plan.simulator.start(by_plan.simulator.view, move)
        kinds["new"] += sum(move.node_idx >= num_nodes for move in plan.moves)
        is_last = by_plan.act(NOOP, 0).truncated
        generator = torch.Generator().manual_seed(int(rngs[1].integers(2**63 - 1)))
        num_moves, outcome = 0, None
        while outcome is None or outcome.num_moves:
            obs = layout.split(torch.from_numpy(by_action.encode(elapsed)).unsqueeze(0))
            with torch.inference_mode():
                source, destination = net.act(obs, min_p=MIN_P, generator=generator).actions[0].tolist()
            outcome = by_action.act(source, destination)
            elapsed = outcome.dt_intervals
            num_moves += outcome.num_moves
            kinds["evacuation" if source > layout.num_cells else "cell"] += outcome.num_moves > 0
        assert num_moves == len(plan.moves)
        assert by_plan.simulator.state().digest() == by_action.simulator.state().digest()
        if is_last:
            break
    assert min(kinds["cell"], kinds["evacuation"], kinds["new"]) > 3, kinds


def test_same_seed_same_plan(scenario: Scenario, net: CompactionNet) -> None:
    """The generator is the only source of randomness, and it is one."""
    state = new_episode(scenario, 3).simulator.state()

    def plans(seed: int) -> list[tuple[object, ...]]:
        rng = np.random.default_rng(seed)
        return [LearnedPolicy(net, scenario.limits).plan(state, rng).moves for _ in range(10)]

    torch.manual_seed(1)
    first = plans(0)
    torch.manual_seed(2)
    assert plans(0) == first
    assert plans(1) != first


def test_unused_rows_change_nothing(scenario: Scenario, net: CompactionNet) -> None:
    """A state with absent node rows and empty replica rows at its end gets the same plan as one without."""
    state = new_episode(scenario).simulator.state()
    empty = StateArrays.empty(state.spec, 3, 5)
    longer = {
        name: np.concatenate([getattr(state.arrays, name), getattr(empty, name)])
        for name in StateArrays._fields
        if not name.startswith("deployment_")
    }
    padded = ClusterState(spec=state.spec, now_s=state.now_s, arrays=state.arrays._replace(**longer))
    policy = LearnedPolicy(net, scenario.limits, greedy=True)
    assert policy.plan(state, np.random.default_rng(0)).moves
    policy.reset()
    first = policy.plan(state, np.random.default_rng(0))
    policy.reset()
    again = policy.plan(padded, np.random.default_rng(0))
    assert again.moves == first.moves
    np.testing.assert_allclose(again.scores, first.scores, rtol=1e-4)


def test_no_nodes_no_moves(scenario: Scenario, net: CompactionNet) -> None:
    """A cluster without nodes gets an empty plan with a reason."""
    state = ClusterState(spec=scenario.spec, now_s=0.0, arrays=StateArrays.empty(scenario.spec, 0, 0))
    plan = LearnedPolicy(net, scenario.limits).plan(state, np.random.default_rng(0))
    assert plan.moves == ()
    assert plan.reason


def test_it_is_a_policy(scenario: Scenario, net: CompactionNet) -> None:
    """It has the protocol's attributes."""
    assert isinstance(LearnedPolicy(net, scenario.limits), Policy)
