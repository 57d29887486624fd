"""``best_of_plans``: what the twin finds cheaper is done instead."""

import numpy as np
import pytest

from rayfold.envs.futures import fit_traffic
from rayfold.envs.initial_state import initial_state
from rayfold.envs.moves import Plan
from rayfold.envs.scenario import Scenario, Split, load_scenario
from rayfold.envs.simulator import Simulator
from rayfold.envs.state import ClusterState
from rayfold.policies.best_of_plans import BestOfPlans, SearchSettings
from rayfold.policies.dearest_first import DearestFirst
from rayfold.policies.none import NoMoves
from rayfold.policies.protocol import Policy
from rayfold.policies.rollout import roll_out

SETTINGS = SearchSettings(num_plans=4, num_futures=3)


def scattered() -> tuple[Scenario, Simulator]:
    """A steady scenario whose replicas all lie spread, once a node of it can be emptied: that makes it cheaper."""
    scenario = load_scenario("low_scale", None, synthetic=True).with_horizon(7200.0)
    rngs = np.random.default_rng(1).spawn(3)
    traffic = scenario.sample(rngs[0], Split.TRAIN)
    sim = Simulator(initial_state(scenario.spec, traffic, rngs[1]), traffic, scenario.limits, rngs[2])
    while not DearestFirst(scenario.limits).plan(sim.state(), np.random.default_rng(0)).moves:
        roll_out(sim, NoMoves(), np.random.default_rng(0), max_ticks=1)
    return scenario, sim


class NowOrNever:
    """Compacts at one tick, with a probability, and at no other one."""

    name = "now_or_never"

    def __init__(self, scenario: Scenario, now_s: float, p_acts: float = 0.5) -> None:
        self.acts, self.now_s, self.p_acts = DearestFirst(scenario.limits), now_s, p_acts

    def reset(self) -> None:
        """Nothing to forget."""

    def plan(self, state: ClusterState, rng: np.random.Generator) -> Plan:
        """A plan or none."""
        has_chance = state.now_s == self.now_s and rng.random() < self.p_acts
        return self.acts.plan(state, rng) if has_chance else Plan()


def searched(scenario: Scenario, policy: Policy, settings: SearchSettings = SETTINGS) -> BestOfPlans:
    """The search over that policy."""
    return BestOfPlans(lambda: policy, scenario.limits, fit_traffic(scenario, scenario.spec), settings)


def test_it_acts_where_the_policy_alone_misses_its_chance() -> None:
    """Alone it takes the chance in half of the draws; one sample of six has it in all but one of 64."""
    scenario, sim = scattered()
    policy = NowOrNever(scenario, sim.now_s)
    draws = range(12)
    alone = sum(bool(policy.plan(sim.state(), np.random.default_rng(k)).moves) for k in draws)
    several = searched(scenario, policy, SearchSettings(num_plans=6, num_futures=3))
    taken = sum(bool(several.plan(sim.state(), np.random.default_rng(k)).moves) for k in draws)
    assert 2 <= alone <= 9
    assert taken >= 11


def test_a_plan_that_saves_is_kept_and_told() -> None:
    """Where all plans are the one that compacts, it is compared with waiting only, and made."""
    scenario, sim = scattered()
    policy = searched(scenario, NowOrNever(scenario, sim.now_s, 1.0))
    wanted = NowOrNever(scenario, sim.now_s, 1.0).plan(sim.state(), np.random.default_rng(0))
    plan = policy.plan(sim.state(), np.random.default_rng(0))
    assert plan.moves == wanted.moves != ()
    assert plan.reason.startswith("best of 2 plans on 3 futures, by 0.00 USD")
    assert isinstance(policy, Policy)


def test_an_adviser_is_heard() -> None:
    """The policy itself never acts; the adviser's plan is tried, found cheaper, and made."""
    scenario, sim = scattered()
    model, adviser = fit_traffic(scenario, scenario.spec), NowOrNever(scenario, sim.now_s, 1.0)
    policy = BestOfPlans(NoMoves, scenario.limits, model, SETTINGS, [adviser])
    plan = policy.plan(sim.state(), np.random.default_rng(0))
    assert plan.moves == adviser.plan(sim.state(), np.random.default_rng(0)).moves != ()


def test_nothing_to_compare_is_nothing_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no sample has a move no future is drawn."""
    scenario, sim = scattered()
    policy = searched(scenario, NoMoves())
    monkeypatch.setattr(policy, "_futures", None)
    assert policy.plan(sim.state(), np.random.default_rng(0)).moves == ()


def test_equal_seeds_decide_equally() -> None:
    """Plan and reason."""
    scenario, sim = scattered()
    first, second = (
        searched(scenario, NowOrNever(scenario, sim.now_s)).plan(sim.state(), np.random.default_rng(5))
        for _ in range(2)
    )
    assert first == second


def test_time_ends_the_futures() -> None:
    """Two are always played."""
    scenario, sim = scattered()
    settings = SearchSettings(num_plans=2, num_futures=50, horizon_s=600.0, max_s=0.0)
    plan = searched(scenario, NowOrNever(scenario, sim.now_s, 1.0), settings).plan(
        sim.state(), np.random.default_rng(0)
    )
    assert "on 2 futures" in plan.reason
