"""A bundle serves what RLlib has trained: both choose the same actions, on ten thousand states."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from rayfold.envs.compaction_env import action_space, flat_observation_space
from rayfold.envs.episode import Episode, scenario_layout
from rayfold.envs.layout import NOOP
from rayfold.envs.scenario import Scenario, Split, load_scenario
from rayfold.policies.bundle import TrainingCard, load_bundle, save_bundle
from rayfold.policies.by_name import NETWORK, shipped_bundle
from rayfold.policies.learned import LearnedPolicy
from rayfold.policies.network import CompactionNet, NetworkConfig
from rayfold.training.rl_module import LAYOUT, CompactionRLModule

NUM_STATES = 5_000  # of each network


def restless() -> CompactionNet:
    """An untrained net that likes to move."""
    torch.manual_seed(0)
    return CompactionNet(NetworkConfig(dim=16, heads=2, noop_bias=-2.0)).eval()


def module_of(net: CompactionNet, scenario: Scenario) -> Any:
    """RLlib's module as a learner has it, with these weights."""
    layout = scenario_layout(scenario)
    spec = RLModuleSpec(
        module_class=CompactionRLModule,
        observation_space=flat_observation_space(layout),
        action_space=action_space(layout),
        model_config=dataclasses.asdict(net.config) | {LAYOUT: list(layout)},
    )
    module: Any = spec.build()
    module.net.load_state_dict(net.state_dict())
    return module.eval()


@pytest.mark.parametrize("name", ["restless", NETWORK])
def test_a_bundle_plays_as_the_rl_module_does(name: str, tmp_path: Path) -> None:
    """Plans of the written and reread bundle lead where the module's actions lead, as likely, state after state.

    One route is that of serving: state to plan, which the simulator begins move by move. The other one is that of
    training: observation to action to step.
    """
    net = restless() if name == "restless" else load_bundle(shipped_bundle()).net
    save_bundle(tmp_path / "bundle", net, TrainingCard(scenarios=("smoke",), seed=0, steps=1, minutes=0.0))
    served = load_bundle(tmp_path / "bundle").net
    num_states = num_moves = seed = 0
    while num_states < NUM_STATES:
        scenario = load_scenario(("smoke", "low_scale")[seed % 2], synthetic=True)
        module, rng = module_of(net, scenario), np.random.default_rng(0)
        policy = LearnedPolicy(served, scenario.limits, greedy=True)
        by_plan, by_action = (
            Episode(scenario, scenario_layout(scenario), Split.TRAIN, np.random.default_rng(seed)) for _ in range(2)
        )
        elapsed, truncated = 0.0, False
        while not truncated:
            plan = policy.plan(by_plan.simulator.state(), rng)
            for move in plan.moves:
                by_plan.simulator.start(by_plan.simulator.view, move)
            truncated = by_plan.act(NOOP, 0).truncated
            outcome, scores = None, list[float]()
            while outcome is None or outcome.num_moves:
                obs = torch.from_numpy(by_action.encode(elapsed)).unsqueeze(0)
                with torch.inference_mode():
                    chosen = module.forward_inference({Columns.OBS: obs})
                source, destination = chosen[Columns.ACTIONS][0].tolist()
                outcome = by_action.act(source, destination)
                elapsed = outcome.dt_intervals
                scores += [float(chosen[Columns.ACTION_LOGP])] * outcome.num_moves
                num_states += 1
            num_moves += len(scores)
            np.testing.assert_allclose(plan.scores, scores, rtol=0.0, atol=1e-5)
            assert by_plan.simulator.state().digest() == by_action.simulator.state().digest()
        seed += 1
    assert num_moves > 50
