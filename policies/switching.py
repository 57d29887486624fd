"""``PolicySwitching``: several policies take turns; a network says which one leads.

Policy switching (Chang, Givan and Chong, "Parallel Rollout for Online Solution of POMDPs", Discrete Event Dynamic
Systems 14, 2004): at each state follow the policy whose own future is the cheapest; the result is never worse than any
of them when the futures are known. Here they are not rolled out at the time of decision: a network has learned from
rollouts on training days what each member costs over the next hours, and what it does not know it is pessimistic
about. The reference, ``exact``, is known to be itself, so that doubt hands over to it.
"""

from dataclasses import replace

import numpy as np
import torch

from rayfold.envs.moves import Plan
from rayfold.envs.safety import Limits
from rayfold.envs.state import ClusterState
from rayfold.policies.network import CompactionNet
from rayfold.policies.portfolio import MEMBERS, REFERENCE, make_member
from rayfold.policies.protocol import Policy
from rayfold.policies.switch_features import Memory
from rayfold.policies.switch_net import SwitchNet

__all__ = ["PolicySwitching"]


class PolicySwitching:
    """The member that is expected to cost least leads, for half an hour at least.

    Args:
        switch: Says what members cost, in eval mode.
        net: The network among them.
        limits: What the safety filter allows.
        num_candidates: How many candidates the network lists when it leads.
        name: Name in reports.
    """

    def __init__(
        self,
        switch: SwitchNet,
        net: CompactionNet,
        limits: Limits,
        *,
        num_candidates: int = 0,
        name: str = "learned",
    ) -> None:
        self.switch, self.net, self.name = switch, net, name
        self._limits, self._num_candidates = limits, num_candidates
        self._memory = Memory(limits)
        self.reset()

    def reset(self) -> None:
        """Nothing has been seen; the reference leads first."""
        self._memory.reset()
        self._expected = 0.0  # bill of the leader over the reference's, minus 1
        self._lead(REFERENCE)
        self._since_s: float | None = None  # last choice

    @property
    def leader(self) -> int:
        """Row of ``MEMBERS`` of who leads."""
        return self._row

    def _lead(self, row: int) -> None:
        self._row = row
        self._member: Policy = make_member(row, self._limits, self.net, self._num_candidates)

    def plan(self, state: ClusterState, rng: np.random.Generator) -> Plan:
        """The leader's plan; its reason begins with the leader's name and what it is expected to cost."""
        self._memory.look(state)
        if self._since_s is None or state.now_s - self._since_s >= self.switch.config.dwell_s - 1e-6:
            self._choose(state)
        plan = self._member.plan(state, rng)
        leads = MEMBERS[self._row]
        if self._row != REFERENCE:
            leads += f" ({self._expected:+.1%} of {MEMBERS[REFERENCE]}'s bill)"
        return replace(plan, reason=f"{leads}: {plan.reason}")

    def _choose(self, state: ClusterState) -> None:
        self._since_s = state.now_s
        features = torch.from_numpy(self._memory.features(state)).unsqueeze(0)
        with torch.inference_mode():
            expected = self.switch.pessimistic(features)[0].numpy()
        best = int(expected.argmin())
        if expected[best] < expected[self._row] - self.switch.config.margin_frac:
            self._lead(best)
        self._expected = float(expected[self._row])
