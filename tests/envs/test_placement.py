"""Placement by second routes and by hand; ``test_ray_rules.py`` runs the same rules beside Ray's own classes."""

import numpy as np
import pytest

from rayfold.envs.placement import (
    active_nodes,
    asks_more,
    hold,
    let_go,
    pack_node,
    replicas_to_stop,
    spread_node,
)
from rayfold.envs.safety import capacity_reason
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase
from tests.envs.clusters import add_node, add_replica, empty_state, random_state, small_spec

ONE, TWO, HALF, SINGLE, GOLDEN, FIXED = range(6)


def takers(state: ClusterState, d: int) -> list[int]:
    """Alive nodes that have room for one more replica of ``d``, fenced ones included."""
    st = state.arrays
    alive = np.flatnonzero(st.node_phase == NodePhase.ALIVE)
    return [n for n in map(int, alive) if capacity_reason(state.spec.arrays, st, d, n) == 0]


def is_fenced(state: ClusterState, n: int) -> bool:
    """Whether node ``n`` is being emptied."""
    return bool(state.arrays.node_fenced_until_s[n] > state.now_s)


def test_pack_by_a_sort() -> None:
    """On 300 random states: the smallest by (fenced, idle unless fenced, what is left, held with a limit, row).

    A limit per node is a share of a resource of its own; Ray compares that last.
    """
    num_fenced = num_empty = 0
    for seed in range(300):
        state = random_state(np.random.default_rng(seed))
        st, limited = state.arrays, state.spec.arrays.max_per_node > 0
        for d in range(state.spec.num_deployments):
            keys = {
                n: (
                    is_fenced(state, n),
                    not is_fenced(state, n)
                    and not ((st.replica_node == n) & (st.replica_phase == ReplicaPhase.RUNNING)).any(),
                    tuple(st.node_free[n].round(6)),
                    tuple(-st.node_held[n, limited]),
                    n,
                )
                for n in takers(state, d)
            }
            want = min(keys, key=lambda n: keys[n], default=-1)
            assert pack_node(state.spec.arrays, st, state.now_s, d, active_nodes(state.spec.arrays, st)) == want, (
                seed,
                d,
            )
            num_fenced += want >= 0 and keys[want][0]
            num_empty += want >= 0 and keys[want][1]
    assert num_fenced > 10
    assert num_empty > 100


def test_spread_by_a_rotation() -> None:
    """On 200 random states and every cursor: the first taker at or after it, round the end, fenced ones last."""
    num_fenced = 0
    for seed in range(200):
        state = random_state(np.random.default_rng(seed))
        num_nodes = len(state.arrays.node_type)
        for d in range(state.spec.num_deployments):
            for cursor in range(num_nodes):
                ring = sorted(takers(state, d), key=lambda n: (is_fenced(state, n), (n - cursor) % num_nodes))
                want = ring[0] if ring else -1
                assert spread_node(state.spec.arrays, state.arrays, state.now_s, d, cursor) == want, (seed, d)
                num_fenced += want >= 0 and is_fenced(state, want)
    assert num_fenced > 10


def test_spread_goes_round() -> None:
    """Six replicas over three nodes, from the second one on: two on each."""
    state = empty_state(small_spec())
    for n in range(3):
        add_node(state, n)
    cursor, seen = 1, []
    for _ in range(6):
        n = int(spread_node(state.spec.arrays, state.arrays, state.now_s, ONE, cursor))
        add_replica(state, ONE, n)
        seen.append(n)
        cursor = n + 1
    assert seen == [1, 2, 0, 1, 2, 0]


def test_best_fit_looks_at_the_dear_resource_first() -> None:
    """Fewest GPUs left wins over fewest CPUs; of equal nodes the first."""
    state = empty_state(small_spec())
    for n in range(4):
        add_node(state, n)
    add_replica(state, ONE, 1)
    state.arrays.node_free[2, 1] = 1.0
    spec, st, active = state.spec.arrays, state.arrays, np.ones(5, np.bool_)
    assert pack_node(spec, st, state.now_s, ONE, active) == 1
    st.node_phase[1] = NodePhase.DRAINING
    assert pack_node(spec, st, state.now_s, ONE, active) == 2
    st.node_phase[2] = NodePhase.BOOTING
    assert pack_node(spec, st, state.now_s, ONE, active) == 0
    assert pack_node(spec, st, state.now_s, GOLDEN, active) == -1


def test_larger_asks_more() -> None:
    """By GPUs; of equal ones the one with a limit per node; equal requests are not larger than each other."""
    spec = small_spec().arrays
    assert asks_more(spec, TWO, ONE)
    assert asks_more(spec, ONE, HALF)
    assert not asks_more(spec, HALF, TWO)
    assert asks_more(spec, SINGLE, ONE)
    assert not asks_more(spec, ONE, SINGLE)
    assert not asks_more(spec, ONE, FIXED)
    assert not asks_more(spec, FIXED, ONE)
    assert not asks_more(spec, SINGLE, SINGLE)


def test_hold_and_let_go_are_inverse() -> None:
    """On random states, for every replica: let go and held again, nothing but its phase and the idle clock differ."""
    for seed in range(100):
        state = random_state(np.random.default_rng(seed))
        st = state.arrays
        for r in map(int, np.flatnonzero(st.replica_node >= 0)):
            n, d, before = int(st.replica_node[r]), int(st.replica_deployment[r]), st.copy()
            let_go(state.spec.arrays, st, r, state.now_s + 3.0)
            assert st.replica_gpus[r, 0] == 0
            is_last = (before.replica_node == n).sum() == 1
            assert st.node_idle_since_s[n] == (state.now_s + 3.0 if is_last else np.inf)
            assert [st.replica_deployment[r], st.replica_node[r], st.replica_phase[r]] == [-1, -1, ReplicaPhase.EMPTY]
            st.replica_deployment[r], st.replica_phase[r] = d, before.replica_phase[r]
            hold(state.spec.arrays, st, r, n)
            np.testing.assert_allclose(st.node_free, before.node_free)
            np.testing.assert_allclose(st.gpu_free[n].sum(), before.gpu_free[n].sum())
            assert st.node_idle_since_s[n] == np.inf


def stop_order(state: ClusterState, d: int) -> list[int]:
    """Rows in the order in which downscales by one would stop them."""
    serial, order = np.arange(len(state.arrays.replica_phase)), []
    while len(rows := replicas_to_stop(state.spec.arrays, state.arrays, d, 1, serial)):
        order.append(int(rows[0]))
        let_go(state.spec.arrays, state.arrays, order[-1], state.now_s)
    return order


def test_stop_order_by_hand() -> None:
    """Waiting and starting ones, newest first; one being moved; the emptiest node; the newest there; the head last."""
    state = empty_state(small_spec())
    st = state.arrays
    for n in range(4):
        add_node(state, n)
    st.node_is_head[3] = True
    head = add_replica(state, ONE, 3)
    crowd = [add_replica(state, ONE, 0), add_replica(state, ONE, 0)]
    add_replica(state, TWO, 0)
    alone = add_replica(state, ONE, 1)
    starting = add_replica(state, ONE, 1, ReplicaPhase.STARTING)
    moving = add_replica(state, ONE, 2)
    replacement = add_replica(state, ONE, 1, ReplicaPhase.STARTING)
    st.replica_peer[moving], st.replica_peer[replacement] = replacement, moving
    waiting = int(np.flatnonzero(st.replica_phase == ReplicaPhase.EMPTY)[0])
    st.replica_deployment[waiting], st.replica_phase[waiting] = ONE, ReplicaPhase.PENDING
    draining = add_replica(state, ONE, 2, ReplicaPhase.STOPPING)
    assert stop_order(state, ONE) == [waiting, starting, moving, alone, *crowd[::-1], head]
    assert st.replica_phase[[replacement, draining]].tolist() == [ReplicaPhase.STARTING, ReplicaPhase.STOPPING]


def test_row_zero_is_a_row_like_others() -> None:
    """It is stopped first where it is on the emptiest node, and it may be the replacement of one that is moved."""
    state = empty_state(small_spec())
    st = state.arrays
    add_node(state, 0)
    add_node(state, 1)
    first = add_replica(state, ONE, 0)
    crowd = [add_replica(state, ONE, 1), add_replica(state, ONE, 1)]
    assert stop_order(state, ONE) == [first, *crowd[::-1]]
    rows = [add_replica(state, ONE, 0, ReplicaPhase.STARTING), add_replica(state, ONE, 1), add_replica(state, ONE, 1)]
    st.replica_peer[rows[0]], st.replica_peer[rows[1]] = rows[1], rows[0]
    assert rows[0] == 0
    assert stop_order(state, ONE) == [rows[1], rows[2]]


@pytest.mark.parametrize("d", [TWO, HALF])
def test_nothing_to_stop(d: int) -> None:
    """None where the deployment has no replica."""
    state = empty_state(small_spec())
    add_node(state, 0)
    add_replica(state, ONE, 0)
    assert len(replicas_to_stop(state.spec.arrays, state.arrays, d, 1, np.arange(24))) == 0
