"""Where policies end on states of known optimum."""

from collections.abc import Callable

import numpy as np
import pytest

from rayfold.envs.known_optimum import AWKWARD, MIXED, known_optimum
from rayfold.envs.moves import Move, Plan
from rayfold.envs.safety import Limits
from rayfold.envs.state import ClusterState
from rayfold.policies.best_fit import BestFit
from rayfold.policies.consolidation import consolidate
from rayfold.policies.descheduler import Descheduler
from rayfold.policies.karpenter import Karpenter
from rayfold.policies.none import NoMoves
from rayfold.policies.patient import Patient
from rayfold.policies.protocol import Policy
from tests.envs.conservation import check_conserved, running_counts

LIMITS = Limits(max_concurrent_moves=8, deployment_cooldown_s=0.0)


@pytest.mark.parametrize(("sizes", "most"), [(MIXED, 0.02), (AWKWARD, 0.2)])
def test_best_fit_comes_near(sizes: tuple[int, ...], most: float) -> None:
    """Never below the optimum, hardly above it where there is something for every gap; nothing is lost on the way."""
    for seed in range(3):
        state, optimum = known_optimum(100, np.random.default_rng(seed), sizes)
        digest = state.digest()
        end = consolidate(BestFit(LIMITS), state, LIMITS, np.random.default_rng(0))
        check_conserved(end)
        np.testing.assert_array_equal(running_counts(end), running_counts(state))
        used = int((end.arrays.node_num_held > 0).sum())
        assert optimum <= used <= optimum * (1.0 + most)
        assert int((end.arrays.node_type >= 0).sum()) == used
        assert state.digest() == digest


def test_awkward_sizes_are_out_of_reach_of_best_fit() -> None:
    """It is stuck with single GPUs free on many nodes: there is something to learn."""
    state, optimum = known_optimum(100, np.random.default_rng(0), AWKWARD)
    end = consolidate(BestFit(LIMITS), state, LIMITS, np.random.default_rng(0))
    assert (end.arrays.node_num_held > 0).sum() > 1.05 * optimum


def test_no_moves_no_change() -> None:
    """A policy that does nothing ends where it began."""
    state, _ = known_optimum(20, np.random.default_rng(0))
    assert consolidate(NoMoves(), state, LIMITS, np.random.default_rng(0)).digest() == state.digest()


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


@pytest.mark.parametrize("make", [Karpenter, Patient, Descheduler])
def test_rules_that_look_twice_are_given_the_time(make: Callable[[Limits], Policy]) -> None:
    """Karpenter validates 15 s later, the others wait for minutes: nodes go all the same."""
    state, _ = known_optimum(20, np.random.default_rng(0))
    end = consolidate(make(LIMITS), state, LIMITS, np.random.default_rng(0))
    assert (end.arrays.node_num_held > 0).sum() < (state.arrays.node_num_held > 0).sum()
