"""Moves as transitions: begun, cancelled, looked ahead, and followed to their end by the simulated executor."""

import numpy as np
import pytest

from rayfold.envs.ledger import Entry
from rayfold.envs.moves import Move, MovePhase
from rayfold.envs.safety import Limits, check_move
from rayfold.envs.simulator import Simulator
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase, StateArrays
from rayfold.envs.transition import begin_move, cancel_move, free_row, with_move
from rayfold.errors import ExecutorError
from tests.envs.clusters import add_node, add_replica, empty_state, random_state, small_spec, varying_traffic

LIMITS = Limits(max_concurrent_moves=3, deployment_cooldown_s=0.0, fence_s=300.0)
ONE = 0


def two_nodes(num_replicas: int = 24) -> ClusterState:
    """One replica of ``one`` on each of two nodes; every deployment may scale to zero."""
    state = empty_state(small_spec(), num_replicas=num_replicas)
    state.spec.arrays.min_replicas[:] = 0
    for n in (0, 1):
        add_node(state, n)
        add_replica(state, ONE, n)
    return state


def simulator(state: ClusterState, ongoing: list[float]) -> Simulator:
    """A simulator in which the load of ``one`` is given step by step."""
    traffic = varying_traffic(state.spec, {"one": ongoing}, len(ongoing))
    return Simulator(state, traffic, LIMITS, np.random.default_rng(0))


def differing(a: StateArrays, b: StateArrays) -> set[str]:
    """Names of the arrays that are not equal."""
    return {name for name in StateArrays._fields if not np.array_equal(getattr(a, name), getattr(b, name))}


def allowed_moves(state: ClusterState) -> list[Move]:
    """Every move that the filter allows."""
    st = state.arrays
    moves = [Move(r, n) for r in range(len(st.replica_phase)) for n in range(len(st.node_type))]
    return [move for move in moves if check_move(state, move, LIMITS).allowed]


def test_begin_by_hand() -> None:
    """Row 2 becomes the replacement of row 0 on node 1, which now holds two GPUs; node 0 is fenced."""
    state = two_nodes()
    st = state.arrays
    assert begin_move(state.spec.arrays, st, 1000.0, 300.0, 0, 1) == 2
    assert st.replica_peer[:3].tolist() == [2, -1, 0]
    assert st.replica_node[:3].tolist() == [0, 1, 1]
    assert st.replica_phase[:3].tolist() == [ReplicaPhase.RUNNING, ReplicaPhase.RUNNING, ReplicaPhase.STARTING]
    assert st.node_free[:2, 0].tolist() == [3.0, 2.0]
    assert sorted(st.gpu_free[1].tolist()) == [0.0, 0.0, 1.0, 1.0]
    assert st.replica_gpus[1] & st.replica_gpus[2] == 0
    assert st.node_fenced_until_s[:2].tolist() == [1300.0, -np.inf]
    assert st.deployment_moved_s[ONE] == st.deployment_changed_s[ONE] == 1000.0
    assert st.deployment_target[ONE] == 2


def test_cancel_undoes_begin() -> None:
    """On random states, for every allowed move: all that differs afterwards is when the deployment last changed."""
    num_moves = 0
    for seed in range(80):
        state = random_state(np.random.default_rng(seed))
        for move in allowed_moves(state):
            arrays = state.arrays.copy()
            was_empty = np.isfinite(arrays.node_idle_since_s[move.node_idx])
            row = begin_move(state.spec.arrays, arrays, state.now_s, LIMITS.fence_s, *move)
            assert differing(arrays, state.arrays) >= {"replica_peer", "node_free", "replica_phase"}
            cancel_move(state.spec.arrays, arrays, state.now_s + 5.0, row)
            arrays.replica_since_s[row] = state.arrays.replica_since_s[row]  # of an empty row
            since = {"node_idle_since_s"} if was_empty else set()
            fence = {"node_fenced_until_s"} if state.arrays.node_fenced_until_s[source_node(state, move)] > 0 else set()
            assert differing(arrays, state.arrays) == {"deployment_moved_s", "deployment_changed_s"} | since | fence
            num_moves += 1
    assert num_moves > 150


def source_node(state: ClusterState, move: Move) -> int:
    """The node that the move leaves."""
    return int(state.arrays.replica_node[move.replica_idx])


def test_look_ahead_equals_the_simulator() -> None:
    """``with_move`` and ``Simulator.start`` are two routes to one state, and neither changes what it was given."""
    num_moves = 0
    for seed in range(30):
        given = random_state(np.random.default_rng(seed))
        for move in allowed_moves(given)[:5]:
            sim = simulator(given, [0.0])
            before, digest = sim.state(), given.digest()
            sim.start(sim.view, move)
            ahead = with_move(before, move, LIMITS)
            assert differing(ahead.arrays, sim.view.arrays) == set()
            assert ahead.digest() != before.digest()
            assert given.digest() == digest
            num_moves += 1
    assert num_moves > 50


def test_look_ahead_without_a_free_row() -> None:
    """A state as small as a live snapshot gets one more row, and one more id where there are ids."""
    state = two_nodes(num_replicas=2)
    assert free_row(state.arrays) == -1
    state = ClusterState(
        spec=state.spec, now_s=state.now_s, arrays=state.arrays, node_ids=("m", "n") * 2, replica_ids=("a", "b")
    )
    ahead = with_move(state, Move(0, 1), LIMITS)
    assert ahead.replica_ids == ("a", "b", "")
    assert ahead.node_ids == state.node_ids
    assert ahead.arrays.replica_phase.tolist() == [
        ReplicaPhase.RUNNING,
        ReplicaPhase.RUNNING,
        ReplicaPhase.STARTING,
    ]
    assert ahead.arrays.replica_peer.tolist() == [2, -1, 0]
    assert state.arrays.replica_peer.tolist() == [-1, -1]


def test_begin_without_a_free_row_changes_nothing() -> None:
    """The kernel says -1, the executor raises; resources stay as they were."""
    state = two_nodes(num_replicas=2)
    before = state.digest()
    assert begin_move(state.spec.arrays, state.arrays, state.now_s, 300.0, 0, 1) == -1
    assert state.digest() == before
    sim = simulator(state, [4.0])
    phases = sim.view.arrays.replica_phase
    phases[phases == ReplicaPhase.EMPTY] = ReplicaPhase.PENDING
    sim.view.arrays.replica_deployment[2:] = ONE
    before = sim.state().digest()
    with pytest.raises(ExecutorError, match="no replica row"):
        sim.start(sim.view, Move(0, 1))
    assert sim.state().digest() == before
    assert sim.ledger()[Entry.MOVES] == 0


def test_a_move_that_is_done_stays_done() -> None:
    """A final phase is final: neither a downscale of the moved replica nor new users of both rows change it."""
    sim = simulator(two_nodes(), [4.0] * 20 + [0.0] * 20 + [12.0] * 20)
    move_id = sim.start(sim.view, Move(0, 1))
    seen = []
    while sim.num_steps_left:
        sim.advance(1)
        seen.append(sim.phase(move_id))
    # 30 s start-up and 10 s drain in steps of 5 s; the replicas stop from 100 s on, others start from 200 s on.
    assert seen == [MovePhase.STARTING] * 5 + [MovePhase.DRAINING] * 2 + [MovePhase.DONE] * 53
    sim.cancel(move_id)
    assert sim.phase(move_id) is MovePhase.DONE
    assert sim.ledger()[Entry.CANCELLED_MOVES] == 0


def test_serve_scales_the_moving_replica_away() -> None:
    """The replacement goes with its source: cancelled, counted once, and it stays cancelled."""
    state = two_nodes()
    state.spec.arrays.startup_s[:] = 100.0
    sim = simulator(state, [4.0] * 2 + [2.0] * 40)
    move_id = sim.start(sim.view, Move(0, 1))
    seen = []
    while sim.num_steps_left:
        sim.advance(1)
        seen.append(sim.phase(move_id))
    first = seen.index(MovePhase.CANCELLED)
    assert seen == [MovePhase.STARTING] * first + [MovePhase.CANCELLED] * (len(seen) - first)
    assert 5.0 * (first + 1) < 100.0
    assert sim.ledger()[Entry.CANCELLED_MOVES] == 1
    assert (sim.view.arrays.replica_phase == ReplicaPhase.RUNNING).sum() == 1


@pytest.mark.parametrize(("is_cancelled", "undone"), [(True, 0), (False, 1)])
def test_a_cancelled_move_cannot_be_undone(is_cancelled: bool, undone: int) -> None:
    """Node 0 is emptied by Serve's downscale after the move off it was cancelled: its return undoes nothing."""
    state = two_nodes()
    state.spec.arrays.type_max_nodes[:] = (2, 0)
    sim = simulator(state, [4.0] * 12 + [0.0] * 40 + [12.0] * 30)
    move_id = sim.start(sim.view, Move(0, 1))
    if is_cancelled:
        sim.cancel(move_id)
    sim.advance(sim.num_steps_left)
    assert sim.ledger()[Entry.NODES_RELEASED] == 2
    assert sim.ledger()[Entry.NODES_LAUNCHED] == 2
    assert (sim.view.arrays.node_phase == NodePhase.ALIVE).sum() == 2
    assert sim.ledger()[Entry.UNDONE_MOVES] == undone
    assert sim.ledger()[Entry.CANCELLED_MOVES] == is_cancelled
