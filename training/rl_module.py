"""The network as an RLlib module (new API stack), and its two-stage action distribution.

The module samples its own actions. For training it conditions the second stage on the *stored* source: sampling
again there, as RLlib's own autoregressive example does, gives a wrong PPO ratio.
"""

import dataclasses
from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchDistribution
from ray.rllib.core.rl_module.apis import ValueFunctionAPI
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from torch import Tensor

from rayfold.envs.layout import ObsLayout
from rayfold.policies.network import CompactionNet, NetworkConfig, Obs, action_logp

__all__ = ["LAYOUT", "SAMPLING", "CompactionRLModule", "MoveDistribution"]

# Keys of the module's configuration.
LAYOUT = "layout"  # the padded sizes, as a list
SAMPLING = "sampling"  # keywords of ``CompactionNet.act`` while exploring; may be absent

_LOG_ZERO = -60.0  # of a masked choice: times its probability it is 0, and -1e9 * 0 would not be


def _entropy(logits: Tensor) -> Tensor:
    logp = logits.log_softmax(-1)
    return -(logp.exp() * logp.clamp(min=_LOG_ZERO)).sum(-1)


class MoveDistribution(TorchDistribution):
    """Distribution over two-stage actions, given the source that was taken.

    Its inputs are ``(B, S + N + T)``: the S source logits, and the destination logits given the stored source.
    The entropy is a one-sample estimate of the joint one: H(source) + H(destination | stored source).
    """

    num_destinations: int  # N + T, set by a subclass

    def __init__(self, logits: Tensor) -> None:
        self.source_logits = logits[..., : -self.num_destinations]
        self.destination_logits = logits[..., -self.num_destinations :]

    @classmethod
    def from_logits(cls, logits: Any, **kwargs: Any) -> "MoveDistribution":
        """From the module's output."""
        return cls(logits)

    def logp(self, value: Any, **kwargs: Any) -> Tensor:
        """Log-probability of actions ``(B, 2)``, which must hold the sources the logits were made for."""
        return action_logp(self.source_logits, self.destination_logits, value.long())

    def entropy(self, **kwargs: Any) -> Tensor:
        """One-sample estimate ``(B,)``."""
        return _entropy(self.source_logits) + _entropy(self.destination_logits)

    def kl(self, other: Any, **kwargs: Any) -> Tensor:
        """Not available: of the stored policy only the probability of NOOP is kept."""
        raise NotImplementedError("train with use_kl_loss=False")

    def sample(self, **kwargs: Any) -> Tensor:
        """Not available: the module samples."""
        raise NotImplementedError("the module samples its own actions")

    rsample = sample

    def to_deterministic(self) -> "MoveDistribution":
        """Itself: the module has already chosen."""
        return self

    def _get_torch_distribution(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    @staticmethod
    def required_input_dim(space: Any, **kwargs: Any) -> int:
        """Length of the inputs for ``MultiDiscrete([S, N + T])``."""
        return int(space.nvec.sum())


class CompactionRLModule(TorchRLModule, ValueFunctionAPI):
    """``CompactionNet`` behind RLlib's interface.

    ``model_config`` holds the fields of ``NetworkConfig``, under ``LAYOUT`` those of ``ObsLayout``, and under
    ``SAMPLING`` what is not tried while exploring. PPO's ratio is of the probabilities before that: where a choice is
    left out, the policy that samples is not quite the one that learns.
    """

    def setup(self) -> None:
        """Builds the network."""
        super().setup()  # type: ignore[no-untyped-call]
        settings: Any = self.model_config  # RLlib adds fields of its own
        self.layout = ObsLayout(*settings[LAYOUT])
        self._sampling = dict(settings.get(SAMPLING, {}))
        own = {
            field.name: settings[field.name] for field in dataclasses.fields(NetworkConfig) if field.name in settings
        }
        self.net = CompactionNet(NetworkConfig(**own))
        self._distribution = type(
            "SizedMoveDistribution", (MoveDistribution,), {"num_destinations": self.layout.num_destinations}
        )

    def _obs(self, batch: dict[str, Any]) -> Obs:
        return self.layout.split(batch[Columns.OBS])

    def _choose(self, batch: dict[str, Any], *, greedy: bool) -> dict[str, Tensor]:
        choice = self.net.act(self._obs(batch), greedy=greedy, **self._sampling)
        return {
            Columns.ACTIONS: choice.actions,
            Columns.ACTION_LOGP: choice.logp,
            # RLlib reads the stored inputs for its KL loss only, which is off; our trust region needs this one number.
            Columns.ACTION_DIST_INPUTS: choice.noop_logp.unsqueeze(-1),
        }

    def _forward_inference(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        return self._choose(batch, greedy=True)

    def _forward_exploration(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        return self._choose(batch, greedy=False)

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        obs, source = self._obs(batch), batch[Columns.ACTIONS][..., 0].long()
        encoding = self.net.encode(obs)
        destination_logits = self.net.destination_logits(obs, encoding, source)
        source_logits = self.net.source_logits(obs, encoding)
        return {
            Columns.ACTION_DIST_INPUTS: torch.cat([source_logits, destination_logits], -1),
            Columns.EMBEDDINGS: encoding.pooled,
        }

    def compute_values(self, batch: dict[str, Any], embeddings: Tensor | None = None) -> Tensor:
        """Values ``(B,)``; ``embeddings`` is the pooled encoding that ``_forward_train`` returned."""
        if embeddings is None:
            embeddings = self.net.encode(self._obs(batch)).pooled
        return self.net.value(embeddings)

    def get_train_action_dist_cls(self) -> type[MoveDistribution]:
        """One class for all phases."""
        return self._distribution

    get_exploration_action_dist_cls = get_train_action_dist_cls
    get_inference_action_dist_cls = get_train_action_dist_cls
