"""A trust region for policies that mostly wait.

PPO's clip bounds the ratio of an action's probabilities, which says little where one action is all but certain: NOOP
may fall from 0.99 to 0.79 within the clip, and twenty times as many moves are begun. The Kullback-Leibler divergence of
*wait or act*, from the policy that sampled to the one that learns, is what that costs; its penalty has a fixed weight.
"""

from typing import Any

import torch
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.core.columns import Columns
from torch import Tensor

from rayfold.envs.layout import NOOP

__all__ = ["WAIT_KL", "WAIT_KL_COEFF", "TrustRegionPPOLearner", "wait_kl"]

WAIT_KL = "wait_kl"  # name of the metric
WAIT_KL_COEFF = "wait_kl_coeff"  # of the weight in the configuration's ``learner_config_dict``


def wait_kl(old_noop_logp: Tensor, source_logits: Tensor) -> Tensor:
    """KL divergence ``(B,)`` in nats of the choice between NOOP and all else.

    By the data-processing inequality it is never above that of the whole action.

    Args:
        old_noop_logp: ``(B,)`` log-probability of NOOP when the action was sampled.
        source_logits: ``(B, S)`` of the policy that learns, masked; index 0 is NOOP.
    """
    logp = source_logits.log_softmax(-1)
    act_logp = logp[:, NOOP + 1 :].logsumexp(-1)
    old_act = -torch.expm1(old_noop_logp)
    # Where nothing may be begun, both probabilities of acting are 0: 0 * (log tiny + 1e9) is finite, and 0.
    old_act_logp = old_act.clamp(min=torch.finfo(old_act.dtype).tiny).log()
    return old_noop_logp.exp() * (old_noop_logp - logp[:, NOOP]) + old_act * (old_act_logp - act_logp)


class TrustRegionPPOLearner(PPOTorchLearner):
    """RLlib's PPO with the penalty; the stored distribution inputs are the log-probability of NOOP ``(B, 1)``."""

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Any]
    ) -> Tensor:
        """PPO's loss and the penalty, averaged over real steps."""
        loss: Any = super().compute_loss_for_module(module_id=module_id, config=config, batch=batch, fwd_out=fwd_out)
        module: Any = self.module[module_id].unwrapped()
        inputs = fwd_out[Columns.ACTION_DIST_INPUTS]
        source_logits = module.get_train_action_dist_cls().from_logits(inputs).source_logits
        kl = wait_kl(batch[Columns.ACTION_DIST_INPUTS][:, 0], source_logits)
        real = batch.get(Columns.LOSS_MASK, torch.ones_like(kl, dtype=torch.bool))
        mean_kl = kl[real].sum() / real.sum()
        self.metrics.log_value((module_id, WAIT_KL), mean_kl, window=1)
        total: Tensor = loss + config.learner_config_dict[WAIT_KL_COEFF] * mean_kl
        return total
