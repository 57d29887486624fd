"""``descheduler`` on clusters small enough to decide by hand: nodes of 4 GPUs, 8 CPUs and 64 GiB."""

from typing import Any

import numpy as np
import pytest

from rayfold.envs.moves import Move
from rayfold.envs.state import ClusterState
from rayfold.policies.descheduler import Descheduler, DeschedulerSettings, used_frac
from tests.policies.test_heuristics import LIMITS, ONE, TWO, after, later, quiet, rng


def rule(threshold_frac: float = 0.5, **more: Any) -> Descheduler:
    """Under-used: at most half of the GPUs, unless said otherwise."""
    return Descheduler(LIMITS, DeschedulerSettings(threshold_frac=threshold_frac, **more))


def mixed() -> ClusterState:
    """Node 0 has 2 of 4 GPUs in use, node 1 one, node 2 three and node 3 three."""
    return quiet((0, (ONE, ONE)), (0, (ONE,)), (0, (ONE, ONE, ONE)), (0, (TWO, ONE)))


def test_use_is_the_fraction_held() -> None:
    """Node 0: 2 of 4 GPUs and 2 of 8 CPUs; GPUs alone if asked."""
    state = mixed()
    assert used_frac(state)[0].tolist() == [0.5, 0.25, 0.0]
    assert used_frac(state, "gpu")[:4, 0].tolist() == [0.5, 0.25, 0.75, 0.75]


def test_the_least_used_node_goes_first_and_the_rest_stays() -> None:
    """Row 2, on node 1, leaves before rows 0 and 1, on node 0; row 1 fits nowhere any more.

    Nodes 2 and 3 have one GPU left each, node 2 five CPUs and node 3 six: node 2 is the fuller.
    """
    plan = rule().plan(mixed(), rng())
    assert plan.moves == (Move(2, 2), Move(0, 3))
    assert [c.reason for c in plan.candidates] == ["chosen", "a replica stays: NO_CAPACITY"]
    assert [c.saving_usd_per_h for c in plan.candidates] == [4.0, 0.0]


@pytest.mark.parametrize(
    ("threshold_frac", "number_of_nodes", "reason"),
    [
        (0.1, 0, "no node is under-used"),
        (0.8, 0, "every node is under-used"),
        (0.5, 2, "2 under-used nodes are no more than number_of_nodes"),
    ],
)
def test_when_it_does_nothing(threshold_frac: float, number_of_nodes: int, reason: str) -> None:
    """Its known complaint is kept: where every node is under-used nobody is helped."""
    plan = rule(threshold_frac, number_of_nodes=number_of_nodes).plan(mixed(), rng())
    assert (plan.moves, plan.reason) == ((), reason)


def test_one_resource_that_is_well_used_is_enough() -> None:
    """At 0.3 node 1 alone is under-used; with a quarter of its CPUs beside it held by others it is not."""
    state = mixed()
    assert rule(0.3).plan(state, rng()).moves == (Move(2, 2),)
    state.arrays.node_free[1, 1] -= 2.0
    assert rule(0.3).plan(state, rng()).reason == "no node is under-used"
    assert rule(0.3, resources="gpu").plan(state, rng()).moves == (Move(2, 2),)


def test_a_cycle_has_so_many_evictions_and_comes_every_interval() -> None:
    """One eviction now, none until 300 s have passed, then the next."""
    policy, state = rule(max_evictions=1), mixed()
    assert policy.plan(state, rng()).moves == (Move(2, 2),)
    assert policy.plan(later(state, 299.0), rng()).reason == "next cycle in 1 s"
    assert len(policy.plan(later(state, 300.0), rng()).moves) == 1
    policy.reset()
    assert len(policy.plan(later(state, 301.0), rng()).moves) == 1


def test_a_cycle_cut_short_goes_on() -> None:
    """With one move at once the second eviction comes as soon as the first move is over, in the same cycle."""
    policy = Descheduler(LIMITS._replace(max_concurrent_moves=1), DeschedulerSettings(threshold_frac=0.5))
    state = mixed()
    first = policy.plan(state, rng())
    assert first.moves == (Move(2, 2),)
    begun = later(after(state, first), 10.0)
    assert policy.plan(begun, rng()).moves == ()
    over = later(state, 20.0)
    over.arrays.node_fenced_until_s[1] = np.inf
    over.arrays.replica_peer[2] = 2  # it is leaving, and its replacement serves
    over.arrays.replica_phase[2] = 4
    assert policy.plan(over, rng()).moves == (Move(0, 2),)
