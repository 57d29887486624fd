"""``best_fit`` and the evacuations it chooses from: the order of preference, one criterion at a time."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from rayfold.envs.cluster import AutoscalingConfig, ClusterSpec, Deployment, Interval, NodeType, ReplicaShape
from rayfold.envs.safety import Limits, check_move
from rayfold.envs.state import ClusterState
from rayfold.envs.transition import with_move
from rayfold.policies.best_fit import BestFit
from rayfold.policies.evacuations import evacuations
from tests.envs.clusters import add_node, add_replica, empty_state

CHEAP, DEAR = 0, 1  # node types, equal but for the price
QUICK, SLOW, BIG = 0, 1, 2  # deployments: one GPU and a quick start, one GPU and a slow one, two GPUs
LIMITS = Limits(max_concurrent_moves=4, deployment_cooldown_s=0.0)


def spec() -> ClusterSpec:
    """4-GPU nodes at 8 and 12 USD/h; moves of QUICK, SLOW and BIG become dearer in this order."""
    resources = {"GPU": 4.0, "CPU": 16.0}
    scaling = AutoscalingConfig(min_replicas=1, max_replicas=8)

    def deployment(name: str, gpus: float, startup_s: float) -> Deployment:
        return Deployment(
            name=name,
            shape=ReplicaShape(bundles=({"GPU": gpus, "CPU": 1.0},)),
            autoscaling=scaling,
            startup_s=Interval(startup_s, startup_s),
        )

    return ClusterSpec(
        node_types=(
            NodeType(name="cheap", resources=resources, price_usd_per_h=8.0, max_nodes=5),
            NodeType(name="dear", resources=resources, price_usd_per_h=12.0, max_nodes=5),
        ),
        deployments=(deployment("quick", 1.0, 36.0), deployment("slow", 1.0, 720.0), deployment("big", 2.0, 720.0)),
    )


def state(*nodes: tuple[int, Sequence[int]]) -> ClusterState:
    """Nodes of a type with running replicas, in order of rows."""
    out = empty_state(spec(), now_s=10_000.0)
    for n, (node_type, replicas) in enumerate(nodes):
        add_node(out, n, node_type)
        for d in replicas:
            add_replica(out, d, n)
    return out


def emptied(view: ClusterState, limits: Limits = LIMITS) -> set[int]:
    """Nodes that the plan moves replicas off."""
    plan = BestFit(limits).plan(view, np.random.default_rng(0))
    assert len(plan.scores) == len(plan.moves)
    return {int(view.arrays.replica_node[move.replica_idx]) for move in plan.moves}


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        # Two quick moves (2 x 0.03 of a replica's hourly price) are cheaper than one slow one (0.22), dear or not.
        ([(CHEAP, [SLOW]), (CHEAP, [QUICK, QUICK]), (CHEAP, [BIG, QUICK])], 1),
        ([(DEAR, [SLOW]), (CHEAP, [QUICK, QUICK]), (CHEAP, [BIG, QUICK])], 1),
        # The price of the moves being equal, the dearer node goes, whichever row it has.
        ([(CHEAP, [QUICK]), (DEAR, [QUICK]), (CHEAP, [BIG, QUICK])], 1),
        ([(DEAR, [QUICK]), (CHEAP, [QUICK]), (CHEAP, [BIG, QUICK])], 0),
        # All being equal, the first row.
        ([(CHEAP, [BIG, QUICK]), (CHEAP, [QUICK]), (CHEAP, [QUICK])], 1),
    ],
)
def test_order_of_preference(nodes: list[tuple[int, list[int]]], expected: int) -> None:
    """The price of the moves, then the price of the node, then the row."""
    assert emptied(state(*nodes)) == {expected}


def test_a_node_already_being_emptied_goes_first() -> None:
    """Although its moves cost more and another node is dearer."""
    view = state((CHEAP, [SLOW]), (DEAR, [QUICK]), (CHEAP, [BIG, QUICK]))
    assert emptied(view) == {1}
    view.arrays.node_fenced_until_s[0] = view.now_s + 100.0
    assert emptied(view) == {0}
    view.arrays.node_fenced_until_s[0] = view.now_s  # the fence holds no more
    assert emptied(view) == {1}


def test_price_and_order_of_the_moves_by_hand() -> None:
    """The largest replica moves first; price = hourly price of the replica x (hours of its start + 2 %), summed."""
    view = state((CHEAP, [QUICK, BIG]), (CHEAP, [QUICK, QUICK]), (DEAR, [BIG]))
    [entry] = [e for e in evacuations(view, LIMITS) if e.node_idx == 0]
    assert [int(view.arrays.replica_deployment[move.replica_idx]) for move in entry.moves] == [BIG, QUICK]
    usd_per_h = view.spec.arrays.replica_usd_per_h
    by_hand = usd_per_h[BIG] * (0.2 + 0.02) + usd_per_h[QUICK] * (0.01 + 0.02)
    assert entry.price_usd == pytest.approx(by_hand)
    assert entry.node_usd_per_h == 8.0
    plan = BestFit(LIMITS).plan(state((CHEAP, [BIG]), (CHEAP, [QUICK, QUICK])), np.random.default_rng(0))
    assert plan.scores == pytest.approx((-2 * usd_per_h[QUICK] * 0.03,) * 2)


@pytest.mark.parametrize(("in_flight", "num_moves"), [(0, 2), (1, 1), (2, 0), (3, 0)])
def test_moves_in_flight_leave_less_room(in_flight: int, num_moves: int) -> None:
    """With a limit of two, what is still starting elsewhere counts; never more, and no negative number."""
    view = state((CHEAP, [QUICK, QUICK, QUICK]), (CHEAP, [SLOW]), (DEAR, [SLOW, SLOW, SLOW]))
    view.arrays.node_fenced_until_s[0] = view.now_s + 100.0
    others = np.flatnonzero(view.arrays.replica_node == 2)[:in_flight]
    view.arrays.replica_peer[others] = 0
    plan = BestFit(LIMITS._replace(max_concurrent_moves=2)).plan(view, np.random.default_rng(0))
    assert (len(plan.moves), len(plan.scores)) == (num_moves, num_moves)


@pytest.mark.parametrize("others", [(), (CHEAP,)])
def test_limit_per_node_counts_what_is_planned(others: tuple[int, ...]) -> None:
    """Room for two more, but a node may hold two of a kind and has one: the second goes to a third node."""
    plain = spec()
    limited = replace(plain.deployments[QUICK], max_replicas_per_node=2)
    view = empty_state(replace(plain, deployments=(limited, *plain.deployments[1:])), now_s=10_000.0)
    for n in range(2 + len(others)):
        add_node(view, n)
    for d, n in ((QUICK, 0), (QUICK, 0), (QUICK, 1), (SLOW, 1)):
        add_replica(view, d, n)
    for n in range(2, 2 + len(others)):
        add_replica(view, BIG, n)
    [*found] = (e for e in evacuations(view, LIMITS) if e.node_idx == 0)
    if not others:
        assert found == []
        return
    assert sorted(move.node_idx for move in found[0].moves) == [1, 2]
    for move in found[0].moves:
        assert check_move(view, move, LIMITS).allowed
        view = with_move(view, move, LIMITS)


def test_no_memory() -> None:
    """Asked twice, and after a reset, it answers the same: the policy can be imitated from the state alone."""
    policy, view = BestFit(LIMITS), state((CHEAP, [QUICK]), (DEAR, [QUICK]), (CHEAP, [BIG, QUICK]))
    plans = [policy.plan(view, np.random.default_rng(seed)) for seed in range(3)]
    policy.reset()
    assert {policy.plan(view, np.random.default_rng(9)), *plans} == {plans[0]}


@pytest.mark.parametrize("nodes", [[], [(CHEAP, [])], [(CHEAP, [QUICK])], [(CHEAP, [BIG, BIG]), (CHEAP, [BIG, BIG])]])
def test_nothing_to_do(nodes: list[tuple[int, list[int]]]) -> None:
    """No node, no replica, no other node, or no room: no move, and a reason."""
    plan = BestFit(LIMITS).plan(state(*nodes), np.random.default_rng(0))
    assert (plan.moves, plan.scores, plan.reason) == ((), (), "no node can be emptied")
