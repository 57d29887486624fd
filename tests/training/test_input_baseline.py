"""The input-dependent baseline: by hand, by another route, and that it is one: less variance, no bias."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from ray.rllib.core.columns import Columns

from rayfold.envs.episode import scenario_layout
from rayfold.policies.network import NetworkConfig
from rayfold.training.input_baseline import TRAFFIC_TICK, input_baseline, without_input
from rayfold.training.ppo_setup import build_ppo
from rayfold.training.ray_session import ray_session
from rayfold.training.smdp import INPUT_EXPLAINED
from rayfold.training.train_config import TrainConfig

Chunk = list[tuple[int, int, float]]  # (traffic, tick, advantage) per step


def rows_of(chunks: list[Chunk]) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.int64]]:
    """The three columns, with an artificial row after each chunk that repeats its last step's traffic."""
    advantages, is_step, traffic_tick = [], [], []
    for chunk in chunks:
        for traffic, tick, advantage in chunk:
            advantages.append(advantage)
            is_step.append(True)
            traffic_tick.append((traffic, tick))
        advantages.append(99.0)
        is_step.append(False)
        traffic_tick.append(traffic_tick[-1])
    return np.array(advantages, np.float32), np.array(is_step), np.array(traffic_tick, np.int64)


def test_by_hand() -> None:
    """Three rollouts of traffic 7; the first makes a move at tick 1, and only its first step there counts.

    Tick 0: 1, 2, 6: the others' means are 4, 3.5, 1.5. Tick 1: 10 (then 20), 40: 40, 40 and 10. Tick 2: one is alone.
    Traffic 8 has one rollout.
    """
    first: Chunk = [(7, 0, 1.0), (7, 1, 10.0), (7, 1, 20.0), (7, 2, 3.0)]
    second: Chunk = [(7, 0, 2.0), (7, 1, 40.0)]
    third: Chunk = [(7, 0, 6.0)]
    alone: Chunk = [(8, 0, 5.0)]
    got = input_baseline(*rows_of([first, second, third, alone]))
    np.testing.assert_array_equal(got, [4.0, 40.0, 40.0, 0.0, 0.0, 3.5, 10.0, 0.0, 1.5, 0.0, 0.0, 0.0])


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_equals_a_look_at_each_pair(data: st.DataObject) -> None:
    """The same numbers by asking, for each step, every other rollout for its first step at that tick."""
    chunks: list[Chunk] = []
    for _ in range(data.draw(st.integers(1, 6))):
        traffic, first = data.draw(st.integers(-2, 1)), data.draw(st.integers(0, 2))
        lengths = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))  # steps per tick
        chunks.append(
            [
                (traffic, first + k, data.draw(st.integers(-9, 9)) / 2.0)
                for k, length in enumerate(lengths)
                for _ in range(length)
            ]
        )
    expected: list[float] = []
    for i, chunk in enumerate(chunks):
        for traffic, tick, _ in chunk:
            met = [
                next(a for t, k, a in other if (t, k) == (traffic, tick))
                for j, other in enumerate(chunks)
                if j != i and any((t, k) == (traffic, tick) for t, k, _ in other)
            ]
            expected.append(float(np.mean(met)) if met else 0.0)
        expected.append(0.0)
    np.testing.assert_allclose(input_baseline(*rows_of(chunks)), np.array(expected, np.float32), rtol=1e-6)


def test_no_bias_and_less_variance() -> None:
    """A bandit whose traffic drowns what an action is worth: the gradient is the same in the mean, and far calmer.

    Advantage = traffic (deviation 10) + 1 for acting (p = 0.3) + its own noise (deviation 1), so the gradient for
    the logit is 1 * p * (1 - p) = 0.21 in expectation.
    """
    rng, p, groups, size = np.random.default_rng(0), 0.3, 20_000, 4
    acts = rng.random((groups, size)) < p
    worth = rng.normal(0.0, 10.0, (groups, 1)) + acts + rng.normal(0.0, 1.0, (groups, size))
    columns = rows_of([[(g, 0, float(a))] for g in range(groups) for a in worth[g]])
    calm, explained = without_input(*columns)
    score = acts.ravel() - p

    def gradient(advantages: NDArray[Any]) -> tuple[float, float]:
        each = (advantages * score).reshape(groups, size).mean(1)
        return float(each.mean()), float(each.std() / np.sqrt(groups))

    plain, calmed = gradient(columns[0][columns[1]]), gradient(calm[columns[1]])
    assert abs(calmed[0] - p * (1 - p)) < 4.0 * calmed[1]
    assert plain[1] > 5.0 * calmed[1]
    # Best share of the others' mean: 100 / (100 + 1.21 / 3); what is left is 1.21 + 100 * (1 - share).
    assert explained == pytest.approx(1.0 - (1.21 + 100.0 * (1.0 - 100.0 / (100.0 + 1.21 / 3.0))) / 101.21, abs=0.002)


def test_harmful_others_are_left_out() -> None:
    """Where the others say the opposite, or all say the same, advantages stay as they are; and where there are none."""
    opposite = rows_of([[(g, 0, a)] for g in range(10) for a in (1.0, -1.0)])
    same = rows_of([[(0, 0, 2.0)] for _ in range(3)])
    alone, single = rows_of([[(g, 0, float(g))] for g in range(10)]), rows_of([[(0, 0, 1.0)]])
    for columns in (opposite, same, alone, single):
        calm, explained = without_input(*columns)
        np.testing.assert_array_equal(calm, columns[0])
        assert explained == 0.0


@pytest.mark.cluster
@pytest.mark.parametrize(("group_size", "is_explained"), [(4, True), (1, False)])
def test_rllib_gives_the_learner_what_it_needs(tmp_path: Path, group_size: int, is_explained: bool) -> None:
    """From environment to learner: whole 64-bit ids, ticks that count, and a part of the variance that goes."""
    config = TrainConfig(
        run_dir=tmp_path,
        scenarios=("smoke",),
        network=NetworkConfig(dim=16, heads=2),
        num_envs=8,
        group_size=group_size,
        batch_steps=512,
        minibatch=64,
    )
    scenarios = config.load_scenarios()
    with ray_session(2):
        algorithm: Any = build_ppo(config, scenarios, scenario_layout(*scenarios))
        learned = algorithm.train()["learners"]["default_policy"]
        chunks = algorithm.env_runner.sample(num_timesteps=800, explore=True)  # over the ends of episodes
        for chunk in chunks:  # before the learner's pipeline lengthens them
            traffic, ticks = np.asarray(chunk.get_extra_model_outputs(TRAFFIC_TICK)).T
            assert (traffic == traffic[0]).all()
            acted = np.asarray(chunk.get_actions())[:, 0]
            assert set(np.diff(ticks)) <= {0, 1}
            assert (np.diff(ticks)[acted[:-1] == 0] == 1).all()
            assert ticks.max() < scenarios[0].horizon_s / scenarios[0].spec.settings.decision_interval_s
        learner = algorithm.learner_group._learner
        batch = learner._learner_connector(rl_module=learner.module, batch={}, episodes=chunks, shared_data={})
        ids = algorithm.env_runner.env.unwrapped.traffic_ids
        algorithm.stop()
    assert (float(learned[INPUT_EXPLAINED]) > 0.2) == is_explained
    column = batch["default_policy"][TRAFFIC_TICK].numpy()
    real = batch["default_policy"][Columns.LOSS_MASK].numpy() > 0
    assert column.dtype == np.int64
    assert set(ids) <= set(column[real, 0])
    assert len(set(ids)) == 8 // group_size
