"""Start-ups that fail or take long, with and without a move; all by hand."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from rayfold.envs.ledger import Entry
from rayfold.envs.moves import Move, MovePhase
from rayfold.envs.safety import Limits
from rayfold.envs.simulator import Simulator
from rayfold.envs.state import ClusterState, ReplicaPhase
from tests.envs.clusters import add_node, add_replica, constant_traffic, empty_state, small_spec
from tests.envs.conservation import check_simulator, running_counts

ONE = 0
LIMITS = Limits(max_concurrent_moves=3, deployment_cooldown_s=0.0, fence_s=300.0)


def cluster(*ones: int, **more: Any) -> ClusterState:
    """Plain nodes with so many replicas of ``one``, which has these settings."""
    spec = small_spec()
    changed = dataclasses.replace(spec.deployments[ONE], **more)
    spec = dataclasses.replace(spec, deployments=(changed, *spec.deployments[1:]))
    spec.arrays.min_replicas[:] = 0
    state = empty_state(spec)
    for n, count in enumerate(ones):
        add_node(state, n)
        for _ in range(count):
            add_replica(state, ONE, n)
    return state


def simulate(state: ClusterState, wanted: int, num_steps: int = 60) -> Simulator:
    """Under a load that asks for so many replicas."""
    traffic = constant_traffic(state.spec, {"one": 2.0 * wanted}, num_steps)
    return Simulator(state, traffic, LIMITS, np.random.default_rng(0))


def test_serve_tries_again_and_again() -> None:
    """Started at 5 s, failed after 30 s each time: three failures in 100 s, always one replica that starts."""
    sim = simulate(cluster(0, start_failure_prob=1.0), 1)
    for _ in range(20):
        sim.advance(1)
        check_simulator(sim)
        phases = sim.view.arrays.replica_phase
        assert phases[phases != ReplicaPhase.EMPTY].tolist() == [ReplicaPhase.STARTING]
    assert sim.ledger()[Entry.FAILED_STARTS] == 3
    assert sim.ledger()[Entry.FAILED_MOVES] == 0


def test_a_move_whose_replacement_fails() -> None:
    """It has failed when the start-up should have ended; the old replica serves on, its node is not fenced."""
    sim = simulate(cluster(1, 1, start_failure_prob=1.0), 2)
    move_id, fixed_usd = sim.start(sim.view, Move(0, 1)), 1.0 * (30.0 / 3600.0 + 0.02)
    sim.advance(5)
    assert sim.phase(move_id) is MovePhase.STARTING
    sim.advance(1)
    check_simulator(sim)
    assert sim.phase(move_id) is MovePhase.FAILED
    ledger, st = sim.ledger(), sim.view.arrays
    assert ledger[Entry.FAILED_MOVES] == ledger[Entry.FAILED_STARTS] == ledger[Entry.MOVES] == 1
    assert ledger[Entry.DISRUPTION_USD] == pytest.approx(fixed_usd)
    assert st.node_fenced_until_s[0] == -np.inf
    assert st.node_free[1, 0] == 3.0
    sim.cancel(move_id)
    sim.advance(20)
    assert sim.phase(move_id) is MovePhase.FAILED
    assert running_counts(sim.view)[ONE] == 2


def test_failures_come_as_often_as_told() -> None:
    """A third of the start-ups that come to their end, drawn one by one."""
    state = cluster(0, start_failure_prob=1 / 3)
    state.spec.arrays.downscale_delay_s[:] = state.spec.arrays.downscale_to_zero_delay_s[:] = 0.0
    traffic = constant_traffic(state.spec, {}, 6000)
    traffic.ongoing[traffic.num_before :, ONE] = 8.0 * (np.arange(6000) // 24 % 2)  # up and down again
    sim = Simulator(state, traffic, LIMITS, np.random.default_rng(0))
    serving: set[int] = set()
    for _ in range(6000):
        sim.advance(1)
        is_running = sim.view.arrays.replica_phase == ReplicaPhase.RUNNING
        serving |= set(sim._hidden.replica_serial[is_running].tolist())
    failed = sim.ledger()[Entry.FAILED_STARTS]
    assert failed + len(serving) > 250
    assert failed / (failed + len(serving)) == pytest.approx(1 / 3, abs=0.085)


@pytest.mark.parametrize(("prob", "ready_s"), [(0.0, 30.0), (1.0, 75.0)])
def test_a_slow_start_by_hand(prob: float, ready_s: float) -> None:
    """2.5 times 30 s; the longer cold start is what the move costs."""
    sim = simulate(cluster(1, 1, slow_start_prob=prob, slow_start_factor=2.5), 2)
    begun_s, move_id = sim.now_s, sim.start(sim.view, Move(0, 1))
    while sim.phase(move_id) is MovePhase.STARTING:
        sim.advance(1)
    assert sim.now_s - begun_s == ready_s
    assert sim.ledger()[Entry.DISRUPTION_USD] == pytest.approx(1.0 * (ready_s / 3600.0 + 0.02))
    assert sim.ledger()[Entry.COLD_START_GPU_H] == pytest.approx(ready_s / 3600.0)


def test_a_pending_replica_takes_what_a_cancelled_move_gives_back() -> None:
    """The last free GPU is held by a replacement; cancelled, the replica that waits has it with the next step."""
    state = cluster(1, 3)
    state.spec.arrays.type_max_nodes[:] = (2, 0)
    state.arrays.node_free[0, 1] = 0.0  # no CPU left on the first node
    state.arrays.deployment_target[ONE] = 5
    state.arrays.replica_deployment[9], state.arrays.replica_phase[9] = ONE, ReplicaPhase.PENDING
    traffic = constant_traffic(state.spec, {"one": 10.0}, 40)
    sim = Simulator(state, traffic, LIMITS, np.random.default_rng(0))
    move_id = sim.start(sim.view, Move(0, 1))
    sim.advance(3)
    assert sim.view.arrays.replica_phase[9] == ReplicaPhase.PENDING
    sim.cancel(move_id)
    sim.advance(1)
    assert sim.view.arrays.replica_phase[9] == ReplicaPhase.STARTING
    assert sim.view.arrays.replica_node[9] == 1
