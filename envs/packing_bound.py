"""How few dollars of nodes hold given replicas: vector bin packing over node types by price, as a linear programme.

The cheapest nodes for ``n`` replicas cost ``min price . x`` over how often each filling of a node type is used, where
a type has at most ``max_nodes`` nodes. By duality any prices ``pi >= 0`` of the items bound that from below, for *any*
``n``: ``pi . n - sum_t max_nodes_t * max(0, best_t - price_t)``, where ``best_t`` is the most that one node of type t
can hold, priced at ``pi``. Such a plane is found by column generation (Gilmore and Gomory, 1961) at typical numbers of
replicas; a few of them are kept. The bill itself is a sum of node prices, so the bound is rounded up to the next such
sum. ``bound.packing_bound_of`` evaluates both.

What fits on one node is relaxed to linear resources. Shares of GPU devices do not add up over devices (0.6 and 0.6
need two), which dual feasible functions say linearly: ``u(s) = s`` if ``(k + 1) s`` is whole, else
``floor((k + 1) s) / k`` (Fekete and Schepers, IPCO 1998). ``max_replicas_per_node`` is kept, for replicas alike in sum.
Bundles that may span nodes are items by themselves. ``min_nodes`` and other work are left out.

Dims: D deployments, T node types, K resources, J functions of shares, L = K + J linear resources, C classes of items
that are alike, P planes, B bills, S samples.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

from rayfold.envs.bound import bound_of
from rayfold.envs.jit import kernel
from rayfold.envs.spec_arrays import SpecArrays

__all__ = ["best_filling", "bills_usd_per_h", "packing_planes", "typical_counts"]

MAX_PLANES, MAX_BILLS = 12, 512  # both cost time at every step
_NUM_MIXES, _MAX_ALONE, _NUM_SAMPLES, _NUM_SHARES = 12, 16, 96, 3
_MAX_ROUNDS, _MAX_FILLINGS = 60, 200_000
_LEAST_GAIN = 1e-3  # of the mean bound, for another plane
_EPS = 1e-9


class _Items(NamedTuple):
    """What has to be packed."""

    size: NDArray[np.float64]  # (C, L)
    fits: NDArray[np.bool_]  # (C, T)
    most: NDArray[np.float64]  # (C,) on one node, inf = no limit
    of: NDArray[np.float64]  # (C, D) items in one replica


def packing_planes(spec: SpecArrays) -> NDArray[np.float64]:
    """The planes of the lower bound.

    Args:
        spec: Static description.

    Returns:
        ``(1 + D, P)`` USD per hour, P <= ``MAX_PLANES``: first a constant, then the price of a replica.
    """
    items = _items(spec)
    if not len(items.size):
        return np.zeros((1 + spec.demand.shape[0], 0))
    samples = typical_counts(spec, _NUM_SAMPLES, np.random.default_rng(0))
    alone = np.diag(spec.max_replicas)[np.unique(items.of.argmax(1))[:_MAX_ALONE]]
    fillings: list[tuple[int, NDArray[np.float64]]] = []
    planes = [_plane(spec, items, items.of @ n, fillings) for n in (*samples[:_NUM_MIXES], *alone)]
    return _choose(np.unique(np.array(planes), axis=0).T, samples, np.array([bound_of(spec, n) for n in samples]))


def bills_usd_per_h(spec: SpecArrays) -> NDArray[np.float64]:
    """``(B,)`` the lowest bills that nodes can add up to, ascending from 0, B <= ``MAX_BILLS``."""
    bills = np.zeros(1)
    for price, most in zip(spec.type_price_usd_per_h, spec.type_max_nodes, strict=True):
        if price > 0.0:
            # Each of the lowest sums is made of one of the lowest sums before: the rest is not needed.
            several = np.arange(min(most, MAX_BILLS) + 1) * price
            bills = np.unique(np.round(bills[:, None] + several, 9))[:MAX_BILLS]
    return bills


def typical_counts(spec: SpecArrays, num: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """``(num, D)`` numbers of replicas at all levels of load that four fifths of the nodes could serve."""
    fleet = float(spec.type_price_usd_per_h @ spec.type_max_nodes)
    level = rng.uniform(0.1, 1.0, (num, 1)) * rng.uniform(size=(num, len(spec.max_replicas)))
    counts = np.maximum(spec.min_replicas, np.floor(level * (spec.max_replicas + 1))).astype(np.int64)
    asked = np.array([bound_of(spec, n) for n in counts])
    scale = np.minimum(1.0, 0.8 * fleet / np.maximum(asked, _EPS))
    scaled: NDArray[np.int64] = np.floor(counts * scale[:, None] + _EPS).astype(np.int64)
    return scaled


def _items(spec: SpecArrays) -> _Items:
    """Replicas, and the bundles of those that may span nodes; alike ones are one class."""
    classes: dict[bytes, tuple[NDArray[np.float64], NDArray[np.bool_], float, NDArray[np.float64]]] = {}
    num_deployments = spec.demand.shape[0]
    for d in range(num_deployments):
        bundles = spec.bundle[d, : spec.num_bundles[d]]
        parts = [bundles[j : j + 1] for j in range(len(bundles))] if spec.can_span[d] else [bundles]
        fits = spec.bundle_fits_type[d] if spec.can_span[d] else spec.fits_type[d]
        is_limited = spec.max_per_node[d] > 0 and not spec.can_span[d]
        for part in parts:
            size = np.concatenate([part.sum(0), _shares(part[:, 0])])
            if not (fits.any() and size.any()):
                continue
            key = np.concatenate([size, fits, [is_limited]]).tobytes()
            _, _, most, of = classes.get(key, (size, fits, 0.0, np.zeros(num_deployments)))
            of[d] += 1.0
            limit = float(spec.max_per_node[d]) if is_limited else np.inf
            classes[key] = size, fits, most + limit, of
    columns = [np.array(column) for column in zip(*classes.values(), strict=True)] or [np.zeros(0)] * 4
    return _Items(*columns)


def _shares(gpus: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(J,)`` what bundles of so many GPUs take of the devices, by each function; whole devices count as such."""
    k = np.arange(1, _NUM_SHARES + 1)
    share = np.where(gpus < 1.0 - _EPS, gpus, 0.0)[:, None] * (k + 1)
    is_whole = np.abs(share - np.round(share)) < 1e-6
    part = np.where(is_whole, share / (k + 1), np.floor(share) / k)
    taken: NDArray[np.float64] = np.where(gpus[:, None] < 1.0 - _EPS, part, gpus[:, None]).sum(0)
    return taken


def _plane(
    spec: SpecArrays, items: _Items, counts: NDArray[np.float64], fillings: list[tuple[int, NDArray[np.float64]]]
) -> NDArray[np.float64]:
    """The plane that is highest at ``counts`` ``(C,)``.

    Args:
        spec: Static description.
        items: What is packed.
        counts: How many of each.
        fillings: Node types and what is on them ``(C,)``, as found so far; written.

    Returns:
        ``(1 + D,)`` a constant, then the price of a replica. Valid whatever the solver did: the constant is computed
        from the item prices.
    """
    price, most = spec.type_price_usd_per_h, spec.type_max_nodes
    capacity = np.hstack([spec.type_capacity, np.repeat(spec.type_num_gpus[:, None], _NUM_SHARES, 1)])
    # Beyond what all nodes hold an item costs what a node to itself does.
    highest = np.where(items.fits, price, 0.0).max(1)
    for _ in range(_MAX_ROUNDS):
        value, above = _dual(counts, highest, price, most, fillings)
        best = np.zeros(len(price))
        num_known = len(fillings)
        for t in np.flatnonzero(most > 0):
            worth = np.where(items.fits[:, t], value, 0.0)
            best[t], filling = best_filling(worth, items.size, capacity[t], items.most, _MAX_FILLINGS)
            if best[t] > price[t] + above[t] + 1e-6:
                fillings.append((int(t), filling))
        if len(fillings) == num_known:
            break
    constant = -float(most @ np.maximum(0.0, best + _EPS - price))
    return np.concatenate([[constant], value @ items.of])


def _dual(
    counts: NDArray[np.float64],
    highest: NDArray[np.float64],
    price: NDArray[np.float64],
    most: NDArray[np.int64],
    fillings: list[tuple[int, NDArray[np.float64]]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Item prices ``(C,)`` that the known fillings allow, and how far each type's price is exceeded ``(T,)``."""
    num_items, num_types = len(counts), len(price)
    rows = np.zeros((len(fillings), num_items + num_types))
    for row, (t, filling) in zip(rows, fillings, strict=True):
        row[:num_items] = filling
        row[num_items + t] = -1.0
    limit = price[[t for t, _ in fillings]]
    bounds = [(0.0, float(h)) for h in highest] + [(0.0, None)] * num_types
    # A slight cost of item prices that nothing asks for, so that they stay low.
    solved = linprog(
        np.concatenate([1e-6 - counts, most + 1e-6]), A_ub=rows, b_ub=limit, bounds=bounds, method="highs-ds"
    )
    if solved.x is None:
        return np.zeros(num_items), np.zeros(num_types)
    x = np.maximum(0.0, solved.x)
    return x[:num_items], x[num_items:]


@kernel
def best_filling(
    value: NDArray[np.float64],
    size: NDArray[np.float64],
    capacity: NDArray[np.float64],
    most: NDArray[np.float64],
    max_tries: int,
) -> tuple[float, NDArray[np.float64]]:
    """The most valuable filling of one node: an integer knapsack, by depth-first search.

    Args:
        value: ``(C,)`` of an item; those of no value are left out.
        size: ``(C, L)``.
        capacity: ``(L,)``.
        most: ``(C,)`` of one class on the node.
        max_tries: Steps of the search.

    Returns:
        Its value, or an upper bound on it where the search was given up, and how many of each class: ``(C,)``.
    """
    num, num_resources = value.shape[0], capacity.shape[0]
    # worth[i, k]: the most that a unit of k can yield with the items from i on.
    worth = np.zeros((num + 1, num_resources))
    for i in range(num - 1, -1, -1):
        for k in range(num_resources):
            worth[i, k] = worth[i + 1, k]
            if value[i] > 0.0:
                worth[i, k] = max(worth[i, k], value[i] / size[i, k] if size[i, k] > 0.0 else np.inf)
    taken, best_taken, free = np.zeros(num), np.zeros(num), capacity.copy()
    best, got, tries, i = 0.0, 0.0, 0, 0
    while True:
        tries += 1
        if tries > max_tries:
            return _at_most(capacity, worth, 0), best_taken
        if i < num and got + _at_most(free, worth, i) > best + 1e-9:
            taken[i] = 0.0
            if value[i] > 0.0:
                taken[i] = most[i]
                for k in range(num_resources):
                    if size[i, k] > 0.0:
                        taken[i] = min(taken[i], np.floor(free[k] / size[i, k] + 1e-9))
                got += taken[i] * value[i]
                free -= taken[i] * size[i]
            i += 1
            continue
        if got > best + 1e-12:
            best = got
            best_taken[:i] = taken[:i]
            best_taken[i:] = 0.0
        i -= 1
        while i >= 0 and taken[i] == 0.0:
            i -= 1
        if i < 0:
            return best, best_taken
        taken[i] -= 1.0
        got -= value[i]
        free += size[i]
        i += 1


@kernel
def _at_most(free: NDArray[np.float64], worth: NDArray[np.float64], i: int) -> float:
    """No filling of ``free`` ``(L,)`` with items from ``i`` on is worth more."""
    least = np.inf
    for k in range(free.shape[0]):
        if worth[i, k] < np.inf:
            least = min(least, free[k] * worth[i, k])
    return least


def _choose(planes: NDArray[np.float64], samples: NDArray[np.int64], known: NDArray[np.float64]) -> NDArray[np.float64]:
    """Those planes that raise the mean bound over the samples most, one after another.

    Args:
        planes: ``(1 + D, any)``.
        samples: ``(S, D)``.
        known: ``(S,)`` a bound that there is anyway.
    """
    values = planes[0] + samples @ planes[1:]
    chosen: list[int] = []
    while len(chosen) < MAX_PLANES:
        gain = np.maximum(values - known[:, None], 0.0).sum(0)
        best = int(gain.argmax())
        if gain[best] <= _LEAST_GAIN * known.sum():
            break
        chosen.append(best)
        known = np.maximum(known, values[:, best])
    return np.ascontiguousarray(planes[:, chosen])
