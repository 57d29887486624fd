"""``Chained``: policies in order of precedence; the next one is asked where the one before has nothing to do."""

from collections.abc import Sequence

import numpy as np

from rayfold.envs.moves import Plan
from rayfold.envs.safety import moves_in_flight
from rayfold.envs.state import ClusterState
from rayfold.policies.protocol import Policy

__all__ = ["Chained"]


class Chained:
    """Plans of the first member that begins something; the later ones begin nothing while a move is under way.

    Args:
        members: In order, at least one.
    """

    def __init__(self, members: Sequence[Policy]) -> None:
        self._members = tuple(members)
        self.name = "+".join(member.name for member in members)

    def reset(self) -> None:
        """All of them are."""
        for member in self._members:
            member.reset()

    def plan(self, state: ClusterState, rng: np.random.Generator) -> Plan:
        """The first plan with moves, or that of the first member."""
        first = self._members[0].plan(state, rng)
        if first.moves or moves_in_flight(state.arrays):
            return first
        for member in self._members[1:]:
            plan = member.plan(state, rng)
            if plan.moves:
                return plan
        return first
