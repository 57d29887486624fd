"""``WeightAverage``: the weights of a run averaged over its later part, which are steadier than the last ones.

Polynomial decay (Shamir and Zhang, "Stochastic Gradient Descent for Non-smooth Optimization", ICML 2013): the k-th
weights count about as k ** 3, so that the average reaches back over a fifth of the run, however long it is.
"""

import copy
from pathlib import Path

import torch

from rayfold.policies.network import CompactionNet
from rayfold.policies.weights import packed, restore

__all__ = ["WeightAverage"]

DECAY = 3.0


class WeightAverage:
    """An average that is added to after every iteration.

    Args:
        net: Of the same shape as those to come; is copied.
    """

    def __init__(self, net: CompactionNet) -> None:
        self._net = copy.deepcopy(net).eval()
        self._count = 0

    def add(self, net: CompactionNet) -> None:
        """The next weights; the first ones replace whatever was there."""
        self._count += 1
        share = (DECAY + 1.0) / (self._count + DECAY)
        with torch.no_grad():
            for mine, new in zip(self._net.state_dict().values(), net.state_dict().values(), strict=True):
                mine.lerp_(new, share)

    def net(self) -> CompactionNet:
        """A copy of the average as it is now."""
        return copy.deepcopy(self._net)

    def save(self, path: Path) -> None:
        """Writes it as a safetensors file."""
        path.write_bytes(packed(self._net))

    def load(self, path: Path, count: int) -> None:
        """Goes on from a file.

        Args:
            path: What ``save`` wrote.
            count: How many weights are in it.

        Raises:
            InputError: It is missing, broken, or of another network.
        """
        restore(self._net, path)
        self._count = count
