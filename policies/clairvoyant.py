"""The clairvoyant optimum: the least that any policy could have paid for an episode, by CP-SAT, knowing all demand.

The episode is looked at every ``slot_s``. What Serve asks for does not depend on the policy (that is checked by a
test), so the targets of a run without moves are everybody's. At each look the nodes paid for hold the targets; a node
that holds something is paid for until the idle time-out has passed after it is empty, a launched one for its least
boot besides; and a replica that turns up on a node without having been asked for since the last look was moved there,
at the least price of a move.

It is a *lower* bound on the bill of every policy because all the rest is relaxed: only time between two looks at both
of which a node is paid for is billed; both copies of a replica need not fit at once; moves take no time; GPU devices,
``max_replicas_per_node``, labels beyond the node type, fences, cooldowns and budgets are not seen; Serve puts replicas
where it suits, and stops those that it suits; what waits for a node may go anywhere until that is up; bundles that may
span nodes are placed one by one and move for nothing. Unserved demand is what even all wanted replicas would not have
served.

Dims: S looks, D deployments, I items (replicas, or the bundles of those that may span), N node rows, K resources.
"""

import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from ortools.sat.python import cp_model

from rayfold.envs.bound import packing_bound_of
from rayfold.envs.cluster import ClusterSpec
from rayfold.envs.ledger import Entry
from rayfold.envs.packing_bound import bills_usd_per_h
from rayfold.envs.simulator import Simulator
from rayfold.envs.state import NodePhase, StateArrays

__all__ = ["ClairvoyantBound", "Demand", "clairvoyant", "watch_demand"]

_MICRO = 1e6  # CP-SAT counts in whole numbers: millionths of a dollar, thousandths of a resource
_MILLI = 1e3
_NUM_WORKERS = 8  # a portfolio that CP-SAT is tuned for; one alone proves little, even on as many cores
_SPARE_ROWS = 1  # of each type: a row is not used again between two looks


@dataclass(frozen=True, slots=True, kw_only=True)
class ClairvoyantBound:
    """What was proven, and the best solution of the relaxation that was found."""

    bound_usd: float  # no policy pays less
    best_usd: float  # of the best solution of the relaxation, inf = none found
    unserved_usd: float  # contained in both
    solve_s: float

    @property
    def gap_frac(self) -> float:
        """What is still open between the two, as a share of the best solution; 1 if none was found."""
        if not np.isfinite(self.best_usd):
            return 1.0
        return max(0.0, self.best_usd - self.bound_usd) / self.best_usd if self.best_usd > 0.0 else 0.0


class Demand(NamedTuple):
    """What an episode asks for, whatever the policy."""

    target: NDArray[np.int64]  # (S, D) replicas wanted at each look
    added: NDArray[np.int64]  # (S - 1, D) asked for in between, counting those that were stopped again
    unserved_usd: float  # of demand beyond all that is wanted
    packing_usd: float  # sum of the bounds that each moment has by itself


def watch_demand(sim: Simulator, slot_s: float) -> Demand:
    """Runs an episode to its end without moves.

    Args:
        sim: Is advanced.
        slot_s: Time between looks, a multiple of the simulator's step.
    """
    settings, spec = sim.spec.settings, sim.spec.arrays
    steps = round(slot_s / settings.substep_s)
    looks, added, unserved_usd = [sim.view.arrays.deployment_target.copy()], [], 0.0
    while sim.num_steps_left >= steps:
        up = np.zeros(len(spec.max_replicas), np.int64)
        for _ in range(steps):
            before = sim.view.arrays.deployment_target.copy()
            offered = sim.traffic.ongoing[len(sim.traffic.ongoing) - sim.num_steps_left]
            lacking = np.maximum(0.0, offered - before * spec.max_ongoing) / spec.max_ongoing
            hours = settings.substep_s / 3600.0
            unserved_usd += float(lacking @ spec.replica_usd_per_h) * hours * settings.prices.unserved_factor
            sim.advance(1)
            up += np.maximum(0, sim.view.arrays.deployment_target - before)
        looks.append(sim.view.arrays.deployment_target.copy())
        added.append(up)
    return Demand(np.array(looks), np.array(added), unserved_usd, sim.ledger()[Entry.BOUND_USD])


class _Items(NamedTuple):
    """What is placed."""

    deployment: NDArray[np.int64]  # (I,)
    size: NDArray[np.int64]  # (I, K) in thousandths, rounded down
    fits: NDArray[np.bool_]  # (I, T)
    move_micro_usd: NDArray[np.int64]  # (I,) at least


def clairvoyant(
    spec: ClusterSpec, first: StateArrays, demand: Demand, slot_s: float, time_limit_s: float = 60.0
) -> ClairvoyantBound:
    """Bounds the bill of an episode.

    Args:
        spec: Static description.
        first: Where the episode begins.
        demand: From ``watch_demand`` of the same episode and ``slot_s``.
        slot_s: Time between looks.
        time_limit_s: Of the solver.

    Raises:
        ValueError: Nodes are interrupted, run out or do other work, starts fail, or not all replicas fit: the
            relaxation would be no bound.
    """
    _check(spec)
    items, rows = _items(spec), _rows(spec, first)
    model = cp_model.CpModel()
    num_looks = len(demand.target)
    paid, launched = _paid(model, spec, first, rows, num_looks, slot_s)
    count = _placement(model, spec, first, demand, items, rows, paid, slot_s)
    billed = _billed(spec, rows, paid, launched, slot_s)
    num_there = int((first.node_phase != NodePhase.ABSENT).sum())
    moved = _moved(model, spec, demand, items, rows, num_there, paid, count, slot_s)
    model.minimize(sum(billed) + sum(moved))
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = time_limit_s
    solver.parameters.num_workers = _NUM_WORKERS
    solver.parameters.random_seed = 0
    begun = time.perf_counter()
    status = solver.status_name(solver.solve(model))
    if status not in ("OPTIMAL", "FEASIBLE", "UNKNOWN"):
        raise ValueError(f"the relaxed episode is {status}: not all replicas fit at every look")
    has_solution = status != "UNKNOWN"
    return ClairvoyantBound(
        bound_usd=max(solver.best_objective_bound / _MICRO, demand.packing_usd) + demand.unserved_usd,
        best_usd=solver.objective_value / _MICRO + demand.unserved_usd if has_solution else np.inf,
        unserved_usd=demand.unserved_usd,
        solve_s=time.perf_counter() - begun,
    )


def _check(spec: ClusterSpec) -> None:
    for t in spec.node_types:
        if t.interruptions_per_h > 0.0 or t.stockout_prob > 0.0 or t.other_work_prob > 0.0:
            raise ValueError(f"node type {t.name} is interrupted, runs out or does other work")
    for d in spec.deployments:
        if d.start_failure_prob > 0.0:
            raise ValueError(f"starts of {d.key} may fail")


def _items(spec: ClusterSpec) -> _Items:
    a, prices = spec.arrays, spec.settings.prices
    deployment, size, fits, usd = [], [], [], []
    for d in range(spec.num_deployments):
        spans = bool(a.can_span[d])
        for part in a.bundle[d, : a.num_bundles[d]] if spans else [a.demand[d]]:
            deployment.append(d)
            size.append(np.floor(part * _MILLI + 1e-6))
            fits.append(a.bundle_fits_type[d] if spans else a.fits_type[d])
            share = a.startup_s[d, 0] / 3600.0 + prices.move_frac
            usd.append(0.0 if spans else a.replica_usd_per_h[d] * share * prices.disruption_scale)
    return _Items(
        np.array(deployment), np.array(size, np.int64), np.array(fits), np.floor(np.array(usd) * _MICRO).astype(int)
    )


def _rows(spec: ClusterSpec, first: StateArrays) -> NDArray[np.int64]:
    """Node type of each row ``(N,)``; the first ones are the nodes that are there."""
    there = first.node_type[first.node_phase != NodePhase.ABSENT]
    spare = [
        np.full(max(0, t.max_nodes - int((there == i).sum())) + (0 if t.is_head else _SPARE_ROWS), i)
        for i, t in enumerate(spec.node_types)
    ]
    return np.concatenate([there, *spare]).astype(np.int64)


def _paid(
    model: Any, spec: ClusterSpec, first: StateArrays, rows: NDArray[np.int64], num_looks: int, slot_s: float
) -> tuple[list[list[Any]], list[list[Any]]]:
    """Is a row paid for at each look, and launched since the one before: then for boot and idle time-out at least."""
    num_there = int((first.node_phase != NodePhase.ABSENT).sum())
    paid = [[model.new_bool_var("") for _ in range(num_looks)] for _ in rows]
    launched = [[model.new_bool_var("") for _ in range(num_looks)] for _ in rows]
    for n, t in enumerate(rows):
        model.add(paid[n][0] == int(n < num_there))
        model.add(launched[n][0] == 0)
        least_s = spec.node_types[t].boot_s.min_s + spec.settings.idle_timeout_s
        least = max(1, int(least_s // slot_s))
        for s in range(1, num_looks):
            model.add(launched[n][s] >= paid[n][s] - paid[n][s - 1])
            model.add(launched[n][s] <= 1 - paid[n][s - 1])
            model.add(sum(launched[n][max(0, s - least + 1) : s + 1]) <= paid[n][s])
    for s in range(num_looks):
        for i, node_type in enumerate(spec.node_types):
            of_type = [paid[n][s] for n in np.flatnonzero(rows == i)]
            model.add(sum(of_type) <= node_type.max_nodes)
            if node_type.is_head:
                model.add(sum(of_type) == 1)
    return paid, launched


def _placement(
    model: Any,
    spec: ClusterSpec,
    first: StateArrays,
    demand: Demand,
    items: _Items,
    rows: NDArray[np.int64],
    paid: list[list[Any]],
    slot_s: float,
) -> list[list[list[Any]]]:
    """How many of each item are on each row at each look: ``count[n][i][s]``; at the first they are as they are.

    A row that holds something is paid for until the idle time-out has passed.
    """
    most = demand.target.max(0)
    bills = bills_usd_per_h(spec.arrays)
    num_looks, slots = len(demand.target), int(spec.settings.idle_timeout_s // slot_s)
    # Whole nodes for the dearest resource: this follows from the rest, and tells the solver much.
    bounded = spec.arrays._replace(plane_usd_per_h=np.zeros((1 + spec.num_deployments, 0)), bills_usd_per_h=bills)
    count = [
        [
            [model.new_int_var(0, int(most[d]) if items.fits[i, t] else 0, "") for _ in range(num_looks)]
            for i, d in enumerate(items.deployment)
        ]
        for t in rows
    ]
    capacity = np.ceil(spec.arrays.type_capacity * _MILLI - 1e-6).astype(np.int64)
    for s in range(num_looks):
        for i, d in enumerate(items.deployment):
            model.add(sum(count[n][i][s] for n in range(len(rows))) == int(demand.target[s, d]))
        for n, t in enumerate(rows):
            used = model.new_bool_var("")
            for later in range(s, min(num_looks, s + slots + 1)):
                model.add(paid[n][later] >= used)
            for i, d in enumerate(items.deployment):
                model.add(count[n][i][s] <= int(demand.target[s, d]) * used)
            for k in range(items.size.shape[1]):
                held = sum(int(items.size[i, k]) * count[n][i][s] for i in range(len(items.deployment)))
                model.add(held <= int(capacity[t, k]) * used)
        least_usd_per_h = packing_bound_of(bounded, demand.target[s])
        price = np.floor(spec.arrays.type_price_usd_per_h[rows] * _MICRO).astype(np.int64)
        model.add(sum(int(p) * paid[n][s] for n, p in enumerate(price)) >= int(least_usd_per_h * _MICRO - 1e3))
    there = np.flatnonzero(first.node_phase != NodePhase.ABSENT)
    whole = ~spec.arrays.can_span
    is_settled = bool((first.node_held.sum(0)[whole] == demand.target[0][whole]).all())
    for n, row in enumerate(there):
        for i, d in enumerate(items.deployment):
            if whole[d] and is_settled:
                model.add(count[n][i][0] == int(first.node_held[row, d]))
    return count


def _billed(
    spec: ClusterSpec, rows: NDArray[np.int64], paid: list[list[Any]], launched: list[list[Any]], slot_s: float
) -> list[Any]:
    """Bills, in millionths of a dollar, of the time between looks at both of which a node is paid for.

    That is one less than the looks, for each time that it is launched or there from the start.
    """
    micro = np.floor(spec.arrays.type_price_usd_per_h[rows] * slot_s / 3600.0 * _MICRO).astype(np.int64)
    return [int(m) * (sum(paid[n]) - paid[n][0] - sum(launched[n])) for n, m in enumerate(micro)]


def _moved(
    model: Any,
    spec: ClusterSpec,
    demand: Demand,
    items: _Items,
    rows: NDArray[np.int64],
    num_there: int,
    paid: list[list[Any]],
    count: list[list[list[Any]]],
    slot_s: float,
) -> list[Any]:
    """Prices of moves: what more is on some rows than was asked for, and did not wait for a node that was not up."""
    prices: list[Any] = []
    for i in np.flatnonzero(items.move_micro_usd > 0):
        d = items.deployment[i]
        most = int(demand.target[:, d].max())
        for s in range(len(demand.target) - 1):
            gains, waited = [], []
            for n, t in enumerate(rows):
                gain = model.new_int_var(0, most, "")
                model.add(gain >= count[n][i][s + 1] - count[n][i][s])
                gains.append(gain)
                before_boot = s - int(np.ceil(spec.node_types[t].boot_s.max_s / slot_s))
                if before_boot < 0 and n < num_there:
                    continue
                left = model.new_int_var(0, most, "")
                model.add(left <= count[n][i][s])
                if before_boot >= 0:
                    model.add(left <= most * (1 - paid[n][before_boot]))
                waited.append(left)
            moves = model.new_int_var(0, most, "")
            model.add(moves >= sum(gains) - sum(waited) - int(demand.added[s, d]))
            prices.append(int(items.move_micro_usd[i]) * moves)
    return prices
