"""Where policies end on states of known optimum."""

import numpy as np
import pytest

from rayfold.envs.known_optimum import known_optimum
from rayfold.envs.moves import Move, Plan
from rayfold.envs.safety import Limits
from rayfold.envs.state import ClusterState
from rayfold.policies.best_fit import BestFit
from rayfold.policies.consolidation import consolidate
from rayfold.policies.none import NoMoves
from tests.envs.conservation import check_conserved, running_counts

LIMITS = Limits(max_concurrent_moves=8, deployment_cooldown_s=0.0)


def test_best_fit_comes_near() -> None:
    """Never below the optimum; of the half of the nodes that can go, four fifths or more do. No moves, no change."""
    for seed in range(3):
        state, optimum = known_optimum(100, np.random.default_rng(seed))
        digest = state.digest()
        end = consolidate(BestFit(LIMITS), state, LIMITS, np.random.default_rng(0))
        check_conserved(end)
        np.testing.assert_array_equal(running_counts(end), running_counts(state))
        used = int((end.arrays.node_num_held > 0).sum())
        assert optimum <= used <= optimum + 10
        assert int((end.arrays.node_type >= 0).sum()) == used
        assert state.digest() == digest
        same = consolidate(NoMoves(), state, LIMITS, np.random.default_rng(0))
        assert same.digest() == digest


class _Restless:
    """Moves the first replica to the node it is on."""

    name = "restless"

    def reset(self) -> None:
        """Nothing to forget."""

    def plan(self, state: ClusterState, rng: np.random.Generator) -> Plan:
        """A move that the filter refuses."""
        return Plan(moves=(Move(0, int(state.arrays.replica_node[0])),))


def test_a_move_that_is_refused_is_an_error() -> None:
    """A policy that breaks the filter does not get a figure."""
    state, _ = known_optimum(10, np.random.default_rng(0))
    with pytest.raises(ValueError, match="SAME_NODE"):
        consolidate(_Restless(), state, LIMITS, np.random.default_rng(0))
