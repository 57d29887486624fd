"""Figures published for replica compaction, and ours computed in the same way.

Anyscale, "Replica compaction" (Ray Serve on Anyscale): about 10 % more tokens per GPU-second; 3.7 % fewer instances
while traffic grew by 11.2 %; up to 50 % or more at small scale. All against the same service without compaction.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayfold.training.evaluation import NONE, Evaluation

__all__ = ["FIGURES", "Figure", "instance_change_frac", "low_scale_savings_frac", "published", "tokens_gain_frac"]

TRAFFIC_GROWTH_FRAC = 0.112
LOW_SCALE_QUANTILE = 0.25


def tokens_gain_frac(evaluation: Evaluation, name: str) -> float:
    """Tokens per GPU-second above those without compaction."""
    mine, none = (_mean_of(evaluation, policy, "tokens_per_gpu_s") for policy in (name, NONE))
    return mine / none - 1.0 if none > 0 else math.nan


def instance_change_frac(evaluation: Evaluation, name: str) -> float:
    """Change of the node count if traffic grows by 11.2 % while compaction is introduced.

    As published, a time without compaction is compared with a later one with it. Every ordered pair of episodes is
    such a comparison: the first without, the second with; the change of nodes is fitted by a line in the change of
    traffic and read at +11.2 %. Not defined where no pair's traffic grows by that much, or none by less.
    """
    traffic = _each(evaluation, NONE, "offered_request_s")
    before, after = _each(evaluation, NONE, "node_hours"), _each(evaluation, name, "node_hours")
    if len(traffic) < 3 or (traffic <= 0).any() or (before <= 0).any():
        return math.nan
    growth = (traffic[None, :] / traffic[:, None] - 1.0).ravel()
    change = (after[None, :] / before[:, None] - 1.0).ravel()
    if not growth.min() <= TRAFFIC_GROWTH_FRAC <= growth.max() or np.ptp(growth) < 1e-9:
        return math.nan
    slope, level = np.polyfit(growth, change, 1)
    return float(level + slope * TRAFFIC_GROWTH_FRAC)


def low_scale_savings_frac(evaluation: Evaluation, name: str) -> NDArray[np.float64]:
    """Saving of node-hours in the quarter of ticks that need the fewest nodes, ``(episodes,)``."""
    savings = []
    for mine, none in zip(evaluation.results[name], evaluation.results[NONE], strict=True):
        is_low = none.bound_nodes <= np.quantile(none.bound_nodes, LOW_SCALE_QUANTILE)
        paid = none.num_nodes[is_low].sum()
        savings.append(1.0 - mine.num_nodes[is_low].sum() / paid if paid else 0.0)
    return np.array(savings, np.float64)


def _largest_low_scale_saving_frac(evaluation: Evaluation, name: str) -> float:
    return float(low_scale_savings_frac(evaluation, name).max())


def _mean_low_scale_saving_frac(evaluation: Evaluation, name: str) -> float:
    return float(low_scale_savings_frac(evaluation, name).mean())


class Figure(NamedTuple):
    """One published figure."""

    what: str
    published_frac: float
    ours: Callable[[Evaluation, str], float]


FIGURES = (
    Figure("tokens per GPU-second against no compaction", 0.10, tokens_gain_frac),
    Figure("instances, traffic growing by 11.2 %", -0.037, instance_change_frac),
    Figure("saving at low scale, up to", 0.50, _largest_low_scale_saving_frac),
    Figure("saving at low scale, mean of episodes", 0.50, _mean_low_scale_saving_frac),
)


def published(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Each figure as published and of every policy; empty without ``none``, which all are measured against."""
    if NONE not in evaluation.results:
        return []
    return [
        {
            "what": figure.what,
            "published_frac": figure.published_frac,
            "policies": {name: _or_null(figure.ours(evaluation, name)) for name in evaluation.results},
        }
        for figure in FIGURES
    ]


def _each(evaluation: Evaluation, name: str, metric: str) -> NDArray[np.float64]:
    return np.array([episode.metrics[metric] for episode in evaluation.results[name]])


def _mean_of(evaluation: Evaluation, name: str, metric: str) -> float:
    return float(_each(evaluation, name, metric).mean())


def _or_null(value: float) -> float | None:
    return None if math.isnan(value) else value
