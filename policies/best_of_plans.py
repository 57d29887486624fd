"""``BestOfPlans``: several plans of one policy, rolled forward in the twin; the cheapest is made.

Rollout (Tesauro and Galperin, "On-line Policy Improvement using Monte-Carlo Search", NIPS 1996) over sampled plans,
as the "risk-seeking evaluation" of VMR2L (EuroSys 2025) samples trajectories. Its simulator is exact, and nothing
arrives in it; here futures differ by more than plans do, so all plans meet the same futures, and one takes the place of
the first only if it is cheaper with the confidence asked for.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rayfold.envs.futures import TrafficModel, sample_futures
from rayfold.envs.moves import Plan
from rayfold.envs.safety import Limits
from rayfold.envs.state import ClusterState
from rayfold.envs.traffic import Traffic
from rayfold.policies.protocol import Policy
from rayfold.policies.settings import between
from rayfold.policies.twin import cheapest, compare, startable

__all__ = ["BestOfPlans", "SearchSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSettings:
    """How many plans, and how far and often each is rolled forward."""

    num_plans: int = between(4, 1, 64)  # sampled from the policy, equal ones included
    num_futures: int = between(4, 1, 64)
    horizon_s: float = between(3600.0, 60.0, 86400.0)  # in whole minutes
    # To do nothing for so long is one more plan: a minute of it is worth too little to be seen.
    wait_s: float = between(900.0, 0.0, 86400.0)
    confidence: float = between(1.0, 0.0, 10.0)  # standard errors by which another plan must be cheaper than the first
    max_s: float = between(math.inf, 0.0, math.inf)  # wall time: no further future begins after it; at least two do


class BestOfPlans:
    """Where the policy would act, it is asked again, and what it says is tried out first.

    Args:
        make_policy: The policy that plans, and that goes on after any plan in the twin; its plans are sampled and it
            remembers nothing of them, as the network does.
        limits: What the safety filter allows.
        model: Of the traffic to come.
        settings: How many plans, how far.
        advisers: Each has one more plan.
    """

    name = "best_of_plans"

    def __init__(
        self,
        make_policy: Callable[[], Policy],
        limits: Limits,
        model: TrafficModel,
        settings: SearchSettings | None = None,
        advisers: Sequence[Policy] = (),
    ) -> None:
        self._make_policy, self._limits, self._model = make_policy, limits, model
        self.settings = settings or SearchSettings()
        self._policy, self._advisers = make_policy(), tuple(advisers)

    def reset(self) -> None:
        """All policies forget."""
        for policy in (self._policy, *self._advisers):
            policy.reset()

    def plan(self, state: ClusterState, rng: np.random.Generator) -> Plan:
        """The first plan, or one that is cheaper in the twin; the reason tells what was compared."""
        plans = [self._policy.plan(state, rng) for _ in range(self.settings.num_plans)]
        plans += [adviser.plan(state, rng) for adviser in self._advisers]
        first, different = plans[0], list({plan.moves: plan for plan in reversed(plans)}.values())
        if not any(plan.moves for plan in different):
            return first
        others = [plan for plan in different if plan.moves and plan.moves != first.moves]
        wait = Plan(reason=f"waits for {self.settings.wait_s:g} s")
        tried = [_Begun(plan, self._make_policy()) for plan in (first, *others)]
        tried.append(_Begun(wait, self._make_policy(), until_s=state.now_s + self.settings.wait_s))
        traffic_rng, simulator_rng = rng.spawn(2)
        named = {str(k): policy for k, policy in enumerate(tried)}
        rolled = compare(startable(state), named, self._futures(state, traffic_rng), self._limits, simulator_rng)
        best = cheapest([rolled[name] for name in named], 0, self.settings.confidence)
        saved_usd = rolled["0"].cost_above(rolled[str(best)]).mean
        told = f"best of {len(tried)} plans on {len(rolled['0'].ledgers)} futures, by {saved_usd:.2f} USD"
        return replace(tried[best].first, reason=f"{told}: {tried[best].first.reason}")

    def _futures(self, state: ClusterState, rng: np.random.Generator) -> Iterator[Traffic]:
        begun_s, settings = time.monotonic(), self.settings
        futures = sample_futures(
            self._model, state, horizon_s=settings.horizon_s, num_futures=settings.num_futures, rng=rng
        )
        for k, traffic in enumerate(futures):
            if k >= 2 and time.monotonic() - begun_s > settings.max_s:
                return
            yield traffic


class _Begun:
    """A plan, and after it a policy, which may have to wait."""

    def __init__(self, first: Plan, after: Policy, until_s: float = 0.0) -> None:
        self.first, self._after, self._until_s, self.name = first, after, until_s, after.name
        self.reset()

    def reset(self) -> None:
        """The plan is still to come."""
        self._after.reset()
        self._is_next = True

    def plan(self, state: ClusterState, rng: np.random.Generator) -> Plan:
        """The plan first."""
        if self._is_next:
            self._is_next = False
            return self.first
        return self._after.plan(state, rng) if state.now_s >= self._until_s else Plan(reason="waits")
