"""``least_moves`` counts moves, whatever they cost."""

import numpy as np

from rayfold.envs.safety import Limits
from rayfold.policies.best_fit import BestFit
from rayfold.policies.least_moves import LeastMoves
from tests.policies.test_heuristics import quiet

ONE, TWO, HALF = 0, 1, 2
LIMITS = Limits(max_concurrent_moves=8, deployment_cooldown_s=0.0)


def test_one_dear_move_goes_before_two_cheap_ones() -> None:
    """A replica of two GPUs costs more to move than two halves, and is one move; best_fit decides otherwise."""
    state = quiet((0, (HALF, HALF)), (0, (TWO,)), (0, (TWO,)))
    rng = np.random.default_rng(0)
    least, cheapest = LeastMoves(LIMITS).plan(state, rng), BestFit(LIMITS).plan(state, rng)
    assert [int(state.arrays.replica_node[m.replica_idx]) for m in least.moves] == [1]
    assert {int(state.arrays.replica_node[m.replica_idx]) for m in cheapest.moves} == {0}
    assert least.candidates[0].reason == "chosen"
