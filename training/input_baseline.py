"""Input-dependent baseline: what other rollouts of the same traffic met at the same time.

Most of what an advantage varies by is the traffic that came after the action, which no action changes. Rollouts that
share their traffic meet the same of it, so the mean of the *others* at that decision interval is a control variate: it
depends on the traffic but not on the action, and takes no bias in (Mao et al., *Variance Reduction for Reinforcement
Learning in Input-Driven Environments*, ICLR 2019; Decima, SIGCOMM 2019, compares rollouts of one arrival sequence).
"""

import numpy as np
from numpy.typing import NDArray

__all__ = ["TRAFFIC_TICK", "input_baseline", "without_input"]

# Column of the training batch, (B, 2) int64: whose traffic a step met (equal for rollouts that share it) and in which
# decision interval of the episode.
TRAFFIC_TICK = "traffic_tick"


def input_baseline(
    advantages: NDArray[np.float32], is_step: NDArray[np.bool_], traffic_tick: NDArray[np.int64]
) -> NDArray[np.float32]:
    """The mean advantage of the other rollouts of the same traffic at the same decision interval.

    Of each rollout its first step in that interval counts, as it was before the rollout acted there.

    Args:
        advantages: ``(M,)`` of concatenated episode chunks, as for ``smdp_advantages``.
        is_step: ``(M,)`` False on the artificial row that ends each chunk.
        traffic_tick: ``(M, 2)`` see ``TRAFFIC_TICK``; anything on artificial rows.

    Returns:
        ``(M,)`` float32; 0 where no other rollout was there, and on artificial rows.
    """
    begins = np.ones(len(advantages), np.bool_)  # a stay of one rollout in one decision interval
    begins[1:] = (traffic_tick[1:] != traffic_tick[:-1]).any(-1) | (is_step[1:] != is_step[:-1])
    first, stay = np.flatnonzero(begins), np.cumsum(begins) - 1
    met = np.where(is_step[first], advantages[first], 0.0)
    place = np.unique(traffic_tick[first], axis=0, return_inverse=True)[1].ravel()
    others = np.bincount(place, is_step[first])[place] - 1.0
    mean = (np.bincount(place, met)[place] - met) / np.maximum(1.0, others)
    baseline: NDArray[np.float32] = np.where(is_step, np.where(others > 0.0, mean, 0.0)[stay], 0.0).astype(np.float32)
    return baseline


def without_input(
    advantages: NDArray[np.float32], is_step: NDArray[np.bool_], traffic_tick: NDArray[np.int64]
) -> tuple[NDArray[np.float32], float]:
    """Advantages less so much of their baseline as leaves the least variance.

    Args:
        advantages: ``(M,)``.
        is_step: ``(M,)``.
        traffic_tick: ``(M, 2)``.

    Returns:
        ``(M,)`` float32, and the share of the variance over real steps that went.
    """
    baseline = input_baseline(advantages, is_step, traffic_tick)
    kept, known = advantages[is_step], baseline[is_step]
    if len(known) < 2 or not (kept.var() > 0.0 and known.var() > 0.0):
        return advantages, 0.0
    share = float(np.clip(np.cov(kept, known)[0, 1] / known.var(ddof=1), 0.0, 1.0))  # regression coefficient
    less = advantages - np.float32(share) * baseline
    return less, float(1.0 - less[is_step].var() / kept.var())
