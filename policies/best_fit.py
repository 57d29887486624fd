"""``best_fit``: evacuate the node that is cheapest to empty, if everything on it fits elsewhere.

The greedy rule of the field: Ray's best-fit test (``_find_best_node_to_compact``, 2.60) and Karpenter's
"consolidate the least disruptive node first", without their quiet times.
"""

from typing import Any

from rayfold.policies.evacuations import Evacuation
from rayfold.policies.one_node import OneNode

__all__ = ["BestFit"]


class BestFit(OneNode):
    """A node that is already being emptied goes first; then the lowest price of its moves; then the dearest node."""

    name = "best_fit"

    def order(self, e: Evacuation) -> tuple[Any, ...]:
        """See the class."""
        return (not e.is_underway, e.price_usd, -e.node_usd_per_h, e.node_idx)

    def score(self, e: Evacuation) -> float:
        """Higher is better."""
        return -e.price_usd

    def objection(self, e: Evacuation) -> str:
        """One line."""
        return "its moves cost no less"
