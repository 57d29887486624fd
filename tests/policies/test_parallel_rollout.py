"""``parallel_rollout``: who is cheapest in the twin leads."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from rayfold.envs.futures import fit_traffic
from rayfold.envs.initial_state import initial_state
from rayfold.envs.moves import Plan
from rayfold.envs.scenario import Scenario, Split, load_scenario
from rayfold.envs.simulator import Simulator
from rayfold.envs.state import ClusterState
from rayfold.policies.dearest_first import DearestFirst
from rayfold.policies.finish import Finish
from rayfold.policies.none import NoMoves
from rayfold.policies.parallel_rollout import ParallelRollout, RolloutSettings
from rayfold.policies.protocol import Policy
from rayfold.policies.rollout import roll_out

SETTINGS = RolloutSettings(dwell_s=1800.0, horizon_s=3600.0, num_futures=2)


def scattered() -> tuple[Scenario, Simulator]:
    """A cluster that the first compaction makes cheaper: all replicas of a steady scenario, spread."""
    scenario = load_scenario("low_scale", None, synthetic=True).with_horizon(7200.0)
    rngs = np.random.default_rng(1).spawn(3)
    traffic = scenario.sample(rngs[0], Split.TRAIN)
    return scenario, Simulator(initial_state(scenario.spec, traffic, rngs[1]), traffic, scenario.limits, rngs[2])


def test_the_cheaper_member_takes_over_and_pays() -> None:
    """Doing nothing is dearer than compaction there, in the twin and in the end."""
    scenario, sim = scattered()
    alone = roll_out(sim.fork(), NoMoves(), np.random.default_rng(0)).ledger.total_usd
    members: list[Callable[[], Policy]] = [NoMoves, partial(DearestFirst, scenario.limits)]
    policy = ParallelRollout(members, scenario.limits, fit_traffic(scenario, scenario.spec), SETTINGS)
    together = roll_out(sim, policy, np.random.default_rng(0)).ledger.total_usd
    assert policy.leader == 1
    assert together < 0.95 * alone
    policy.reset()
    assert policy.leader == 0


def test_equal_members_never_take_over() -> None:
    """On the same futures they differ by nothing, which is not less than nothing."""
    scenario, sim = scattered()
    members: list[Callable[[], Policy]] = [partial(Finish, scenario.limits), NoMoves]
    policy = ParallelRollout(members, scenario.limits, fit_traffic(scenario, scenario.spec), SETTINGS)
    roll_out(sim, policy, np.random.default_rng(0))
    assert policy.leader == 0
    assert isinstance(policy, Policy)


@pytest.mark.parametrize(("dwell_s", "looks"), [(1800.0, 4), (3600.0, 2)])
def test_it_looks_once_per_dwell(monkeypatch: pytest.MonkeyPatch, dwell_s: float, looks: int) -> None:
    """In between the leader leads."""
    scenario, sim = scattered()
    settings = RolloutSettings(dwell_s=dwell_s, horizon_s=600.0, num_futures=1)
    policy = ParallelRollout([NoMoves], scenario.limits, fit_traffic(scenario, scenario.spec), settings)
    seen: list[float] = []

    def note(state: ClusterState, seed: int) -> int:
        seen.append(state.now_s)
        return 0

    monkeypatch.setattr(policy, "_best", note)
    roll_out(sim, policy, np.random.default_rng(0))
    assert len(seen) == looks
    assert isinstance(policy.plan(sim.state(), np.random.default_rng(0)), Plan)
