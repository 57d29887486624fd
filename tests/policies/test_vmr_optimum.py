"""Proven optima of small VMR snapshots."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from rayfold.envs.importers.vmr import BOTH, FRAGMENT_CORES, Kind, VmrSnapshot, fragment_rate, used_cores
from rayfold.policies.vmr_optimum import VmrGoal, vmr_optimum

KINDS = (Kind(num_sockets=1, cores=4), Kind(num_sockets=1, cores=8), Kind(num_sockets=2, cores=16))


def snapshot(*vms: tuple[int, int, int], num_machines: int) -> VmrSnapshot:
    """Machines of two sockets with 20 cores, VMs as (kind, machine, socket)."""
    kind, machine, socket = np.array(vms, np.int64).reshape(-1, 3).T
    total = np.full((num_machines, 2), 20)
    empty = VmrSnapshot(
        machine_ids=tuple(map(str, range(num_machines))),
        kinds=KINDS,
        total=total,
        free=total,
        vm_kind=kind,
        vm_machine=machine,
        vm_socket=socket,
    )
    free = total - used_cores(empty)
    assert (free >= 0).all()
    return VmrSnapshot(
        machine_ids=empty.machine_ids,
        kinds=KINDS,
        total=total,
        free=free,
        vm_kind=kind,
        vm_machine=machine,
        vm_socket=socket,
    )


def random_snapshot(rng: np.random.Generator) -> VmrSnapshot:
    """Three machines, at most five VMs that fit."""
    vms: list[tuple[int, int, int]] = []
    free = np.full((3, 2), 20)
    for _ in range(int(rng.integers(1, 6))):
        kind, machine, socket = (int(rng.integers(n)) for n in (3, 3, 2))
        places = [0, 1] if KINDS[kind].num_sockets == 2 else [socket]
        if (free[machine, places] >= KINDS[kind].cores).all():
            free[machine, places] -= KINDS[kind].cores
            vms.append((kind, machine, BOTH if len(places) == 2 else socket))
    return snapshot(*vms, num_machines=3)


def best_by_trying(s: VmrSnapshot, goal: VmrGoal, max_moves: int) -> int:
    """Every VM on every place."""
    options = []
    for kind in s.vm_kind:
        sockets = (BOTH,) if KINDS[kind].num_sockets == 2 else (0, 1)
        options.append([(m, o) for m in range(len(s.total)) for o in sockets])
    before = list(zip(s.vm_machine.tolist(), s.vm_socket.tolist(), strict=True))
    num_free = (s.free == s.total).all(1).sum()
    most = 0
    for places in itertools.product(*options):
        if sum(a != b for a, b in zip(places, before, strict=True)) > max_moves:
            continue
        free = s.total.copy()
        for kind, (m, o) in zip(s.vm_kind, places, strict=True):
            free[m, [0, 1] if o == BOTH else [o]] -= KINDS[kind].cores
        if (free < 0).any():
            continue
        num_freed = (free == s.total).all(1).sum() - num_free
        value = (free // FRAGMENT_CORES).sum() if goal is VmrGoal.FRAGMENTS else num_freed
        most = max(most, int(value))
    return most


@pytest.mark.parametrize("goal", VmrGoal)
@pytest.mark.parametrize("max_moves", [1, 2, 4])
def test_as_good_as_trying_everything(goal: VmrGoal, max_moves: int) -> None:
    """On 15 random snapshots."""
    for seed in range(15):
        s = random_snapshot(np.random.default_rng(seed))
        best = vmr_optimum(s, goal, max_moves)
        expected = best_by_trying(s, goal, max_moves)
        if goal is VmrGoal.FRAGMENTS:
            assert best.is_optimal
            assert best.value == pytest.approx(expected)
            assert (best.free // FRAGMENT_CORES).sum() == expected
        else:
            assert round(best.value) == round(best.bound) == expected
        assert best.takes.sum() == best.gives.sum() <= max_moves
        assert (best.free >= 0).all()


def test_one_move_makes_a_block() -> None:
    """20 free and 8 beside 12 VM cores are one block; 12 and 12 are none, and 20 and 4 are one after a move."""
    s = snapshot((1, 0, 0), (0, 0, 1), (1, 0, 1), num_machines=1)
    assert fragment_rate(s.free) == 1.0
    assert vmr_optimum(s, VmrGoal.FRAGMENTS, 0).value == 0.0
    best = vmr_optimum(s, VmrGoal.FRAGMENTS, 1)
    assert (best.value, int(best.takes.sum())) == (1.0, 1)
    assert sorted(best.free[0]) == [0, 20] or sorted(best.free[0]) == [4, 16]


def test_vms_that_may_not_move_hold_their_machine() -> None:
    """Kind 0 stays: only the other machine can be freed, and none if neither kind moves."""
    s = snapshot((0, 0, 0), (1, 1, 0), num_machines=2)
    best = vmr_optimum(s, VmrGoal.MACHINES, 5, may_move=np.array([False, True, True]))
    assert best.value == 1.0
    assert (best.free[1] == 20).all()
    none = vmr_optimum(s, VmrGoal.MACHINES, 5, may_move=np.zeros(3, np.bool_))
    assert (none.value, none.takes.sum()) == (0.0, 0)


def test_room_that_is_left_behind() -> None:
    """The wide VM fits once the small one has gone to the third machine: by one move less it cannot."""
    s = snapshot((2, 0, BOTH), (1, 1, 0), (1, 2, 0), num_machines=3)
    assert vmr_optimum(s, VmrGoal.MACHINES, 1).value == 1.0
    assert vmr_optimum(s, VmrGoal.MACHINES, 2, reuses_room=False).value == 1.0


def test_the_file_is_not_in_the_project() -> None:
    """It belongs to others and is read from where it lies."""
    root = Path(__file__).resolve().parents[2]
    assert not list(root.glob("*/**/vmr_279pm*"))
