"""``Led``: the policy that a ``Leader`` chooses for the kind of cluster that it finds."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.moves import Plan
from rayfold.envs.safety import Limits
from rayfold.envs.state import ClusterState, NodePhase
from rayfold.policies.leader import REFERENCE, Leader
from rayfold.policies.protocol import Policy
from rayfold.policies.world_features import world_features

__all__ = ["Led"]

DWELL_S = 3600.0  # between two choices: a cluster does not become another one sooner
# Their mean describes the cluster, as the mean of an episode of twelve hours does in training; a single hour may look
# like another kind of cluster (docs/learning.md, 13).
NUM_LOOKS = 12
# Beyond, the reference leads. Who leads is learned on at most 44 nodes and does not depend on how many there are; on
# training days it held for up to 62 (``busy_100``), and for 1000 it did not (docs/learning.md, 14).
MOST_NODES = 256


class Led:
    """One member leads, for an hour at least, by what the last hours had in common.

    Args:
        leader: Says which one.
        make_members: One maker per member of the leader.
        make_reference: Of what leads where it is in doubt.
        limits: What the safety filter allows.
        most_nodes: In the cluster, heads not counted, for any but the reference to lead.
        name: Name in reports.
    """

    def __init__(
        self,
        leader: Leader,
        make_members: Sequence[Callable[[Limits], Policy]],
        make_reference: Callable[[Limits], Policy],
        limits: Limits,
        *,
        most_nodes: int = MOST_NODES,
        name: str = "learned",
    ) -> None:
        self._leader, self._limits, self._most_nodes, self.name = leader, limits, most_nodes, name
        self._make = {**dict(enumerate(make_members)), REFERENCE: make_reference}
        self.reset()

    def reset(self) -> None:
        """Nothing has been seen; the first state decides who leads."""
        self._lead(REFERENCE)
        self._since_s, self._expected = -np.inf, 0.0
        self._looks = deque[NDArray[np.float64]](maxlen=NUM_LOOKS)

    def _lead(self, row: int) -> None:
        self._row, self._member = row, self._make[row](self._limits)

    @property
    def member(self) -> Policy:
        """Who leads."""
        return self._member

    def plan(self, state: ClusterState, rng: np.random.Generator) -> Plan:
        """The leader's plan; its reason begins with the leader's name and what it is expected to save."""
        if state.now_s - self._since_s >= DWELL_S - 1e-6:
            self._looks.append(world_features(state, self._limits))
            row, self._expected = self._leader.choose(np.mean(self._looks, axis=0))
            if _num_nodes(state) > self._most_nodes:
                row = REFERENCE
            self._since_s = state.now_s
            if row != self._row:
                self._lead(row)
        plan = self._member.plan(state, rng)
        if self._row == REFERENCE:
            return plan
        name = self._leader.experience.members[self._row]
        return replace(plan, reason=f"{name} (bill expected {self._expected:+.1%}): {plan.reason}")


def _num_nodes(state: ClusterState) -> int:
    st = state.arrays
    return int(((st.node_phase != NodePhase.ABSENT) & ~st.node_is_head).sum())
