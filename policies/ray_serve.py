"""``ray_serve``: Ray 2.60's own replica compaction, under its rules of quiet time, order and back-off.

Source: ``DeploymentScheduler.get_node_to_compact``, ``_find_best_node_to_compact``, ``_update_compacting_node_info``
and ``DeploymentStateManager`` (``RAY_SERVE_COMPACTION_*``), Ray 2.60. Ray itself compacts only where it packs and no
deployment has a PACK placement group; here the rule acts wherever it is asked, which makes it a stronger rival.
"""

import numpy as np

from rayfold.envs.moves import Plan
from rayfold.envs.safety import Limits
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase
from rayfold.policies.evacuations import Evacuation, evacuations, first_moves

__all__ = ["RayServe"]

QUIET_S = 300.0  # every deployment healthy and unchanged for this long
TIMEOUT_S = 1800.0  # an evacuation that takes longer is given up
MAX_BACKOFF_S = 3600.0


class RayServe:
    """One node at a time, in a cluster that has been quiet; largest node first, then fewest replicas.

    Args:
        limits: What the safety filter allows; Ray moves all replicas of the node at once, here as many as allowed.
    """

    name = "ray_serve"

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.reset()

    def reset(self) -> None:
        """No evacuation under way, no back-off."""
        self._node: int | None = None
        self._started_s = 0.0
        self._num_failures = 0
        self._not_before_s = -np.inf

    def plan(self, state: ClusterState, rng: np.random.Generator) -> Plan:
        """Continues the evacuation under way, or starts one if the cluster is quiet."""
        if self._node is not None:
            return self._continue(state, self._node)
        if state.now_s < self._not_before_s:
            return Plan(reason="backing off after a failed evacuation")
        if not self._is_quiet(state):
            return Plan(reason=f"the cluster has not been quiet for {QUIET_S:.0f} s")
        found = evacuations(state, self._limits)
        if not found:
            return Plan(reason="no node can be emptied")
        chosen = max(found, key=lambda e: (self._size(state, e), -len(e.moves), -e.node_idx))
        self._node, self._started_s = chosen.node_idx, state.now_s
        return first_moves(state, chosen, self._limits, f"empty node {chosen.node_idx}")

    def _continue(self, state: ClusterState, node: int) -> Plan:
        st = state.arrays
        if st.node_phase[node] != NodePhase.ALIVE:
            self._node, self._num_failures, self._not_before_s = None, 0, -np.inf
            return Plan(reason=f"node {node} is released")
        is_refilled = st.node_fenced_until_s[node] <= state.now_s  # placement lifts the fence, or it ran out
        if is_refilled or state.now_s - self._started_s >= TIMEOUT_S:
            self._node = None
            self._num_failures += 1
            self._not_before_s = state.now_s + min(2.0**self._num_failures, MAX_BACKOFF_S)
            return Plan(reason=f"gave up emptying node {node}")
        for candidate in evacuations(state, self._limits):
            if candidate.node_idx == node:
                return first_moves(state, candidate, self._limits, f"go on emptying node {node}")
        return Plan(reason=f"waiting for node {node}")

    def _size(self, state: ClusterState, candidate: Evacuation) -> tuple[float, ...]:
        """Resources of the node, compared as Ray does: GPU first, then CPU, memory, custom."""
        return tuple(state.spec.arrays.type_capacity[state.arrays.node_type[candidate.node_idx]])

    def _is_quiet(self, state: ClusterState) -> bool:
        """Every deployment at its target, all replicas running, nothing changed for the quiet time."""
        st = state.arrays
        phases = st.replica_phase[st.replica_phase != ReplicaPhase.EMPTY]
        running = np.bincount(
            st.replica_deployment[st.replica_phase == ReplicaPhase.RUNNING], minlength=state.spec.num_deployments
        )
        return bool(
            (phases == ReplicaPhase.RUNNING).all()
            and (running == st.deployment_target).all()
            and (state.now_s - st.deployment_changed_s >= QUIET_S).all()
        )
