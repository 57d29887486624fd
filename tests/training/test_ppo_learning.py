"""PPO finds the known optimum of the toy scenario, and finds something else if the reward is turned round."""

import math
from pathlib import Path

import numpy as np
import pytest

from rayfold.envs.scenario import Split, load_scenario
from rayfold.policies.best_fit import BestFit
from rayfold.policies.bundle import load_bundle
from rayfold.policies.learned import LearnedPolicy
from rayfold.policies.none import NoMoves
from rayfold.policies.protocol import Policy
from rayfold.training.evaluation import run_episode
from rayfold.training.ppo import train
from rayfold.training.train_config import TrainConfig


def mean_of(policy: Policy, metric: str) -> float:
    """Mean over 20 validation episodes of ``two_node``."""
    scenario = load_scenario("two_node")
    return float(np.mean([run_episode(scenario, policy, s, Split.VALIDATION).metrics[metric] for s in range(20)]))


@pytest.mark.learning
@pytest.mark.cluster
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_ppo_reaches_the_known_optimum_with_the_right_sign_only(tmp_path: Path, sign: float) -> None:
    """From scratch, without a warm start, in well under two minutes.

    The optimum moves the leftover replica at the first tick at which it is alone, which ``best_fit`` does here by
    construction: the bill is that of one node and a few minutes of the second.
    """
    config = TrainConfig(
        run_dir=tmp_path,
        scenarios=("two_node",),
        stop_minutes=1.5,
        stop_steps=25_000,
        warm_start="",
        num_envs=32,
        batch_steps=1024,
        minibatch=256,
        lr=1e-3,
        reward_scale=sign,
    )
    result = train(config)
    scenario = load_scenario("two_node")
    learned = mean_of(LearnedPolicy(load_bundle(result.bundle_dir).net, scenario.limits), "total_usd")
    optimum, nothing = mean_of(BestFit(scenario.limits), "total_usd"), mean_of(NoMoves(), "total_usd")
    assert optimum < 0.6 * nothing
    reached = math.isclose(learned, optimum, rel_tol=0.05)
    assert reached == (sign > 0), f"learned {learned:.2f} USD, optimum {optimum:.2f}, no moves {nothing:.2f}"
