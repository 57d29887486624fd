"""RLlib's PPO for replica compaction: the environment, the module and the settings."""

import dataclasses
import logging
import tempfile
import warnings
from typing import Any

import gymnasium as gym
from ray.rllib.algorithms.ppo import PPO, PPOConfig
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.tune.registry import register_env

from rayfold.envs.layout import ObsLayout
from rayfold.envs.scenario import Scenario
from rayfold.envs.vector_env import CompactionVectorEnv
from rayfold.policies.network import CompactionNet
from rayfold.training.env_runner import BatchedEnvRunner
from rayfold.training.rl_module import LAYOUT, SAMPLING, CompactionRLModule
from rayfold.training.smdp import SMDPPPOLearner
from rayfold.training.train_config import TrainConfig
from rayfold.training.trust_region import WAIT_KL_COEFF, TrustRegionPPOLearner

__all__ = ["build_ppo", "load_net", "policy_net"]

ENV_NAME = "rayfold_compaction_vector"
VF_LOSS_COEFF, VF_CLIP, GRAD_CLIP, CLIP = 0.25, 1e4, 0.5, 0.2


class CompactionPPO(PPO):
    """PPO that makes no folder in ``~/ray_results``; nothing is ever written to its log folder."""

    def _setup_logdir(self) -> None:
        self._logdir: Any = tempfile.gettempdir()


def make_vector_env(context: Any) -> CompactionVectorEnv:
    """RLlib's creator: ``env_config`` with ``num_envs`` added."""
    return CompactionVectorEnv(**dict(context))


def build_ppo(
    config: TrainConfig,
    scenarios: list[Scenario],
    layout: ObsLayout,
    *,
    env_runner_cls: type | None = BatchedEnvRunner,
) -> PPO:
    """Builds the algorithm.

    Args:
        config: The run.
        scenarios: Loaded, with the training horizon.
        layout: Holds all of them, in the largest of the run's worlds.
        env_runner_cls: None for RLlib's own runner.
    """
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)  # it explains its API stack at length
    register_env(ENV_NAME, make_vector_env)
    network = {
        **dataclasses.asdict(config.network),
        LAYOUT: list(layout),
        SAMPLING: {"min_p": config.min_p, "min_act_p": config.min_act_p},
    }
    env_config = {
        "scenarios": scenarios,
        "layout": layout,
        "reward_scale": config.reward_scale,
        "normalize": True,
        "subtract_bound": True,
        "vary": config.worlds,
        "wait_intervals": config.wait_intervals,
        "group_size": config.group_size,
    }
    steps_per_learner = config.batch_steps // max(1, config.num_learners)
    settings: Any = PPOConfig(algo_class=CompactionPPO)  # type: ignore[no-untyped-call]
    settings = (
        settings.environment(ENV_NAME, env_config=env_config, disable_env_checking=True)
        .env_runners(
            num_env_runners=config.num_env_runners,
            num_envs_per_env_runner=config.num_envs,
            gym_env_vectorize_mode=gym.VectorizeMode.VECTOR_ENTRY_POINT,
            env_runner_cls=env_runner_cls,
            sample_timeout_s=None,  # RLlib throws away what took longer than a minute, as large clusters do
        )
        .learners(
            num_learners=config.num_learners,
            num_gpus_per_learner=config.num_gpus_per_learner,
            learner_class=SMDPPPOLearner if config.semi_mdp else TrustRegionPPOLearner,
            learner_config_dict={WAIT_KL_COEFF: config.wait_kl_coeff},
        )
        .rl_module(rl_module_spec=RLModuleSpec(module_class=CompactionRLModule, model_config=network))
        .training(
            train_batch_size_per_learner=steps_per_learner,
            minibatch_size=min(config.minibatch, steps_per_learner),
            num_epochs=config.epochs,
            lr=config.lr,
            gamma=config.gamma**config.wait_intervals,
            lambda_=config.lambda_,
            entropy_coeff=config.entropy_coeff,
            clip_param=CLIP,
            vf_loss_coeff=VF_LOSS_COEFF,
            vf_clip_param=VF_CLIP,
            grad_clip=GRAD_CLIP,
            grad_clip_by="global_norm",
            use_kl_loss=False,
        )
        .reporting(metrics_num_episodes_for_smoothing=config.num_envs)
        .debugging(seed=config.seed, log_level="ERROR")
    )
    with warnings.catch_warnings():
        # RLlib registers its one environment name again for every algorithm of a process.
        warnings.filterwarnings("ignore", message=".*Overriding environment rllib-single-agent-env-v0")
        algorithm: PPO = settings.build_algo()
    return algorithm


def policy_net(algorithm: Any) -> CompactionNet:
    """A copy of the network as it is now, in eval mode, on the CPU."""
    module = algorithm.get_module()
    net = CompactionNet(module.net.config)
    state = {name: tensor.detach().cpu().clone() for name, tensor in module.net.state_dict().items()}
    net.load_state_dict(state)
    return net.eval()


def load_net(algorithm: Any, net: CompactionNet) -> None:
    """Puts weights into the learner and every env runner."""
    weights = {f"net.{name}": tensor.numpy() for name, tensor in net.state_dict().items()}
    learners = algorithm.learner_group
    learners.set_state({COMPONENT_LEARNER: {COMPONENT_RL_MODULE: {DEFAULT_MODULE_ID: weights}}})
    algorithm.env_runner_group.sync_weights(from_worker_or_learner_group=learners, inference_only=True)
