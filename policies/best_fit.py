"""``best_fit``: evacuate the node that is cheapest to empty, if everything on it fits elsewhere.

The greedy rule of the field: Ray's best-fit test (``_find_best_node_to_compact``, 2.60) and Karpenter's
"consolidate the least disruptive node first", without their quiet times.
"""

import numpy as np

from rayfold.envs.moves import Plan
from rayfold.envs.safety import Limits
from rayfold.envs.state import ClusterState
from rayfold.policies.evacuations import candidates, evacuations, first_moves

__all__ = ["BestFit"]


class BestFit:
    """Empties one node at a time, as soon as it can be emptied.

    A node that is already being emptied goes first; then the lowest price of its moves; then the dearest node.

    Args:
        limits: What the safety filter allows.
    """

    name = "best_fit"

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    def reset(self) -> None:
        """Nothing to forget."""

    def plan(self, state: ClusterState, rng: np.random.Generator) -> Plan:
        """The first moves of the cheapest evacuation."""
        found = evacuations(state, self._limits)
        if not found:
            return Plan(reason="no node can be emptied")
        chosen = min(found, key=lambda e: (not e.is_underway, e.price_usd, -e.node_usd_per_h, e.node_idx))
        weighed = candidates(
            found, lambda e: -e.price_usd, lambda e: "chosen" if e is chosen else "its moves cost no less"
        )
        return first_moves(state, chosen, self._limits, f"empty node {chosen.node_idx}", weighed)
