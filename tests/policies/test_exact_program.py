"""The best counts, by hand and by trying everything."""

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from rayfold.envs.cluster import ClusterSpec
from rayfold.envs.safety import Limits
from rayfold.envs.state import ClusterState
from rayfold.policies.exact import ExactSettings, make_problem
from rayfold.policies.exact_model import CountProblem
from rayfold.policies.exact_program import Counts, no_moves, solve_counts, value_usd
from rayfold.policies.exact_search import search_counts, upper_bound_usd
from rayfold.policies.exact_start import start_counts
from tests.envs.clusters import add_node, add_replica, empty_state, random_state, small_spec
from tests.envs.rich import rich_spec

LIMITS = Limits(max_concurrent_moves=4, deployment_cooldown_s=0.0)
ONE, TWO, HALF, FIXED = 0, 1, 2, 5


def problem_of(state: ClusterState, limits: Limits = LIMITS, **settings: float) -> CountProblem:
    """With the settings of the policy, and no least saving."""
    return make_problem(state, limits, ExactSettings(**{"min_saving_frac": 0.0, **settings}))  # type: ignore[arg-type]


def cluster(*nodes: tuple[int, tuple[int, ...]], spec: ClusterSpec | None = None) -> ClusterState:
    """Nodes of a type with running replicas."""
    state = empty_state(spec or small_spec())
    for n, (node_type, replicas) in enumerate(nodes):
        add_node(state, n, node_type)
        for d in replicas:
            add_replica(state, d, n)
    return state


def best(problem: CountProblem) -> Counts:
    """Solved as a whole."""
    solved = solve_counts(problem, no_moves(problem), time_limit_s=20.0)
    assert solved.is_optimal
    return solved.counts


def emptied(problem: CountProblem, counts: Counts) -> set[int]:
    """Node rows."""
    return set(map(int, problem.node[counts.empties]))


def test_two_nodes() -> None:
    """Either of two nodes fits onto the other; one replica moves rather than two, and the value is as said."""
    problem = problem_of(cluster((0, (ONE, ONE)), (0, (ONE,))))
    counts = best(problem)
    assert emptied(problem, counts) == {1}
    assert counts.takes.sum() == counts.gives.sum() == counts.takes[0, ONE] == 1
    assert value_usd(problem, counts) == pytest.approx(4.0 - problem.move_usd[ONE])


def test_the_dearer_node_goes() -> None:
    """Two moves off the node at 6 USD/h are better than one off the node at 4."""
    problem = problem_of(cluster((0, (ONE,)), (1, (ONE, ONE))))
    assert emptied(problem, best(problem)) == {1}


def test_the_cheapest_moves_first_is_not_best() -> None:
    """Best fit empties node 1 by one move at 4 USD/h, and what it fills is lacked by node 0 at 6 USD/h."""
    state = cluster((1, (ONE, ONE)), (0, (ONE,)), (0, (ONE, ONE)))
    problem = problem_of(state)
    assert emptied(problem, start_counts(state, LIMITS, problem)) == {1}
    assert emptied(problem, best(problem)) == {0}


@pytest.mark.parametrize(("max_moves", "expected"), [(0, 0), (1, 1), (2, 2), (3, 2)])
def test_budget_binds(max_moves: int, expected: int) -> None:
    """Three nodes of one replica each: a node per move, and the last one has nowhere to go."""
    problem = problem_of(cluster((0, (ONE,)), (0, (ONE,)), (0, (ONE,))), max_moves=max_moves)
    assert len(emptied(problem, best(problem))) == expected


def test_moves_that_cost_more_than_they_save() -> None:
    """Within a minute a node saves less than its replica costs to move."""
    state = cluster((0, (ONE, ONE)), (0, (ONE, ONE)))
    problem = problem_of(state)
    dear = problem_of(state, look_ahead_s=1.0)
    assert emptied(problem, best(problem))
    assert not emptied(dear, best(dear))


@pytest.mark.parametrize(("held", "fits"), [((HALF, HALF), True), ((HALF, ONE, HALF), True), ((TWO, HALF, ONE), False)])
def test_shares_are_not_whole_devices(held: tuple[int, ...], fits: bool) -> None:
    """Half a device and half another are not a whole one: 2-GPU node 1 has one GPU free, or two halves."""
    state = cluster((1, (ONE,)), (0, held))
    problem = problem_of(state)
    assert (0 in emptied(problem, best(problem))) == fits
    split = cluster((1, (ONE,)), (1, ()))
    split.arrays.gpu_free[1, :2] = 0.5
    split.arrays.node_free[1, 0] = 1.0
    split.arrays.node_num_held[1] = split.arrays.node_held[1, HALF] = 2
    assert not emptied(problem_of(split), best(problem_of(split)))


def test_an_idle_node_costs_its_price() -> None:
    """A replica moves from 6 to 4 USD/h onto an idle node, and not the other way."""
    down = cluster((1, (ONE,)), (0, ()))
    up = cluster((0, (ONE,)), (1, ()))
    assert emptied(problem_of(down), best(problem_of(down))) == {0}
    assert not emptied(problem_of(up), best(problem_of(up)))


def test_a_new_node_that_is_cheaper() -> None:
    """Where limits allow it, the dear node is replaced by one that is launched; else nothing is done."""
    state = cluster((1, (ONE, ONE)))
    assert not emptied(problem_of(state), best(problem_of(state)))
    problem = problem_of(state, LIMITS._replace(allow_new_nodes=True))
    counts = best(problem)
    assert emptied(problem, counts) == {0}
    assert set(map(int, problem.node[counts.takes.any(1)])) == {5 + 0}


def test_room_that_others_leave_counts_only_without_fences() -> None:
    """A 2-GPU replica fits once a single one has left for the hole on another node."""
    state = cluster((0, (TWO,)), (0, (FIXED, ONE, ONE)), (0, (FIXED, ONE, ONE)))
    fenced, free = problem_of(state), problem_of(state, LIMITS._replace(fence_s=0.0))
    assert not emptied(fenced, best(fenced))
    counts = best(free)
    assert len(emptied(free, counts)) == 1
    assert counts.takes.sum() == 2


def test_least_number_of_nodes() -> None:
    """Two of three may go; one of them is idle already."""
    state = cluster((0, (ONE,)), (0, (ONE,)), (0, (ONE,)), (0, ()), spec=small_spec(min_nodes=2))
    problem = problem_of(state)
    assert len(emptied(problem, best(problem))) == 1


def fits_on(
    problem: CountProblem,
    room: list[tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]],
    d: int,
    i: int,
) -> list[tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]]:
    """All ways to put one replica on bin i: free resources, devices and slots that are left."""
    free, devices, slots = room[i]
    if (problem.demand[d] > free + 1e-6).any() or slots[d] <= 0:
        return []
    whole = np.flatnonzero(devices >= 1.0 - 1e-6)[: int(problem.whole_gpus[d])]
    if len(whole) < problem.whole_gpus[d]:
        return []
    left = devices.copy()
    left[whole] = 0.0
    ways = [left]
    for q, size in enumerate(problem.share):
        for _ in range(int(problem.num_shares[d, q])):
            ways = [
                np.where(np.arange(len(w)) == g, w - size, w)
                for w in ways
                for g in range(len(w))
                if w[g] >= size - 1e-6 and not (w[:g] == w[g]).any()
            ]
    taken = slots.copy()
    taken[d] -= 1
    return [(free - problem.demand[d], w, taken) for w in ways]


def best_by_trying(problem: CountProblem) -> float:
    """The value of the best subset of nodes to empty, each replica tried on every bin."""
    sources = [int(b) for b in np.flatnonzero(problem.can_empty)]
    most = 0.0
    for size in range(1, len(sources) + 1):
        for subset in itertools.combinations(sources, size):
            types = np.bincount(problem.node_type[list(subset)], minlength=len(problem.may_leave))
            replicas = [d for b in subset for d in range(len(problem.demand)) for _ in range(problem.count[b, d])]
            if (types > problem.may_leave).any() or len(replicas) > problem.max_moves:
                continue
            worth = float(problem.saving_usd[list(subset)].sum() - problem.move_usd[replicas].sum())
            if worth > most:
                most = max(most, worth - _least_opening(problem, replicas, set(subset), worth - most))
    return most


def _least_opening(problem: CountProblem, replicas: list[int], subset: set[int], most: float) -> float:
    """Least price of bins opened for these replicas, at most ``most``."""
    replicas = sorted(replicas, key=lambda d: tuple(-problem.demand[d]))
    stays = [b for b in range(len(problem.node)) if b not in subset]
    limit = most

    def put(i: int, room: list, used: frozenset[int], cost: float) -> None:  # type: ignore[type-arg]
        nonlocal limit
        if cost >= limit - 1e-12:
            return
        if i == len(replicas):
            limit = cost
            return
        for j, b in enumerate(stays):
            opening = 0.0 if b in used else float(problem.opening_usd[b])
            for way in fits_on(problem, room, replicas[i], j):
                put(i + 1, [*room[:j], way, *room[j + 1 :]], used | {b}, cost + opening)

    put(0, [(problem.free[b], problem.devices[b], problem.slots[b]) for b in stays], frozenset(), 0.0)
    return limit


@pytest.mark.parametrize("kind", ["small", "new nodes", "rich"])
def test_as_good_as_trying_everything(kind: str) -> None:
    """On 40 random states of five nodes or fewer the value is that of the best subset, and never below best fit's."""
    limits = LIMITS._replace(allow_new_nodes=kind == "new nodes")
    num_emptied = 0
    for seed in range(40):
        spec = rich_spec(packs=True) if kind == "rich" else small_spec()
        state = random_state(np.random.default_rng(seed), spec)
        problem = problem_of(state, limits, max_moves=6, max_new_nodes=1)
        start = start_counts(state, limits, problem)
        solved = solve_counts(problem, start, time_limit_s=20.0)
        assert solved.value_usd == pytest.approx(best_by_trying(problem), abs=1e-2), seed
        assert solved.value_usd >= value_usd(problem, start) - 1e-9
        assert solved.value_usd == pytest.approx(value_usd(problem, solved.counts))
        assert upper_bound_usd(problem) >= solved.value_usd - 1e-6
        num_emptied += int(solved.counts.empties.sum())
    assert num_emptied > 10


def test_neighbourhoods_come_to_the_same() -> None:
    """Three of five bins at a time find the optimum of most states, and never more than it."""
    equal = 0
    for seed in range(30):
        state = random_state(np.random.default_rng(seed))
        problem = problem_of(state)
        whole = solve_counts(problem, no_moves(problem), time_limit_s=20.0)
        found = search_counts(
            problem, no_moves(problem), np.random.default_rng(seed), num_bins=3, time_limit_s=20.0, max_stale=5
        )
        assert found.value_usd <= whole.value_usd + 1e-6
        assert found.value_usd == pytest.approx(value_usd(problem, found.counts))
        equal += found.value_usd > whole.value_usd - 1e-6
    assert equal >= 27
