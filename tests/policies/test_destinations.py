"""The masks as arrays, and best fit as Serve orders nodes."""

import numpy as np

from rayfold.envs.moves import Move
from rayfold.envs.safety import Reason, check_move
from rayfold.policies.destinations import fullest_first, masks, why_it_stays
from tests.envs.clusters import random_state
from tests.policies.test_heuristics import LIMITS


def test_fullest_first() -> None:
    """GPU before CPU before memory; of equal nodes the first row."""
    node_free = np.array([[1.0, 2.0, 8.0], [1.0, 1.0, 9.0], [0.5, 9.0, 9.0], [1.0, 1.0, 9.0]])
    assert fullest_first(node_free, np.arange(4)).tolist() == [2, 1, 3, 0]
    assert fullest_first(node_free, np.array([0, 3])).tolist() == [3, 0]
    assert fullest_first(node_free, np.array([], np.int64)).tolist() == []


def test_they_say_what_the_filter_says() -> None:
    """A move is allowed if and only if nothing keeps its replica and the other node takes it."""
    for seed in range(30):
        state = random_state(np.random.default_rng(seed))
        st, allowed = state.arrays, masks(state, LIMITS)
        for r in np.flatnonzero(st.replica_node >= 0):
            for n in np.flatnonzero(np.arange(len(st.node_type)) != st.replica_node[r]):
                is_taken = allowed.destination[n, st.replica_deployment[r]]
                may_go = why_it_stays(state, int(r), LIMITS) is Reason.ALLOWED
                assert check_move(state, Move(int(r), int(n)), LIMITS).allowed == (may_go and is_taken)
