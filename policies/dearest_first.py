"""``dearest_first``: evacuate the node that costs most, if everything on it fits elsewhere.

``best_fit`` asks what the moves cost but not what the emptied node would save; this rule asks the opposite. Ray's
"largest node first" (``_find_best_node_to_compact``, 2.60) comes to the same where the largest node is the dearest.
It keeps no memory, so a network that sees the same state can imitate it: it is the default teacher.
"""

from typing import Any

from rayfold.policies.evacuations import Evacuation
from rayfold.policies.one_node import OneNode

__all__ = ["DearestFirst"]


class DearestFirst(OneNode):
    """The highest price of the node; of equal ones the one under way, then the cheapest to empty."""

    name = "dearest_first"

    def order(self, e: Evacuation) -> tuple[Any, ...]:
        """See the class."""
        return (-e.node_usd_per_h, not e.is_underway, e.price_usd, e.node_idx)

    def score(self, e: Evacuation) -> float:
        """Higher is better."""
        return e.node_usd_per_h

    def objection(self, e: Evacuation) -> str:
        """One line."""
        return "no dearer"
