"""The heuristics on clusters small enough to decide by hand."""

import numpy as np
import pytest

from rayfold.envs.moves import Move, Plan
from rayfold.envs.safety import Limits, check_move
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase
from rayfold.envs.transition import with_move
from rayfold.policies.best_fit import BestFit
from rayfold.policies.by_name import HEURISTICS, make_policy
from rayfold.policies.evacuations import evacuations, moves_price_usd
from rayfold.policies.protocol import Policy
from rayfold.policies.ray_serve import RayServe
from tests.envs.clusters import add_node, add_replica, empty_state, random_state, small_spec

ONE, TWO = 0, 1
LIMITS = Limits(max_concurrent_moves=4, deployment_cooldown_s=0.0)
EAGER = {"patient": "patient(wait_s=0,max_nodes=3)"}  # what waits would never move at first sight


def rng() -> np.random.Generator:
    """The heuristics draw nothing; a generator is due all the same."""
    return np.random.default_rng(0)


def quiet(*nodes: tuple[int, tuple[int, ...]]) -> ClusterState:
    """Nodes of a type with running replicas; every target is met and nothing has changed for an hour."""
    state = empty_state(small_spec(), now_s=10_000.0)
    for n, (node_type, replicas) in enumerate(nodes):
        add_node(state, n, node_type)
        for d in replicas:
            add_replica(state, d, n)
    state.arrays.deployment_changed_s[:] = state.now_s - 3600.0
    return state


def later(state: ClusterState, seconds: float) -> ClusterState:
    """The same state at a later clock."""
    return ClusterState(spec=state.spec, now_s=state.now_s + seconds, arrays=state.arrays.copy())


def after(state: ClusterState, plan: Plan) -> ClusterState:
    """With all moves of a plan begun."""
    for move in plan.moves:
        state = with_move(state, move, LIMITS)
    return state


def test_best_fit_empties_the_node_with_the_cheapest_moves_onto_the_fullest() -> None:
    """Node 1 needs one move, node 0 two; the replica goes to node 2, which it leaves fullest."""
    state = quiet((0, (ONE, ONE)), (0, (ONE,)), (0, (ONE, ONE, ONE)))
    plan = BestFit(LIMITS).plan(state, rng())
    assert plan.moves == (Move(2, 2),)


def test_one_evacuation_is_that_of_all() -> None:
    """On 30 random states: each node alone gives what all nodes give for it, at the price of its moves."""
    count = 0
    for seed in range(30):
        state = random_state(np.random.default_rng(seed))
        found = evacuations(state, LIMITS)
        alone = [e for n in range(len(state.arrays.node_type)) for e in evacuations(state, LIMITS, n)]
        assert alone == found
        assert [e.price_usd for e in found] == [moves_price_usd(state, e.moves) for e in found]
        count += len(found)
    assert count > 10


def test_best_fit_leaves_a_node_that_cannot_be_emptied() -> None:
    """Two GPUs of one replica fit nowhere, and single GPUs that would fit are left alone."""
    state = quiet((0, (TWO, ONE)), (0, (ONE, ONE, ONE)))
    assert [e.node_idx for e in evacuations(state, LIMITS)] == []
    assert BestFit(LIMITS).plan(state, rng()).moves == ()


def test_best_fit_goes_on_with_the_node_it_has_begun() -> None:
    """A fenced node comes first although another one is cheaper to empty; the limit on moves cuts the plan."""
    state = quiet((0, (ONE, ONE)), (0, (ONE,)), (0, (ONE,)))
    state.arrays.node_fenced_until_s[0] = state.now_s + 100.0
    plan = BestFit(LIMITS._replace(max_concurrent_moves=1)).plan(state, rng())
    assert [int(state.arrays.replica_node[m.replica_idx]) for m in plan.moves] == [0]


@pytest.mark.parametrize("name", HEURISTICS)
def test_plans_are_allowed_in_order(name: str) -> None:
    """On 200 random states, now and 10 min later, the filter allows each move, with those before it begun."""
    policy, planned = make_policy(EAGER.get(name, name), LIMITS), 0
    assert isinstance(policy, Policy)
    for seed in range(200):
        policy.reset()
        state = random_state(np.random.default_rng(seed))
        for wait_s in (0.0, 600.0):  # some rules want to see a state for a while
            state = later(state, wait_s)
            for move in policy.plan(state, rng()).moves:
                assert check_move(state, move, LIMITS).allowed
                state = with_move(state, move, LIMITS)
                planned += 1
    assert (planned > 0) == (name != "none")


def test_ray_serve_waits_for_quiet() -> None:
    """300 s without a change, every replica running, every target met: one condition short, and it waits."""
    state = quiet((0, (ONE, ONE, ONE)), (0, (ONE,)))
    assert len(RayServe(LIMITS).plan(state, rng()).moves) == 1
    for change in ("recent", "starting", "missing"):
        state = quiet((0, (ONE, ONE, ONE)), (0, (ONE,)))
        if change == "recent":
            state.arrays.deployment_changed_s[TWO] = state.now_s - 299.0
        elif change == "starting":
            state.arrays.replica_phase[0] = ReplicaPhase.STARTING
        else:
            state.arrays.deployment_target[ONE] += 1
        assert RayServe(LIMITS).plan(state, rng()).moves == (), change


def test_ray_serve_takes_the_largest_node_then_the_fewest_replicas() -> None:
    """A 4-GPU node with two replicas goes before a 2-GPU node with one; of equal nodes the one with fewer."""
    state = quiet((1, (ONE,)), (0, (ONE, ONE)), (0, (ONE, ONE, ONE)), (0, (ONE, ONE, ONE)))
    sources = {int(state.arrays.replica_node[m.replica_idx]) for m in RayServe(LIMITS).plan(state, rng()).moves}
    assert sources == {1}


def test_ray_serve_one_node_at_a_time_until_it_is_released() -> None:
    """While a node is being emptied no other one is begun; after its release the next may be."""
    state = quiet((0, (ONE,)), (0, (ONE,)), (0, (ONE,)))
    policy = RayServe(LIMITS)
    first = policy.plan(state, rng())
    state = after(state, first)
    assert len(first.moves) == 1
    source = int(state.arrays.replica_node[first.moves[0].replica_idx])
    assert (first.moves[0].replica_idx, state.arrays.replica_phase[3]) == (0, ReplicaPhase.STARTING)
    assert policy.plan(later(state, 60.0), rng()).moves == ()
    gone = later(state, 120.0)
    gone.arrays.replica_phase[:4] = [0, *[ReplicaPhase.RUNNING] * 3]  # the replacement, in row 3, serves
    gone.arrays.replica_node[0] = gone.arrays.replica_deployment[0] = -1
    gone.arrays.node_phase[source] = NodePhase.ABSENT
    assert policy.plan(gone, rng()).reason == f"node {source} is released"
    fresh = quiet((0, (ONE,)), (0, (ONE,)))
    assert len(policy.plan(later(fresh, 200.0), rng()).moves) == 1


def test_ray_serve_gives_up_and_backs_off() -> None:
    """After 1800 s the evacuation is given up; the next try waits 2 s, then 4 s."""
    policy, state = RayServe(LIMITS._replace(fence_s=1e6)), quiet((0, (ONE,)), (0, (ONE,)))
    clock_s = 0.0
    for backoff_s in (2.0, 4.0):
        begun = later(state, clock_s)
        assert len(policy.plan(begun, rng()).moves) == 1
        begun.arrays.node_fenced_until_s[:] = np.inf
        assert "waiting" in policy.plan(later(begun, 1799.0), rng()).reason
        assert "gave up" in policy.plan(later(begun, 1800.0), rng()).reason
        assert "backing off" in policy.plan(later(state, clock_s + 1800.0 + backoff_s - 0.1), rng()).reason
        clock_s += 1800.0 + backoff_s
    assert len(policy.plan(later(state, clock_s), rng()).moves) == 1
