"""The network of the switch: what each member of the portfolio is expected to cost against the reference.

An ensemble of small perceptrons, since data are few and disagreement tells where they end. Dims: B batch, F features,
E perceptrons, K members.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rayfold.policies.portfolio import MEMBERS, REFERENCE
from rayfold.policies.switch_features import FEATURES

__all__ = ["SwitchConfig", "SwitchNet"]

FAR = 1e9
LEAST_SCALE = 0.05  # of a feature that hardly varied in training: it says little elsewhere


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchConfig:
    """Size of a ``SwitchNet``, and how it is used."""

    dim: int = 16
    ensemble: int = 8
    dwell_s: float = 1800.0  # a member leads for so long, at least
    horizon_s: float = 10800.0  # whose bill is predicted
    doubt: float = 1.0  # standard deviations of the ensemble that are added to what a member is expected to cost
    margin_frac: float = 0.003  # of the bill, by which another member must be better to take over
    max_outside: int = 3  # features beyond what was seen in training; with more the reference leads


class SwitchNet(nn.Module):
    """Bill of the next hours under each member, relative to the reference's."""

    mean: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, config: SwitchConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or SwitchConfig()
        self.register_buffer("mean", torch.zeros(len(FEATURES)))
        self.register_buffer("scale", torch.ones(len(FEATURES)))
        self.register_buffer("low", torch.full((len(FEATURES),), -FAR))
        self.register_buffer("high", torch.full((len(FEATURES),), FAR))
        self.nets = nn.ModuleList(_perceptron(config.dim) for _ in range(config.ensemble))

    def one(self, k: int, features: Tensor) -> Tensor:
        """``(B, F)`` to ``(B, K)``: what perceptron ``k`` says; see ``forward``."""
        rest = self.nets[k](((features - self.mean) / self.scale).clamp(-4.0, 4.0))
        return torch.cat([rest[:, :REFERENCE], torch.zeros_like(rest[:, :1]), rest[:, REFERENCE:]], -1)

    def forward(self, features: Tensor) -> Tensor:
        """``(B, F)`` to ``(B, E, K)``: bill over the reference's bill, minus 1; the reference is 0."""
        return torch.stack([self.one(k, features) for k in range(len(self.nets))], 1)

    def know(self, features: Tensor) -> None:
        """Notes mean, spread and range of the training data ``(M, F)``."""
        self.mean.copy_(features.mean(0))
        self.scale.copy_(features.std(0, correction=0).clamp(min=LEAST_SCALE))
        margin = (0.1 * (features.amax(0) - features.amin(0))).clamp(min=LEAST_SCALE)
        self.low.copy_(features.amin(0) - margin)
        self.high.copy_(features.amax(0) + margin)

    def num_outside(self, features: Tensor) -> Tensor:
        """``(B, F)`` to ``(B,)``: features beyond the range of the training data, widened by a tenth at both ends."""
        return ((features < self.low) | (features > self.high)).sum(1)

    def pessimistic(self, features: Tensor) -> Tensor:
        """``(B, K)``: the mean of the ensemble plus ``doubt`` standard deviations.

        Infinite for all but the reference where a state is unlike those that were seen in training.
        """
        found = self.forward(features)
        out = found.mean(1) + self.config.doubt * found.std(1, correction=0)
        is_strange = self.num_outside(features) > self.config.max_outside
        is_other = torch.arange(out.shape[1]) != REFERENCE
        return out.masked_fill(is_strange[:, None] & is_other[None], torch.inf)


def _perceptron(dim: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(len(FEATURES), dim),
        nn.GELU(),
        nn.Dropout(0.1),
        nn.Linear(dim, dim),
        nn.GELU(),
        nn.Dropout(0.1),
        nn.Linear(dim, len(MEMBERS) - 1),
    )
