"""Free repacking: what it rearranges by hand, that nothing is lost, and that it ends below what moves can reach."""

import numpy as np
import pytest

from rayfold.envs.episode import Episode, scenario_layout
from rayfold.envs.ledger import Entry, Ledger
from rayfold.envs.safety import Limits
from rayfold.envs.scenario import Scenario, Split, load_scenario
from rayfold.envs.state import ClusterState, ReplicaPhase
from rayfold.policies.best_fit import BestFit
from rayfold.policies.free_repacking import FreeRepacking, repack
from rayfold.policies.rollout import Rearranger, roll_out
from tests.envs.clusters import add_node, add_replica, empty_state, random_state, small_spec
from tests.envs.conservation import check_conserved, check_simulator, running_counts

ONE, TWO, HALF, SINGLE, GOLDEN, FIXED = range(6)
LIMITS = Limits(max_concurrent_moves=1, deployment_cooldown_s=600.0)


def held(state: ClusterState) -> list[int]:
    """Replicas per node row."""
    return [int(held) for held in state.arrays.node_num_held]


def usd_per_h(state: ClusterState) -> float:
    """Price of the nodes that hold something."""
    st = state.arrays
    return float(state.spec.arrays.type_price_usd_per_h[st.node_type[st.node_num_held > 0]].sum())


def test_three_nodes_become_one() -> None:
    """One replica on each of three nodes, in a cooldown and beyond the limit on moves: two nodes are emptied now."""
    state = empty_state(small_spec())
    for n in range(3):
        add_node(state, n)
        add_replica(state, ONE, n)
    state.arrays.deployment_moved_s[:] = state.now_s - 1.0
    assert repack(state, LIMITS)
    assert sorted(held(state)) == [0, 0, 0, 0, 3]
    empty = (state.arrays.node_num_held[:3] == 0).tolist()
    assert state.arrays.node_idle_since_s[:3][empty].tolist() == [state.now_s] * 2
    assert not repack(state, LIMITS)
    check_conserved(state)


def test_what_stays_where_it_is() -> None:
    """Opted-out, starting and limited replicas, and those on an opted-out node, keep their nodes."""
    state = empty_state(small_spec())
    for n in range(5):
        add_node(state, n)
    for d, n in ((FIXED, 0), (SINGLE, 1), (SINGLE, 2), (ONE, 3)):
        add_replica(state, d, n)
    add_replica(state, ONE, 4, ReplicaPhase.STARTING)
    state.arrays.node_is_opted_out[3] = True
    before = state.arrays.replica_node.copy()
    assert repack(state, LIMITS)
    st = state.arrays
    assert st.replica_node[0] == before[0]
    assert st.replica_node[3:5].tolist() == before[3:5].tolist()
    assert st.replica_node[1] != st.replica_node[2]  # at most one to a node
    assert held(state)[1] == held(state)[2] == 0
    check_conserved(state)


def test_a_dear_node_is_given_up_for_a_cheap_idle_one() -> None:
    """One replica on the 6 USD node goes to the 4 USD node that stands empty."""
    state = empty_state(small_spec())
    add_node(state, 0)
    add_node(state, 1, 1)
    add_replica(state, ONE, 1)
    assert repack(state, LIMITS)
    assert held(state)[:2] == [1, 0]


def test_the_least_number_of_nodes_is_not_emptied_in_vain() -> None:
    """Both nodes stay anyway: nothing is moved."""
    state = empty_state(small_spec(min_nodes=2))
    for n in range(2):
        add_node(state, n)
        add_replica(state, ONE, n)
    assert not repack(state, LIMITS)
    assert held(state)[:2] == [1, 1]


def test_random_states_stay_whole() -> None:
    """On 150: nothing is lost, nothing but running replicas has moved, and the nodes in use cost less."""
    num_repacked = 0
    for seed in range(150):
        state = random_state(np.random.default_rng(seed))
        before, running, paid = state.arrays.copy(), running_counts(state), usd_per_h(state)
        is_repacked = repack(state, LIMITS)
        check_conserved(state)
        np.testing.assert_array_equal(running_counts(state), running)
        others = before.replica_phase != ReplicaPhase.RUNNING
        np.testing.assert_array_equal(state.arrays.replica_node[others], before.replica_node[others])
        assert usd_per_h(state) < paid if is_repacked else usd_per_h(state) == pytest.approx(paid)
        num_repacked += is_repacked
    assert num_repacked > 40


def episode(scenario: Scenario, seed: int) -> Episode:
    """The same one for every policy."""
    return Episode(scenario, scenario_layout(scenario), Split.TRAIN, np.random.default_rng(seed))


def test_conservation_through_an_episode() -> None:
    """Checked at every tick of an episode with shares of devices; no move is counted or paid for."""
    sim = episode(load_scenario("fractional", None, synthetic=True).with_horizon(4 * 3600.0), 0).simulator
    free = FreeRepacking()
    assert isinstance(free, Rearranger)
    steps = round(sim.spec.settings.decision_interval_s / sim.spec.settings.substep_s)
    while sim.num_steps_left >= steps:
        free.rearrange(sim)
        check_simulator(sim)
        sim.advance(steps)
    assert sim.ledger()[Entry.MOVES] == sim.ledger()[Entry.DISRUPTION_USD] == sim.ledger()[Entry.UNDONE_MOVES] == 0.0


@pytest.mark.parametrize("name", ["smoke", "low_scale", "two_node"])
def test_below_best_fit(name: str) -> None:
    """Fewer node-hours than best fit and a lower bill, in the mean of four seeds; a single seed may differ."""
    scenario = load_scenario(name, None, synthetic=True)
    node_h, total_usd = np.zeros(2), np.zeros(2)
    for seed in range(4):
        ledgers: list[Ledger] = [
            roll_out(episode(scenario, seed).simulator, policy, np.random.default_rng(0), clock=lambda: 0.0).ledger
            for policy in (FreeRepacking(), BestFit(scenario.limits))
        ]
        node_h += [ledger[Entry.NODE_H] for ledger in ledgers]
        total_usd += [ledger.total_usd for ledger in ledgers]
    assert node_h[0] <= node_h[1]
    assert total_usd[0] < total_usd[1]
