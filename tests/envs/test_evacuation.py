"""Emptying a node: the plan is best fit, can be carried out move by move, and leaves nothing behind."""

import numpy as np
import pytest

from rayfold.envs.evacuation import BLOCKED, evacuation, move_price_usd
from rayfold.envs.moves import Move
from rayfold.envs.placement import let_go
from rayfold.envs.safety import Limits, check_move, move_masks
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase
from rayfold.envs.transition import with_move
from tests.envs.clusters import add_node, add_replica, empty_state, random_state, small_spec

ONE, TWO, HALF, SINGLE, GOLDEN, FIXED = range(6)
LIMITS = Limits(max_concurrent_moves=99, deployment_cooldown_s=0.0)


def planned(state: ClusterState, node: int) -> tuple[int, dict[int, int]]:
    """Count and destinations by replica."""
    st, spec = state.arrays, state.spec
    shape = (len(st.node_type), spec.num_deployments)
    source, may_take = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    new_node = np.zeros((len(spec.node_types), spec.num_deployments), np.float32)
    move_masks(spec.arrays, st, state.now_s, LIMITS, source, may_take, new_node)
    destination = np.empty(len(st.replica_phase), np.int64)
    count = evacuation(spec.arrays, st, state.now_s, LIMITS, may_take, node, destination)
    assert destination.min() >= -1
    return int(count), {int(r): int(destination[r]) for r in np.flatnonzero(destination >= 0)}


def by_single_moves(state: ClusterState, node: int) -> dict[int, int] | None:
    """The second route: one allowed move after another, each to the occupied node that has least left."""
    st = state.arrays
    if st.node_is_head[node] or not st.node_releasable[node]:
        return None  # nothing may leave it, whether it holds anything or not
    occupied = {int(n) for n in st.replica_node if n >= 0 and n != node}
    here = np.flatnonzero((st.replica_node == node) & (st.replica_phase != ReplicaPhase.STOPPING))
    demand = state.spec.arrays.demand[st.replica_deployment]
    plan: dict[int, int] = {}
    for r in sorted(here, key=lambda r: tuple(-demand[r])):
        if st.replica_phase[r] == ReplicaPhase.RUNNING and st.replica_peer[r] >= 0:
            continue
        free = state.arrays.node_free
        fits = [n for n in sorted(occupied) if check_move(state, Move(int(r), n), LIMITS).allowed]
        if not fits:
            return None
        plan[int(r)] = min(fits, key=lambda n: tuple(free[n].round(6)))
        state = with_move(state, Move(int(r), plan[int(r)]), LIMITS)
    return plan


def test_the_plan_is_what_single_moves_give() -> None:
    """On 200 random states, for every node: the same destinations, or blocked on both sides."""
    found = blocked = 0
    for seed in range(200):
        state = random_state(np.random.default_rng(seed))
        before = state.digest()
        for node in np.flatnonzero(state.arrays.node_phase == NodePhase.ALIVE):
            count, plan = planned(state, int(node))
            want = by_single_moves(state, int(node))
            assert (None if count == BLOCKED else plan) == want, (seed, node)
            assert len(plan) == (0 if count == BLOCKED else count)
            found += count > 0
            blocked += count == BLOCKED
        assert state.digest() == before
    assert found > 60
    assert blocked > 60


def three_nodes() -> ClusterState:
    """Two plain nodes with a replica of ``one`` each, and an empty one."""
    state = empty_state(small_spec())
    for n in range(3):
        add_node(state, n)
    for n in (0, 1):
        add_replica(state, ONE, n)
    return state


def test_an_empty_node_takes_nothing() -> None:
    """Moving onto an empty node would empty none; only node 1 is a destination."""
    state = three_nodes()
    assert planned(state, 0) == (1, {0: 1})
    for _ in range(3):
        add_replica(state, ONE, 1)
    assert planned(state, 0) == (BLOCKED, {})
    assert planned(state, 2) == (0, {})


def test_largest_first() -> None:
    """A pair of GPUs goes first: were the single one to go first, to the fuller node, the pair would not fit."""
    state = three_nodes()
    two = add_replica(state, TWO, 0)
    add_replica(state, ONE, 1)  # node 1: two GPUs left
    add_replica(state, TWO, 2)
    add_replica(state, ONE, 2)  # node 2: one GPU left
    assert planned(state, 0) == (2, {two: 1, 0: 2})


def test_devices_that_the_plan_has_used_up() -> None:
    """One free GPU of two halves holds one half after the other, but no whole one."""
    state = three_nodes()
    halves = [add_replica(state, HALF, 0) for _ in range(2)]
    for _ in range(2):
        add_replica(state, ONE, 1)
    assert planned(state, 0) == (BLOCKED, {})  # one GPU is left, for the whole replica or for the halves
    state.arrays.replica_phase[0] = ReplicaPhase.STOPPING  # the whole one leaves by itself
    assert planned(state, 0) == (2, dict.fromkeys(halves, 1))


@pytest.mark.parametrize("phase", [ReplicaPhase.STARTING, ReplicaPhase.RUNNING, ReplicaPhase.STOPPING])
def test_who_has_to_leave(phase: ReplicaPhase) -> None:
    """A starting replica blocks, a running one moves, a draining one needs no move."""
    state = three_nodes()
    state.arrays.replica_phase[0] = phase
    want = {
        ReplicaPhase.STARTING: (BLOCKED, {}),
        ReplicaPhase.RUNNING: (1, {0: 1}),
        ReplicaPhase.STOPPING: (0, {}),
    }
    assert planned(state, 0) == want[phase]


def test_a_replica_under_way_needs_no_second_move() -> None:
    """Its replacement starts elsewhere already."""
    state = with_move(three_nodes(), Move(0, 1), LIMITS)
    assert planned(state, 0) == (0, {})
    assert planned(state, 1) == (BLOCKED, {})  # the replacement is starting there


def test_a_replacement_in_row_zero() -> None:
    """Rows are used again: row 0 is a replacement like any other."""
    state = three_nodes()
    second = add_replica(state, ONE, 0)
    let_go(state.spec.arrays, state.arrays, 0, state.now_s)
    state = with_move(state, Move(second, 1), LIMITS)
    assert state.arrays.replica_peer[second] == 0
    assert planned(state, 0) == (0, {})


def test_opted_out_and_spread_limits_block() -> None:
    """A replica that may not move, or whose limit per node is met elsewhere, keeps its node."""
    state = three_nodes()
    add_replica(state, FIXED, 0)
    assert planned(state, 0) == (BLOCKED, {})
    state = three_nodes()
    add_replica(state, SINGLE, 0)
    assert planned(state, 0)[0] == 2
    add_replica(state, SINGLE, 1)
    assert planned(state, 0) == (BLOCKED, {})


def test_price_of_a_move_by_hand() -> None:
    """A quarter of a 4 USD node for 30 s and 2 % of an hour; a gold replica is half of a 6 USD node."""
    spec = small_spec().arrays
    assert move_price_usd(spec, ONE, 0.02, 1.0) == pytest.approx(1.0 * (30.0 / 3600.0 + 0.02))
    assert move_price_usd(spec, GOLDEN, 0.02, 4.0) == pytest.approx(3.0 * (30.0 / 3600.0 + 0.02) * 4.0)
