"""A plan from a policy that may fail or be late: then the heuristic's, and where that fails too, none."""

import dataclasses
import logging
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from rayfold.envs.moves import Plan
from rayfold.envs.state import ClusterState
from rayfold.policies.protocol import Policy

__all__ = ["PlanMaker"]

log = logging.getLogger(__name__)


class PlanMaker:
    """Asks the policy in a thread of its own; one that overruns is answered for until it is done.

    Args:
        policy: Makes the plan.
        fallback: Makes it where the policy fails or is late.
        rng: Randomness of the policy.
    """

    def __init__(self, policy: Policy, fallback: Policy, rng: np.random.Generator) -> None:
        self.policy, self.fallback = policy, fallback
        self._rng = rng
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="policy")
        self._running: Future[Plan] | None = None

    def plan(self, state: ClusterState, deadline_s: float) -> tuple[Plan, str]:
        """The plan and the name of the policy that made it, empty where none could."""
        policy, fallback = self.policy, self.fallback  # another thread may replace them
        try:
            if self._running is not None and not self._running.done():
                raise TimeoutError("the policy is still busy with an earlier tick")
            self._running = self._pool.submit(policy.plan, state, self._rng)
            return self._running.result(deadline_s), policy.name
        except Exception as err:  # a policy may raise anything; the fallback answers for it
            log.exception("policy %s failed, falling back to %s", policy.name, fallback.name)
            failure = f"{policy.name} failed ({type(err).__name__}: {err})"
        try:
            # The policy's generator may be in use by its own late thread.
            plan = fallback.plan(state, np.random.default_rng(0))
        except Exception:  # the last resort is to leave the cluster as it is
            log.exception("fallback %s failed too: no moves", fallback.name)
            return Plan(reason=f"{failure}, and so did {fallback.name}: no moves"), ""
        return dataclasses.replace(plan, reason=f"{failure}; {plan.reason}"), fallback.name

    def take(self, policy: Policy, fallback: Policy) -> None:
        """Asks these from now on; one that is busy is still waited for."""
        self.policy, self.fallback = policy, fallback

    def stop(self) -> None:
        """Begins nothing more; a policy that is busy is not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)
