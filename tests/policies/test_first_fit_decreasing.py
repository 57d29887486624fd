"""``first_fit_decreasing``: the least loaded node, largest replica first, each to the first node with room."""

import numpy as np

from rayfold.envs.moves import Move
from rayfold.envs.safety import Limits
from rayfold.policies.best_fit import BestFit
from rayfold.policies.first_fit_decreasing import FirstFitDecreasing
from tests.policies.test_heuristics import quiet

ONE, TWO = 0, 1
LIMITS = Limits(max_concurrent_moves=8, deployment_cooldown_s=0.0)


def test_first_node_with_room_and_not_the_fullest() -> None:
    """Row 0 has room and is less full than row 1, where best fit would go."""
    state = quiet((0, (ONE, ONE)), (0, (ONE, ONE, ONE)), (0, (ONE,)))
    rng = np.random.default_rng(0)
    assert FirstFitDecreasing(LIMITS).plan(state, rng).moves == (Move(5, 0),)
    assert BestFit(LIMITS).plan(state, rng).moves == (Move(5, 1),)


def test_largest_first() -> None:
    """The pair of GPUs takes the room in row 0, the single one must go on to row 1."""
    state = quiet((0, (ONE, ONE)), (0, (ONE, ONE, ONE)), (0, (ONE, TWO)))
    state.arrays.node_fenced_until_s[2] = state.now_s + 60.0
    assert FirstFitDecreasing(LIMITS).plan(state, np.random.default_rng(0)).moves == (Move(6, 0), Move(5, 1))


def test_a_node_that_cannot_be_emptied_is_passed_over() -> None:
    """The least loaded one holds what fits nowhere; the next one in order goes."""
    state = quiet((0, (TWO,)), (0, (ONE, ONE, ONE)), (0, (ONE, ONE, ONE)))
    plan = FirstFitDecreasing(LIMITS).plan(state, np.random.default_rng(0))
    assert plan.moves == (Move(1, 0), Move(2, 0), Move(3, 2))
    state = quiet((0, (TWO, ONE)), (0, (ONE, ONE, ONE)), (0, (ONE, ONE, ONE)))
    assert FirstFitDecreasing(LIMITS).plan(state, np.random.default_rng(0)).reason == "no node can be emptied"
