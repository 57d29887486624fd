"""``ParallelRollout``: policies take turns, and the twin says which one leads.

Parallel rollout (Chang, Givan and Chong, "Parallel Rollout for Online Solution of POMDPs", Discrete Event Dynamic
Systems 14, 2004): at each choice every member is rolled forward from the present state on the same sampled futures, and
the one of least mean bill leads. That takes some seconds of computing at each choice. A member takes over only if the
paired difference to the one that leads is below zero with the confidence asked for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rayfold.envs.futures import TrafficModel
from rayfold.envs.moves import Plan
from rayfold.envs.safety import Limits
from rayfold.envs.state import ClusterState
from rayfold.policies.protocol import Policy
from rayfold.policies.twin import cheapest, simulate, startable

__all__ = ["ParallelRollout", "RolloutSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSettings:
    """How far and how often to look."""

    dwell_s: float = 1800.0
    horizon_s: float = 10800.0
    num_futures: int = 4
    confidence: float = 1.0  # standard errors by which another member must be cheaper to take over


class ParallelRollout:
    """The member that is cheapest in the twin leads, for half an hour at least.

    Args:
        members: How each one is made, the reference first.
        limits: What the safety filter allows.
        model: Of the traffic to come.
        settings: How far and how often to look.
    """

    name = "parallel_rollout"

    def __init__(
        self,
        members: Sequence[Callable[[], Policy]],
        limits: Limits,
        model: TrafficModel,
        settings: RolloutSettings | None = None,
    ) -> None:
        self._members, self._limits, self._model = tuple(members), limits, model
        self.settings = settings or RolloutSettings()
        self.reset()

    def reset(self) -> None:
        """The reference leads first."""
        self.leader = 0
        self._member = self._members[0]()
        self._since_s: float | None = None

    def plan(self, state: ClusterState, rng: np.random.Generator) -> Plan:
        """The leader's plan; its reason begins with the leader's name."""
        if self._since_s is None or state.now_s - self._since_s >= self.settings.dwell_s - 1e-6:
            self._since_s = state.now_s
            best = self._best(state, int(rng.integers(2**63)))
            if best != self.leader:
                self.leader, self._member = best, self._members[best]()
        plan = self._member.plan(state, rng)
        return replace(plan, reason=f"{self._member.name}: {plan.reason}")

    def _best(self, state: ClusterState, seed: int) -> int:
        rolled = simulate(
            startable(state),
            {str(k): make() for k, make in enumerate(self._members)},
            self._model,
            self._limits,
            horizon_s=self.settings.horizon_s,
            num_futures=self.settings.num_futures,
            seed=seed,
        )
        return cheapest([rolled[str(k)] for k in range(len(self._members))], self.leader, self.settings.confidence)
