"""The best set of moves as a mixed-integer program over counts; all bins of a problem, or some with the rest fixed.

Columns: bin b is emptied (0, 1), replicas of d that it takes, and, where room is used again, replicas of d that leave
it; GPU shares by device. Rows: what leaves is taken, every resource, whole devices, shares, replicas per node, least
number of nodes, budget of moves. Without use of the room that others leave only emptied bins give, and all they have.
Every solution can be carried out then, one move at a time and in any order, but for GPU shares: Ray puts a share on
the fullest device that holds it, and not on the one that the solution means (``exact_order`` looks at that).
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.devices import EPS
from rayfold.policies.exact_model import CountProblem
from rayfold.policies.mip import INFINITY, Mip, Term

__all__ = ["Counts", "Solved", "no_moves", "solve_counts", "value_usd"]


class Counts(NamedTuple):
    """A set of moves, as counts."""

    empties: NDArray[np.bool_]  # (B,)
    takes: NDArray[np.int64]  # (B, D)
    gives: NDArray[np.int64]  # (B, D)
    on_device: NDArray[np.int64]  # (B, G, D) those of them that give back a share, by device; only of bins that stay


class Solved(NamedTuple):
    """The best counts found."""

    counts: Counts
    value_usd: float  # of them
    bound_usd: float  # no counts are worth more
    is_optimal: bool
    effort: int = 0  # of the search, see ``mip``

    @property
    def gap_frac(self) -> float:
        """How far the value may be from the best, as share of the bound."""
        return 0.0 if self.is_optimal else max(0.0, self.bound_usd - self.value_usd) / max(self.bound_usd, 1e-9)


@dataclass(slots=True, kw_only=True)
class _Columns:
    """Column numbers of one bin; -1 = it has no such column."""

    b: int
    most: NDArray[np.int64]  # (D,) that it could take
    empty: int
    opened: int
    takes: list[int]
    gives: list[int]
    on_device: dict[tuple[int, int], int]  # by device and deployment


def no_moves(problem: CountProblem) -> Counts:
    """Nothing moves."""
    zeros = np.zeros_like(problem.count)
    return Counts(np.zeros(len(zeros), np.bool_), zeros, zeros.copy(), np.zeros_like(problem.on_device))


def value_usd(problem: CountProblem, counts: Counts) -> float:
    """Savings less the prices of moves and of bins that are opened."""
    opened = (counts.takes.sum(1) > 0) @ problem.opening_usd
    return float(counts.empties @ problem.saving_usd - counts.takes.sum(0) @ problem.move_usd - opened)


def solve_counts(
    problem: CountProblem,
    start: Counts,
    *,
    time_limit_s: float,
    max_effort: float = INFINITY,
    gap_frac: float = 1e-4,
    bins: NDArray[np.int64] | None = None,
) -> Solved:
    """The counts of most value.

    Args:
        problem: What there is to decide.
        start: Feasible counts, which the result is not worse than.
        time_limit_s: For the search.
        max_effort: Of it; see ``Mip.solve``.
        gap_frac: Ends it; see ``Mip.solve``.
        bins: May change; the others stay as in ``start``, and the bound holds for this choice only. None = all.
    """
    chosen = np.arange(len(problem.node)) if bins is None else bins
    mip = Mip()
    columns = [_add_columns(mip, problem, start, int(b)) for b in chosen]
    for c in columns:
        _add_rows_of_bin(mip, problem, c)
    _add_common_rows(mip, problem, start, columns)
    result = mip.solve(time_limit_s=time_limit_s, max_effort=max_effort, gap_frac=gap_frac)
    before = value_usd(problem, start)
    fixed = before - value_usd(problem, _only(start, chosen))
    if result.values is None:
        return Solved(start, before, max(before, fixed - result.bound), False, result.effort)
    counts = _read(result.values, start, columns, problem)
    value = value_usd(problem, counts)
    bound = max(value, fixed - result.bound)
    if value < before:
        return Solved(start, before, max(before, bound), False, result.effort)
    return Solved(counts, value, bound, result.is_optimal, result.effort)


def _only(counts: Counts, bins: NDArray[np.int64]) -> Counts:
    kept = np.zeros(len(counts.empties), np.bool_)
    kept[bins] = True
    takes, gives = (a * kept[:, None] for a in (counts.takes, counts.gives))
    return Counts(counts.empties & kept, takes, gives, counts.on_device * kept[:, None, None])


def _add_columns(mip: Mip, p: CountProblem, start: Counts, b: int) -> _Columns:
    """The columns of a bin; a start is given where all of them have one."""
    most = _most(p, b)
    empty = mip.column(1.0, -p.saving_usd[b], start=float(start.empties[b])) if p.can_empty[b] else -1
    is_opened = p.opening_usd[b] > 0.0 and most.any()
    opened = mip.column(1.0, p.opening_usd[b], start=float(start.takes[b].any())) if is_opened else -1
    takes = [
        mip.column(float(most[d]), p.move_usd[d], start=float(start.takes[b, d])) if most[d] > 0 else -1
        for d in range(len(most))
    ]
    gives = [
        mip.column(float(n), start=float(start.gives[b, d])) if p.reuses_room and n > 0 else -1
        for d, n in enumerate(p.count[b])
    ]
    on_device = {
        (int(g), int(d)): mip.column(float(p.on_device[b, g, d]))
        for g, d in np.argwhere(p.on_device[b])
        if p.reuses_room
    }
    return _Columns(b=b, most=most, empty=empty, opened=opened, takes=takes, gives=gives, on_device=on_device)


def _most(p: CountProblem, b: int) -> NDArray[np.int64]:
    """How many of each deployment a bin could take, if it took nothing else: ``(D,)``."""
    room = p.free[b] + (p.count[b] @ p.demand if p.reuses_room else 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        by_size = np.where(p.demand > EPS, (room + EPS) / p.demand, np.inf).min(1)
    held = p.count[b] if p.reuses_room else 0
    elsewhere = p.count.sum(0) - p.count[b]
    most: NDArray[np.int64] = np.floor(np.minimum(np.minimum(p.slots[b] + held, by_size), elsewhere)).astype(np.int64)
    return np.maximum(0, most)


def _leaving(p: CountProblem, c: _Columns, amount: NDArray[np.float64]) -> list[Term]:
    """Terms of what a bin gives, ``amount`` ``(D,)`` for each replica."""
    if p.reuses_room:
        return [(g, float(amount[d])) for d, g in enumerate(c.gives) if g >= 0 and amount[d]]
    total = float(p.count[c.b] @ amount)
    return [(c.empty, total)] if c.empty >= 0 and total else []


def _add_rows_of_bin(mip: Mip, p: CountProblem, c: _Columns) -> None:
    if c.opened >= 0:
        for d, t in enumerate(c.takes):
            if t >= 0:
                mip.row([(t, 1.0), (c.opened, -float(c.most[d]))], high=0.0)
    shares = _add_shares(mip, p, c)
    for k in range(p.demand.shape[1]):
        _add_room(mip, p, c, p.demand[:, k], float(p.free[c.b, k]), [])
    whole_free = float((p.devices[c.b] >= 1.0 - EPS).sum())
    _add_room(mip, p, c, p.whole_gpus, whole_free, shares)
    for d in {d for _, d in c.on_device}:
        parts = [(column, 1.0) for (_, kind), column in c.on_device.items() if kind == d]
        mip.row([*parts, (c.gives[d], -1.0)], low=0.0, high=0.0)
    for d, t in enumerate(c.takes):
        unit = np.zeros(len(c.takes))
        unit[d] = 1.0
        if t >= 0 and (p.slots[c.b, d] < c.most[d] + p.count[c.b, d] or not p.demand[d].any()):
            _add_room(mip, p, c, unit, float(p.slots[c.b, d]), [])
        if c.gives[d] >= 0 and c.empty >= 0:
            mip.row([(c.gives[d], 1.0), (c.empty, -float(p.count[c.b, d]))], low=0.0)


def _add_room(
    mip: Mip, p: CountProblem, c: _Columns, amount: NDArray[np.float64], free: float, more: list[Term]
) -> None:
    """What is taken fits into what is free, and into nothing if the bin is emptied."""
    terms = [(t, float(amount[d])) for d, t in enumerate(c.takes) if t >= 0 and amount[d]] + more
    if not terms:
        return
    room = free
    if p.reuses_room:
        terms += [(g, -a) for g, a in _leaving(p, c, amount)]
        room += float(p.count[c.b] @ amount)
    if c.empty >= 0:
        terms.append((c.empty, room))
    mip.row(terms, high=free + EPS)


def _add_shares(mip: Mip, p: CountProblem, c: _Columns) -> list[Term]:
    """Shares by device; returns the whole devices that are opened for them."""
    if not any(t >= 0 and p.num_shares[d].any() for d, t in enumerate(c.takes)):
        return []
    opened: list[Term] = []
    by_size: list[list[Term]] = [[] for _ in p.share]
    for g in np.argsort(p.devices[c.b], kind="stable"):
        free = float(p.devices[c.b, g])
        is_whole = free >= 1.0 - EPS
        leaving = [(d, c.on_device[g, d]) for d in range(len(c.takes)) if (g, d) in c.on_device]
        room = free + sum(float(p.demand[d, 0] * p.on_device[c.b, g, d]) for d, _ in leaving)
        fits = [(q, int((room + EPS) / s)) for q, s in enumerate(p.share) if s <= room + EPS]
        if not fits:
            continue
        terms = [(column, -float(p.demand[d, 0])) for d, column in leaving]
        for q, most in fits:
            column = mip.column(float(most))
            by_size[q].append((column, 1.0))
            terms.append((column, float(p.share[q])))
        if is_whole:
            device = mip.column(1.0)
            opened.append((device, 1.0))
            terms.append((device, -1.0))
            if len(opened) > 1:  # equal devices, in order
                mip.row([(opened[-2][0], 1.0), (device, -1.0)], low=0.0)
        mip.row(terms, high=EPS if is_whole else free + EPS)
    for q, placed in enumerate(by_size):
        asked = [(t, -float(p.num_shares[d, q])) for d, t in enumerate(c.takes) if t >= 0 and p.num_shares[d, q]]
        if asked:
            mip.row(placed + asked, low=0.0, high=0.0)
    return opened


def _add_common_rows(mip: Mip, p: CountProblem, start: Counts, columns: list[_Columns]) -> None:
    """What leaves is taken; budget; least number of nodes."""
    inside = _only(start, np.array([c.b for c in columns], np.int64))
    net = (inside.takes - inside.gives).sum(0)  # stays as it is: the other bins do not change
    everything: list[Term] = []
    for d in range(p.count.shape[1]):
        unit = np.zeros(p.count.shape[1])
        unit[d] = 1.0
        taken = [(c.takes[d], 1.0) for c in columns if c.takes[d] >= 0]
        left = [(column, -a) for c in columns for column, a in _leaving(p, c, unit)]
        if taken or left:
            mip.row(taken + left, low=float(net[d]), high=float(net[d]))
        everything += taken
    if everything:
        outside = int(start.takes.sum() - inside.takes.sum())
        mip.row(everything, high=float(p.max_moves - outside))
    for t, most in enumerate(p.may_leave):
        emptied = [(c.empty, 1.0) for c in columns if c.empty >= 0 and p.node_type[c.b] == t]
        if emptied:
            outside = int(start.empties[p.node_type == t].sum() - inside.empties[p.node_type == t].sum())
            mip.row(emptied, high=float(most - outside))


def _read(values: NDArray[np.float64], start: Counts, columns: list[_Columns], p: CountProblem) -> Counts:
    counts = Counts(start.empties.copy(), start.takes.copy(), start.gives.copy(), start.on_device.copy())
    for c in columns:
        counts.empties[c.b] = c.empty >= 0 and values[c.empty] > 0.5
        counts.takes[c.b] = [int(values[t]) if t >= 0 else 0 for t in c.takes]
        if p.reuses_room:
            counts.gives[c.b] = [int(values[g]) if g >= 0 else 0 for g in c.gives]
            for (g, d), column in c.on_device.items():
                counts.on_device[c.b, g, d] = int(values[column])
        else:
            counts.gives[c.b] = p.count[c.b] * counts.empties[c.b]
    return counts
