"""The audit: a policy that knows the future is caught, one that does not passes."""

import numpy as np
import pytest

from rayfold.envs.moves import Plan
from rayfold.envs.safety import Limits
from rayfold.envs.scenario import load_scenario
from rayfold.envs.simulator import Simulator
from rayfold.envs.state import ClusterState
from rayfold.policies.best_fit import BestFit
from rayfold.policies.by_name import HEURISTICS, make_policy
from rayfold.training.audit import AuditError, check_causal


class Peeking(BestFit):
    """A planted fault: it moves only if two hours later there will not be much more traffic."""

    def __init__(self, limits: Limits, sim: Simulator) -> None:
        super().__init__(limits)
        self._sim = sim

    def plan(self, state: ClusterState, rng: np.random.Generator) -> Plan:
        """Best fit's plan, or none if there will be much to do."""
        ongoing = self._sim.traffic.ongoing
        now = len(ongoing) - self._sim.num_steps_left
        later = min(now + 1440, len(ongoing) - 1)
        stays = ongoing[later].sum() < 2.0 * ongoing[now].sum()
        return super().plan(state, rng) if stays else Plan()


def test_a_policy_that_peeks_is_caught() -> None:
    """With the traffic after half time turned round it decides otherwise before."""
    scenario = load_scenario("low_scale")
    with pytest.raises(AuditError, match="yet to come"):
        check_causal(lambda sim: Peeking(scenario.limits, sim), scenario, 0)


@pytest.mark.parametrize("name", sorted(HEURISTICS))
def test_heuristics_do_not(name: str) -> None:
    """Every heuristic decides the same up to there; the usual ones do move."""
    scenario = load_scenario("low_scale")
    policy = make_policy(name, scenario.limits)
    num_moves = check_causal(lambda sim: policy, scenario, 0)
    assert num_moves > 0 or name not in ("best_fit", "dearest_first", "ray_serve", "patient", "karpenter")
