"""The exact planner as a policy: its plans can be carried out, it finishes what it has begun, and reaches optima."""

from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest

from rayfold.envs.importers.vmr import vmr_state
from rayfold.envs.known_optimum import AWKWARD, MIXED, known_optimum
from rayfold.envs.moves import Move
from rayfold.envs.placement import let_go
from rayfold.envs.safety import Limits, Reason, check_move
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase
from rayfold.envs.transition import with_move
from rayfold.policies import exact
from rayfold.policies.consolidation import consolidate
from rayfold.policies.exact import Exact, ExactSettings, is_busy, make_problem, solve_problem
from rayfold.policies.exact_order import order_evacuations
from rayfold.policies.exact_program import no_moves, value_usd
from rayfold.policies.exact_repacking import order_repacking, possible_at_once
from rayfold.policies.vmr_optimum import VmrGoal, vmr_optimum
from tests.envs.clusters import add_node, add_replica, empty_state, random_state, small_spec
from tests.envs.conservation import check_conserved
from tests.envs.rich import rich_spec
from tests.policies.test_exact_program import FIXED, LIMITS, ONE, TWO, cluster
from tests.policies.test_vmr_optimum import random_snapshot

EAGER = ExactSettings(min_saving_frac=0.0)
CHAIN = ((0, (TWO,)), (0, (FIXED, ONE, ONE)), (0, (FIXED, ONE, ONE)))  # node 0 can be left when a ONE has made room
THOROUGH = replace(EAGER, look_ahead_s=14400.0, max_moves=1000, max_effort=1e9, time_limit_s=60.0)


def rng() -> np.random.Generator:
    """Draws neighbourhoods, where there are any."""
    return np.random.default_rng(0)


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("allow_new_nodes", [False, True])
def test_plans_can_be_carried_out_move_by_move(packs: bool, allow_new_nodes: bool) -> None:
    """On 60 random states the filter allows each move of a plan with those before it begun; whole nodes are left."""
    limits, planned = LIMITS._replace(allow_new_nodes=allow_new_nodes, max_concurrent_moves=99), 0
    for seed in range(60):
        spec = rich_spec(packs=packs) if seed % 2 else small_spec()
        begin = state = random_state(np.random.default_rng(seed), spec)
        plan = Exact(limits, EAGER).plan(state, rng())
        for move in plan.moves:
            assert check_move(state, move, limits) == (True, Reason.ALLOWED)
            state = with_move(state, move, limits)
        st = state.arrays
        if not allow_new_nodes:  # else the rest follows when the node is there
            for n in {int(begin.arrays.replica_node[move.replica_idx]) for move in plan.moves}:
                stays = (st.replica_node == n) & (st.replica_phase == ReplicaPhase.RUNNING) & (st.replica_peer < 0)
                assert not stays.any()
        planned += len(plan.moves)
    assert planned > 20


def test_what_has_been_begun_is_finished_before_anything_else() -> None:
    """One move at a time: the node with two replicas is left by both, though node 1 has become the cheaper one."""
    state = cluster((1, (ONE, ONE)), (0, (ONE, ONE)), (0, (ONE, ONE)))
    limits = LIMITS._replace(max_concurrent_moves=1)
    policy = Exact(limits, EAGER)
    first = policy.plan(state, rng())
    assert [m.replica_idx for m in first.moves] == [0]
    state = with_move(state, first.moves[0], limits)
    assert policy.plan(state, rng()).reason == "what has been begun waits"
    state.arrays.replica_phase[state.arrays.replica_peer == 0] = ReplicaPhase.RUNNING
    state.arrays.replica_peer[:] = -1
    state.arrays.replica_phase[0] = ReplicaPhase.STOPPING
    assert [m.replica_idx for m in policy.plan(state, rng()).moves] == [1]


def test_a_step_that_has_become_impossible_is_planned_anew() -> None:
    """The destination has filled up meanwhile: the remaining replica goes elsewhere, and what is gone is forgotten."""
    state = cluster((1, (ONE, ONE)), (0, (ONE, ONE)), (0, (ONE, TWO)))
    policy = Exact(LIMITS._replace(max_concurrent_moves=1), EAGER)
    move = policy.plan(state, rng()).moves[0]
    state.arrays.node_fenced_until_s[0] = state.now_s + 100.0
    state.arrays.replica_phase[move.replica_idx] = ReplicaPhase.STOPPING
    step = policy._steps[0]
    while state.arrays.node_free[int(str(step.destination)), 0] >= 1.0:
        add_replica(state, FIXED, int(str(step.destination)))
    again = policy.plan(state, rng()).moves
    assert [m.replica_idx for m in again] == [step.replica]
    assert again[0].node_idx != step.destination


def test_live_ids_outlive_rows() -> None:
    """Between two snapshots rows change places; the remembered move goes to the same node by its id."""

    def live(order: tuple[int, ...], leaving: str) -> ClusterState:
        state = empty_state(small_spec(), num_nodes=3, num_replicas=4)
        held = {"a": (ONE, ONE), "b": (ONE, ONE), "c": ()}
        names = [("a", "b", "c")[i] for i in order]
        ids = []
        for n, name in enumerate(names):
            add_node(state, n, 1 if name == "a" else 0)
            for i, d in enumerate(held[name]):
                r = add_replica(state, d, n)
                ids.append(f"{name}{i}")
                if ids[-1] == leaving:
                    state.arrays.replica_phase[r] = ReplicaPhase.STOPPING
        return ClusterState(
            spec=state.spec, now_s=state.now_s, arrays=state.arrays, node_ids=tuple(names), replica_ids=tuple(ids)
        )

    policy, before = Exact(LIMITS._replace(max_concurrent_moves=1), EAGER), live((0, 1, 2), "")
    first = policy.plan(before, rng()).moves[0]
    assert before.replica_ids[first.replica_idx] == "a0"
    after = live((2, 1, 0), "a0")
    second = policy.plan(after, rng()).moves[0]
    assert (after.replica_ids[second.replica_idx], after.node_ids[second.node_idx]) == ("a1", "b")


def test_hysteresis() -> None:
    """Three half-price replicas do not pay for an evacuation that is not under way, but for one that is."""
    state = cluster((0, (ONE, ONE)), (0, (ONE, ONE)))
    problem = make_problem(state, LIMITS, EAGER)
    share = 2.0 * float(problem.move_usd[ONE]) / 4.0  # of the saving that the moves cost
    careful = ExactSettings(min_saving_frac=1.01 - share)
    assert Exact(LIMITS, careful).plan(state, rng()).moves == ()
    state.arrays.node_fenced_until_s[1] = state.now_s + 100.0
    assert {m.node_idx for m in Exact(LIMITS, careful).plan(state, rng()).moves} == {0}


def test_waits_for_quiet_before_it_begins() -> None:
    """120 s after the last new replica, not 119.9; what has been begun goes on meanwhile; a replacement is not new."""
    state = cluster((0, (ONE,)), (0, (ONE, ONE)))
    new = add_replica(state, ONE, 0, phase=ReplicaPhase.STARTING)
    limits = LIMITS._replace(max_concurrent_moves=1)
    policy = Exact(limits, ExactSettings(min_saving_frac=0.0, quiet_s=120.0))
    assert is_busy(state.arrays)
    assert policy.plan(state, rng()).moves == ()
    state.arrays.replica_phase[new] = ReplicaPhase.RUNNING
    assert not is_busy(state.arrays)
    almost = replace(state, now_s=state.now_s + 119.9)
    assert policy.plan(almost, rng()).moves == ()
    quiet = replace(state, now_s=state.now_s + 120.0)
    first = policy.plan(quiet, rng())
    assert len(first.moves) == 1
    moving = with_move(quiet, first.moves[0], limits)
    assert not is_busy(moving.arrays)
    st = moving.arrays
    st.replica_phase[st.replica_peer == first.moves[0].replica_idx] = ReplicaPhase.RUNNING
    st.replica_phase[first.moves[0].replica_idx], st.replica_peer[:] = ReplicaPhase.STOPPING, -1
    st.node_phase[3], st.node_type[3] = NodePhase.BOOTING, 0
    assert is_busy(st)
    assert policy.plan(moving, rng()).reason == "go on with what has been begun"


def test_some_new_replicas_and_nodes_are_quiet_enough() -> None:
    """Two new replicas beside six running ones are a third; one booting node of five is a fifth."""
    state = cluster(*[(0, (ONE,))] * 4)
    for n in (0, 1):
        add_replica(state, ONE, n)
    st = state.arrays
    new = [add_replica(state, ONE, n, phase=ReplicaPhase.STARTING) for n in (2, 3)]
    assert (st.replica_phase == ReplicaPhase.RUNNING).sum() == 6
    assert [is_busy(st, frac) for frac in (0.0, 0.33, 0.34)] == [True, True, False]
    st.replica_phase[new] = ReplicaPhase.RUNNING
    st.node_phase[4], st.node_type[4] = NodePhase.BOOTING, 0
    assert [is_busy(st, frac) for frac in (0.0, 0.19, 0.2)] == [True, True, False]


def test_a_problem_without_a_way_is_solved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same state again, the solver is not asked; any change of it, it is."""
    state = cluster((0, (ONE, ONE)), (0, (ONE, ONE)))
    careful = Exact(LIMITS, ExactSettings(min_saving_frac=0.9, look_ahead_s=300.0))
    solver = Mock(wraps=exact.solve_problem)
    monkeypatch.setattr(exact, "solve_problem", solver)
    for _ in range(3):
        assert careful.plan(state, rng()).moves == ()
    assert solver.call_count == 1
    state.arrays.node_fenced_until_s[1] = state.now_s + 100.0  # under way: pays
    assert careful.plan(state, rng()).moves
    assert solver.call_count == 2


def test_a_plan_says_what_it_expects() -> None:
    """Dollars over the look-ahead less the moves; one candidate for each node; nothing is expected of no moves."""
    state = cluster((0, (ONE, ONE)), (0, (ONE,)))
    plan = Exact(LIMITS, EAGER).plan(state, rng())
    price = float(make_problem(state, LIMITS, EAGER).move_usd[ONE])
    assert plan.moves == (Move(2, 0),)
    assert plan.expected_saving_usd == pytest.approx(4.0 - price)
    assert [(c.moves, c.reason) for c in plan.candidates] == [(plan.moves, "chosen")]
    assert "empty 1 nodes by 1 moves" in plan.reason
    assert Exact(LIMITS, EAGER).plan(cluster((0, (ONE,))), rng()).expected_saving_usd == 0.0


def test_a_chain_is_made_in_the_order_in_which_it_fits() -> None:
    """A single replica leaves first, then the large one comes: the other way round does not fit."""
    state = cluster(*CHAIN)
    limits = LIMITS._replace(fence_s=0.0)
    problem = make_problem(state, limits, EAGER)
    counts = solve_problem(state, limits, problem, EAGER, rng()).counts
    moves = order_repacking(state, problem, counts, 10)
    assert [int(state.arrays.replica_deployment[m.replica_idx]) for m in moves] == [ONE, TWO]
    assert moves[1].node_idx == state.arrays.replica_node[moves[0].replica_idx]
    assert possible_at_once(state, moves, LIMITS) == moves[:1]
    assert [m for m in Exact(limits, EAGER).plan(state, rng()).moves] == [moves[0]]


def test_makes_room_and_empties_when_the_fence_is_over() -> None:
    """Without it nothing is done; with it a single replica goes, and the large one follows into the room it left."""
    state, roomy = cluster(*CHAIN), replace(EAGER, makes_room=True)
    assert Exact(LIMITS, EAGER).plan(state, rng()).moves == ()
    policy, prices = Exact(LIMITS, roomy), make_problem(state, LIMITS, roomy).move_usd
    first = policy.plan(state, rng())
    ((small, to),) = first.moves
    left = int(state.arrays.replica_node[small])
    assert {left, to} == {1, 2}
    assert "make room by 1 moves to empty 1 nodes by 2" in first.reason
    assert first.expected_saving_usd == pytest.approx(4.0 - prices[ONE] - prices[TWO])
    state = with_move(state, first.moves[0], LIMITS)
    st = state.arrays
    st.replica_phase[st.replica_peer == small], st.replica_peer[:] = ReplicaPhase.RUNNING, -1
    let_go(state.spec.arrays, st, small, state.now_s)
    assert policy.plan(state, rng()).moves == ()
    over = replace(state, now_s=state.now_s + LIMITS.fence_s)
    assert policy.plan(over, rng()).moves == (Move(0, left),)


def test_makes_no_room_where_it_does_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    """The threshold is that of evacuations; the same problem is not solved again."""
    state = cluster(*CHAIN)
    careful = Exact(LIMITS, ExactSettings(min_saving_frac=0.9, look_ahead_s=300.0, makes_room=True))
    solver = Mock(wraps=exact.solve_problem)
    monkeypatch.setattr(exact, "solve_problem", solver)
    for _ in range(3):
        assert careful.plan(state, rng()).moves == ()
    assert solver.call_count == 2  # evacuations, and with room
    solver.reset_mock()
    careful = Exact(LIMITS._replace(fence_s=0.0), careful.settings)
    assert careful.plan(state, rng()).moves == ()
    assert solver.call_count == 1  # without fences evacuations use that room


def test_room_is_made_move_by_move() -> None:
    """On 60 random states the filter allows each move with those before it begun."""
    limits, settings = LIMITS._replace(max_concurrent_moves=99), replace(EAGER, makes_room=True)
    num_rooms = 0
    for seed in range(60):
        state = random_state(np.random.default_rng(seed), rich_spec(packs=bool(seed % 4)) if seed % 2 else small_spec())
        plan = Exact(limits, settings).plan(state, rng())
        num_rooms += plan.reason.startswith("make room")
        for move in plan.moves:
            assert check_move(state, move, limits) == (True, Reason.ALLOWED)
            state = with_move(state, move, limits)
    assert num_rooms > 0


def test_a_circle_goes_by_way_of_another_node() -> None:
    """Two nodes that are full swap what they hold by a replica parked on a third: one move more than the counts."""
    state = cluster((0, (TWO, TWO)), (0, (FIXED, FIXED, ONE, ONE)), (0, (FIXED,)))
    limits = LIMITS._replace(fence_s=0.0)
    problem = make_problem(state, limits, EAGER)
    counts = no_moves(problem)
    b = {int(n): i for i, n in enumerate(problem.node)}
    counts.takes[b[0], ONE] = counts.gives[b[1], ONE] = 2
    counts.gives[b[0], TWO] = counts.takes[b[1], TWO] = 1
    moves = order_repacking(state, problem, counts, 10)
    assert len(moves) == 4
    now = state
    for r, n in moves:
        assert now.arrays.node_free[n, 0] >= now.spec.arrays.demand[now.arrays.replica_deployment[r], 0]
        d, a = int(now.arrays.replica_deployment[r]), int(now.arrays.replica_node[r])
        now.arrays.node_free[[a, n], 0] += np.array([1.0, -1.0]) * now.spec.arrays.demand[d, 0]
        now.arrays.replica_node[r] = n
    assert order_repacking(state, problem, counts, 3) == ()
    assert order_repacking(state, problem, counts, 10, may_park=False) == ()


def test_a_planted_solution_that_does_not_fit_is_cut() -> None:
    """Counts that put too much on a node lose the whole evacuation, not a part of it."""
    state = cluster((0, (ONE, ONE)), (0, (ONE, TWO)), (0, (ONE,)))
    problem = make_problem(state, LIMITS, EAGER)
    counts = no_moves(problem)
    counts.empties[0] = True
    counts.gives[0, ONE] = counts.takes[1, ONE] = 2
    assert order_evacuations(state, LIMITS, problem, counts) == []
    counts.takes[1, ONE] = counts.takes[2, ONE] = 1
    assert [len(e.moves) for e in order_evacuations(state, LIMITS, problem, counts)] == [2]


@pytest.mark.parametrize("sizes", [MIXED, AWKWARD])
def test_reaches_the_known_optimum(sizes: tuple[int, ...]) -> None:
    """The closed form, which best fit does not reach for the awkward sizes; with fences it comes near it."""
    limits = Limits(max_concurrent_moves=8, deployment_cooldown_s=0.0, fence_s=0.0)
    settings = THOROUGH
    for seed in range(2):
        state, optimum = known_optimum(30, np.random.default_rng(seed), sizes)
        end = consolidate(Exact(limits, settings), state, limits, rng())
        assert (end.arrays.node_num_held > 0).sum() == optimum


def test_large_clusters_by_neighbourhoods() -> None:
    """With at most 10 bins solved as a whole, 40 nodes still come to the optimum or one above it."""
    limits = Limits(max_concurrent_moves=8, deployment_cooldown_s=0.0, fence_s=0.0)
    settings = replace(THOROUGH, max_bins=10)
    state, optimum = known_optimum(40, np.random.default_rng(0), MIXED)
    problem = make_problem(state, limits, settings)
    solved = solve_problem(state, limits, problem, settings, rng())
    again = solve_problem(state, limits, problem, settings, rng())
    assert 40 - solved.counts.empties.sum() <= optimum + 1
    assert solved.value_usd == again.value_usd == pytest.approx(value_usd(problem, solved.counts))


def test_devices_that_others_leave_agree_with_the_program_of_sockets() -> None:
    """On 20 random snapshots of VMs: as many machines are freed as another program proves, which may change sockets."""
    limits = Limits(max_concurrent_moves=99, deployment_cooldown_s=0.0, fence_s=0.0)
    settings = ExactSettings(min_saving_frac=0.0, look_ahead_s=14400.0)
    equal, freed = 0, 0
    for seed in range(20):
        snapshot = random_snapshot(np.random.default_rng(seed))
        state = vmr_state(snapshot)
        optimum = round(vmr_optimum(snapshot, VmrGoal.MACHINES, 64).value)
        num_used = int((state.arrays.node_num_held > 0).sum())
        end = consolidate(Exact(limits, settings), state, limits, rng())
        check_conserved(end)
        num_freed = num_used - int((end.arrays.node_num_held > 0).sum())
        assert num_freed <= optimum
        equal += num_freed == optimum
        freed += num_freed
    assert equal >= 18
    assert freed >= 7


def test_room_that_others_leave_never_lowers_the_value() -> None:
    """On 20 random states; and with it, too, each move fits when those before it are over."""
    fenced, free = LIMITS, LIMITS._replace(fence_s=0.0, max_concurrent_moves=99)
    for seed in range(20):
        state = random_state(np.random.default_rng(seed), rich_spec(packs=bool(seed % 2)))
        st = state.arrays
        st.node_fenced_until_s[:] = -np.inf
        st.replica_phase[st.replica_phase > ReplicaPhase.EMPTY] = ReplicaPhase.RUNNING
        st.deployment_moved_s[:] = -np.inf
        before, after = (make_problem(state, limits, EAGER) for limits in (fenced, free))
        value = solve_problem(state, fenced, before, EAGER, rng()).value_usd
        more = solve_problem(state, free, after, EAGER, rng()).value_usd
        assert more >= value - 1e-3
        check_conserved(consolidate(Exact(free, EAGER), state, free, rng()))


def test_booting_nodes_are_waited_for() -> None:
    """Both replicas of a dear node go to one new node: the first launches it, the second follows once it is there."""
    limits = LIMITS._replace(allow_new_nodes=True)
    state, policy = cluster((1, (ONE, ONE))), Exact(limits, EAGER)
    first = policy.plan(state, rng())
    assert first.moves == (Move(0, 5),)
    state = with_move(state, first.moves[0], limits)
    assert policy.plan(state, rng()).moves == ()
    st, new = state.arrays, int(np.flatnonzero(state.arrays.node_phase == NodePhase.BOOTING)[0])
    st.node_phase[new] = NodePhase.ALIVE
    assert policy.plan(state, rng()).moves == (Move(1, new),)


@pytest.mark.parametrize("max_bins", [10, 300])
def test_answers_do_not_depend_on_the_clock(max_bins: int) -> None:
    """A search ended by its effort gives the same counts under any time limit; with more effort it is no worse."""
    limits = Limits(max_concurrent_moves=8, deployment_cooldown_s=0.0, fence_s=0.0)
    state, _ = known_optimum(40, np.random.default_rng(1), AWKWARD)
    values = []
    for max_effort in (3000.0, 100_000.0):
        settings = replace(THOROUGH, max_bins=max_bins, max_effort=max_effort)
        problem = make_problem(state, limits, settings)
        found = [solve_problem(state, limits, problem, replace(settings, time_limit_s=t), rng()) for t in (60.0, 600.0)]
        for one, other in zip(*(solved.counts for solved in found), strict=True):
            np.testing.assert_array_equal(one, other)
        assert found[0][1:] == found[1][1:]
        values.append(found[0].value_usd)
    assert values[0] <= values[1] + 1e-9
