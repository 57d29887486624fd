"""Where a policy ends if every move were done at once and nothing else happened: how few nodes it comes to."""

import numpy as np

from rayfold.envs.node_autoscaler import remove_node
from rayfold.envs.placement import hold, let_go
from rayfold.envs.safety import Limits, check_move
from rayfold.envs.state import ClusterState, ReplicaPhase
from rayfold.policies.protocol import Policy

__all__ = ["consolidate"]

_RUNNING = int(ReplicaPhase.RUNNING)
_LOOK_S, _PATIENCE_S = 60.0, 900.0  # rules that validate, or wait for some minutes, are given the time


def consolidate(
    policy: Policy, state: ClusterState, limits: Limits, rng: np.random.Generator, *, max_moves: int | None = None
) -> ClusterState:
    """Asks a policy again and again until it has no move left; a node that becomes empty is released.

    Moves take no time. Where a policy has none it is asked again every minute for a quarter of an hour, since some look
    twice, or only every few minutes.

    Args:
        policy: Moves replicas to nodes that are there.
        state: Where to start; it is left as it is. Nothing is starting, draining or moving in it.
        limits: What the safety filter allows.
        rng: For the policy.
        max_moves: Ends it, in the middle of a plan too; None = no limit.

    Returns:
        The state in which it has no move left, or after as many plans as there are replicas; its clock is that of the
        start.

    Raises:
        ValueError: The policy makes a move that is refused.
    """
    now = ClusterState(spec=state.spec, now_s=state.now_s, arrays=state.arrays.copy())
    st, spec = now.arrays, now.spec.arrays
    policy.reset()
    left = max_moves if max_moves is not None else len(st.replica_phase) ** 2
    num_plans, waited_s = int((st.replica_phase == _RUNNING).sum()), 0.0
    while left > 0 and num_plans > 0 and waited_s < _PATIENCE_S:
        plan = policy.plan(now, rng)
        if not plan.moves:
            now = ClusterState(spec=state.spec, now_s=now.now_s + _LOOK_S, arrays=st)
            waited_s += _LOOK_S
            continue
        num_plans, waited_s = num_plans - 1, 0.0
        moves = plan.moves[:left]
        left -= len(moves)
        for move in moves:
            verdict = check_move(now, move, limits)
            if not verdict.allowed or move.node_idx >= len(st.node_type):
                raise ValueError(f"{move}: {verdict.reason.name}, or a new node")
            r, n = move
            d, source = int(st.replica_deployment[r]), int(st.replica_node[r])
            let_go(spec, st, r, now.now_s)
            st.replica_deployment[r], st.replica_phase[r] = d, _RUNNING
            hold(spec, st, r, n)
            if st.node_num_held[source] == 0:
                remove_node(st, source)
    return ClusterState(spec=state.spec, now_s=state.now_s, arrays=st)
