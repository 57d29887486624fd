"""``ray_serve``: Ray 2.60's own replica compaction, under its rules of quiet time, order and back-off.

Ported from ``DeploymentStateManager.update`` (the quiet time) and ``DeploymentScheduler.get_node_to_compact``,
``_update_compacting_node_info``, ``_fail_compaction`` and ``_pack_schedule_replica`` (2.60): *which node* is emptied
at which time, and when that is given up, is Ray's decision to the second and the node.

What differs, and only after that decision:

- The safety filter stays. Ray adds up shares of devices (0.5 + 0.5 free reads as 1.0) and does not know opt-outs,
  cooldowns, ``min_nodes`` or releasable nodes. Where the filter refuses Ray's destination the next one in Ray's order
  is taken (in Ray the raylet spills); where it refuses all, the replica waits until Ray's time-out.
- Ray starts all replacements at once, here as many as the limit on concurrent moves lets.
- Ray acts only where it packs, and no deployment has a PACK placement group; here the rule acts wherever it is asked,
  which makes it a stronger rival.
- Ray looks every 0.1 s, here once per decision tick.
"""

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.moves import Move, Plan
from rayfold.envs.safety import Limits, check_move, moves_in_flight
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase
from rayfold.envs.transition import with_move
from rayfold.policies.ray_compaction import find_node, order_nodes, replicas_to_move

__all__ = ["RayServe"]

QUIET_S = 300.0  # RAY_SERVE_NODE_COMPACTION_DELAY_S
TIMEOUT_S = 1800.0  # RAY_SERVE_COMPACTION_TIMEOUT_S
MAX_BACKOFF_S = 3600.0  # RAY_SERVE_COMPACTION_MAX_BACKOFF_TIME_S
SCAN_INTERVAL_S = 10.0  # COMPACTION_SCAN_INTERVAL_S


class RayServe:
    """One node at a time, in a cluster that has been quiet; largest node first, then fewest replicas.

    Args:
        limits: What the safety filter allows.
    """

    name = "ray_serve"

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.reset()

    def reset(self) -> None:
        """No evacuation under way, no back-off."""
        self.node: int | None = None  # row of the node being emptied
        self.num_failures = 0  # in a row
        self.not_before_s = 0.0
        self.next_scan_s = 0.0
        self._started_s = 0.0
        self._is_emptied = False
        self._known: frozenset[object] = frozenset()  # replicas that were on the node at the start
        self._deployments = np.zeros(0, np.int64)  # and their deployments

    def plan(self, state: ClusterState, rng: np.random.Generator) -> Plan:
        """Continues the evacuation under way, or starts one if the cluster is quiet."""
        ended = self._update(state, self.node) if self.node is not None else ""
        if self.node is not None:
            return self._moves(state, self.node)
        if not _is_quiet(state):
            self.next_scan_s = 0.0
            return Plan(reason=ended or f"the cluster has not been quiet for more than {QUIET_S:.0f} s")
        if state.now_s < self.not_before_s:
            return Plan(reason=ended or "backing off after a failed evacuation")
        if state.now_s < self.next_scan_s:
            return Plan(reason=ended or "no node could be emptied a moment ago")
        is_gang = np.array([d.gang_size > 1 for d in state.spec.deployments], np.bool_)
        node = int(find_node(state.spec.arrays, state.arrays, is_gang))
        if node < 0:
            self.next_scan_s = state.now_s + SCAN_INTERVAL_S
            return Plan(reason=ended or "no node can be emptied")
        self.node, self._started_s, self._is_emptied = node, state.now_s, False
        self._known = _replicas_on(state, node)
        self._deployments = np.unique(state.arrays.replica_deployment[state.arrays.replica_node == node])
        return self._moves(state, node)

    def _update(self, state: ClusterState, node: int) -> str:
        """Whether the evacuation of ``node`` has ended, and how; empty if it goes on."""
        replicas = _replicas_on(state, node)
        if state.arrays.node_phase[node] != NodePhase.ALIVE:
            self.node = None
            if not (self._is_emptied or (not replicas and _is_served(state, self._deployments))):
                return f"node {node} was lost before it was empty"
            self.num_failures, self.not_before_s = 0, 0.0
            return f"node {node} is released"
        if replicas - self._known:
            return self._fail(state, f"gave up emptying node {node}: it got new replicas")
        if state.now_s >= self._started_s + TIMEOUT_S:
            return self._fail(state, f"gave up emptying node {node} after {TIMEOUT_S:.0f} s")
        if (state.arrays.replica_phase == ReplicaPhase.PENDING).any():
            return self._fail(state, f"gave up emptying node {node}: a replica fits on no other node")
        self._is_emptied = self._is_emptied or not replicas
        return ""

    def _fail(self, state: ClusterState, why: str) -> str:
        self.node = None
        self.num_failures += 1
        self.not_before_s = state.now_s + min(2.0**self.num_failures, MAX_BACKOFF_S)
        return why

    def _moves(self, state: ClusterState, node: int) -> Plan:
        """Moves that the limits leave room for now, largest replica first."""
        spec, now, moves = state.spec.arrays, state, []
        for r in replicas_to_move(spec, now.arrays, node):
            if moves_in_flight(now.arrays) >= self._limits.max_concurrent_moves:
                break
            if state.arrays.replica_peer[r] >= 0:
                continue
            for n in order_nodes(spec, now.arrays, state.arrays.replica_deployment[r], node):
                move = Move(int(r), int(n))
                if check_move(now, move, self._limits).allowed:
                    moves.append(move)
                    now = with_move(now, move, self._limits)
                    break
        reason = f"empty node {node}" if moves else f"waiting for node {node}"
        return Plan(moves=tuple(moves), scores=(0.0,) * len(moves), reason=reason)


def _replicas_on(state: ClusterState, node: int) -> frozenset[object]:
    """Identities of the replicas that run or start on a node: live ids, or row and time, since rows are used again."""
    st = state.arrays
    is_there = (st.replica_node == node) & np.isin(st.replica_phase, (ReplicaPhase.STARTING, ReplicaPhase.RUNNING))
    rows = map(int, np.flatnonzero(is_there))
    return frozenset(state.replica_ids[r] if state.replica_ids else (r, float(st.replica_since_s[r])) for r in rows)


def _running(state: ClusterState) -> NDArray[np.int64]:
    """RUNNING replicas per deployment, ``(D,)``."""
    st = state.arrays
    return np.bincount(
        st.replica_deployment[st.replica_phase == ReplicaPhase.RUNNING], minlength=state.spec.num_deployments
    )


def _is_served(state: ClusterState, deployments: NDArray[np.int64]) -> bool:
    """Whether none of these deployments lacks a replica: their node was emptied, and left between two looks."""
    return bool((_running(state) >= state.arrays.deployment_target)[deployments].all())


def _is_quiet(state: ClusterState) -> bool:
    """No node draining, every deployment at its target without other replicas, and that for longer than ``QUIET_S``."""
    st = state.arrays
    phases = st.replica_phase[st.replica_phase != ReplicaPhase.EMPTY]
    return bool(
        (st.node_phase <= NodePhase.ALIVE).all()  # a phase after ALIVE is draining
        and (phases == ReplicaPhase.RUNNING).all()
        and (_running(state) == st.deployment_target).all()
        and state.now_s - st.deployment_changed_s.max(initial=-np.inf) > QUIET_S
    )
