"""``none``: never moves anything. What a Serve cluster without compaction does."""

import numpy as np

from rayfold.envs.moves import Plan
from rayfold.envs.state import ClusterState

__all__ = ["NoMoves"]


class NoMoves:
    """The baseline that every other policy has to beat."""

    name = "none"

    def reset(self) -> None:
        """Nothing to forget."""

    def plan(self, state: ClusterState, rng: np.random.Generator) -> Plan:
        """No moves."""
        return Plan(reason="never moves")
