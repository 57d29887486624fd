"""The shipped scenarios: each has what its sentence says, and nothing is lost in it under random play."""

import csv
import re

import numpy as np
import pytest

from rayfold.envs.cluster import PlacementGroupStrategy
from rayfold.envs.initial_state import initial_state
from rayfold.envs.ledger import Entry
from rayfold.envs.scenario import Scenario, Split, load_scenario
from rayfold.envs.scenario_file import shipped_scenarios
from rayfold.envs.simulator import Simulator
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase
from tests.envs.conservation import check_simulator, running_counts
from tests.envs.rich import play_moves
from tests.envs.test_scenario import SHARED_TRACES, needs_traces

NUM_TICKS = 30
MANY_NODES = 100  # from here on not every tick is recounted


def start(scenario: Scenario, seed: int, horizon_s: float) -> Simulator:
    """The beginning of an episode on generated traffic."""
    rng = np.random.default_rng(seed)
    traffic = scenario.with_horizon(horizon_s).sample(rng, Split.TRAIN)
    return Simulator(initial_state(scenario.spec, traffic, rng), traffic, scenario.limits, rng)


def steps_per_tick(scenario: Scenario) -> int:
    """Simulator steps of a decision interval."""
    return round(scenario.spec.settings.decision_interval_s / scenario.spec.settings.substep_s)


@pytest.mark.parametrize("name", shipped_scenarios())
def test_nothing_is_lost_under_random_play(name: str) -> None:
    """30 ticks of random valid moves, to new nodes too, and evacuations: resources, devices and links by a recount."""
    scenario = load_scenario(name, synthetic=True)
    horizon_s = NUM_TICKS * scenario.spec.settings.decision_interval_s
    sim, rng = start(scenario, 3, horizon_s), np.random.default_rng(4)
    every = 10 if scenario.spec.max_nodes > MANY_NODES else 1
    check_simulator(sim)
    for tick in range(NUM_TICKS):
        for _ in range(2):
            play_moves([sim], rng, scenario.limits)
        sim.advance(steps_per_tick(scenario))
        if tick % every == every - 1:
            check_simulator(sim)
    ledger = sim.ledger()
    assert ledger[Entry.ELAPSED_S] == horizon_s
    assert ledger[Entry.COST_USD] > 0
    assert sim.num_steps_left == 0


@needs_traces
def test_sizes_and_prices_are_those_of_the_list() -> None:
    """Every node type that is named after an instance has its size and its on-demand or spot price."""
    with (SHARED_TRACES / "instances.csv").open() as f:
        listed = {row["name"]: row for row in csv.DictReader(f)}
    checked = set()
    for scenario in (load_scenario(name, synthetic=True) for name in shipped_scenarios()):
        for t in scenario.spec.node_types:
            name = re.sub("-(spot|reserved)$", "", t.name)
            if name not in listed:
                assert scenario.name in ("local_demo", "smoke", "two_node") or t.is_head, (scenario.name, t.name)
                continue
            row = listed[name]
            assert t.price_usd_per_h == float(row["spot_usd_h" if t.is_spot else "on_demand_usd_h"]), t.name
            size = {"GPU": row["gpu_count"], "CPU": row["vcpu"], "memory_gib": row["memory_gib"]}
            assert t.resources == {resource: float(amount) for resource, amount in size.items()}
            assert t.accelerator.startswith(row["gpu_type"].removesuffix("-80GB")), t.name
            checked.add(t.name)
    assert len(checked) >= 15


@needs_traces
def test_mixed_fleet_adds_three_time_zones() -> None:
    """On its traces chat-8b has the requests of all three parts, and every deployment stays within max_replicas."""
    scenario = load_scenario("mixed_fleet", SHARED_TRACES)
    chat = [d.name for d in scenario.spec.deployments].index("chat-8b")
    for split in Split:
        rates = scenario.source.rates(np.random.default_rng(0), split, 7 * 86400.0).rates_rps
        ongoing = rates * scenario.requests.service_s / scenario.spec.arrays.target_ongoing
        assert (np.quantile(ongoing, 0.99, axis=0) <= scenario.spec.arrays.max_replicas + 1).all()
        assert rates[:, chat].mean() > 30
        swing = [np.ptp(rates[:, i].reshape(7, 144).mean(0)) / rates[:, i].mean() for i in range(rates.shape[1])]
        assert swing[chat] < np.median(swing)


def test_mixed_fleet_is_mixed() -> None:
    """Five accelerators, nodes of 1, 4 and 8 GPUs, spot beside on-demand, fallbacks, a head, other work, new nodes."""
    scenario = load_scenario("mixed_fleet", synthetic=True)
    types = scenario.spec.node_types
    assert {t.accelerator for t in types} >= {"T4", "A10G", "L40S", "A100-80G", "H100"}
    assert {t.resources.get("GPU", 0.0) for t in types} == {0.0, 1.0, 4.0, 8.0}
    spot = [t for t in types if t.is_spot]
    assert len(spot) >= 2
    for t in spot:
        on_demand = next(o for o in types if o.name == t.name.removesuffix("-spot"))
        assert t.price_usd_per_h < on_demand.price_usd_per_h
        assert t.resources == on_demand.resources
        assert t.interruptions_per_h > 0
    assert sum(t.is_head for t in types) == 1
    assert any(t.other_work_prob > 0 for t in types)
    assert sum(bool(d.label_fallbacks) for d in scenario.spec.deployments) >= 5
    assert scenario.limits.allow_new_nodes


def _what_is_lacking(state: ClusterState) -> np.ndarray:
    """``(N, K)`` whether a replica of some deployment fails to fit on a node for that resource alone."""
    st, demand = state.arrays, state.spec.arrays.demand
    lacks = demand[None] > st.node_free[:, None] + 1e-9  # (N, D, K)
    only = lacks & (lacks.sum(-1, keepdims=True) == 1)
    lacking: np.ndarray = only.any(1) & (st.node_phase == NodePhase.ALIVE)[:, None]
    return lacking


def test_tight_is_bound_by_several_resources() -> None:
    """In most beginnings GPU, CPU and memory each are the only thing that some replica lacks on some node."""
    scenario = load_scenario("tight")
    lacking = [_what_is_lacking(start(scenario, seed, 3600.0).view).any(0) for seed in range(6)]
    assert np.mean([row.sum() >= 2 for row in lacking]) == 1.0
    assert (np.mean(lacking, axis=0) >= 0.5).all()


def test_fractional_has_free_shares_that_are_no_gpu() -> None:
    """Quarters, halves, three quarters and pairs of halves; nodes with a whole GPU free in sum and none in fact."""
    scenario = load_scenario("fractional")
    bundles = [[b["GPU"] for b in d.shape.bundles] for d in scenario.spec.deployments]
    assert all(shape in bundles for shape in ([0.25], [0.5], [0.75], [0.5, 0.5]))
    sim, splinters = start(scenario, 0, scenario.horizon_s), 0
    while sim.num_steps_left:
        sim.advance(360)
        st = sim.view.arrays
        splinters += int(((st.gpu_free.sum(1) >= 1.0) & (st.gpu_free.max(1) < 1.0)).sum())
    assert splinters > 0


def test_spot_interrupts_runs_out_and_fails_to_start() -> None:
    """Within an episode or two each of them happens; a notice is shorter than a cold start."""
    scenario = load_scenario("spot")
    total = {entry: 0.0 for entry in (Entry.NODES_INTERRUPTED, Entry.STOCKOUTS, Entry.FAILED_STARTS)}
    for seed in range(2):
        sim = start(scenario, seed, scenario.horizon_s)
        sim.advance(sim.num_steps_left)
        for entry in total:
            total[entry] += sim.ledger()[entry]
    assert min(total.values()) >= 2, total
    shortest_start_s = min(d.startup_s.min_s for d in scenario.spec.deployments)
    assert all(t.notice_s < shortest_start_s for t in scenario.spec.node_types if t.is_spot)


def test_busy_100_has_a_hundred_and_one_of_everything() -> None:
    """A gang, groups that span, shares of GPUs, a head, a reserved type, other work, an opted-out deployment."""
    spec = load_scenario("busy_100").spec
    assert spec.num_deployments == 100
    assert {d.strategy for d in spec.deployments} == set(PlacementGroupStrategy)
    assert any(d.gang_size > 1 for d in spec.deployments)
    assert any(not d.is_movable for d in spec.deployments)
    assert any(t.is_head for t in spec.node_types)
    assert any(t.is_opted_out for t in spec.node_types)
    assert any(t.other_work_prob > 0 for t in spec.node_types)
    state = start(load_scenario("busy_100"), 0, 3600.0).view
    assert 15 <= (state.arrays.node_phase == NodePhase.ALIVE).sum() <= 60
    assert running_counts(state).sum() > 80


def test_thousand_nodes_has_the_size() -> None:
    """1000 nodes at most, 50 deployments, and 3500 replicas or more that run in the first state."""
    scenario = load_scenario("thousand_nodes")
    assert scenario.spec.max_nodes == 1000
    assert scenario.spec.num_deployments == 50
    state = start(scenario, 0, 3600.0).view
    assert running_counts(state).sum() >= 3500
    assert (state.arrays.node_phase == NodePhase.ALIVE).sum() >= 800


@pytest.mark.parametrize("num_nodes", [100, 500, 1000])
def test_known_optimum_settles_on_what_its_least_number_is_of(num_nodes: int) -> None:
    """Half an hour on every deployment has ``min_replicas``, which fill half of the nodes; more of them are in use."""
    scenario = load_scenario(f"known_optimum_{num_nodes}")
    optimum, spec = num_nodes // 2, scenario.spec.arrays
    assert (spec.demand * spec.min_replicas[:, None]).sum(0)[0] == 8 * optimum
    fives, threes, twos = (int(spec.min_replicas[spec.demand[:, 0] == gpus].sum()) for gpus in (5, 3, 2))
    assert fives == threes
    assert threes + twos / 4 == optimum
    assert (spec.demand / spec.type_capacity[0] <= spec.demand[:, :1] / 8).all()  # CPU and memory never bind first
    sim = start(scenario, 0, 1800.0)
    st = sim.view.arrays
    assert num_nodes <= (st.node_phase == NodePhase.ALIVE).sum() <= scenario.spec.max_nodes
    sim.advance(sim.num_steps_left)
    np.testing.assert_array_equal(running_counts(sim.view), spec.min_replicas)
    st = sim.view.arrays
    used = len(np.unique(st.replica_node[st.replica_phase == ReplicaPhase.RUNNING]))
    assert used > 1.05 * optimum
