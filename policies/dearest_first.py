"""``dearest_first``: evacuate the node that costs most, if everything on it fits elsewhere.

``best_fit`` asks what the moves cost but not what the emptied node would save; this rule asks the opposite. Ray's
"largest node first" (``_find_best_node_to_compact``, 2.60) comes to the same where the largest node is the dearest.
It keeps no memory, so a network that sees the same state can imitate it: it is the default teacher.
"""

import numpy as np

from rayfold.envs.moves import Plan
from rayfold.envs.safety import Limits
from rayfold.envs.state import ClusterState
from rayfold.policies.evacuations import candidates, evacuations, first_moves

__all__ = ["DearestFirst"]


class DearestFirst:
    """Empties the node with the highest price that can be emptied; the cheapest to empty of equal ones.

    Args:
        limits: What the safety filter allows.
    """

    name = "dearest_first"

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    def reset(self) -> None:
        """Nothing to forget."""

    def plan(self, state: ClusterState, rng: np.random.Generator) -> Plan:
        """The first moves of the chosen evacuation; one under way goes first among nodes of equal price."""
        found = evacuations(state, self._limits)
        if not found:
            return Plan(reason="no node can be emptied")
        chosen = min(found, key=lambda e: (-e.node_usd_per_h, not e.is_underway, e.price_usd, e.node_idx))
        weighed = candidates(found, lambda e: e.node_usd_per_h, lambda e: "chosen" if e is chosen else "no dearer")
        return first_moves(state, chosen, self._limits, f"empty node {chosen.node_idx}", weighed)
