"""The RLlib module: training sees the probabilities that sampling used, and the runners agree."""

from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from rayfold.envs.compaction_env import action_space, flat_observation_space
from rayfold.envs.layout import NOOP, ObsLayout
from rayfold.envs.scenario import load_scenario
from rayfold.envs.vector_env import CompactionVectorEnv
from rayfold.training.rl_module import LAYOUT, CompactionRLModule
from rayfold.training.trust_region import wait_kl

NETWORK = {"dim": 16, "heads": 2, "layers": 1, "noop_bias": 0.0}
NUM_ENVS = 8


@pytest.fixture(scope="module")
def env() -> CompactionVectorEnv:
    """Eight ``smoke`` clusters."""
    return CompactionVectorEnv([load_scenario("smoke")], NUM_ENVS, seed=0)


@pytest.fixture
def module(env: CompactionVectorEnv) -> Any:
    """An untrained module for them."""
    torch.manual_seed(0)
    spec = RLModuleSpec(
        module_class=CompactionRLModule,
        observation_space=flat_observation_space(env.layout),
        action_space=action_space(env.layout),
        model_config=NETWORK | {LAYOUT: list(env.layout)},
    )
    return spec.build()


def real_observations(env: CompactionVectorEnv, module: Any, num_steps: int = 60) -> torch.Tensor:
    """Observations on the way of the module itself, ``(num_steps * NUM_ENVS, size)``."""
    obs, _ = env.reset(seed=1)
    seen = []
    for _ in range(num_steps):
        seen.append(obs)
        with torch.inference_mode():
            out = module.forward_exploration({Columns.OBS: torch.from_numpy(obs)})
        obs, *_ = env.step(out[Columns.ACTIONS].numpy())
    return torch.from_numpy(np.concatenate(seen))


def test_layout_comes_from_the_configuration(env: CompactionVectorEnv, module: Any) -> None:
    """The spaces do not tell it: layouts of one length of the observation may differ in N, D and T."""
    assert module.layout == env.layout
    inputs = module.get_train_action_dist_cls().required_input_dim(action_space(ObsLayout(7, 3, 2)))
    assert inputs == (1 + 7 * 3 + 7) + (7 + 2)


def test_training_sees_the_log_probabilities_of_sampling(env: CompactionVectorEnv, module: Any) -> None:
    """logp(train) of the sampled actions is the stored logp, for moves and NOOPs, so the first PPO ratio is 1."""
    obs = real_observations(env, module)
    with torch.no_grad():
        sampled = module.forward_exploration({Columns.OBS: obs})
        actions = sampled[Columns.ACTIONS]
        out = module.forward_train({Columns.OBS: obs, Columns.ACTIONS: actions})
    distribution = module.get_train_action_dist_cls().from_logits(out[Columns.ACTION_DIST_INPUTS])
    assert (actions[:, 0] == NOOP).any()
    assert (actions[:, 0] != NOOP).sum() > 20
    torch.testing.assert_close(distribution.logp(actions), sampled[Columns.ACTION_LOGP])
    other = actions.roll(1, 0)
    assert not torch.allclose(distribution.logp(other), sampled[Columns.ACTION_LOGP])


def test_entropy_estimate_is_unbiased(env: CompactionVectorEnv, module: Any) -> None:
    """Averaged over sampled sources it is the joint entropy, summed up by brute force."""
    layout, obs = env.layout, real_observations(env, module)
    split = layout.split(obs)
    row = int(split["source_mask"].flatten(1).sum(1).argmax())
    one = obs[row : row + 1]
    with torch.no_grad():
        encoding = module.net.encode(layout.split(one))
        p_source = module.net.source_logits(layout.split(one), encoding).softmax(-1)[0]
        joint = []
        for source in range(layout.num_sources):
            if source == NOOP:
                joint.append(p_source[:1])
            elif p_source[source] > 0:
                logits = module.net.destination_logits(layout.split(one), encoding, torch.tensor([source]))
                joint.append(p_source[source] * logits.softmax(-1)[0])
        p = torch.cat(joint)
        exact = -(p[p > 0] * p[p > 0].log()).sum()
        many = one.expand(20_000, -1)
        actions = module.forward_exploration({Columns.OBS: many})[Columns.ACTIONS]
        out = module.forward_train({Columns.OBS: many, Columns.ACTIONS: actions})
        estimate = module.get_train_action_dist_cls().from_logits(out[Columns.ACTION_DIST_INPUTS]).entropy()
    assert exact > 0.3
    assert estimate.std() > 0
    assert abs(estimate.mean() - exact) < 5 * estimate.std() / 20_000**0.5 + 1e-4


def test_stored_inputs_are_the_log_probability_of_noop(env: CompactionVectorEnv, module: Any) -> None:
    """One float per step, from which the trust region starts at 0; a KL divergence that would need more says so."""
    obs = real_observations(env, module)
    with torch.no_grad():
        sampled = module.forward_exploration({Columns.OBS: obs})
        out = module.forward_train({Columns.OBS: obs, Columns.ACTIONS: sampled[Columns.ACTIONS]})
    stored = sampled[Columns.ACTION_DIST_INPUTS]
    distribution = module.get_train_action_dist_cls().from_logits(out[Columns.ACTION_DIST_INPUTS])
    assert stored.shape == (len(obs), 1)
    assert (stored.exp() < 0.9).any()
    torch.testing.assert_close(stored[:, 0], distribution.source_logits.log_softmax(-1)[:, NOOP])
    torch.testing.assert_close(wait_kl(stored[:, 0], distribution.source_logits), torch.zeros(len(obs)))
    with pytest.raises(NotImplementedError, match="use_kl_loss=False"):
        distribution.kl(distribution)


def test_values_are_the_same_with_and_without_embeddings(env: CompactionVectorEnv, module: Any) -> None:
    """The learner may pass the pooled encoding of the training pass."""
    obs = torch.from_numpy(env.reset(seed=0)[0])
    batch = {Columns.OBS: obs, Columns.ACTIONS: torch.zeros(NUM_ENVS, 2, dtype=torch.long)}
    out = module.forward_train(batch)
    torch.testing.assert_close(
        module.compute_values(batch, embeddings=out[Columns.EMBEDDINGS]), module.compute_values(batch)
    )


def test_sampled_moves_are_never_refused(env: CompactionVectorEnv, module: Any) -> None:
    """Each move the module samples is carried out: masks of the network and filter of the episode agree."""
    obs, _ = env.reset(seed=2)
    num_moves, was_done = 0, np.zeros(NUM_ENVS, np.bool_)
    for _ in range(80):
        with torch.inference_mode():
            actions = module.forward_exploration({Columns.OBS: torch.from_numpy(obs)})[Columns.ACTIONS].numpy()
        obs, _, _, truncated, _ = env.step(actions)
        moved = (env.layout.split(obs)["global"][:, 0] == 0) & ~was_done
        np.testing.assert_array_equal(moved, (actions[:, 0] != NOOP) & ~was_done)
        num_moves += int(moved.sum())
        was_done = truncated
    assert num_moves > 20
