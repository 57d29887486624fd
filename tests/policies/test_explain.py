"""An explanation names what a plan moves and says of every move what the filter says when it is its turn."""

from pathlib import Path

import numpy as np

from rayfold.envs.moves import Candidate, Move, Plan
from rayfold.envs.safety import Limits, Reason
from rayfold.envs.state import ClusterState
from rayfold.policies.bundle import load_bundle, save_bundle
from rayfold.policies.by_name import LEARNED, make_policy, shipped_bundle
from rayfold.policies.explain import explain, node_name, verdicts
from tests.envs.clusters import add_node, add_replica, empty_state, random_state, small_spec

LIMITS = Limits(max_concurrent_moves=2, deployment_cooldown_s=0.0)


class Asked:
    """Proposes what a test wants it to."""

    name = "asked"

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def reset(self) -> None:
        """Nothing to forget."""

    def plan(self, state: ClusterState, rng: np.random.Generator) -> Plan:
        """What it was told."""
        return self._plan


def three_on_two_nodes() -> ClusterState:
    """Nodes of four GPUs: two replicas of one GPU on the first, one on the second."""
    state = empty_state(small_spec(), num_nodes=2)
    for n in range(2):
        add_node(state, n)
    for n in (0, 0, 1):
        add_replica(state, 0, n)
    return state


def test_verdicts_follow_the_order() -> None:
    """Two moves may be in flight: the first is refused for its destination, then two begin, then it is too many."""
    moves = (Move(0, 0), Move(0, 1), Move(1, 1), Move(2, 0))
    assert verdicts(three_on_two_nodes(), moves, LIMITS) == (
        Reason.SAME_NODE,
        Reason.ALLOWED,
        Reason.ALLOWED,
        Reason.TOO_MANY_MOVES,
    )


def test_names_instead_of_rows() -> None:
    """Deployment, replica and nodes by name, in a plan and in its candidates; live ids where there are some."""
    state = three_on_two_nodes()
    plan = Plan(
        moves=(Move(2, 0),),
        scores=(1.5,),
        reason="because",
        candidates=(Candidate(moves=(Move(2, 0),), score=1.5, reason="chosen"), Candidate(moves=(), score=0.0)),
    )
    content = explain(Asked(plan), state, LIMITS, np.random.default_rng(0)).as_json(state)
    (move,) = content["moves"]
    spec = state.spec
    kind = spec.node_types[0].name
    assert move == {
        "replica": "#2",
        "deployment": spec.deployments[0].key,
        "from": f"{kind}#1",
        "to": f"{kind}#0",
        "score": 1.5,
        "verdict": "ALLOWED",
    }
    assert [len(one["moves"]) for one in content["candidates"]] == [1, 0]
    assert node_name(state, 2) == f"new {kind}"
    live = ClusterState(spec=spec, now_s=0.0, arrays=state.arrays, node_ids=("a", "b"), replica_ids=())
    assert node_name(live, 1) == "b"


def test_candidates_of_a_learned_policy(tmp_path: Path) -> None:
    """Likeliest first, one of them to wait, all that move allowed; none are listed unless they are asked for."""
    rng, bundle = np.random.default_rng(0), tmp_path / "network"
    shipped = load_bundle(shipped_bundle())
    save_bundle(bundle, shipped.net, shipped.card)  # without a leader
    waits = 0
    for seed in range(5):
        state = random_state(np.random.default_rng(seed))
        answer = explain(make_policy(LEARNED, LIMITS, bundle=bundle, num_candidates=6), state, LIMITS, rng)
        scores = [candidate.score for candidate in answer.plan.candidates]
        assert scores == sorted(scores, reverse=True)
        assert all(reason is Reason.ALLOWED for reasons in answer.candidate_verdicts for reason in reasons)
        waits += sum(not candidate.moves for candidate in answer.plan.candidates)
        assert not explain(make_policy(LEARNED, LIMITS, bundle=bundle), state, LIMITS, rng).plan.candidates
    assert waits > 0
