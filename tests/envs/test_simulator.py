"""The simulator: nothing is lost or counted twice, times are those of the rules, equal seeds give equal worlds."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st_

from rayfold.envs.cluster import ClusterSpec, SchedulingStrategy
from rayfold.envs.initial_state import initial_state
from rayfold.envs.ledger import Entry
from rayfold.envs.moves import Move, MovePhase
from rayfold.envs.safety import Limits, movable_replica, move_masks
from rayfold.envs.scenario import Split, load_scenario
from rayfold.envs.simulator import Simulator
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase
from rayfold.errors import ExecutorError
from tests.envs.clusters import add_node, add_replica, constant_traffic, empty_state, small_spec, varying_traffic
from tests.envs.conservation import check_conserved, running_counts

LIMITS = Limits(max_concurrent_moves=3, deployment_cooldown_s=0.0, fence_s=300.0)
ONE, TWO, HALF, SINGLE, GOLDEN, FIXED = range(6)


def simulator(state: ClusterState, ongoing: dict[str, float], num_steps: int = 400, seed: int = 0) -> Simulator:
    """A simulator under constant load."""
    traffic = constant_traffic(state.spec, ongoing, num_steps)
    return Simulator(state, traffic, LIMITS, np.random.default_rng(seed))


def replica_counts(state: ClusterState) -> np.ndarray:
    """Replicas that count against the target: ``(D,)``. A replacement does not."""
    st = state.arrays
    live = (st.replica_phase >= ReplicaPhase.PENDING) & (st.replica_phase <= ReplicaPhase.RUNNING)
    live &= ~((st.replica_peer >= 0) & (st.replica_phase == ReplicaPhase.STARTING))
    return np.bincount(st.replica_deployment[live], minlength=state.spec.num_deployments)


def random_moves(sim: Simulator, rng: np.random.Generator) -> None:
    """Starts allowed moves at random, and cancels one now and then."""
    spec = sim.spec
    for _ in range(int(rng.integers(0, 3))):
        view = sim.view
        shape = (len(view.arrays.node_type), spec.num_deployments)
        source, destination = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        new_node = np.zeros((len(spec.node_types), spec.num_deployments), np.float32)
        move_masks(spec.arrays, view.arrays, view.now_s, LIMITS, source, destination, new_node)
        cells = np.argwhere(source > 0)
        if not len(cells):
            return
        n, d = cells[rng.integers(len(cells))]
        others = [m for m in np.flatnonzero(destination[:, d]) if m != n]
        r = movable_replica(spec.arrays, view.arrays, view.now_s, LIMITS, n, d)
        move_id = sim.start(view, Move(int(r), int(rng.choice(others))))
        if rng.random() < 0.2:
            sim.cancel(move_id)
            assert sim.phase(move_id) is MovePhase.CANCELLED


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st_.integers(0, 10**6), packs=st_.booleans())
def test_conservation_under_random_moves_and_load(seed: int, packs: bool) -> None:
    """After every step: resources add up, each replica is in one phase, counts follow targets, dollars add up."""
    rng = np.random.default_rng(seed)
    spec = small_spec(SchedulingStrategy.PACK if packs else SchedulingStrategy.SPREAD)
    num_steps = 120
    traffic = constant_traffic(spec, {}, num_steps)
    level = rng.uniform(0, 10, spec.num_deployments)
    for t in range(num_steps):
        if t % 20 == 0:
            level = rng.uniform(0, 10, spec.num_deployments)
        traffic.ongoing[traffic.num_before + t] = level
    sim = Simulator(initial_state(spec, traffic, rng), traffic, LIMITS, rng)
    price = spec.arrays.type_price_usd_per_h
    cost_usd = relaxed_usd = 0.0
    for _ in range(num_steps):
        running = running_counts(sim.view)
        random_moves(sim, rng)
        check_conserved(sim.view)
        np.testing.assert_array_equal(running_counts(sim.view), running)
        present = sim.view.arrays.node_type[sim.view.arrays.node_phase != NodePhase.ABSENT]
        cost_usd += price[present].sum() * 5.0 / 3600.0
        relaxed_usd += sim.relaxed_bound_usd_per_h * 5.0 / 3600.0
        assert sim.relaxed_bound_usd_per_h <= sim.bound_usd_per_h
        assert sim.bound_usd_per_h <= max(price[present].sum(), sim.bound_usd_per_h * has_pending(sim.view)) + 1e-9
        sim.advance(1)
        check_conserved(sim.view)
        np.testing.assert_array_equal(replica_counts(sim.view), sim.view.arrays.deployment_target)
        # Only Serve's own downscale takes serving replicas away, a move never does.
        assert (running_counts(sim.view) >= np.minimum(running, sim.view.arrays.deployment_target)).all()
    assert sim.ledger()[Entry.COST_USD] == pytest.approx(cost_usd)
    assert sim.ledger()[Entry.RELAXED_BOUND_USD] == pytest.approx(relaxed_usd)
    assert sim.ledger()[Entry.ELAPSED_S] == num_steps * 5.0


def has_pending(state: ClusterState) -> bool:
    """Whether some replica waits for a node: then the bound may exceed the nodes there are."""
    return bool((state.arrays.replica_phase == ReplicaPhase.PENDING).any())


def two_nodes() -> ClusterState:
    """One replica of ``one`` on each of two nodes, for which the load asks."""
    state = empty_state(small_spec())
    for n in (0, 1):
        add_node(state, n)
        add_replica(state, ONE, n)
    for d in (TWO, HALF, SINGLE, GOLDEN, FIXED):
        state.arrays.deployment_target[d] = 0
    return state


def spec_without_minimum(spec: ClusterSpec) -> None:
    """Scale to zero everywhere, so that only what a test loads has replicas."""
    spec.arrays.min_replicas[:] = 0


def test_a_move_by_hand() -> None:
    """30 s start-up, 10 s drain: both hold resources till then, and one replica serves at every step."""
    state = two_nodes()
    spec_without_minimum(state.spec)
    sim = simulator(state, {"one": 4.0})
    begun_s = sim.now_s
    move_id = sim.start(sim.view, Move(0, 1))
    assert sim.view.arrays.node_free[1, 0] == 2.0  # its own replica and the replacement
    assert sim.ledger()[Entry.MOVES] == 1
    # Share of the dear resource: 1 of 4 GPUs of a 4 USD node is 1 USD/h; 30 s, and 2 % of an hour.
    assert sim.ledger()[Entry.DISRUPTION_USD] == pytest.approx(1.0 * (30.0 / 3600.0 + 0.02))
    seen: dict[MovePhase, float] = {}
    while sim.phase(move_id) is not MovePhase.DONE:
        running = (sim.view.arrays.replica_phase == ReplicaPhase.RUNNING).sum()
        assert running == 2
        seen.setdefault(sim.phase(move_id), sim.now_s - begun_s)
        sim.advance(1)
    assert seen == {MovePhase.STARTING: 0.0, MovePhase.DRAINING: 30.0}
    assert sim.now_s - begun_s == 40.0
    assert sim.view.arrays.node_free[:2, 0].tolist() == [4.0, 2.0]
    assert sim.view.arrays.node_idle_since_s[0] == sim.now_s


def test_idle_node_is_released_after_the_timeout_and_not_before() -> None:
    """More than 60 s after it is empty; the node with replicas stays."""
    state = two_nodes()
    spec_without_minimum(state.spec)
    sim = simulator(state, {"one": 4.0})
    sim.start(sim.view, Move(0, 1))
    sim.advance(8)  # 40 s: moved and drained
    sim.advance(12)  # Ray's comparison is strict: not after just 60 s
    assert sim.view.arrays.node_phase[0] == NodePhase.ALIVE
    sim.advance(1)
    assert sim.view.arrays.node_phase[:2].tolist() == [NodePhase.ABSENT, NodePhase.ALIVE]
    assert sim.ledger()[Entry.NODES_RELEASED] == 1
    assert sim.ledger()[Entry.UNDONE_MOVES] == 0


def test_node_boots_only_for_unmet_demand_and_undoes_the_move() -> None:
    """A release followed by a launch of the same type within half an hour undoes the moves that emptied the node."""
    state = two_nodes()
    spec_without_minimum(state.spec)
    load = np.full(400, 4.0)
    load[30:] = 10.0  # from 150 s on: five replicas, and a node holds four
    traffic = varying_traffic(state.spec, {"one": load}, 400)
    state.spec.arrays.type_max_nodes[1] = 0
    sim = Simulator(state, traffic, LIMITS, np.random.default_rng(0))
    sim.start(sim.view, Move(0, 1))
    sim.advance(30)
    assert sim.ledger()[Entry.NODES_RELEASED] == 1
    assert sim.ledger()[Entry.NODES_LAUNCHED] == 0
    launched_s = None
    while sim.num_steps_left > 300:
        sim.advance(1)
        if launched_s is None and sim.ledger()[Entry.NODES_LAUNCHED]:
            launched_s = sim.now_s
            booting = np.flatnonzero(sim.view.arrays.node_phase == NodePhase.BOOTING)
            assert len(booting) == 1
        if launched_s is not None and sim.now_s - launched_s < 40.0:
            assert sim.view.arrays.node_phase[booting[0]] == NodePhase.BOOTING
    assert launched_s is not None
    assert sim.view.arrays.node_phase[booting[0]] == NodePhase.ALIVE
    assert sim.ledger()[Entry.UNDONE_MOVES] == 1
    assert (sim.view.arrays.replica_phase == ReplicaPhase.RUNNING).sum() == 5


def test_unserved_demand_by_hand() -> None:
    """13 ongoing requests, two replicas of 5 each: 0.6 replicas of 1 USD/h are missing, at three times the price."""
    state = two_nodes()
    spec_without_minimum(state.spec)
    sim = simulator(state, {"one": 13.0})
    sim.advance(1)
    hours = 5.0 / 3600.0
    assert sim.ledger()[Entry.UNSERVED_REPLICA_H] == pytest.approx(0.6 * hours)
    assert sim.ledger()[Entry.UNSERVED_USD] == pytest.approx(3.0 * 0.6 * hours)
    assert sim.ledger()[Entry.TOKENS] == pytest.approx(10.0 * 10.0 * 5.0)


def test_cancel_leaves_the_old_replica_serving() -> None:
    """Nothing but the fixed charge remains of a cancelled move, and its node is not fenced."""
    state = two_nodes()
    sim = simulator(state, {"one": 4.0})
    move_id = sim.start(sim.view, Move(0, 1))
    assert sim.view.arrays.node_fenced_until_s[0] > sim.now_s
    sim.cancel(move_id)
    sim.cancel(move_id)
    assert sim.phase(move_id) is MovePhase.CANCELLED
    assert sim.ledger()[Entry.CANCELLED_MOVES] == 1
    assert sim.view.arrays.node_free[:2, 0].tolist() == [3.0, 3.0]
    assert sim.view.arrays.node_fenced_until_s[0] == -np.inf


def test_fenced_node_takes_a_replica_only_if_no_other_can() -> None:
    """The fence yields to a replica that fits nowhere else, before a node is launched for it."""
    state = two_nodes()
    spec_without_minimum(state.spec)
    state.arrays.node_fenced_until_s[0] = state.now_s + 1000.0
    sim = simulator(state, {"one": 8.0})
    sim.advance(4)
    assert np.bincount(sim.view.arrays.replica_node[sim.view.arrays.replica_node >= 0]).tolist() == [1, 3]
    sim = simulator(state, {"one": 12.0})
    sim.advance(4)
    assert np.bincount(sim.view.arrays.replica_node[sim.view.arrays.replica_node >= 0]).tolist() == [2, 4]
    assert sim.ledger()[Entry.NODES_LAUNCHED] == 0


def test_refused_move_raises_and_changes_nothing() -> None:
    """The executor refuses what the filter refuses."""
    state = two_nodes()
    sim = simulator(state, {"one": 4.0})
    before = sim.state().digest()
    with pytest.raises(ExecutorError, match="SAME_NODE"):
        sim.start(sim.view, Move(0, 0))
    assert sim.state().digest() == before


def test_traffic_ends() -> None:
    """More steps than there is traffic are refused."""
    sim = simulator(two_nodes(), {}, num_steps=3)
    with pytest.raises(ValueError, match="num_steps must be <= 3"):
        sim.advance(4)


def play(state: ClusterState, seed: int) -> list[str]:
    """Digests of an hour with random moves."""
    sim = simulator(state, {"one": 7.0, "two": 3.0, "half": 2.0}, 400, seed)
    rng, digests = np.random.default_rng(seed), []
    for _ in range(100):
        random_moves(sim, rng)
        sim.advance(4)
        digests.append(sim.state().digest())
    return digests


def test_same_seed_twice_is_bit_equal() -> None:
    """Every state of an hour; another seed gives another hour."""
    assert play(two_nodes(), 1) == play(two_nodes(), 1)
    assert play(two_nodes(), 1) != play(two_nodes(), 2)


def test_starts_from_a_saved_state(tmp_path: Path) -> None:
    """A loaded state goes on exactly as the state itself, replicas starting and draining included."""
    sim = simulator(two_nodes(), {"one": 9.0, "two": 3.0}, 400)
    random_moves(sim, np.random.default_rng(3))
    sim.advance(9)
    state = sim.state()
    assert {ReplicaPhase.STARTING, ReplicaPhase.RUNNING} <= set(state.arrays.replica_phase)
    state.save(tmp_path / "state.npz")
    loaded = ClusterState.load(tmp_path / "state.npz")
    assert loaded.spec == state.spec
    assert loaded.digest() == state.digest()
    assert play(loaded, 5) == play(state, 5)


def test_a_fork_has_the_same_future_and_goes_its_own_way() -> None:
    """Led alike, both end alike to the last bit; what happens in one does not show in the other."""
    scenario = load_scenario("spot", None, synthetic=True).with_horizon(7200.0)
    rngs = np.random.default_rng(3).spawn(3)
    traffic = scenario.sample(rngs[0], Split.TRAIN)
    sim = Simulator(initial_state(scenario.spec, traffic, rngs[1]), traffic, scenario.limits, rngs[2])
    sim.advance(300)
    before, fork = sim.state(), sim.fork()
    fork.advance(600)
    assert sim.state().digest() == before.digest()
    assert sim.ledger().total_usd < fork.ledger().total_usd
    sim.advance(600)
    assert sim.state().digest() == fork.state().digest()
    np.testing.assert_array_equal(sim.ledger().values, fork.ledger().values)
    np.testing.assert_array_equal(sim.deployment_ledger(), fork.deployment_ledger())
