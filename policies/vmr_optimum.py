"""The best plan within some moves for the VMR snapshot, proven: fewest fragments, or most machines freed.

Counts of VMs of a kind per socket, as ``exact_program`` has them per node; room that a VM leaves may be used. Dims: P
machines, T kinds, S sockets (2).
"""

import enum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.importers.vmr import BOTH, FRAGMENT_CORES, VmrSnapshot
from rayfold.policies.mip import Mip, Term

__all__ = ["VmrGoal", "VmrOptimum", "vmr_optimum"]


class VmrGoal(enum.StrEnum):
    """What to look for."""

    FRAGMENTS = "fragments"  # the paper's: least fragment rate
    MACHINES = "machines"  # most machines without a VM, in addition to those that have none before


class VmrOptimum(NamedTuple):
    """A plan, as counts, and how good one can be."""

    free: NDArray[np.int64]  # (P, 2) cores after it
    takes: NDArray[np.int64]  # (P, 3, T) VMs that a machine takes on socket 0, on 1, on both
    gives: NDArray[np.int64]  # (P, 3, T)
    value: float  # blocks of 16 cores, or machines freed
    bound: float  # no plan within as many moves has more
    is_optimal: bool


def vmr_optimum(
    snapshot: VmrSnapshot,
    goal: VmrGoal,
    max_moves: int,
    *,
    may_move: NDArray[np.bool_] | None = None,
    reuses_room: bool = True,
    time_limit_s: float = 60.0,
) -> VmrOptimum:
    """Solves it.

    Args:
        snapshot: The cluster.
        goal: What counts.
        max_moves: VMs that change their machine or socket, at most.
        may_move: ``(T,)`` kinds that may; None = all.
        reuses_room: Whether the room that VMs leave may be used by others.
        time_limit_s: For the solver.
    """
    counts = vm_counts(snapshot)
    movable = counts * (1 if may_move is None else may_move[None, None, :])
    mip, columns = Mip(), []
    everything: list[Term] = []
    for p in range(len(counts)):
        takes, gives = _machine(mip, snapshot, goal, counts[p], movable[p], p, reuses_room)
        columns.append((takes, gives))
        everything += [(int(c), 1.0) for c in takes.ravel() if c >= 0]
    for t in range(len(snapshot.kinds)):
        terms = [(int(c), 1.0) for takes, _ in columns for c in takes[:, t] if c >= 0]
        terms += [(int(c), -1.0) for _, gives in columns for c in gives[:, t] if c >= 0]
        if terms:
            mip.row(terms, low=0.0, high=0.0)
    mip.row(everything, high=float(max_moves))
    result = mip.solve(time_limit_s=time_limit_s)
    values = np.zeros(0) if result.values is None else result.values
    takes, gives = (np.array([_read(values, pair[i]) for pair in columns]) for i in (0, 1))
    free = snapshot.free - _cores(snapshot, takes - gives)
    before = int((counts.sum((1, 2)) == 0).sum()) if goal is VmrGoal.MACHINES else 0
    value, bound = -result.objective - before, -result.bound - before
    return VmrOptimum(free, takes, gives, value, bound, result.is_optimal)


def vm_counts(snapshot: VmrSnapshot) -> NDArray[np.int64]:
    """VMs by machine, place (socket 0, 1, both) and kind: ``(P, 3, T)``."""
    counts = np.zeros((len(snapshot.total), 3, len(snapshot.kinds)), np.int64)
    place = np.where(snapshot.vm_socket == BOTH, 2, snapshot.vm_socket)
    np.add.at(counts, (snapshot.vm_machine, place, snapshot.vm_kind), 1)
    return counts


def _cores(snapshot: VmrSnapshot, counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Cores per socket ``(P, 2)`` of VMs ``(P, 3, T)``."""
    cores = np.array([kind.cores for kind in snapshot.kinds], np.int64)
    by_place = counts @ cores
    return by_place[:, :2] + by_place[:, 2:]


def _machine(
    mip: Mip,
    snapshot: VmrSnapshot,
    goal: VmrGoal,
    counts: NDArray[np.int64],
    movable: NDArray[np.int64],
    p: int,
    reuses_room: bool,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Columns ``(3, T)`` of what a machine takes and gives, -1 = none, and the rows of its sockets."""
    shape = counts.shape
    takes, gives = np.full(shape, -1, np.int64), np.full(shape, -1, np.int64)
    for t, kind in enumerate(snapshot.kinds):
        for place in (0, 1) if kind.num_sockets == 1 else (2,):
            size = snapshot.total[p].min() if place == 2 else snapshot.total[p, place]
            takes[place, t] = mip.column(float(size // kind.cores), start=0.0)
            if movable[place, t]:
                gives[place, t] = mip.column(float(movable[place, t]), start=0.0)
    emptied = _emptied(mip, goal, counts, movable)
    for s in (0, 1):
        taken, given = _on_socket(snapshot, takes, s), _on_socket(snapshot, gives, s)
        given = [(c, -a) for c, a in given]
        free, used = float(snapshot.free[p, s]), float(snapshot.total[p, s] - snapshot.free[p, s])
        room = [(emptied, free + used)] if emptied >= 0 else []
        mip.row(taken + given + room, high=free)
        if not reuses_room:
            mip.row(taken + ([(emptied, free)] if emptied >= 0 else []), high=free)
        if goal is VmrGoal.FRAGMENTS:
            blocks = mip.column(float(snapshot.total[p, s] // FRAGMENT_CORES), -1.0)
            mip.row([*taken, *given, (blocks, float(FRAGMENT_CORES))], high=free)
    return takes, gives


def _emptied(mip: Mip, goal: VmrGoal, counts: NDArray[np.int64], movable: NDArray[np.int64]) -> int:
    """The column of a machine that ends without a VM; -1 if it cannot, or if that does not count."""
    can_be = goal is VmrGoal.MACHINES and bool((movable == counts).all())
    return mip.column(1.0, -1.0, start=float(not counts.any())) if can_be else -1


def _on_socket(snapshot: VmrSnapshot, columns: NDArray[np.int64], s: int) -> list[Term]:
    """Cores per VM on one socket."""
    return [
        (int(columns[place, t]), float(kind.cores))
        for t, kind in enumerate(snapshot.kinds)
        for place in (s, 2)
        if columns[place, t] >= 0
    ]


def _read(values: NDArray[np.float64], columns: NDArray[np.int64]) -> NDArray[np.int64]:
    if not len(values):
        return np.zeros_like(columns)
    return np.where(columns >= 0, values[columns], 0.0).astype(np.int64)
