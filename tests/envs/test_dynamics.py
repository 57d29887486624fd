"""One step of the simulator: what is billed, what bounds the bill, what counts as undone, who is placed first."""

import dataclasses
from itertools import product

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp

from rayfold.envs.cluster import ClusterSpec, ReplicaShape, SchedulingStrategy
from rayfold.envs.initial_state import initial_state
from rayfold.envs.ledger import DeploymentEntry, Entry, Ledger
from rayfold.envs.moves import Move
from rayfold.envs.node_life import UNDONE_WINDOW_S, match_release
from rayfold.envs.safety import Limits, check_move
from rayfold.envs.simulator import Simulator
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase
from rayfold.envs.state_bound import bound_usd_per_h
from rayfold.envs.traffic import SLOW_MEAN_S, sample_traffic
from rayfold.envs.transition import with_move
from tests.envs.clusters import (
    add_node,
    add_replica,
    constant_traffic,
    empty_state,
    random_state,
    small_spec,
    varying_traffic,
)

ONE, TWO, HALF, SINGLE, GOLDEN, FIXED = range(6)
LIMITS = Limits(max_concurrent_moves=3, deployment_cooldown_s=0.0, fence_s=300.0)
STEP_S = 5.0


def simulator(state: ClusterState, ongoing: dict[str, float], num_steps: int = 400) -> Simulator:
    """A simulator under constant load."""
    traffic = constant_traffic(state.spec, ongoing, num_steps)
    return Simulator(state, traffic, LIMITS, np.random.default_rng(0))


def test_what_is_counted_per_deployment_by_hand() -> None:
    """Two replicas serve 5 requests each: of 13 offered 3 are unserved, for ten minutes; sums equal the ledger."""
    state = empty_state(small_spec(), num_nodes=1)
    add_node(state, 0)
    for _ in range(2):
        add_replica(state, ONE, 0)
    state.spec.arrays.min_replicas[:], state.spec.arrays.max_replicas[:] = 0, (2, 0, 0, 0, 0, 0)
    state.arrays.deployment_target[ONE] = 2
    state.spec.arrays.max_ongoing[ONE] = 5.0
    sim = simulator(state, {"one": 13.0})
    sim.advance(120)
    by_deployment, ledger = sim.deployment_ledger(), sim.ledger()
    assert by_deployment[DeploymentEntry.UNSERVED_REQUEST_S, ONE] == pytest.approx(3.0 * 600.0)
    assert by_deployment[DeploymentEntry.REPLICA_H, ONE] == pytest.approx(2.0 / 6.0)
    assert by_deployment[:, 1:].sum() == 0.0
    assert ledger[Entry.UNSERVED_REQUEST_S] == by_deployment[DeploymentEntry.UNSERVED_REQUEST_S].sum()
    assert by_deployment[DeploymentEntry.MOVES].sum() == ledger[Entry.MOVES] == 0.0


def optimum_usd_per_h(spec: ClusterSpec, held: np.ndarray, nodes_per_type: int = 8) -> float:
    """Cheapest nodes that hold ``held`` ``(D,)`` replicas, by an integer programme over single nodes."""
    arrays, num_deployments = spec.arrays, spec.num_deployments
    nodes = list(product(range(len(spec.node_types)), range(nodes_per_type)))
    num_nodes, num_resources = len(nodes), arrays.demand.shape[1]
    size = num_nodes * (1 + num_deployments)  # is the node used, and how many of each deployment are on it
    price = np.zeros(size)
    price[:num_nodes] = [arrays.type_price_usd_per_h[t] for t, _ in nodes]
    capacity = np.zeros((num_nodes * num_resources, size))
    placed, upper = np.zeros((num_deployments, size)), np.ones(size)
    for i, (t, _) in enumerate(nodes):
        columns = num_nodes + i * num_deployments + np.arange(num_deployments)
        for k in range(num_resources):
            capacity[i * num_resources + k, columns] = arrays.demand[:, k]
            capacity[i * num_resources + k, i] = -arrays.type_capacity[t, k]
        placed[np.arange(num_deployments), columns] = 1.0
        upper[columns] = np.where(arrays.fits_type[:, t], held, 0)
    solved = milp(
        price,
        integrality=np.ones(size, np.int64),
        bounds=Bounds(np.zeros(size), upper),
        constraints=[LinearConstraint(capacity, ub=0.0), LinearConstraint(placed, held, held)],
    )
    assert solved.success
    return float(solved.fun)


def counted(state: ClusterState) -> np.ndarray:
    """Replicas that the bound counts: ``(D,)``."""
    st = state.arrays
    counts = (st.replica_phase >= ReplicaPhase.PENDING) & (st.replica_phase <= ReplicaPhase.RUNNING)
    return np.bincount(st.replica_deployment[counts], minlength=state.spec.num_deployments)


def test_bound_is_never_above_the_optimum() -> None:
    """On 60 random states; it is positive where there are replicas, and reached where they fill nodes exactly."""
    reached = 0
    for seed in range(60):
        state = random_state(np.random.default_rng(seed))
        held = counted(state)
        bound, optimum = bound_usd_per_h(state.spec.arrays, state.arrays), optimum_usd_per_h(state.spec, held)
        assert bound <= optimum + 1e-6, seed
        assert (bound > 0.0) == bool(held.any())
        reached += bool(held.any()) and bound == pytest.approx(optimum)
    assert reached >= 1


def test_bound_by_hand() -> None:
    """Four GPUs of a 4 USD node, one gold replica at 3 USD; a move adds nothing though both replicas hold GPUs."""
    state = empty_state(small_spec())
    add_node(state, 0)
    add_node(state, 1)
    add_node(state, 2, 1)
    for n in (0, 0):
        add_replica(state, ONE, n)
    add_replica(state, TWO, 0)
    add_replica(state, GOLDEN, 2)
    add_replica(state, ONE, 1, ReplicaPhase.STOPPING)
    assert bound_usd_per_h(state.spec.arrays, state.arrays) == pytest.approx(4.0 + 3.0)
    moving = with_move(state, Move(0, 1), LIMITS)
    assert bound_usd_per_h(moving.spec.arrays, moving.arrays) == pytest.approx(4.0 + 3.0)


def test_dearest_resource_bounds() -> None:
    """Eight CPUs of a node asked for by one GPU: the CPUs are the bound."""
    spec = small_spec()
    greedy = dataclasses.replace(spec.deployments[ONE], shape=ReplicaShape(bundles=({"GPU": 1.0, "CPU": 8.0},)))
    state = empty_state(dataclasses.replace(spec, deployments=(greedy, *spec.deployments[1:])))
    add_node(state, 0)
    add_replica(state, ONE, 0)
    assert bound_usd_per_h(state.spec.arrays, state.arrays) == pytest.approx(4.0)


def two_nodes() -> ClusterState:
    """One replica of ``one`` on each of two plain nodes; every deployment may scale to zero."""
    state = empty_state(small_spec())
    state.spec.arrays.min_replicas[:] = 0
    state.spec.arrays.type_max_nodes[:] = (5, 0)
    for n in (0, 1):
        add_node(state, n)
        add_replica(state, ONE, n)
    return state


def test_booting_nodes_are_billed_and_the_head_is_not() -> None:
    """Three nodes of 4 USD/h, one of them booting and one the head: 8 USD/h."""
    state = two_nodes()
    state.arrays.node_is_head[1] = True
    add_node(state, 2, phase=NodePhase.BOOTING)
    sim = simulator(state, {"one": 4.0})
    sim.advance(1)
    assert sim.ledger()[Entry.COST_USD] == pytest.approx(8.0 * STEP_S / 3600.0)
    assert sim.ledger()[Entry.NODE_H] == pytest.approx(2 * STEP_S / 3600.0)
    assert sim.ledger()[Entry.GPU_H] == pytest.approx(8 * STEP_S / 3600.0)


@pytest.mark.parametrize(("gap_s", "undone"), [(UNDONE_WINDOW_S, 1), (UNDONE_WINDOW_S + STEP_S, 0)])
def test_a_launch_undoes_moves_for_half_an_hour(gap_s: float, undone: int) -> None:
    """Node 0 is released 105 s after the move off it: a launch 1800 s later undoes that move, 1805 s later not."""
    state = two_nodes()
    # Wanted one step before and refused for 10 s (``upscale_delay_s``), the fifth replica is launched for 15 s after.
    grows_at = round((105.0 + gap_s - 15.0) / STEP_S)
    load = np.full(grows_at + 10, 4.0)
    load[grows_at:] = 10.0
    traffic = varying_traffic(state.spec, {"one": load}, len(load))
    sim = Simulator(state, traffic, LIMITS, np.random.default_rng(0))
    begun_s = sim.now_s
    sim.start(sim.view, Move(0, 1))
    at_s: dict[Entry, float] = {}
    while sim.num_steps_left:
        sim.advance(1)
        for entry in (Entry.NODES_RELEASED, Entry.NODES_LAUNCHED):
            if sim.ledger()[entry]:
                at_s.setdefault(entry, sim.now_s - begun_s)
    assert at_s == {Entry.NODES_RELEASED: 105.0, Entry.NODES_LAUNCHED: 105.0 + gap_s}
    assert sim.ledger()[Entry.UNDONE_MOVES] == undone


@pytest.mark.parametrize(
    ("released", "undone", "left"),
    [
        ([(100.0, 0, 2), (900.0, 0, 3)], 3, [2, 0]),  # the earlier one first
        ([(900.0, 0, 2), (100.0, 0, 3)], 2, [0, 3]),
        ([(100.0, 1, 2)], 0, [2]),  # another type
        ([(1801.0, 0, 2), (1800.0, 0, 3)], 3, [2, 0]),  # too long ago
        ([(900.0, 0, 0), (100.0, 0, 3)], 3, [0, 0]),  # not brought about by moves, or matched before
        ([], 0, []),
    ],
)
def test_which_release_a_launch_undoes(released: list[tuple[float, int, int]], undone: int, left: list[int]) -> None:
    """Releases as (seconds ago, type, moves); a plain node is launched: one release at most is matched, and once."""
    sim = simulator(two_nodes(), {})
    hidden, ledger = sim._hidden, Ledger.zeros()
    for n, (ago_s, node_type, moves) in enumerate(released):
        hidden.released_s[n], hidden.released_type[n], hidden.released_moves[n] = sim.now_s - ago_s, node_type, moves
    match_release(hidden, sim.now_s, 0, ledger)
    assert ledger[Entry.UNDONE_MOVES] == undone
    assert hidden.released_moves[: len(left)].tolist() == left


def test_a_launch_undoes_only_the_moves_of_the_node_before_it() -> None:
    """The row of a released node is used again twice; the second time no move had emptied it."""
    state = two_nodes()
    load = np.empty(240)
    # The second node comes (over four replicas), goes, and comes again.
    for first, level in ((0, 4.0), (30, 10.0), (80, 4.0), (150, 10.0)):
        load[first:] = level
    traffic = varying_traffic(state.spec, {"one": load}, 240)
    sim = Simulator(state, traffic, LIMITS, np.random.default_rng(0))
    sim.start(sim.view, Move(0, 1))
    sim.advance(240)
    assert sim.ledger()[Entry.NODES_RELEASED] == 2
    assert sim.ledger()[Entry.NODES_LAUNCHED] == 2
    assert sim.ledger()[Entry.UNDONE_MOVES] == 1


@pytest.mark.parametrize(("min_nodes", "stay"), [(0, 0), (1, 1), (2, 2), (3, 3), (9, 3)])
def test_the_least_number_of_nodes_stays(min_nodes: int, stay: int) -> None:
    """Three empty nodes expire at once; as many stay as the type must have, and those for ever."""
    state = empty_state(small_spec())
    state.spec.arrays.min_replicas[:] = 0
    state.spec.arrays.type_min_nodes[0] = min_nodes
    for n in range(3):
        add_node(state, n)
    sim = simulator(state, {})
    sim.advance(100)
    assert (sim.view.arrays.node_phase == NodePhase.ALIVE).sum() == stay
    assert sim.ledger()[Entry.NODES_RELEASED] == 3 - stay


def test_spread_goes_on_where_it_stopped() -> None:
    """Four replicas asked for at four different steps, three nodes: one after another, then the first again."""
    state = empty_state(small_spec(SchedulingStrategy.SPREAD, idle_timeout_s=600.0))
    state.spec.arrays.min_replicas[:] = 0
    for n in range(3):
        add_node(state, n)
    traffic = varying_traffic(state.spec, {"one": 2.0 * (np.arange(40) // 10) + 2.0}, 40)
    sim, seen = Simulator(state, traffic, LIMITS, np.random.default_rng(0)), []
    while sim.num_steps_left:
        sim.advance(10)
        st = sim.view.arrays
        seen.append(np.bincount(st.replica_node[st.replica_node >= 0], minlength=3).tolist())
    assert seen == [[1, 0, 0], [1, 1, 0], [1, 1, 1], [2, 1, 1]]


def test_a_fence_that_has_yielded_is_gone() -> None:
    """The only node is fenced; a replica that fits nowhere else goes there, and others may follow it."""
    state = empty_state(small_spec())
    state.spec.arrays.min_replicas[:] = 0
    state.arrays.node_fenced_until_s[add_node(state, 0)] = state.now_s + 1000.0
    sim = simulator(state, {"one": 2.0})
    sim.advance(1)
    assert sim.view.arrays.node_fenced_until_s[0] == -np.inf
    assert (sim.view.arrays.replica_node == 0).sum() == 1
    assert sim.ledger()[Entry.NODES_LAUNCHED] == 0


@pytest.mark.parametrize(
    ("strategy", "served"), [(SchedulingStrategy.PACK, [TWO]), (SchedulingStrategy.SPREAD, [ONE, ONE])]
)
def test_pack_places_the_largest_first(strategy: SchedulingStrategy, served: list[int]) -> None:
    """Two GPUs are free, two single replicas asked before a pair: pack takes the pair, spread those who came first."""
    state = empty_state(small_spec(strategy))
    st = state.arrays
    state.spec.arrays.min_replicas[:] = 0
    state.spec.arrays.type_max_nodes[:] = (1, 0)
    add_node(state, 0)
    for _ in range(2):
        add_replica(state, FIXED, 0)
    for r, d in zip((5, 6, 7), (ONE, ONE, TWO), strict=True):
        st.replica_deployment[r], st.replica_phase[r] = d, ReplicaPhase.PENDING
        st.deployment_target[d] += 1
    sim = simulator(state, {"one": 4.0, "two": 2.0, "fixed": 4.0})
    sim.advance(1)
    starting = sim.view.arrays.replica_phase == ReplicaPhase.STARTING
    assert sim.view.arrays.replica_deployment[starting].tolist() == served


def running(state: ClusterState) -> np.ndarray:
    """Replicas that serve: ``(D,)``."""
    st = state.arrays
    rows = st.replica_deployment[st.replica_phase == ReplicaPhase.RUNNING]
    return np.bincount(rows, minlength=state.spec.num_deployments)


def test_moves_never_lower_the_replicas_that_serve() -> None:
    """Under steady load with moves at random, no deployment ever has fewer replicas running than a step before."""
    num_moves = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        spec = small_spec(SchedulingStrategy.SPREAD)
        load = {d.name: float(rng.uniform(0.0, 6.0)) for d in spec.deployments}
        traffic = constant_traffic(spec, load, 100)
        sim = Simulator(initial_state(spec, traffic, rng), traffic, LIMITS, rng)
        serving = running(sim.view)
        assert serving.sum() >= spec.num_deployments - 1  # a golden one may find its two nodes taken
        while sim.num_steps_left:
            replicas = np.flatnonzero(sim.view.arrays.replica_phase == ReplicaPhase.RUNNING)
            for r in rng.choice(replicas, 3):
                move = Move(int(r), int(rng.integers(spec.max_nodes)))
                if check_move(sim.view, move, LIMITS).allowed:
                    sim.start(sim.view, move)
                    num_moves += 1
            sim.advance(1)
            before, serving = serving, running(sim.view)
            assert (serving >= before).all()
            assert (serving <= sim.view.arrays.deployment_target).all()
    assert num_moves > 40


def test_metrics_follow_the_load() -> None:
    """After each step: the mean of the last rows of each look-back period, and the exponential mean of ten minutes."""
    spec = small_spec()
    rates = np.tile([1.0, 3.0, 0.0, 2.0, 9.0, 0.1], (3, 1))
    look_back_s = np.array([5.0, 30.0, 30.0, 62.0, 11.0, 600.0])
    traffic = sample_traffic(
        rates,
        bin_s=600.0,
        service_s=np.full(6, 10.0),
        burstiness_cv=np.full(6, 2.0),
        tokens_per_request=np.full(6, 100.0),
        look_back_s=look_back_s,
        num_steps=360,
        step_s=STEP_S,
        rng=np.random.default_rng(0),
    )
    rng = np.random.default_rng(1)
    sim = Simulator(initial_state(spec, traffic, rng), traffic, LIMITS, rng)
    slow, done = traffic.slow_mean(STEP_S), 0
    np.testing.assert_allclose(sim.view.arrays.deployment_ongoing_slow, slow)
    while sim.num_steps_left:
        count = min(int(rng.integers(1, 5)), sim.num_steps_left)
        sim.advance(count)
        for _ in range(count):
            slow = slow + (1.0 - np.exp(-STEP_S / SLOW_MEAN_S)) * (traffic.ongoing[traffic.num_before + done] - slow)
            done += 1
        end = traffic.num_before + done
        want = [traffic.ongoing[end - rows : end, d].mean() for d, rows in enumerate((1, 6, 6, 12, 2, 120))]
        np.testing.assert_allclose(sim.view.arrays.deployment_ongoing, want, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(sim.view.arrays.deployment_ongoing_slow, slow)
