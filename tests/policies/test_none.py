"""``none`` never moves, whatever the state; what it does must not depend on anything."""

import numpy as np

from rayfold.envs.moves import Plan
from rayfold.envs.safety import Limits
from rayfold.policies.best_fit import BestFit
from rayfold.policies.none import NoMoves
from rayfold.policies.protocol import Policy
from tests.envs.clusters import random_state


def test_it_never_moves_where_another_rule_would() -> None:
    """On 200 random states, among them many where moves are allowed; the state stays as it is, nothing is drawn."""
    policy, rng = NoMoves(), np.random.default_rng(0)
    before, could_have_moved = rng.bit_generator.state, 0
    for seed in range(200):
        state = random_state(np.random.default_rng(seed))
        copies = [array.copy() for array in state.arrays]
        assert policy.plan(state, rng) == Plan(reason="never moves")
        assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(state.arrays, copies, strict=True))
        could_have_moved += bool(BestFit(Limits(deployment_cooldown_s=0.0)).plan(state, rng).moves)
    assert rng.bit_generator.state == before
    assert could_have_moved > 20


def test_it_is_a_policy() -> None:
    """With the protocol's name and ``reset``."""
    policy = NoMoves()
    assert isinstance(policy, Policy)
    policy.reset()
    assert policy.name == "none"
