"""States of known optimum: the optimum by a second route, and nothing double in them."""

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp

from rayfold.envs.known_optimum import AWKWARD, MIXED, known_optimum
from rayfold.envs.safety import Limits
from rayfold.envs.simulator import Simulator
from rayfold.envs.state import ClusterState, ReplicaPhase
from tests.envs.clusters import constant_traffic
from tests.envs.conservation import check_conserved, check_simulator, running_counts

LIMITS = Limits(max_concurrent_moves=8, deployment_cooldown_s=0.0)


def least_num_nodes(state: ClusterState) -> int:
    """Fewest nodes that hold every replica of a state of one node type, by integer programming.

    Variables: replica r is on node n, node n is used. Every replica is on one node; per node and resource the replicas
    on it ask for no more than it has if it is used, and for nothing otherwise.
    """
    spec = state.spec.arrays
    rows = np.flatnonzero(state.arrays.replica_phase == ReplicaPhase.RUNNING)
    demand = spec.demand[state.arrays.replica_deployment[rows]]  # (R, K)
    num_nodes, num_replicas = len(state.arrays.node_type), len(rows)
    on_one = np.hstack([np.kron(np.eye(num_replicas), np.ones(num_nodes)), np.zeros((num_replicas, num_nodes))])
    room = [
        np.hstack([np.kron(demand[:, k], np.eye(num_nodes)), -spec.type_capacity[0, k] * np.eye(num_nodes)])
        for k in range(demand.shape[1])
    ]
    found = milp(
        np.concatenate([np.zeros(num_replicas * num_nodes), np.ones(num_nodes)]),
        constraints=[LinearConstraint(on_one, 1, 1), LinearConstraint(np.vstack(room), -np.inf, 1e-9)],
        integrality=np.ones(num_replicas * num_nodes + num_nodes, np.int64),
        bounds=Bounds(0, 1),
    )
    assert found.success, found.message
    return round(found.fun)


@pytest.mark.parametrize("sizes", [MIXED, AWKWARD])
@pytest.mark.parametrize("seed", range(4))
def test_optimum_by_integer_programming(seed: int, sizes: tuple[int, ...]) -> None:
    """Two routes to the least number of nodes: by construction, and by a solver that knows nothing of it."""
    state, optimum = known_optimum(6, np.random.default_rng(seed), sizes)
    assert optimum == 3
    assert least_num_nodes(state) == optimum


def test_solver_sees_a_change() -> None:
    """Planted fault: with two replicas of four GPUs less, one node less is enough, and the solver says so."""
    state, optimum = known_optimum(6, np.random.default_rng(0), (4,))
    st = state.arrays
    st.replica_phase[np.flatnonzero(st.replica_phase == ReplicaPhase.RUNNING)[:2]] = ReplicaPhase.EMPTY
    assert least_num_nodes(state) == optimum - 1


@pytest.mark.parametrize("sizes", [MIXED, AWKWARD])
@pytest.mark.parametrize("num_nodes", [2, 10, 100, 1000])
def test_state_is_scattered_and_consistent(num_nodes: int, sizes: tuple[int, ...]) -> None:
    """Conservation by a recount; every node holds something; the GPUs in use fill half of the nodes."""
    state, optimum = known_optimum(num_nodes, np.random.default_rng(num_nodes), sizes)
    check_conserved(state)
    st = state.arrays
    assert (st.node_num_held > 0).all()
    assert 2 * optimum == num_nodes
    np.testing.assert_allclose(st.node_free.sum(0), optimum * state.spec.arrays.type_capacity[0])


def test_same_seed_same_state() -> None:
    """Bit by bit."""
    states = [known_optimum(20, np.random.default_rng(seed)).state for seed in (1, 1, 2)]
    assert states[0].digest() == states[1].digest() != states[2].digest()


@pytest.mark.parametrize("num_nodes", [-2, 0, 3])
def test_number_of_nodes_is_even(num_nodes: int) -> None:
    """Half of them has to be a number."""
    with pytest.raises(ValueError, match="even"):
        known_optimum(num_nodes, np.random.default_rng(0))


@pytest.mark.parametrize("sizes", [(), (3,), (5, 4, 2, 6), (0, 4), (-1, 4)])
def test_sizes_add_up_to_a_node(sizes: tuple[int, ...]) -> None:
    """Or there is no such construction."""
    with pytest.raises(ValueError, match="add up"):
        known_optimum(10, np.random.default_rng(0), sizes)


def test_optimum_stays_in_a_simulator() -> None:
    """Whatever the traffic, the replicas are those of the start: min_replicas is max_replicas."""
    state, _ = known_optimum(20, np.random.default_rng(3))
    before = running_counts(state)
    traffic = constant_traffic(state.spec, {"gpu1": 500.0}, 120)
    sim = Simulator(state, traffic, LIMITS, np.random.default_rng(0))
    sim.advance(120)
    check_simulator(sim)
    np.testing.assert_array_equal(running_counts(sim.view), before)
