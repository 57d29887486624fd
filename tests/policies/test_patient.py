"""``patient`` waits for each node by itself, keeps room, and empties so many nodes at once as it may."""

import numpy as np
import pytest

from rayfold.envs.moves import Plan
from rayfold.envs.safety import Limits
from rayfold.envs.state import ClusterState, NodePhase
from rayfold.policies.patient import Patient, PatientSettings
from tests.policies.test_heuristics import after, later, quiet

ONE, TWO = 0, 1
LIMITS = Limits(max_concurrent_moves=8, deployment_cooldown_s=0.0)


def ask(policy: Patient, state: ClusterState) -> Plan:
    """It draws nothing."""
    return policy.plan(state, np.random.default_rng(0))


def emptied(state: ClusterState, plan: Plan) -> set[int]:
    """Nodes that replicas leave."""
    return {int(state.arrays.replica_node[move.replica_idx]) for move in plan.moves}


def test_it_waits_for_each_node() -> None:
    """A node may go 120 s after it was first seen evacuable; one that had no way out meanwhile begins anew."""
    policy = Patient(LIMITS, PatientSettings(wait_s=120.0))
    state = quiet((0, (ONE,)), (0, (ONE, ONE, ONE)))
    assert ask(policy, state).reason == "evacuable for 0 of 120 s"
    assert not ask(policy, later(state, 60.0)).moves
    full = quiet((0, (ONE,)), (0, (ONE, ONE, ONE, ONE)))
    assert ask(policy, later(full, 90.0)).reason == "no node can be emptied"
    assert not ask(policy, later(state, 120.0)).moves
    assert not ask(policy, later(state, 239.0)).moves
    assert emptied(state, ask(policy, later(state, 240.0))) == {0}


def test_a_cooldown_delays_and_does_not_begin_the_wait_anew() -> None:
    """The deployment was moved elsewhere meanwhile: the node goes as soon as the filter lets it."""
    policy = Patient(LIMITS._replace(deployment_cooldown_s=100.0), PatientSettings(wait_s=120.0))
    state = quiet((0, (ONE,)), (0, (ONE, ONE, ONE)))
    ask(policy, state)
    moved = later(state, 60.0)
    moved.arrays.deployment_moved_s[ONE] = moved.now_s
    assert not ask(policy, later(moved, 1.0)).moves
    assert not ask(policy, later(moved, 90.0)).moves
    assert emptied(state, ask(policy, later(moved, 101.0))) == {0}


def test_reset_forgets_the_wait() -> None:
    """As at the start of an episode."""
    policy, state = Patient(LIMITS, PatientSettings(wait_s=60.0)), quiet((0, (ONE,)), (0, (ONE, ONE)))
    ask(policy, state)
    policy.reset()
    assert not ask(policy, later(state, 60.0)).moves
    assert ask(policy, later(state, 120.0)).moves


@pytest.mark.parametrize(("spare_gpus", "moves"), [(0.0, 1), (2.0, 1), (3.0, 0)])
def test_room_that_must_stay(spare_gpus: float, moves: int) -> None:
    """One GPU of three free ones is taken by the move: two are left, and three are not."""
    policy = Patient(LIMITS, PatientSettings(wait_s=0.0, spare_gpus=spare_gpus))
    state = quiet((0, (ONE,)), (0, (ONE,)))
    state.arrays.node_releasable[1] = False
    assert (
        len(
            Patient(LIMITS._replace(use_unreleasable_nodes=True), policy.settings)
            .plan(state, np.random.default_rng(0))
            .moves
        )
        == moves
    )


@pytest.mark.parametrize(("max_nodes", "nodes"), [(1, {1}), (2, {1, 2}), (4, {1, 2})])
def test_so_many_nodes_at_once(max_nodes: int, nodes: set[int]) -> None:
    """Both small nodes fit onto the first; what is under way counts, also while its replacement starts."""
    policy = Patient(LIMITS, PatientSettings(wait_s=0.0, max_nodes=max_nodes))
    state = quiet((0, (ONE, ONE)), (0, (ONE,)), (0, (ONE,)))
    plan = ask(policy, state)
    assert emptied(state, plan) == nodes
    begun = after(state, plan)
    assert not ask(policy, later(begun, 60.0)).moves


def test_first_by_price_of_moves_or_of_the_node() -> None:
    """Node 1 is the dear one and needs two moves, node 0 needs one."""
    state = quiet((1, (ONE,)), (0, (ONE, ONE)), (0, (ONE, ONE)))
    prices = state.spec.arrays.type_price_usd_per_h
    cheap, dear = (0, 1) if prices[0] > prices[1] else (0, 0)
    settings = PatientSettings(wait_s=0.0)
    assert emptied(state, ask(Patient(LIMITS, settings), state)) == {cheap}
    settings = PatientSettings(wait_s=0.0, first="dearest")
    assert emptied(state, ask(Patient(LIMITS, settings), state)) == {dear}


def test_what_has_begun_goes_on_without_waiting() -> None:
    """Of two replicas one has left; the other follows at once although the node was not seen evacuable before."""
    policy = Patient(LIMITS, PatientSettings(wait_s=600.0))
    state = quiet((0, (ONE, ONE)), (0, (ONE,)))
    state.arrays.node_fenced_until_s[0] = state.now_s + 300.0
    assert emptied(state, ask(policy, state)) == {0}


def test_a_row_that_is_used_again_waits_again() -> None:
    """The node is released and another one launched into its row."""
    policy, state = Patient(LIMITS, PatientSettings(wait_s=120.0)), quiet((0, (ONE,)), (0, (ONE, ONE)))
    ask(policy, state)
    gone = later(state, 60.0)
    gone.arrays.node_phase[0] = NodePhase.BOOTING
    ask(policy, gone)
    assert not ask(policy, later(state, 120.0)).moves


def test_candidates_say_what_spoke_against_them() -> None:
    """Cheapest first, one line each."""
    state = quiet((0, (ONE,)), (0, (ONE, ONE)))
    plan = ask(Patient(LIMITS, PatientSettings(wait_s=60.0)), state)
    assert [len(candidate.moves) for candidate in plan.candidates] == [1, 2]
    assert {candidate.reason for candidate in plan.candidates} == {"evacuable for 0 of 60 s"}
    plan = ask(Patient(LIMITS, PatientSettings(wait_s=0.0)), state)
    assert [candidate.reason for candidate in plan.candidates] == ["chosen", "others are being emptied"]
