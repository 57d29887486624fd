"""``least_moves``: evacuate the node with the fewest replicas to move, if everything on it fits elsewhere.

The second half of Ray's order ("then fewest replicas", ``_find_best_node_to_compact``, 2.60) taken by itself; it is
also how Karpenter's disruption cost ranks nodes whose pods count alike.
"""

from typing import Any

from rayfold.policies.evacuations import Evacuation
from rayfold.policies.one_node import OneNode

__all__ = ["LeastMoves"]


class LeastMoves(OneNode):
    """A node that is already being emptied goes first; then the fewest moves; then the dearest node."""

    name = "least_moves"

    def order(self, e: Evacuation) -> tuple[Any, ...]:
        """See the class."""
        return (not e.is_underway, len(e.moves), -e.node_usd_per_h, e.price_usd, e.node_idx)

    def score(self, e: Evacuation) -> float:
        """Higher is better."""
        return -len(e.moves)

    def objection(self, e: Evacuation) -> str:
        """One line."""
        return f"takes {len(e.moves)} moves"
