"""Rules without memory that empty one node at a time, and differ only in which one."""

from typing import Any

import numpy as np

from rayfold.envs.moves import Plan
from rayfold.envs.safety import Limits
from rayfold.envs.state import ClusterState
from rayfold.policies.evacuations import Evacuation, candidates, evacuations, first_moves

__all__ = ["OneNode"]


class OneNode:
    """Empties the first node in an order of its own, as soon as it can be emptied.

    Args:
        limits: What the safety filter allows.
    """

    name = ""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    def reset(self) -> None:
        """Nothing to forget."""

    def order(self, e: Evacuation) -> tuple[Any, ...]:
        """Sorts evacuations; the least one is chosen."""
        raise NotImplementedError

    def score(self, e: Evacuation) -> float:
        """What the rule likes about an evacuation."""
        raise NotImplementedError

    def objection(self, e: Evacuation) -> str:
        """What spoke against one that was not chosen."""
        raise NotImplementedError

    def plan(self, state: ClusterState, rng: np.random.Generator) -> Plan:
        """The first moves of the chosen evacuation."""
        found = evacuations(state, self._limits)
        if not found:
            return Plan(reason="no node can be emptied")
        chosen = min(found, key=self.order)
        weighed = candidates(found, self.score, lambda e: "chosen" if e is chosen else self.objection(e))
        return first_moves(state, chosen, self._limits, f"empty node {chosen.node_idx}", weighed)
