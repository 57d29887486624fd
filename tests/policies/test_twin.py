"""The twin: bills by hand, equal futures for all, and what a live snapshot may hold."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rayfold.envs.futures import fit_traffic, rate_history, sample_futures
from rayfold.envs.initial_state import initial_state
from rayfold.envs.ledger import Entry, Ledger
from rayfold.envs.moves import Plan
from rayfold.envs.safety import Limits
from rayfold.envs.scenario import Scenario, Split, load_scenario
from rayfold.envs.state import ClusterState
from rayfold.envs.traffic import Traffic
from rayfold.errors import InputError
from rayfold.policies.best_fit import BestFit
from rayfold.policies.interval import interval95
from rayfold.policies.none import NoMoves
from rayfold.policies.protocol import Policy
from rayfold.policies.twin import TwinResult, cheapest, compare, roll_forward, startable
from tests.envs.clusters import add_node, add_replica, constant_traffic, empty_state, small_spec


def smoke_state(scenario: Scenario, seed: int = 0) -> ClusterState:
    """A cluster that serves the first moment of an episode of ``smoke``."""
    traffic_rng, placement_rng = np.random.default_rng(seed).spawn(2)
    return initial_state(scenario.spec, scenario.sample(traffic_rng, Split.VALIDATION), placement_rng)


def futures(scenario: Scenario, state: ClusterState, seed: int = 0, num: int = 3) -> list[Traffic]:
    """Half an hour each."""
    model = fit_traffic(scenario, state.spec)
    return list(sample_futures(model, state, horizon_s=1800.0, num_futures=num, rng=np.random.default_rng(seed)))


def test_no_moves_on_constant_traffic_cost_the_nodes() -> None:
    """Two plain nodes at 4 USD/h, full of work, for 0.5 h: 4 USD, one node-hour, no moves, in every future."""
    spec = small_spec(min_nodes=2)
    state = empty_state(spec)
    for n in range(2):
        add_node(state, n)
        add_replica(state, 1, n)
        add_replica(state, 1, n)
    idle = [replace(d, autoscaling=replace(d.autoscaling, min_replicas=0)) for d in spec.deployments]
    spec = replace(
        spec, deployments=tuple(d if d.name == "two" else i for d, i in zip(spec.deployments, idle, strict=True))
    )
    state = replace(state, spec=spec)
    before = state.digest()
    traffic = constant_traffic(spec, {"two": 8.0}, 360)  # 1800 s in steps of 5 s
    result = roll_forward(state, NoMoves(), [traffic] * 3, Limits(), np.random.default_rng(0))
    assert result.total_usd.mean == pytest.approx(4.0)
    assert result.total_usd.ci95 == pytest.approx(0.0, abs=1e-9)
    summary = result.summary()
    assert summary["node_h"].mean == pytest.approx(1.0)
    assert [summary[name].mean for name in ("moves", "undone_moves", "unserved_replica_h")] == [0.0, 0.0, 0.0]
    assert result.num_refused == (0, 0, 0)
    assert state.digest() == before


def test_interval_and_difference_by_hand() -> None:
    """Student's t over the futures' bills; a difference is taken future by future. Here moving is right in each."""
    scenario = load_scenario("two_node")
    state = initial_state(
        scenario.spec, constant_traffic(scenario.spec, {"wide": 37.0, "leftover": 4.0}, 1), np.random.default_rng(0)
    )
    low = [constant_traffic(scenario.spec, {"wide": load, "leftover": 4.0}, 360) for load in (20.0, 24.0, 33.0)]
    policies: dict[str, Policy] = {"none": NoMoves(), "best_fit": BestFit(scenario.limits)}
    results = compare(state, policies, low, scenario.limits, np.random.default_rng(1))
    bills = {name: [ledger.total_usd for ledger in r.ledgers] for name, r in results.items()}
    assert results["best_fit"].total_usd == interval95(bills["best_fit"])
    by_hand = interval95(np.subtract(bills["best_fit"], bills["none"]))
    assert results["best_fit"].cost_above(results["none"]) == by_hand
    assert results["none"].cost_above(results["none"]).mean == 0.0
    assert by_hand.mean < 0.0 < results["best_fit"].summary()["moves"].mean


def test_a_policy_meets_the_same_world_alone_and_in_company() -> None:
    """Common random numbers: beside another policy or by itself, the ledgers are equal to the last bit."""
    scenario = load_scenario("smoke")
    state = smoke_state(scenario)
    both = compare(
        state,
        {"best_fit": BestFit(scenario.limits), "none": NoMoves()},
        futures(scenario, state),
        scenario.limits,
        np.random.default_rng(1),
    )
    alone = roll_forward(state, NoMoves(), futures(scenario, state), scenario.limits, np.random.default_rng(1))
    for mine, theirs in zip(alone.ledgers, both["none"].ledgers, strict=True):
        np.testing.assert_array_equal(mine.values, theirs.values)
    assert len({ledger[Entry.TOKENS] for ledger in alone.ledgers}) == 3  # futures differ


class Counting(NoMoves):
    """Counts its resets and ticks."""

    def __init__(self) -> None:
        self.resets, self.ticks = 0, 0

    def reset(self) -> None:
        """Counted."""
        self.resets += 1

    def plan(self, state: ClusterState, rng: np.random.Generator) -> Plan:
        """No moves."""
        self.ticks += 1
        return super().plan(state, rng)


def test_every_tick_of_every_future() -> None:
    """Three futures of 30 minutes are 90 ticks of a minute, and the policy begins each of them afresh."""
    scenario, policy = load_scenario("smoke"), Counting()
    state = smoke_state(scenario)
    roll_forward(state, policy, futures(scenario, state), scenario.limits, np.random.default_rng(0))
    assert (policy.resets, policy.ticks) == (3, 90)


def test_equal_seeds_equal_futures_and_other_seeds_others() -> None:
    """The traffic is a function of state and seed; a longer list begins with the shorter one."""
    scenario = load_scenario("smoke")
    state = smoke_state(scenario)
    first, again, other = (futures(scenario, state, seed) for seed in (3, 3, 4))
    assert all((a.ongoing == b.ongoing).all() for a, b in zip(first, again, strict=True))
    assert any((a.ongoing != b.ongoing).any() for a, b in zip(first, other, strict=True))
    longer = futures(scenario, state, 3, num=5)
    assert all((a.ongoing == b.ongoing).all() for a, b in zip(first, longer[:3], strict=True))


def test_futures_begin_at_the_recent_level() -> None:
    """A deployment with four times the usual load is forecast high at first: Little's law turns load into rates."""
    scenario = load_scenario("smoke")
    state = smoke_state(scenario)
    loads = []
    for times in (1.0, 4.0):
        slow = state.arrays.deployment_ongoing_slow * times
        changed = replace(state, arrays=state.arrays._replace(deployment_ongoing_slow=slow))
        loads.append(np.mean([traffic.ongoing[-360:][:12, 0].mean() for traffic in futures(scenario, changed, num=20)]))
    assert 2.0 < loads[1] / loads[0] < 5.0


def test_deployments_are_found_by_name_in_any_order() -> None:
    """A live snapshot sorts its deployments; their traffic follows them, and one unknown is named."""
    scenario = load_scenario("smoke")
    turned = replace(scenario.spec, deployments=scenario.spec.deployments[::-1])
    model, other = fit_traffic(scenario, scenario.spec), fit_traffic(scenario, turned)
    np.testing.assert_array_equal(model.requests.service_s[::-1], other.requests.service_s)
    np.testing.assert_array_equal(model.forecaster.profile[:, ::-1], other.forecaster.profile)
    part = fit_traffic(scenario, replace(turned, deployments=turned.deployments[:1]))
    assert part.forecaster.profile.shape[1] == 1
    stranger = replace(scenario.spec.deployments[0], name="stranger")
    with pytest.raises(InputError, match=r"scenario smoke: expected .*default/stranger.*got default/chat, "):
        fit_traffic(scenario, replace(turned, deployments=(stranger,)))


def test_history_is_the_training_days(tmp_path: Path) -> None:
    """Of a two-day trace with one training day, the second day is never seen."""
    rows = [f"{t * 3600},s,{3600 if t < 24 else 99999},," for t in range(48)]
    (tmp_path / "x_3600s.csv").write_text(
        "t_s,series_id,requests,input_tokens,output_tokens\n" + "\n".join(rows) + "\n"
    )
    (tmp_path / "one.yaml").write_text(
        "description: one\n"
        "horizon_s: 3600\n"
        "traffic: {traces: [x_3600s.csv], train_days: [0, 1], validation_days: [1, 2]}\n"
        "node_types: [{name: n, resources: {GPU: 2, CPU: 8}, price_usd_per_h: 2.0}]\n"
        "deployments:\n"
        "  - name: d\n"
        "    shape: {bundles: [{GPU: 1, CPU: 1}]}\n"
        "    requests: {ttft_s: 0.5, tpot_s: 0.0, output_tokens_per_request: 1, series: s}\n"
    )
    history = rate_history(load_scenario(tmp_path / "one.yaml"))
    assert history.rates_rps.shape == (24, 1)
    np.testing.assert_allclose(history.rates_rps, 1.0)
    generated = rate_history(load_scenario("smoke"))
    assert generated.rates_rps.shape == (7 * 1440, 3)
    np.testing.assert_array_equal(generated.rates_rps, rate_history(load_scenario("smoke")).rates_rps)


def test_live_state_starts_the_simulator(tmp_path: Path) -> None:
    """Unix clock, just as many rows as there are things, a move whose replacement is not born yet; saved and loaded."""
    spec = small_spec()
    state = empty_state(spec, now_s=1.7e9, num_nodes=2, num_replicas=3)
    for n in range(2):
        add_node(state, n)
    rows = [add_replica(state, 0, 0), add_replica(state, 1, 0), add_replica(state, 0, 1)]
    state.arrays.replica_peer[rows[0]] = rows[0]
    state = replace(state, node_ids=("a", "b"), replica_ids=("r0", "r1", "r2"))
    state.save(tmp_path / "live.npz")
    loaded = startable(ClusterState.load(tmp_path / "live.npz"))
    traffic = constant_traffic(spec, {"one": 4.0, "two": 2.0}, 360)
    result = roll_forward(loaded, BestFit(Limits()), [traffic], Limits(), np.random.default_rng(0))
    assert result.ledgers[0][Entry.ELAPSED_S] == 1800.0
    assert result.total_usd.mean > 0.0
    assert math.isnan(result.total_usd.ci95)
    assert loaded.arrays.replica_peer.tolist() == [-1, -1, -1]
    assert state.arrays.replica_peer[rows[0]] == rows[0]  # the state itself is left as it was


@pytest.mark.parametrize(("interval_s", "step_s"), [(60.0, 5.0), (2.0, 2.0), (12.0, 4.0), (5.0, 5.0)])
def test_step_divides_the_tick(interval_s: float, step_s: float) -> None:
    """A live decider may tick as it likes: the step is shortened to fit, and what does not fit is refused."""
    spec = small_spec()
    spec = replace(spec, settings=replace(spec.settings, decision_interval_s=interval_s, substep_s=5.0))
    state = startable(empty_state(spec))
    assert state.spec.settings.substep_s == pytest.approx(step_s)
    assert startable(state).digest() == state.digest()
    misfit = replace(state, spec=replace(spec, settings=replace(spec.settings, substep_s=interval_s * 0.7)))
    with pytest.raises(ValueError, match="do not divide"):
        roll_forward(misfit, NoMoves(), [constant_traffic(spec, {}, 9)], Limits(), np.random.default_rng(0))


def test_no_future_is_refused() -> None:
    """Nothing to average over."""
    scenario = load_scenario("smoke")
    with pytest.raises(ValueError, match="at least one future"):
        roll_forward(smoke_state(scenario), NoMoves(), [], scenario.limits, np.random.default_rng(0))


def billed(*usd: float) -> TwinResult:
    """One future per bill."""
    values = [Ledger.zeros() for _ in usd]
    for row, bill in zip(values, usd, strict=True):
        row[Entry.COST_USD] = bill
    return TwinResult(ledgers=tuple(Ledger(values=row) for row in values), num_refused=(0,) * len(usd))


@pytest.mark.parametrize(
    ("confidence", "best"),
    [
        (0.0, 2),  # 3 dollars less in the mean
        (1.5, 1),  # row 2 is -8, +1, -2: by hand -3 with a standard error of 2.65; row 1 is -1, -1, -1
        (99.0, 1),  # known for certain
    ],
)
def test_the_cheapest_is_the_one_that_is_known_to_be(confidence: float, best: int) -> None:
    """Differences are taken future by future; nothing is cheaper than itself."""
    rows = [billed(10.0, 50.0, 90.0), billed(9.0, 49.0, 89.0), billed(2.0, 51.0, 88.0)]
    assert cheapest(rows, 0, confidence) == best
    assert cheapest(rows[:1], 0, 0.0) == 0
    assert cheapest(rows, 1, 1.5) == 1
