"""Where a simulation begins: Serve's own placement for the first traffic, or any state with things under way."""

import dataclasses

import numpy as np
import pytest

from rayfold.envs.cluster import SchedulingStrategy
from rayfold.envs.initial_state import initial_state
from rayfold.envs.moves import Move
from rayfold.envs.safety import Limits
from rayfold.envs.simulator import Simulator
from rayfold.envs.state import NodePhase, ReplicaPhase
from rayfold.envs.transition import with_move
from tests.envs.clusters import add_node, add_replica, constant_traffic, empty_state, small_spec

ONE, TWO, HALF, SINGLE, GOLDEN, FIXED = range(6)
LIMITS = Limits(max_concurrent_moves=3, deployment_cooldown_s=0.0, fence_s=300.0)
NOTHING = dict.fromkeys(("one", "two", "half", "single", "golden", "fixed"), 0.0)


@pytest.mark.parametrize("strategy", SchedulingStrategy)
def test_every_replica_that_is_wanted_runs(strategy: SchedulingStrategy) -> None:
    """Targets are the load over two requests, within 1 and 6; all run on alive nodes, and none is left waiting."""
    spec = small_spec(strategy)
    load = NOTHING | {"one": 4.1, "two": 3.9, "half": 99.0}
    state = initial_state(spec, constant_traffic(spec, load, 1), np.random.default_rng(0))
    st = state.arrays
    assert st.deployment_target.tolist() == [3, 2, 6, 1, 1, 1]
    present = st.replica_phase != ReplicaPhase.EMPTY
    assert (st.replica_phase[present] == ReplicaPhase.RUNNING).all()
    assert np.bincount(st.replica_deployment[present]).tolist() == [3, 2, 6, 1, 1, 1]
    assert (st.node_phase[st.replica_node[present]] == NodePhase.ALIVE).all()
    assert not (st.node_phase == NodePhase.BOOTING).any()
    assert np.isinf(st.node_idle_since_s).all()  # no node was launched that nothing needs


def test_it_begins_at_the_traffics_time_of_day() -> None:
    """The clock, and everything that has just begun, is at eight in the morning; the rest is as at midnight."""
    spec = small_spec(min_nodes=3)
    traffic = constant_traffic(spec, {"one": 2.0}, 1)
    midnight = initial_state(spec, traffic, np.random.default_rng(0))
    morning = initial_state(spec, dataclasses.replace(traffic, start_s=28800.0), np.random.default_rng(0))
    assert (midnight.now_s, morning.now_s) == (0.0, 28800.0)
    for name, early, late in zip(midnight.arrays._fields, midnight.arrays, morning.arrays, strict=True):
        begun = np.add(early, 28800.0) if name.endswith("since_s") else early
        rows = late != 0.0 if name == "replica_since_s" else np.ones_like(late, np.bool_)  # rows in use
        np.testing.assert_array_equal(np.asarray(begun)[rows], late[rows], name)


def test_the_least_nodes_are_there_from_the_start() -> None:
    """Three plain nodes must stay: all there, though one would do."""
    spec = small_spec(min_nodes=3)
    spec.arrays.min_replicas[:] = 0
    state = initial_state(spec, constant_traffic(spec, {"one": 2.0}, 1), np.random.default_rng(0))
    assert state.arrays.node_type[state.arrays.node_phase == NodePhase.ALIVE].tolist() == [0, 0, 0]


def test_what_does_not_fit_waits() -> None:
    """Five nodes of four GPUs and room for no more: six pairs and six singles fit, some of six more do not."""
    spec = small_spec()
    spec.arrays.type_max_nodes[:] = (5, 0)
    load = NOTHING | {"one": 12.0, "two": 12.0, "fixed": 12.0}
    spec.arrays.min_replicas[:] = 0
    state = initial_state(spec, constant_traffic(spec, load, 1), np.random.default_rng(0))
    phases = state.arrays.replica_phase
    assert (phases == ReplicaPhase.PENDING).sum() == 6 * 2 + 6 + 6 - 5 * 4
    assert state.arrays.node_free[state.arrays.node_phase == NodePhase.ALIVE, 0].sum() == 0.0


def test_what_is_under_way_ends_when_it_would_have() -> None:
    """Start-up 30 s begun 20 s ago, drain 10 s begun 5 s ago, boot 40 s begun 25 s ago: 10 s, 5 s and 15 s to go."""
    state = empty_state(small_spec())
    state.spec.arrays.min_replicas[:] = 0
    add_node(state, 0)
    add_node(state, 1, phase=NodePhase.BOOTING)
    state.arrays.node_idle_since_s[1] = state.now_s - 25.0
    starting = add_replica(state, ONE, 0, ReplicaPhase.STARTING)
    state.arrays.replica_since_s[starting] = state.now_s - 20.0
    draining = add_replica(state, TWO, 0, ReplicaPhase.STOPPING)
    state.arrays.replica_since_s[draining] = state.now_s - 5.0
    state.arrays.deployment_target[TWO] = 0
    sim = Simulator(state, constant_traffic(state.spec, {"one": 2.0}, 10), LIMITS, np.random.default_rng(0))
    seen = []
    for _ in range(4):
        st = sim.view.arrays
        seen.append((int(st.replica_phase[starting]), int(st.replica_phase[draining]), int(st.node_phase[1])))
        sim.advance(1)
    assert seen == [
        (ReplicaPhase.STARTING, ReplicaPhase.STOPPING, NodePhase.BOOTING),
        (ReplicaPhase.STARTING, ReplicaPhase.EMPTY, NodePhase.BOOTING),
        (ReplicaPhase.RUNNING, ReplicaPhase.EMPTY, NodePhase.BOOTING),
        (ReplicaPhase.RUNNING, ReplicaPhase.EMPTY, NodePhase.ALIVE),
    ]


def test_overdue_things_end_at_once() -> None:
    """What should have ended before the state was taken ends with the first step, not in the past."""
    state = empty_state(small_spec())
    add_node(state, 0)
    r = add_replica(state, ONE, 0, ReplicaPhase.STARTING)
    state.arrays.replica_since_s[r] = state.now_s - 999.0
    sim = Simulator(state, constant_traffic(state.spec, {"one": 2.0}, 2), LIMITS, np.random.default_rng(0))
    assert sim.view.arrays.replica_phase[r] == ReplicaPhase.STARTING
    sim.advance(1)
    assert sim.view.arrays.replica_phase[r] == ReplicaPhase.RUNNING
    assert sim.view.arrays.replica_since_s[r] == sim.now_s


def test_a_migration_under_way_goes_on() -> None:
    """A live snapshot may hold a started move: the replacement serves after 30 s, the old one is gone 10 s later."""
    state = empty_state(small_spec(), num_replicas=2)
    state.spec.arrays.min_replicas[:] = 0
    for n in (0, 1):
        add_node(state, n)
    add_replica(state, ONE, 0)
    add_replica(state, ONE, 1)
    state = with_move(state, Move(0, 1), LIMITS)
    before = state.digest()
    sim = Simulator(state, constant_traffic(state.spec, {"one": 4.0}, 20), LIMITS, np.random.default_rng(0))
    assert len(sim.view.arrays.replica_phase) > 3  # rows are added so that replicas can be created
    sim.advance(6)
    assert sim.view.arrays.replica_phase[:3].tolist() == [
        ReplicaPhase.STOPPING,
        ReplicaPhase.RUNNING,
        ReplicaPhase.RUNNING,
    ]
    sim.advance(2)
    assert sim.view.arrays.replica_phase[0] == ReplicaPhase.EMPTY
    assert sim.view.arrays.node_free[:2, 0].tolist() == [4.0, 2.0]
    assert state.digest() == before  # the given state is copied
