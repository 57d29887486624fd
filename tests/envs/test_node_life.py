"""Nodes that are interrupted, out of stock or busy with other work, and nodes launched for a move; all by hand."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from rayfold.envs.cluster import ClusterSpec, Interval
from rayfold.envs.ledger import Entry
from rayfold.envs.moves import Move, MovePhase
from rayfold.envs.safety import Limits
from rayfold.envs.simulator import Simulator
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase
from tests.envs.clusters import add_node, add_replica, constant_traffic, empty_state, small_spec, varying_traffic
from tests.envs.conservation import check_simulator, running_counts

ONE, TWO, HALF, SINGLE, GOLDEN, FIXED = range(6)
LIMITS = Limits(max_concurrent_moves=3, deployment_cooldown_s=0.0, fence_s=300.0, allow_new_nodes=True)
STEP_S = 5.0
ROWS = 5  # of nodes: a new plain node is destination 5, a new gold one 6


def spec_of(**plain: Any) -> ClusterSpec:
    """The small cluster with changes to its plain type; gold nodes are not to be had."""
    spec = small_spec()
    types = (dataclasses.replace(spec.node_types[0], **plain), dataclasses.replace(spec.node_types[1], max_nodes=0))
    spec = dataclasses.replace(spec, node_types=types)
    spec.arrays.min_replicas[:] = 0
    return spec


def cluster(*ones: int, **plain: Any) -> ClusterState:
    """Plain nodes with so many replicas of ``one`` each."""
    state = empty_state(spec_of(**plain))
    for n, count in enumerate(ones):
        add_node(state, n)
        for _ in range(count):
            add_replica(state, ONE, n)
    return state


def simulate(state: ClusterState, num_steps: int = 200) -> Simulator:
    """Under the load that asks for just the replicas there are."""
    load = {"one": 2.0 * float(state.arrays.deployment_target[ONE])}
    return Simulator(state, constant_traffic(state.spec, load, num_steps), LIMITS, np.random.default_rng(0))


def interrupt(sim: Simulator, n: int, notice_in_s: float, notice_s: float) -> None:
    """Node ``n`` gets its notice then, and is gone ``notice_s`` later."""
    sim._hidden.node_notice_s[n] = sim.now_s + notice_in_s
    sim._hidden.node_end_s[n] = sim.now_s + notice_in_s + notice_s


def advance_to(sim: Simulator, begun_s: float, until_s: float) -> None:
    """To ``until_s`` after ``begun_s``, with a recount after every step."""
    while sim.now_s < begun_s + until_s:
        sim.advance(1)
        check_simulator(sim)


def test_an_interruption_by_hand() -> None:
    """Notice after 10 s: the replacement starts elsewhere at once, serves at 40 s; the node is gone at 70 s."""
    sim = simulate(cluster(1, 1))
    begun_s = sim.now_s
    interrupt(sim, 0, 10.0, 60.0)
    advance_to(sim, begun_s, 5.0)
    assert sim.view.arrays.node_phase[0] == NodePhase.ALIVE
    advance_to(sim, begun_s, 10.0)
    st = sim.view.arrays
    assert st.node_phase[0] == NodePhase.DRAINING
    assert st.replica_phase[2] == ReplicaPhase.STARTING
    assert (st.replica_node[2], st.replica_peer[2]) == (1, 0)
    seen: dict[int, float] = {}
    while sim.now_s < begun_s + 75.0:
        assert running_counts(sim.view)[ONE] == 2
        seen.setdefault(int(st.replica_phase[0]), sim.now_s - begun_s)
        advance_to(sim, begun_s, sim.now_s - begun_s + STEP_S)
        if st.node_phase[0] == NodePhase.ABSENT:
            seen.setdefault(99, sim.now_s - begun_s)
    assert seen == {ReplicaPhase.RUNNING: 0.0 + 10.0, ReplicaPhase.STOPPING: 40.0, ReplicaPhase.EMPTY: 50.0, 99: 70.0}
    ledger = sim.ledger()
    assert ledger[Entry.NODES_INTERRUPTED] == 1
    assert ledger[Entry.MOVES] == ledger[Entry.DISRUPTION_USD] == ledger[Entry.NODES_RELEASED] == 0
    assert ledger[Entry.COST_USD] == pytest.approx((4.0 * 70.0 + 4.0 * 75.0) / 3600.0)


def test_a_node_that_drains_takes_nothing() -> None:
    """Two more replicas are asked for after the notice: a new node boots for them, though the old one has room."""
    state = cluster(1)
    sim = Simulator(state, constant_traffic(state.spec, {"one": 6.0}, 60), LIMITS, np.random.default_rng(0))
    interrupt(sim, 0, 5.0, 1000.0)
    begun_s = sim.now_s
    while sim.num_steps_left:
        advance_to(sim, begun_s, sim.now_s - begun_s + STEP_S)
        assert (sim.view.arrays.replica_node == 0).sum() <= 1
    assert running_counts(sim.view)[ONE] == 3
    assert (sim.view.arrays.replica_node == 1).sum() == 3


def test_too_short_a_notice() -> None:
    """30 s of start-up and 35 s of notice: Serve stops the replica 20 s before the end, replaced or not."""
    sim = simulate(cluster(1, 1))
    begun_s = sim.now_s
    interrupt(sim, 0, 5.0, 35.0)
    seen = []
    for until_s in (5.0, 15.0, 20.0, 30.0, 35.0):
        advance_to(sim, begun_s, until_s)
        seen.append(int(running_counts(sim.view)[ONE]))
    assert seen == [2, 2, 1, 1, 2]
    assert sim.view.arrays.node_phase[0] == NodePhase.DRAINING
    advance_to(sim, begun_s, 40.0)
    assert sim.view.arrays.node_phase[0] == NodePhase.ABSENT
    assert (sim.view.arrays.replica_phase != ReplicaPhase.EMPTY).sum() == 2
    assert (sim.view.arrays.replica_peer == -1).all()


def test_a_replica_that_starts_there_starts_again_elsewhere() -> None:
    """It holds nothing to lose: Serve asks for it anew, and it needs its 30 s from then on."""
    state = cluster(0, 1)
    starting = add_replica(state, ONE, 0, ReplicaPhase.STARTING)
    sim = simulate(state)
    interrupt(sim, 0, 20.0, 100.0)
    begun_s = sim.now_s
    advance_to(sim, begun_s, 20.0)
    assert sim.view.arrays.replica_node[starting] == 1
    advance_to(sim, begun_s, 45.0)
    assert running_counts(sim.view)[ONE] == 1
    advance_to(sim, begun_s, 50.0)
    assert running_counts(sim.view)[ONE] == 2


def test_a_notice_shorter_than_a_shutdown() -> None:
    """15 s: the replica stops with the notice, and is done before the end."""
    sim = simulate(cluster(1, 1))
    begun_s = sim.now_s
    interrupt(sim, 0, 5.0, 15.0)
    advance_to(sim, begun_s, 5.0)
    st = sim.view.arrays
    assert (st.node_phase[0], st.replica_phase[0]) == (NodePhase.DRAINING, ReplicaPhase.STOPPING)
    assert (st.replica_phase[2], st.replica_peer[2]) == (ReplicaPhase.STARTING, -1)
    advance_to(sim, begun_s, 15.0)
    assert (st.node_phase[0], st.replica_phase[0]) == (NodePhase.DRAINING, ReplicaPhase.EMPTY)


def test_the_node_that_goes_first_is_left_first() -> None:
    """The replacement of the replica with 200 s left serves at 35 s; the one with 60 s left stops for it."""
    sim = simulate(cluster(1, 1, 2))
    begun_s = sim.now_s
    interrupt(sim, 0, 5.0, 200.0)
    interrupt(sim, 1, 15.0, 60.0)
    advance_to(sim, begun_s, 35.0)
    st = sim.view.arrays
    assert st.replica_phase[:2].tolist() == [ReplicaPhase.RUNNING, ReplicaPhase.STOPPING]
    assert st.replica_phase[st.replica_peer[0]] == ReplicaPhase.STARTING
    advance_to(sim, begun_s, 45.0)
    assert st.replica_phase[0] == ReplicaPhase.STOPPING
    assert running_counts(sim.view)[ONE] == 4


def test_old_replicas_serve_until_the_target_is_met() -> None:
    """Two more are wanted when the node drains: of three that start, the first two to serve replace nobody."""
    state = cluster(1)
    add_node(state, 1)
    sim = Simulator(state, constant_traffic(state.spec, {"one": 6.0}, 60), LIMITS, np.random.default_rng(0))
    interrupt(sim, 0, 15.0, 1000.0)
    begun_s, st = sim.now_s, sim.view.arrays
    advance_to(sim, begun_s, 15.0)
    waiting = np.flatnonzero(st.replica_phase == ReplicaPhase.STARTING)
    assert len(waiting) == 3
    sim._hidden.replica_due_s[waiting] = begun_s + np.array(
        [40.0, 25.0, 20.0]
    )  # the one that is asked for last is first
    for until_s, serving in ((20.0, 2), (25.0, 3), (40.0, 3)):
        advance_to(sim, begun_s, until_s)
        assert running_counts(sim.view)[ONE] == serving
        assert (st.replica_phase[0] == ReplicaPhase.RUNNING) == (until_s < 40.0)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_move_whose_node_is_interrupted_fails(lost: int) -> None:
    """The source's node: its replacement becomes a replica of its own. The destination: the source goes on serving."""
    sim = simulate(cluster(1, 1, 1))
    begun_s = sim.now_s
    move_id = sim.start(sim.view, Move(0, 1))
    interrupt(sim, lost, 5.0, 24.0)
    advance_to(sim, begun_s, 5.0)
    assert sim.phase(move_id) is (MovePhase.STARTING if lost == 0 else MovePhase.FAILED)
    assert running_counts(sim.view)[ONE] == 3
    advance_to(sim, begun_s, 30.0)
    assert sim.phase(move_id) is MovePhase.FAILED
    assert sim.ledger()[Entry.FAILED_MOVES] == 1
    assert sim.view.arrays.node_phase[lost] == NodePhase.ABSENT
    if lost == 1:
        assert sim.view.arrays.node_fenced_until_s[0] == -np.inf
    advance_to(sim, begun_s, 200.0)
    assert running_counts(sim.view)[ONE] == 3
    assert sim.ledger()[Entry.MOVES] == 1


def test_a_drained_move_has_ended_well() -> None:
    """The node goes while the old replica drains: its replacement serves, so the move is done."""
    state = cluster(1, 1)
    state.spec.arrays.drain_s[:] = 100.0
    sim = simulate(state)
    begun_s = sim.now_s
    move_id = sim.start(sim.view, Move(0, 1))
    interrupt(sim, 0, 40.0, 10.0)
    advance_to(sim, begun_s, 45.0)
    assert sim.phase(move_id) is MovePhase.DRAINING
    advance_to(sim, begun_s, 50.0)
    assert sim.phase(move_id) is MovePhase.DONE
    assert sim.ledger()[Entry.FAILED_MOVES] == 0


def test_serve_asks_again_where_a_replacement_fails() -> None:
    """A move off a node that drains fails with its destination: Serve replaces the replica itself before the end."""
    sim = simulate(cluster(1, 1, 1))
    begun_s = sim.now_s
    move_id = sim.start(sim.view, Move(0, 1))
    interrupt(sim, 0, 5.0, 100.0)
    interrupt(sim, 1, 10.0, 100.0)
    advance_to(sim, begun_s, 10.0)
    assert sim.phase(move_id) is MovePhase.FAILED
    st = sim.view.arrays
    replacement = int(st.replica_peer[0])
    assert (st.replica_phase[replacement], st.replica_node[replacement]) == (ReplicaPhase.STARTING, 2)
    advance_to(sim, begun_s, 110.0)
    assert running_counts(sim.view)[ONE] == 3
    assert sim.ledger()[Entry.NODES_INTERRUPTED] == 2


def test_a_cancelled_move_off_a_node_that_drains() -> None:
    """Cancelling leaves the replica to Serve, which replaces it all the same."""
    sim = simulate(cluster(1, 1))
    begun_s = sim.now_s
    move_id = sim.start(sim.view, Move(0, 1))
    interrupt(sim, 0, 5.0, 100.0)
    advance_to(sim, begun_s, 5.0)
    sim.cancel(move_id)
    assert sim.phase(move_id) is MovePhase.CANCELLED
    assert sim.view.arrays.replica_peer[0] >= 0
    advance_to(sim, begun_s, 105.0)
    assert running_counts(sim.view)[ONE] == 2


def test_a_snapshot_with_a_node_that_drains() -> None:
    """What runs there gets its replacement with the first step; so does a move whose replacement is not there yet."""
    state = cluster(1, 1, 1)
    state.arrays.node_phase[0] = NodePhase.DRAINING
    state.arrays.replica_peer[1] = 1
    sim = simulate(state)
    sim.advance(1)
    check_simulator(sim)
    st = sim.view.arrays
    for r in (0, 1):
        peer = int(st.replica_peer[r])
        assert peer >= 3
        assert st.replica_phase[peer] == ReplicaPhase.STARTING
        assert st.replica_node[peer] != 0


def other_work(**more: Any) -> dict[str, Any]:
    """Half a GPU and six CPUs of other work on every node, for 60 s."""
    return {"other_work": {"GPU": 0.5, "CPU": 6.0}, "other_work_prob": 1.0, "other_work_s": Interval(60.0, 60.0)} | more


def test_other_work_by_hand() -> None:
    """It comes with the node at 45 s, holds what it holds for 60 s, and the empty node waits out its time-out after."""
    state = cluster(**other_work(min_nodes=0))
    state.arrays.deployment_target[ONE] = 0
    add_node(state, 0, phase=NodePhase.BOOTING)
    sim = simulate(state)
    begun_s = sim.now_s
    advance_to(sim, begun_s, 35.0)
    assert sim.view.arrays.node_phase[0] == NodePhase.BOOTING
    advance_to(sim, begun_s, 40.0)
    st = sim.view.arrays
    assert st.node_free[0].tolist() == [3.5, 2.0, 64.0]
    assert st.gpu_free[0].tolist() == [0.5, 1.0, 1.0, 1.0]
    assert not st.node_releasable[0]
    advance_to(sim, begun_s, 95.0)
    assert not st.node_releasable[0]
    advance_to(sim, begun_s, 100.0)
    assert st.node_releasable[0]
    assert st.node_free[0].tolist() == [4.0, 8.0, 64.0]
    assert st.gpu_free[0].tolist() == [1.0] * 4
    advance_to(sim, begun_s, 160.0)
    assert st.node_phase[0] == NodePhase.ALIVE  # 60 s empty, and not longer
    advance_to(sim, begun_s, 165.0)
    assert st.node_phase[0] == NodePhase.ABSENT


def test_other_work_shares_a_device_with_a_replica() -> None:
    """In a state that is taken over: the work's half of the device is told from the replica's, and comes back."""
    state = empty_state(spec_of(**other_work()))
    add_node(state, 0)
    st = state.arrays
    st.node_others[0] = (0.5, 6.0, 0.0)
    st.node_free[0] -= st.node_others[0]
    st.gpu_free[0, 0] = 0.5
    st.node_releasable[0] = False
    half = add_replica(state, HALF, 0)
    assert st.replica_gpus[half, 0] == 1
    load = constant_traffic(state.spec, {"half": 2.0}, 20)
    sim = Simulator(state, load, LIMITS, np.random.default_rng(0))
    assert sim._hidden.node_work_gpus[0] == 1
    sim.advance(12)
    check_simulator(sim)
    assert sim.view.arrays.gpu_free[0].tolist() == [0.5, 1.0, 1.0, 1.0]


def test_a_type_out_of_stock() -> None:
    """Asked for at every step and drawn anew every 20 s; nothing is launched or billed meanwhile."""
    state = cluster(stockout_prob=1.0, stockout_s=Interval(20.0, 20.0))
    sim = Simulator(state, constant_traffic(state.spec, {"one": 2.0}, 20), LIMITS, np.random.default_rng(0))
    sim.advance(20)
    ledger = sim.ledger()
    assert ledger[Entry.STOCKOUTS] == 5  # after 5, 25, 45, 65 and 85 s
    assert ledger[Entry.NODES_LAUNCHED] == ledger[Entry.COST_USD] == 0
    assert (sim.view.arrays.replica_phase == ReplicaPhase.PENDING).sum() == 1


def test_a_node_comes_once_it_is_in_stock_again() -> None:
    """Out of stock for 32 s: launched with the step at 35 s."""
    state = cluster()
    sim = Simulator(state, constant_traffic(state.spec, {"one": 2.0}, 20), LIMITS, np.random.default_rng(0))
    sim._hidden.stockout_until_s[0] = sim.now_s + 32.0
    launched = []
    for _ in range(10):
        sim.advance(1)
        launched.append(sim.ledger()[Entry.NODES_LAUNCHED])
    assert launched == [0.0] * 6 + [1.0] * 4


def test_a_move_to_a_new_node_by_hand() -> None:
    """40 s of boot, 30 s of start-up, 10 s of drain; the replacement waits for that node though another has room."""
    sim = simulate(cluster(1, 2))
    begun_s = sim.now_s
    move_id = sim.start(sim.view, Move(0, ROWS))
    st, row = sim.view.arrays, int(sim.view.arrays.replica_peer[0])
    assert (st.node_phase[2], st.replica_pinned_node[row]) == (NodePhase.BOOTING, 2)
    assert sim.ledger()[Entry.NODES_LAUNCHED] == sim.ledger()[Entry.MOVES] == 1
    assert sim.ledger()[Entry.DISRUPTION_USD] == 0.0
    assert st.node_fenced_until_s[0] > sim.now_s
    seen: dict[tuple[int, int, MovePhase], float] = {}
    while sim.now_s < begun_s + 85.0:
        key = (int(st.replica_phase[row]), int(st.replica_node[row]), sim.phase(move_id))
        seen.setdefault(key, sim.now_s - begun_s)
        assert running_counts(sim.view)[ONE] == 3
        advance_to(sim, begun_s, sim.now_s - begun_s + STEP_S)
    assert seen == {
        (ReplicaPhase.PENDING, -1, MovePhase.STARTING): 0.0,
        (ReplicaPhase.STARTING, 2, MovePhase.STARTING): 40.0,
        (ReplicaPhase.RUNNING, 2, MovePhase.DRAINING): 70.0,
        (ReplicaPhase.RUNNING, 2, MovePhase.DONE): 80.0,
    }
    # One of four GPUs of a 4 USD node: cold start and fixed price; three nodes are billed from the launch on.
    assert sim.ledger()[Entry.DISRUPTION_USD] == pytest.approx(1.0 * (30.0 / 3600.0 + 0.02))
    assert sim.ledger()[Entry.COST_USD] == pytest.approx(3 * 4.0 * 85.0 / 3600.0)
    advance_to(sim, begun_s, 145.0)
    assert sim.view.arrays.node_phase[:3].tolist() == [NodePhase.ABSENT, NodePhase.ALIVE, NodePhase.ALIVE]


def test_a_new_node_that_is_out_of_stock() -> None:
    """The move fails when the node should have come; nothing was launched, billed or disrupted."""
    sim = simulate(cluster(1, 2, stockout_prob=1.0))
    begun_s = sim.now_s
    move_id = sim.start(sim.view, Move(0, ROWS))
    advance_to(sim, begun_s, 35.0)
    assert sim.phase(move_id) is MovePhase.STARTING
    advance_to(sim, begun_s, 40.0)
    assert sim.phase(move_id) is MovePhase.FAILED
    ledger, st = sim.ledger(), sim.view.arrays
    assert (ledger[Entry.MOVES], ledger[Entry.FAILED_MOVES], ledger[Entry.STOCKOUTS]) == (1, 1, 1)
    assert ledger[Entry.NODES_LAUNCHED] == ledger[Entry.DISRUPTION_USD] == ledger[Entry.UNDONE_MOVES] == 0
    assert ledger[Entry.COST_USD] == pytest.approx(2 * 4.0 * 40.0 / 3600.0)
    assert ledger[Entry.NODE_H] == pytest.approx(2 * 40.0 / 3600.0)
    assert st.node_phase[:3].tolist() == [NodePhase.ALIVE, NodePhase.ALIVE, NodePhase.ABSENT]
    assert st.node_fenced_until_s[0] == -np.inf
    assert st.replica_phase[0] == ReplicaPhase.RUNNING
    assert st.replica_peer[0] == -1


def test_a_cancelled_move_to_a_new_node() -> None:
    """The node still comes, is billed, and goes after its idle time-out."""
    sim = simulate(cluster(1, 2))
    begun_s = sim.now_s
    move_id = sim.start(sim.view, Move(0, ROWS))
    advance_to(sim, begun_s, 10.0)
    sim.cancel(move_id)
    check_simulator(sim)
    assert sim.phase(move_id) is MovePhase.CANCELLED
    advance_to(sim, begun_s, 100.0)
    assert sim.view.arrays.node_phase[2] == NodePhase.ALIVE
    advance_to(sim, begun_s, 105.0)
    assert sim.view.arrays.node_phase[2] == NodePhase.ABSENT
    assert sim.ledger()[Entry.COST_USD] == pytest.approx(3 * 4.0 * 105.0 / 3600.0)


def test_a_new_node_interrupted_before_the_replacement_serves() -> None:
    """The notice ends the move; the source has served all the time."""
    sim = simulate(cluster(1, 2))
    begun_s = sim.now_s
    move_id = sim.start(sim.view, Move(0, ROWS))
    interrupt(sim, 2, 50.0, 30.0)
    advance_to(sim, begun_s, 45.0)
    assert sim.phase(move_id) is MovePhase.STARTING
    advance_to(sim, begun_s, 50.0)
    assert sim.phase(move_id) is MovePhase.FAILED
    assert running_counts(sim.view)[ONE] == 3
    assert (sim.view.arrays.replica_phase != ReplicaPhase.EMPTY).sum() == 3


def test_other_work_may_take_the_room_of_a_move() -> None:
    """The new node comes up with work on it that leaves no CPU for the replacement: the move fails."""
    state = cluster(1, 2, **other_work(other_work={"CPU": 8.0}))
    sim = simulate(state)
    begun_s = sim.now_s
    move_id = sim.start(sim.view, Move(0, ROWS))
    advance_to(sim, begun_s, 40.0)
    assert sim.phase(move_id) is MovePhase.FAILED
    assert sim.view.arrays.node_phase[2] == NodePhase.ALIVE


def test_a_node_is_kept_for_its_replacement() -> None:
    """Four pairs wait as well: the new node has room for one beside the replacement, two more nodes for the others."""
    state = cluster(1, 4)
    st = state.arrays
    st.node_free[0, 1] = 0.0  # nothing else fits there
    for r in range(10, 14):
        st.replica_deployment[r], st.replica_phase[r] = TWO, ReplicaPhase.PENDING
    st.deployment_target[TWO] = 4
    traffic = constant_traffic(state.spec, {"one": 10.0, "two": 8.0}, 60)
    sim = Simulator(state, traffic, LIMITS, np.random.default_rng(0))
    sim.start(sim.view, Move(0, ROWS))
    row = int(sim.view.arrays.replica_peer[0])
    sim.advance(9)
    st = sim.view.arrays
    assert (st.replica_node[row], st.replica_phase[row]) == (2, ReplicaPhase.STARTING)
    assert (st.node_phase != NodePhase.ABSENT).sum() == 5
    assert st.node_held[:, TWO].tolist() == [0, 0, 1, 2, 1]


def test_a_replica_that_is_migrated_may_be_scaled_away() -> None:
    """Its replacement goes with it, and Serve does not ask for another; the node is empty before its end."""
    state = cluster(1, 1)
    load = np.full(60, 4.0)
    load[3:] = 2.0
    sim = Simulator(state, varying_traffic(state.spec, {"one": load}, 60), LIMITS, np.random.default_rng(0))
    state.spec.arrays.downscale_delay_s[:] = 5.0
    interrupt(sim, 0, 5.0, 100.0)
    begun_s = sim.now_s
    advance_to(sim, begun_s, 10.0)
    assert sim.view.arrays.replica_peer[0] == 2
    advance_to(sim, begun_s, 25.0)
    st = sim.view.arrays
    assert st.replica_phase[:3].tolist() == [ReplicaPhase.STOPPING, ReplicaPhase.RUNNING, ReplicaPhase.EMPTY]
    advance_to(sim, begun_s, 40.0)
    assert (st.replica_phase != ReplicaPhase.EMPTY).sum() == 1
    assert sim.ledger()[Entry.CANCELLED_MOVES] == 0
