"""``finish``: begins nothing, and finishes by best fit what has been begun."""

import numpy as np

from rayfold.envs.moves import Plan
from rayfold.envs.safety import Limits
from rayfold.envs.state import ClusterState
from rayfold.policies.evacuations import evacuations, moves_in_order

__all__ = ["Finish"]


class Finish:
    """Waits; a node that moves have left already, and that still holds something, is emptied.

    Args:
        limits: What the safety filter allows.
    """

    name = "finish"

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    def reset(self) -> None:
        """Nothing to forget."""

    def plan(self, state: ClusterState, rng: np.random.Generator) -> Plan:
        """What is left of evacuations under way."""
        st = state.arrays
        if not ((st.node_fenced_until_s > state.now_s) & (st.node_num_held > 0)).any():
            return Plan(reason="nothing has been begun")
        begun = [e for e in evacuations(state, self._limits) if e.is_underway]
        moves = moves_in_order(state, begun, self._limits)
        return Plan(moves=moves, scores=(0.0,) * len(moves), reason="finish what has been begun")
