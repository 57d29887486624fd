"""The clairvoyant optimum: by hand, never above what policies paid, and refused where it would be no bound."""

import dataclasses

import numpy as np
import pytest

from rayfold.envs.episode import Episode, scenario_layout
from rayfold.envs.moves import Plan
from rayfold.envs.scenario import Scenario, Split, load_scenario
from rayfold.envs.simulator import Simulator
from rayfold.envs.state import ClusterState
from rayfold.policies.by_name import make_policy
from rayfold.policies.clairvoyant import Demand, clairvoyant, watch_demand
from rayfold.policies.protocol import Policy
from rayfold.policies.rollout import roll_out
from tests.envs.clusters import add_node, add_replica, constant_traffic, empty_state, small_spec
from tests.envs.test_dynamics import LIMITS

ONE, SLOT_S = 0, 10.0


def two_half_empty_nodes() -> ClusterState:
    """A replica on each of two nodes of 4 USD/h: start-up 30 s, idle time-out 60 s."""
    state = empty_state(small_spec())
    state.spec.arrays.min_replicas[:] = 0
    for n in (0, 1):
        add_node(state, n)
        add_replica(state, ONE, n)
    return state


@pytest.mark.parametrize(
    ("horizon_s", "usd"),
    [
        # One node all the time, the other until its time-out; the move costs 30 s and 2 % of an hour at 1 USD/h.
        (200.0, 4.0 * (200.0 + 60.0) / 3600.0 + 30.0 / 3600.0 + 0.02),
        (70.0, 8.0 * 70.0 / 3600.0),  # ten seconds of a node are less than a move
    ],
)
def test_two_nodes_by_hand(horizon_s: float, usd: float) -> None:
    """Moved at once where the horizon is long enough, else never."""
    state = two_half_empty_nodes()
    traffic = constant_traffic(state.spec, {"one": 4.0}, round(horizon_s / 5.0))
    demand = watch_demand(Simulator(state, traffic, LIMITS, np.random.default_rng(0)), SLOT_S)
    assert demand.target[:, ONE].tolist() == [2] * (round(horizon_s / SLOT_S) + 1)
    found = clairvoyant(state.spec, state.arrays, demand, SLOT_S, 60.0)
    assert found.bound_usd == pytest.approx(usd, abs=2e-5)
    assert found.best_usd == pytest.approx(usd, abs=2e-5)
    assert found.gap_frac < 1e-4


def test_unserved_demand_beyond_all_replicas() -> None:
    """Twelve requests, two replicas that hold five each: 2 / 5 of a replica at three times its price."""
    state = two_half_empty_nodes()
    state.spec.arrays.max_replicas[:] = (2, 0, 0, 0, 0, 0)
    traffic = constant_traffic(state.spec, {"one": 12.0}, 20)
    demand = watch_demand(Simulator(state, traffic, LIMITS, np.random.default_rng(0)), SLOT_S)
    assert demand.unserved_usd == pytest.approx(3.0 * 0.4 * 100.0 / 3600.0)


class Watching:
    """A policy, and the targets that it saw."""

    name = "watching"

    def __init__(self, policy: Policy) -> None:
        self._policy, self.targets = policy, list[np.ndarray]()

    def reset(self) -> None:
        """As the policy."""
        self._policy.reset()

    def plan(self, state: ClusterState, rng: np.random.Generator) -> Plan:
        """As the policy."""
        self.targets.append(state.arrays.deployment_target.copy())
        return self._policy.plan(state, rng)


def begin(scenario: Scenario, seed: int) -> Simulator:
    """The same episode for all."""
    return Episode(scenario, scenario_layout(scenario), Split.TRAIN, np.random.default_rng(seed)).simulator


@pytest.mark.parametrize("seed", [0, 1])
def test_no_policy_pays_less(seed: int) -> None:
    """On ``two_node``; and what Serve asks for is the same under every policy, which the bound rests on."""
    scenario = load_scenario("two_node", None, synthetic=True).with_horizon(900.0)
    sim = begin(scenario, seed)
    first, slot_s = sim.state().arrays, scenario.spec.settings.decision_interval_s
    demand = watch_demand(sim, slot_s)
    found = clairvoyant(scenario.spec, first, demand, slot_s, 20.0)
    for name in ("none", "best_fit", "ray_serve"):
        watching = Watching(make_policy(name, scenario.limits))
        done = roll_out(begin(scenario, seed), watching, np.random.default_rng(0), clock=lambda: 0.0)
        np.testing.assert_array_equal(np.array(watching.targets), demand.target[: len(watching.targets)])
        assert found.bound_usd <= done.ledger.total_usd + 1e-6


def test_refused_where_it_is_no_bound() -> None:
    """Interrupted nodes, failing starts, and more replicas than nodes can hold."""
    state = two_half_empty_nodes()
    spec = state.spec
    none = Demand(np.zeros((2, 6), np.int64), np.zeros((1, 6), np.int64), 0.0, 0.0)
    risky = dataclasses.replace(spec.node_types[0], interruptions_per_h=0.1)
    with pytest.raises(ValueError, match="interrupted"):
        clairvoyant(dataclasses.replace(spec, node_types=(risky, spec.node_types[1])), state.arrays, none, SLOT_S)
    failing = dataclasses.replace(spec.deployments[0], start_failure_prob=0.1)
    with pytest.raises(ValueError, match="fail"):
        clairvoyant(dataclasses.replace(spec, deployments=(failing, *spec.deployments[1:])), state.arrays, none, SLOT_S)
    too_many = none._replace(target=np.array([[2, 0, 0, 0, 0, 0], [99, 0, 0, 0, 0, 0]]))
    with pytest.raises(ValueError, match="not all replicas fit"):
        clairvoyant(spec, state.arrays, too_many, SLOT_S)
