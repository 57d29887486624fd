"""Fits the switch to labelled choices, and says on episodes left out what switching by it would have cost.

Dims: M choices, F features, K members.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from rayfold.policies.portfolio import REFERENCE
from rayfold.policies.switch_net import SwitchConfig, SwitchNet
from rayfold.training.switch_labels import Labels, some_labels

__all__ = ["FOLDS", "Fit", "fit_switch", "followed_frac", "relative_bills"]

CLIP = 0.2  # of a member's relative bill: how bad a bad one is does not matter
FOLDS, BATCH, EPOCHS, LR, WEIGHT_DECAY = 5, 128, 30, 2e-3, 1e-1


class Fit(NamedTuple):
    """A switch, and what it was worth on episodes that it was not fitted on."""

    net: SwitchNet  # fitted on all episodes, in eval mode
    metrics: dict[str, float]


def fit_switch(
    labels: Labels, config: SwitchConfig, seed: int, on_fold: Callable[[int], None] = lambda fold: None
) -> Fit:
    """Cross-validates by episodes, then fits on all of them.

    Args:
        labels: Of at least ``FOLDS`` episodes.
        config: Of the network.
        seed: Of weights and batches.
        on_fold: Called after each of the ``FOLDS + 1`` fits, for progress.

    Returns:
        With ``metrics`` in shares of the reference's bill, choices weighing alike: ``switched`` as the network
        chooses, ``best_member`` the one member that is best everywhere, ``oracle`` the best at each choice.
    """
    found = np.zeros(labels.bill_usd.shape)
    folds = labels.episode % FOLDS
    for fold in range(FOLDS):
        net = _fit(some_labels(labels, folds != fold), config, seed + fold)
        held_out = folds == fold
        with torch.inference_mode():
            found[held_out] = net.pessimistic(torch.from_numpy(labels.features[held_out])).numpy()
        on_fold(fold)
    relative = relative_bills(labels)
    metrics = {
        "switched": followed_frac(relative, found, config.margin_frac),
        "best_member": float(relative.mean(0).min()),
        "oracle": float(relative.min(1).mean()),
        "choices": float(len(relative)),
    }
    net = _fit(labels, config, seed + FOLDS)
    on_fold(FOLDS)
    return Fit(net, metrics)


def relative_bills(labels: Labels) -> NDArray[np.float64]:
    """``(M, K)`` bills over the reference's, minus 1."""
    bills: NDArray[np.float64] = labels.bill_usd / labels.bill_usd[:, REFERENCE : REFERENCE + 1] - 1.0
    return bills


def followed_frac(relative: NDArray[np.float64], expected: NDArray[np.float64], margin_frac: float) -> float:
    """Mean relative bill when the member of least expectation leads, where it beats the reference by a margin.

    Args:
        relative: ``(M, K)`` what members really cost.
        expected: ``(M, K)`` what they were expected to cost.
        margin_frac: See ``SwitchConfig``.
    """
    best = expected.argmin(1)
    rows = np.arange(len(best))
    is_better = expected[rows, best] < expected[:, REFERENCE] - margin_frac
    return float(relative[rows, np.where(is_better, best, REFERENCE)].mean())


def _fit(labels: Labels, config: SwitchConfig, seed: int) -> SwitchNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = SwitchNet(config)
        features = torch.from_numpy(labels.features)
        net.know(features)
        wanted = torch.from_numpy(relative_bills(labels)).float().clamp(-CLIP, CLIP)
        optimizer = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
        steps = EPOCHS * max(1, len(features) // BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=max(2, steps))
        for _ in range(steps):
            # Every perceptron has a draw of its own, with replacement: what they disagree about is not known well.
            loss = torch.stack([_loss(net, k, features, wanted) for k in range(config.ensemble)]).sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return net.eval()


def _loss(net: SwitchNet, k: int, features: Tensor, wanted: Tensor) -> Tensor:
    rows = torch.randint(len(features), (min(BATCH, len(features)),))
    return F.huber_loss(net.one(k, features[rows]), wanted[rows], delta=0.02) * 100.0
