"""``least_moves``: evacuate the node with the fewest replicas to move, if everything on it fits elsewhere.

The second half of Ray's order ("then fewest replicas", ``_find_best_node_to_compact``, 2.60) taken by itself; it is
also how Karpenter's disruption cost ranks nodes whose pods count alike.
"""

import numpy as np

from rayfold.envs.moves import Plan
from rayfold.envs.safety import Limits
from rayfold.envs.state import ClusterState
from rayfold.policies.evacuations import candidates, evacuations, first_moves

__all__ = ["LeastMoves"]


class LeastMoves:
    """Empties one node at a time, as soon as it can be emptied.

    A node that is already being emptied goes first; then the fewest moves; then the dearest node; then the lowest
    price of its moves.

    Args:
        limits: What the safety filter allows.
    """

    name = "least_moves"

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    def reset(self) -> None:
        """Nothing to forget."""

    def plan(self, state: ClusterState, rng: np.random.Generator) -> Plan:
        """The first moves of the chosen evacuation."""
        found = evacuations(state, self._limits)
        if not found:
            return Plan(reason="no node can be emptied")
        chosen = min(found, key=lambda e: (not e.is_underway, len(e.moves), -e.node_usd_per_h, e.price_usd, e.node_idx))
        weighed = candidates(
            found, lambda e: -len(e.moves), lambda e: "chosen" if e is chosen else f"takes {len(e.moves)} moves"
        )
        return first_moves(state, chosen, self._limits, f"empty node {chosen.node_idx}", weighed)
