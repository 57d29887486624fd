"""``fragmentation`` on clusters small enough to decide by hand: nodes of 4 GPUs."""

import numpy as np
import pytest
from numpy.typing import NDArray

from rayfold.envs.devices import NO_DEVICES, take_gpus
from rayfold.envs.moves import Move
from rayfold.envs.placement import hold, let_go
from rayfold.envs.safety import capacity_reason, check_move
from rayfold.envs.state import ClusterState
from rayfold.policies.fragmentation import Fragmentation, FragmentationSettings, gains
from rayfold.policies.stranded import mix, stranded_gpus, take_devices
from tests.envs.clusters import random_state
from tests.policies.test_heuristics import LIMITS, ONE, TWO, after, later, quiet, rng

HALF = 2


def stranded(state: ClusterState) -> NDArray[np.float64]:
    """By node."""
    st = state.arrays
    shares = mix(st.deployment_target)
    return stranded_gpus(state.spec.arrays, shares, np.maximum(st.node_type, 0), st.node_free, st.gpu_free)


def two_and_ones() -> ClusterState:
    """Two 4-GPU nodes, each with one GPU left, and one with two singles: half of the replicas want two GPUs."""
    state = quiet((0, (TWO, ONE)), (0, (TWO, ONE)), (0, (ONE,)))
    state.arrays.deployment_target[:] = 0
    state.arrays.deployment_target[[ONE, TWO]] = 4, 4
    return state


def test_stranded_gpus_by_hand() -> None:
    """One GPU is left on nodes 0 and 1, of no use to half of the mix; three on node 2, of use to both."""
    assert stranded(two_and_ones())[:3].tolist() == [0.5, 0.5, 0.0]


def test_half_devices_are_of_no_use_to_whole_ones() -> None:
    """0.5 + 0.5 free on two devices is 1.0 to a half and nothing to a whole GPU; the other two devices are free."""
    state = quiet((0, (HALF, HALF)))
    state.arrays.gpu_free[0] = [0.5, 0.5, 1.0, 1.0]
    state.arrays.deployment_target[:] = 0
    state.arrays.deployment_target[[ONE, HALF]] = 1, 3
    assert stranded(state)[0] == pytest.approx(0.25 * 1.0)
    state.arrays.node_free[0, 1] = 0.0  # no CPU: nothing can be used
    assert stranded(state)[0] == pytest.approx(3.0)


def test_a_deployment_without_gpus_and_labels_uses_none() -> None:
    """``golden`` asks for a label that plain nodes lack: all four GPUs are stranded to it."""
    state = quiet((0, ()), (1, ()))
    state.arrays.deployment_target[4] = 2
    assert stranded(state)[:2].tolist() == [4.0, 0.0]
    assert mix(np.zeros(3, np.int64)).tolist() == [0.0, 0.0, 0.0]


def test_the_steepest_move() -> None:
    """A single from node 0 to node 1: 1 + 1 GPUs of half use become 0 + 2 of full use, a gain of one GPU.

    To node 2 it would leave two usable GPUs on both: a gain of half a GPU.
    """
    state = two_and_ones()
    plan = Fragmentation(LIMITS).plan(state, rng())
    assert plan.moves[0] == Move(1, 1)
    assert plan.scores[0] == pytest.approx(1.0)
    assert plan.candidates[0].reason == "chosen"
    before, settled = stranded(state).sum(), after(state, plan)
    for move in plan.moves:
        let_go(settled.spec.arrays, settled.arrays, move.replica_idx, settled.now_s)
    assert before - stranded(settled).sum() == pytest.approx(sum(plan.scores))


def test_what_is_leaving_is_gone() -> None:
    """While the first move is under way nothing more is to be won, and the plan comes to rest."""
    state = two_and_ones()
    begun = later(after(state, Fragmentation(LIMITS).plan(state, rng())), 10.0)
    assert Fragmentation(LIMITS).plan(begun, rng()).moves == ()


def test_a_gain_must_be_large_enough() -> None:
    """More than a GPU is nowhere to be won."""
    plan = Fragmentation(LIMITS, FragmentationSettings(min_gain_gpus=1.01)).plan(two_and_ones(), rng())
    assert plan.moves == ()
    assert plan.candidates[0].reason == "gains less than 1.01"


def test_gains_are_what_the_moves_bring() -> None:
    """On random states: the gain of each replica is that of doing the move, and no other destination gains more."""
    num_compared = 0
    for seed in range(40):
        state = random_state(np.random.default_rng(seed))
        leaving = state.arrays.replica_phase == 4
        for r in np.flatnonzero(leaving):
            let_go(state.spec.arrays, state.arrays, int(r), state.now_s)
        for gain in gains(state, LIMITS)[:3]:
            best = max(brute_gain(state, gain.move.replica_idx, n) for n in range(5) if allowed(state, gain.move, n))
            assert gain.gpus == pytest.approx(brute_gain(state, *gain.move))
            assert gain.gpus == pytest.approx(best)
            num_compared += 1
    assert num_compared > 30


def allowed(state: ClusterState, move: Move, n: int) -> bool:
    """Whether the filter lets the replica go to ``n``."""
    return check_move(state, Move(move.replica_idx, n), LIMITS).allowed


def brute_gain(state: ClusterState, r: int, n: int) -> float:
    """By moving the replica and counting anew."""
    moved = later(state, 0.0)
    st, d = moved.arrays, int(state.arrays.replica_deployment[r])
    let_go(state.spec.arrays, st, r, state.now_s)
    assert capacity_reason(state.spec.arrays, st, d, n) == 0
    st.replica_deployment[r], st.replica_phase[r] = d, 3
    hold(state.spec.arrays, st, r, n)
    return float(stranded(state).sum() - stranded(moved).sum())


@pytest.mark.parametrize("gpus", [0.0, 0.25, 0.5, 1.0, 3.0])
def test_devices_are_taken_as_the_cluster_takes_them(gpus: float) -> None:
    """Against the kernel, node by node, wherever it fits."""
    free = np.random.default_rng(5).choice([0.0, 0.25, 0.5, 1.0], (200, 4))
    taken = take_devices(free, gpus)
    for n in range(len(free)):
        one = free[n : n + 1].copy()
        if take_gpus(one, 0, gpus) != NO_DEVICES:
            assert taken[n].tolist() == one[0].tolist()
