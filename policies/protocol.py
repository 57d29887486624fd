"""The ``Policy`` protocol: heuristics, planner and learned policy all are one."""

from typing import Protocol, runtime_checkable

import numpy as np

from rayfold.envs.moves import Plan
from rayfold.envs.state import ClusterState

__all__ = ["Policy"]


@runtime_checkable
class Policy(Protocol):
    """Decides which replicas to move.

    A policy may keep memory between calls (a quiet time, a running evacuation); ``reset`` forgets it. It must
    propose only moves that the safety filter allows when they are applied in order.
    """

    name: str

    def reset(self) -> None:
        """Forgets everything, as at the start of an episode."""
        ...

    def plan(self, state: ClusterState, rng: np.random.Generator) -> Plan:
        """Moves to make at this tick.

        Args:
            state: The cluster now.
            rng: The only source of randomness.
        """
        ...
