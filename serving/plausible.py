"""What no move is made of: scores and prices that are no numbers. Pure functions.

The safety filter looks at neither, and a policy that was fed nonsense still names moves that are safe.
"""

import math

import numpy as np

from rayfold.envs.moves import Plan
from rayfold.envs.state import ClusterState

__all__ = ["implausible_plan", "implausible_prices"]


def implausible_prices(state: ClusterState) -> str:
    """Why the prices of a cluster are not believed, as one word; empty if they are."""
    prices = state.spec.arrays.type_price_usd_per_h
    return "" if np.all(np.isfinite(prices) & (prices >= 0.0)) else "price_is_no_price"


def implausible_plan(plan: Plan) -> str:
    """Why a plan is not believed, as one word; empty if it is. One bad score says that all came out of nonsense."""
    if not all(math.isfinite(score) for score in plan.scores):
        return "score_is_no_number"
    return "" if math.isfinite(plan.expected_saving_usd) else "saving_is_no_number"
