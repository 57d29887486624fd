"""Where a policy ends if every move were done at once and nothing else happened: how few nodes it comes to."""

import numpy as np

from rayfold.envs.moves import Plan
from rayfold.envs.node_autoscaler import remove_node
from rayfold.envs.placement import hold, let_go
from rayfold.envs.safety import Limits, check_move
from rayfold.envs.state import ClusterState, ReplicaPhase
from rayfold.policies.protocol import Policy

__all__ = ["consolidate"]

_RUNNING = int(ReplicaPhase.RUNNING)


def consolidate(
    policy: Policy, state: ClusterState, limits: Limits, rng: np.random.Generator, *, max_moves: int | None = None
) -> ClusterState:
    """Asks a policy again and again until it has no move left; a node that becomes empty is released.

    Args:
        policy: Moves replicas to nodes that are there.
        state: Where to start; it is left as it is. Nothing is starting, draining or moving in it.
        limits: What the safety filter allows.
        rng: For the policy.
        max_moves: Ends it, in the middle of a plan too; None = no limit.

    Returns:
        The state in which it has no move left, or after as many calls as there are replicas.

    Raises:
        ValueError: The policy makes a move that is refused.
    """
    now = ClusterState(spec=state.spec, now_s=state.now_s, arrays=state.arrays.copy())
    st, spec = now.arrays, now.spec.arrays
    policy.reset()
    left = max_moves if max_moves is not None else len(st.replica_phase) ** 2
    for _ in range(int((st.replica_phase == _RUNNING).sum())):
        plan = policy.plan(now, rng) if left > 0 else Plan()
        if not plan.moves:
            break
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
    return now
