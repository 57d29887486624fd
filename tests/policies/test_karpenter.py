"""``karpenter`` on clusters small enough to decide by hand: 4-GPU nodes at 4 USD/h, 2-GPU ones (gold) at 6 USD/h."""

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray

from rayfold.envs.moves import Move, Plan
from rayfold.envs.placement import hold
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase, StateArrays
from rayfold.policies.karpenter import BalancedSettings, Karpenter, KarpenterBalanced, KarpenterSettings
from rayfold.policies.karpenter_search import Consolidation, Search
from tests.envs.clusters import add_node, add_replica, empty_state, small_spec
from tests.policies.test_heuristics import LIMITS, ONE, TWO, after, later, quiet, rng

NEW_NODES = LIMITS._replace(allow_new_nodes=True)
NUM_ROWS = 5  # of nodes: a move to row 5 + t is one to a new node of type t
PLAIN, GOLD = 0, 1


def rule(**settings: float) -> Karpenter:
    """Any number of nodes may go at once, unless said otherwise."""
    return Karpenter(LIMITS, KarpenterSettings(**{"budget_frac": 1.0, **settings}))


def validated(policy: Karpenter, state: ClusterState) -> Plan:
    """The plan 15 s after the first look."""
    assert policy.plan(state, rng()).moves == ()
    return policy.plan(later(state, 15.0), rng())


def three() -> ClusterState:
    """Two, one and three of four GPUs in use: rows 0 and 1, row 2, rows 3 to 5."""
    return quiet((PLAIN, (ONE, ONE)), (PLAIN, (ONE,)), (PLAIN, (ONE, ONE, ONE)))


def test_the_least_disruptive_node_goes_after_validation() -> None:
    """Node 1 has one replica, which fits on node 2; the decision has to hold for 15 s."""
    policy, state = rule(budget_frac=0.1), three()
    first = policy.plan(state, rng())
    assert (first.moves, first.candidates[0].moves) == ((), (Move(2, 2),))
    assert policy.plan(later(state, 14.0), rng()).moves == ()
    last = policy.plan(later(state, 15.0), rng())
    assert (last.moves, last.reason) == ((Move(2, 2),), "consolidate nodes 1")
    assert last.candidates[0].saving_usd_per_h == 4.0


def test_as_many_nodes_at_once_as_can_go() -> None:
    """Nodes 0 and 1 together fit on node 2, all three nowhere; the budget of one node leaves one."""
    state = quiet((PLAIN, (ONE,)), (PLAIN, (ONE,)), (PLAIN, (ONE, ONE)))
    plan = validated(rule(), state)
    assert plan.moves == (Move(0, 2), Move(1, 2))
    assert plan.reason == "consolidate nodes 0, 1"
    assert validated(rule(budget_frac=0.33), state).moves == (Move(0, 2),)


def test_the_budget_counts_nodes_under_way() -> None:
    """While node 0 is being emptied no other node is looked at; its own moves go on."""
    policy = rule(budget_frac=0.33)
    state = quiet((PLAIN, (ONE,)), (PLAIN, (ONE,)), (PLAIN, (ONE, ONE)))
    begun = later(after(state, validated(policy, state)), 60.0)
    plan = policy.plan(begun, rng())
    assert (plan.moves, plan.reason) == ((), "as many nodes as the budget allows are under way")


def test_what_no_longer_holds_is_abandoned() -> None:
    """The room on node 2 is gone when it is looked at again."""
    policy, state = rule(budget_frac=0.1), quiet((PLAIN, (ONE,)), (PLAIN, (ONE, ONE, ONE)))
    assert policy.plan(state, rng()).candidates[0].moves == (Move(0, 1),)
    full = later(state, 20.0)
    add_replica(full, ONE, 1)
    plan = policy.plan(full, rng())
    assert (plan.moves, plan.reason) == ((), "abandoned: nodes 0: not all replicas fit elsewhere")


def test_it_waits_after_an_event() -> None:
    """Replicas came at the clock of the state: candidates 60 s later, unless one has left each node meanwhile."""
    for is_disturbed in (False, True):
        policy, state = rule(consolidate_after_s=60.0), three()
        assert policy.plan(later(state, 59.0), rng()).reason == "nothing to consolidate"
        at = later(state, 60.0)
        if is_disturbed:
            at.arrays.replica_phase[[0, 2, 3]] = ReplicaPhase.STOPPING
        assert ("can go" in policy.plan(at, rng()).reason) != is_disturbed


def replaceable(*nodes: tuple[int, tuple[int, ...]], is_spot: bool = False) -> Consolidation | str:
    """What becomes of all of these nodes together where new nodes are allowed."""
    spec = small_spec()
    types = tuple(dataclasses.replace(t, is_spot=is_spot) for t in spec.node_types)
    state = empty_state(dataclasses.replace(spec, node_types=types), now_s=10_000.0)
    for n, (node_type, replicas) in enumerate(nodes):
        add_node(state, n, node_type)
        for d in replicas:
            add_replica(state, d, n)
    return Search(state, NEW_NODES).consolidate(range(len(nodes)))


def test_one_cheaper_node_replaces_those_that_go() -> None:
    """A single on a gold node fits on a plain one for 2 USD/h less; two of them save 8 USD/h."""
    one, two = replaceable((GOLD, (ONE,))), replaceable((GOLD, (ONE,)), (GOLD, (ONE,)))
    assert isinstance(one, Consolidation)
    assert isinstance(two, Consolidation)
    assert (one.moves, one.new_type, one.saving_usd_per_h) == ((Move(0, NUM_ROWS),), PLAIN, 2.0)
    assert (two.moves, two.saving_usd_per_h) == ((Move(0, NUM_ROWS), Move(1, NUM_ROWS)), 8.0)


@pytest.mark.parametrize(
    "nodes",
    [
        ((PLAIN, (ONE,)),),  # nothing is cheaper
        ((GOLD, (ONE, ONE)), (PLAIN, (ONE,))),  # cheaper than both, but then the plain one may as well stay
        ((GOLD, (ONE, ONE)), (GOLD, (TWO,)), (PLAIN, (ONE,))),  # five GPUs are too many for one node
        ((GOLD, (4,)),),  # asks for gold
    ],
)
def test_when_no_node_replaces_them(nodes: tuple[tuple[int, tuple[int, ...]], ...]) -> None:
    """Cheaper than all that go, large enough, and not of a type that goes."""
    assert replaceable(*nodes) == "not all replicas fit elsewhere"


def test_spot_nodes_are_not_replaced_by_spot_nodes() -> None:
    """As Karpenter does by default."""
    assert isinstance(replaceable((GOLD, (ONE,))), Consolidation)
    assert isinstance(replaceable((GOLD, (ONE,)), is_spot=True), str)


def test_the_first_replica_launches_the_new_node_and_the_others_follow() -> None:
    """Rows 0 and 1 leave two gold nodes: one launch, and row 1 moves when the node is alive and in use."""
    policy, state = Karpenter(NEW_NODES, KarpenterSettings(budget_frac=1.0)), quiet((GOLD, (ONE,)), (GOLD, (ONE,)))
    state.arrays.node_free[:2, 0] = state.arrays.gpu_free[:2, 1] = 0.0  # the other GPU is held by others
    plan = validated(policy, state)
    assert plan.moves == (Move(0, NUM_ROWS),)
    begun = later(after(state, plan), 30.0)
    assert policy.plan(begun, rng()).moves == ()
    alive = later(begun, 30.0)
    st = alive.arrays
    launched, pending = (int(np.flatnonzero(is_it)[0]) for is_it in (st.node_phase == NodePhase.BOOTING, is_new(st)))
    st.node_phase[launched] = NodePhase.ALIVE
    hold(alive.spec.arrays, st, pending, launched)
    st.replica_phase[[0, pending]] = ReplicaPhase.STOPPING, ReplicaPhase.RUNNING
    assert policy.plan(alive, rng()).moves == (Move(1, launched),)


def is_new(st: StateArrays) -> NDArray[np.bool_]:
    """Replicas that wait for their node."""
    return np.asarray(st.replica_phase == ReplicaPhase.PENDING)


def test_it_goes_on_until_the_node_is_empty() -> None:
    """One move at a time: after the first replica has left, the second follows; a row used again is left alone."""
    policy = Karpenter(LIMITS._replace(max_concurrent_moves=1), KarpenterSettings())
    state = quiet((PLAIN, (ONE, ONE)), (PLAIN, (ONE, ONE)))
    assert validated(policy, state).moves == (Move(0, 1),)
    second = later(state, 100.0)
    second.arrays.replica_phase[0] = ReplicaPhase.STOPPING
    assert policy.plan(second, rng()).moves == (Move(1, 1),)
    other = later(second, 10.0)
    other.arrays.replica_since_s[1] = other.now_s
    assert policy.plan(other, rng()).moves == ()


def test_it_gives_up_without_progress() -> None:
    """Its destination has filled up: after 600 s node 0 is no longer under way, and is looked at again."""
    policy, state = rule(budget_frac=0.1), quiet((PLAIN, (ONE, ONE)), (PLAIN, (ONE, ONE)))
    policy._limits = LIMITS._replace(max_concurrent_moves=0)
    validated(policy, state)
    assert "under way" in policy.plan(later(state, 614.0), rng()).reason
    assert "can go" in policy.plan(later(state, 615.0), rng()).reason


def test_nodes_that_have_to_stay() -> None:
    """With a minimum of two plain nodes, one of three may go, and not two."""
    state = empty_state(small_spec(min_nodes=2))
    for n in range(3):
        add_node(state, n, PLAIN)
        add_replica(state, ONE, n)
    search = Search(state, LIMITS)
    assert isinstance(search.consolidate([0]), Consolidation)
    assert search.consolidate([0, 1]) == "so many nodes of its type have to stay"


def test_disruption_is_one_per_node_and_one_per_mean_move() -> None:
    """A two-GPU replica costs twice a single: with one of each, 4/3 and 2/3 of the mean."""
    search = Search(quiet((PLAIN, (TWO,)), (PLAIN, (ONE,))), LIMITS)
    assert search.disruption([0]) == pytest.approx(1 + 4 / 3)
    assert search.disruption([1]) == pytest.approx(1 + 2 / 3)
    assert search.totals() == pytest.approx((8.0, 4.0))


@pytest.mark.parametrize(("min_score", "moves"), [(1.5, (Move(0, 1),)), (1.51, ())])
def test_balanced_weighs_saving_against_disruption(min_score: float, moves: tuple[Move, ...]) -> None:
    """Node 0 saves 4 of 8 USD/h and disrupts (1 + 1) of (2 + 4): 1/2 over 1/3."""
    policy = KarpenterBalanced(LIMITS, BalancedSettings(min_score=min_score))
    state = quiet((PLAIN, (ONE,)), (PLAIN, (ONE, ONE, ONE)))
    assert validated(policy, state).moves == moves


def test_reset_forgets() -> None:
    """What was found has to be found again."""
    policy, state = rule(), three()
    policy.plan(state, rng())
    policy.reset()
    assert "can go" in policy.plan(later(state, 60.0), rng()).reason
