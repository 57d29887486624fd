"""What a policy would do in one state, and why: its plan and its candidates, each with the filter's verdicts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayfold.envs.moves import Candidate, Move, Plan
from rayfold.envs.safety import Limits, Reason, check_move
from rayfold.envs.state import ClusterState
from rayfold.envs.transition import with_move
from rayfold.policies.protocol import Policy

__all__ = ["Explanation", "explain", "node_name", "verdicts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """One policy on one state."""

    plan: Plan
    verdicts: tuple[Reason, ...]  # one per move of the plan
    candidate_verdicts: tuple[tuple[Reason, ...], ...]  # one per move of each candidate

    def as_json(self, state: ClusterState) -> dict[str, Any]:
        """Names instead of rows."""
        return {
            "reason": self.plan.reason,
            "expected_saving_usd": self.plan.expected_saving_usd,
            "moves": [
                {**move_names(state, move), "score": score, "verdict": verdict.name}
                for move, score, verdict in zip(self.plan.moves, self.plan.scores, self.verdicts, strict=True)
            ],
            "candidates": [
                _candidate_json(state, candidate, verdict)
                for candidate, verdict in zip(self.plan.candidates, self.candidate_verdicts, strict=True)
            ],
        }


def explain(policy: Policy, state: ClusterState, limits: Limits, rng: np.random.Generator) -> Explanation:
    """Asks a policy that remembers nothing.

    Args:
        policy: Is reset first, so what it would wait for has only begun.
        state: The cluster.
        limits: What the safety filter allows.
        rng: For the policy.
    """
    policy.reset()
    plan = policy.plan(state, rng)
    return Explanation(
        plan=plan,
        verdicts=verdicts(state, plan.moves, limits),
        candidate_verdicts=tuple(verdicts(state, candidate.moves, limits) for candidate in plan.candidates),
    )


def verdicts(state: ClusterState, moves: Sequence[Move], limits: Limits) -> tuple[Reason, ...]:
    """What the filter says of each move once those before it that it allows have begun."""
    reasons = []
    for move in moves:
        verdict = check_move(state, move, limits)
        reasons.append(verdict.reason)
        if verdict.allowed:
            state = with_move(state, move, limits)
    return tuple(reasons)


def node_name(state: ClusterState, node_idx: int) -> str:
    """A node as a person knows it: its live id, or type and row; a new node by its type."""
    num_nodes = len(state.arrays.node_type)
    if node_idx >= num_nodes:
        return f"new {state.spec.node_types[node_idx - num_nodes].name}"
    if state.node_ids and state.node_ids[node_idx]:
        return state.node_ids[node_idx]
    return f"{state.spec.node_types[state.arrays.node_type[node_idx]].name}#{node_idx}"


def move_names(state: ClusterState, move: Move) -> Mapping[str, str]:
    """Replica, deployment, and the nodes it leaves and goes to."""
    st, r = state.arrays, move.replica_idx
    replica = state.replica_ids[r] if state.replica_ids and state.replica_ids[r] else f"#{r}"
    return {
        "replica": replica,
        "deployment": state.spec.deployments[st.replica_deployment[r]].key,
        "from": node_name(state, int(st.replica_node[r])),
        "to": node_name(state, move.node_idx),
    }


def _candidate_json(state: ClusterState, candidate: Candidate, reasons: Sequence[Reason]) -> dict[str, Any]:
    return {
        "score": candidate.score,
        "price_usd": candidate.price_usd,
        "saving_usd_per_h": candidate.saving_usd_per_h,
        "reason": candidate.reason,
        "moves": [
            {**move_names(state, move), "verdict": reason.name}
            for move, reason in zip(candidate.moves, reasons, strict=True)
        ],
    }
