"""The packing bound: against the integer optimum with devices, by hand, and with a planted fault."""

import dataclasses
from itertools import product

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp

from rayfold.envs.bound import bound_of, packing_bound_of
from rayfold.envs.cluster import (
    AutoscalingConfig,
    ClusterSpec,
    Deployment,
    NodeType,
    PlacementGroupStrategy,
    ReplicaShape,
)
from rayfold.envs.packing_bound import best_filling, bills_usd_per_h, packing_planes, typical_counts
from rayfold.envs.scenario import load_scenario
from rayfold.envs.spec_arrays import SpecArrays


def node_type(gpus: float, usd_per_h: float, max_nodes: int, cpus: float = 16.0) -> NodeType:
    """A node type with labels of its own."""
    resources = {"GPU": gpus, "CPU": cpus, "memory_gib": 64.0}
    name = f"{gpus:g}x{usd_per_h:g}"
    return NodeType(
        name=name, resources=resources, price_usd_per_h=usd_per_h, max_nodes=max_nodes, labels={"type": name}
    )


def deployment(i: int, *bundles: float, cpus: float = 1.0, **more: object) -> Deployment:
    """One with a bundle for each number of GPUs."""
    shape = ReplicaShape(
        bundles=tuple({"GPU": gpus, "CPU": cpus} for gpus in bundles),
        strategy=PlacementGroupStrategy.STRICT_PACK if len(bundles) > 1 else PlacementGroupStrategy.NONE,
    )
    scaling = AutoscalingConfig(min_replicas=0, max_replicas=6)
    return Deployment(name=f"d{i}", shape=shape, autoscaling=scaling, **more)  # type: ignore[arg-type]


def spec_of(types: tuple[NodeType, ...], *deployments: Deployment) -> ClusterSpec:
    """With the packing bound."""
    return ClusterSpec(node_types=types, deployments=deployments, bounds_packing=True)


def bound(spec: ClusterSpec, *counts: int) -> float:
    """Of so many replicas of each deployment."""
    return float(packing_bound_of(spec.arrays, np.array(counts)))


def optimum_usd_per_h(spec: ClusterSpec, counts: np.ndarray) -> float | None:
    """Cheapest nodes that hold ``counts`` ``(D,)`` replicas, device by device; None if all nodes do not.

    Columns per node: is it used; replicas of each deployment; parts of devices ``(D, G)`` for shares, and whole ones
    ``(G,)``.
    """
    a, num_d = spec.arrays, spec.num_deployments
    nodes = [t for t, most in enumerate(a.type_max_nodes) for _ in range(most)]
    num_g = int(a.type_num_gpus.max())
    width = 1 + num_d + num_d * num_g + num_g
    size = width * len(nodes)
    price, upper = np.zeros(size), np.ones(size)
    rows, low, high = [], [], []

    def constrain(row: np.ndarray, least: float, most: float) -> None:
        rows.append(row)
        low.append(least)
        high.append(most)

    for i, t in enumerate(nodes):
        used, first = i * width, i * width + 1
        parts = first + num_d + np.arange(num_d * num_g).reshape(num_d, num_g)
        whole = first + num_d + num_d * num_g + np.arange(num_g)
        price[used] = a.type_price_usd_per_h[t]
        upper[first : first + num_d] = np.where(a.fits_type[:, t], counts, 0)
        upper[first : first + num_d][a.max_per_node > 0] = np.minimum(upper[first : first + num_d], a.max_per_node)[
            a.max_per_node > 0
        ]
        upper[parts] = 9
        for k in range(a.demand.shape[1]):
            row = np.zeros(size)
            row[first : first + num_d], row[used] = a.demand[:, k], -a.type_capacity[t, k]
            constrain(row, -np.inf, 1e-9)
        num_whole = np.array([sum(g for g in a.bundle[d, : a.num_bundles[d], 0] if g >= 1.0) for d in range(num_d)])
        row = np.zeros(size)
        row[first : first + num_d], row[whole] = num_whole, -1.0
        constrain(row, 0.0, 0.0)
        for g in range(num_g):
            row = np.zeros(size)
            row[whole[g]], row[used] = 1.0, -float(g < a.type_num_gpus[t])
            for d in range(num_d):
                row[parts[d, g]] = max((s for s in a.bundle[d, : a.num_bundles[d], 0] if s < 1.0), default=0.0)
            constrain(row, -np.inf, 1e-9)
        for d in range(num_d):
            row = np.zeros(size)
            row[first + d], row[parts[d]] = sum(0.0 < s < 1.0 for s in a.bundle[d, : a.num_bundles[d], 0]), -1.0
            constrain(row, 0.0, 0.0)
    for d in range(num_d):
        row = np.zeros(size)
        row[np.arange(len(nodes)) * width + 1 + d] = 1.0
        constrain(row, counts[d], counts[d])
    solved = milp(
        price,
        integrality=np.ones(size, np.int64),
        bounds=Bounds(0, upper),
        constraints=[LinearConstraint(rows, low, high)],
    )
    return float(solved.fun) if solved.success else None


def random_spec(rng: np.random.Generator) -> ClusterSpec:
    """Two or three node types, few of each, and shapes that pack badly: shares, odd sizes, limits, labels."""
    types = tuple(
        node_type(
            float(rng.choice([1, 2, 4])), float(rng.choice([1.0, 2.5, 4.0, 7.0])) + i / 8, int(rng.integers(1, 4))
        )
        for i in range(int(rng.integers(2, 4)))
    )
    kinds = [(0.3,), (0.5,), (0.6,), (0.75,), (1.0,), (2.0,), (3.0,), (0.0,), (0.6, 0.6)]
    deployments = tuple(
        deployment(
            i,
            *kinds[int(rng.integers(len(kinds)))],
            cpus=float(rng.choice([1.0, 5.0])),
            max_replicas_per_node=int(rng.choice([0, 0, 1, 2])),
            label_selector={} if rng.random() < 0.7 else dict(types[0].labels),
        )
        for i in range(3)
    )
    return spec_of(types, *deployments)


def test_never_above_the_integer_optimum() -> None:
    """On 25 random clusters; mostly above the resource bound, and often the optimum itself."""
    checked, tighter, reached = 0, 0, 0
    for seed in range(25):
        rng = np.random.default_rng(seed)
        spec = random_spec(rng)
        counts = rng.integers(0, 4, spec.num_deployments)
        optimum = optimum_usd_per_h(spec, counts)
        if optimum is None:
            continue
        found = bound(spec, *counts)
        assert bound_of(spec.arrays, counts) <= found + 1e-9
        assert found <= optimum + 1e-6, seed
        checked += 1
        tighter += found > bound_of(spec.arrays, counts) + 1e-6
        reached += found == pytest.approx(optimum)
    assert checked >= 12
    assert tighter >= 0.7 * checked
    assert reached >= 0.6 * checked


def test_a_plane_too_high_is_caught() -> None:
    """The comparison above can fail: with planes a third dearer some bound is above the optimum."""
    above = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        spec = random_spec(rng)
        counts = rng.integers(0, 4, spec.num_deployments)
        optimum = optimum_usd_per_h(spec, counts)
        planes = spec.arrays.plane_usd_per_h * 4 / 3
        planted = spec.arrays._replace(plane_usd_per_h=planes, bills_usd_per_h=np.zeros(0))
        above += optimum is not None and float(packing_bound_of(planted, counts)) > optimum + 1e-6
        if above:
            return
    pytest.fail("no planted plane was too high")


@pytest.mark.parametrize(
    ("gpus", "count", "usd_per_h"),
    [
        (0.6, 4, 4.0),  # one to a device
        (0.6, 5, 8.0),  # 3.0 of 4 GPUs in sum
        (0.3, 12, 4.0),  # three to a device
        (0.3, 13, 8.0),
        (3.0, 2, 8.0),  # 6 of 8 GPUs, and no two on a node
        (1.0, 5, 8.0),  # 1.25 nodes
        (1.0, 0, 0.0),
    ],
)
def test_by_hand_on_one_type(gpus: float, count: int, usd_per_h: float) -> None:
    """4-GPU nodes at 4 USD/h."""
    assert bound(spec_of((node_type(4.0, 4.0, 8),), deployment(0, gpus)), count) == pytest.approx(usd_per_h)


def test_cheap_nodes_run_out() -> None:
    """Two 1-GPU nodes at 1 USD/h, then 3 USD/h each: the third replica costs 3, all beyond the fleet nothing more."""
    spec = spec_of((node_type(1.0, 1.0, 2), node_type(1.0, 3.0, 2)), deployment(0, 1.0))
    assert [bound(spec, n) for n in range(7)] == pytest.approx([0.0, 1.0, 2.0, 5.0, 8.0, 8.0, 8.0])


def test_a_limit_per_node_counts() -> None:
    """Three replicas, at most one on a 4-GPU node: three nodes."""
    spec = spec_of((node_type(4.0, 4.0, 8),), deployment(0, 1.0, max_replicas_per_node=1))
    assert bound(spec, 3) == pytest.approx(12.0)


def test_the_head_is_free_but_small() -> None:
    """The head's 16 CPUs hold one replica of 10 CPUs for nothing; the second one needs a node of 2 USD/h."""
    head = dataclasses.replace(node_type(0.0, 5.0, 1), is_head=True)
    spec = spec_of((head, node_type(1.0, 2.0, 3)), deployment(0, 0.0, cpus=10.0))
    assert [bound(spec, n) for n in (1, 2, 3)] == pytest.approx([0.0, 2.0, 4.0])


def test_bundles_that_span_count_one_by_one() -> None:
    """A PACK group of two 3-GPU bundles needs two 4-GPU nodes."""
    shape = ReplicaShape(bundles=({"GPU": 3.0}, {"GPU": 3.0}), strategy=PlacementGroupStrategy.PACK)
    group = dataclasses.replace(deployment(0, 1.0), shape=shape)
    assert bound(spec_of((node_type(4.0, 4.0, 8),), group), 1) == pytest.approx(8.0)


def test_bills_are_all_sums_of_node_prices() -> None:
    """Two nodes at 3 and one at 4 USD/h."""
    spec = spec_of((node_type(1.0, 3.0, 2), node_type(2.0, 4.0, 1)), deployment(0, 1.0))
    assert bills_usd_per_h(spec.arrays).tolist() == [0.0, 3.0, 4.0, 6.0, 7.0, 10.0]


def test_best_filling_equals_enumeration() -> None:
    """On 100 random knapsacks; a search given up early says more, never less."""
    for seed in range(100):
        rng = np.random.default_rng(seed)
        value, size = rng.uniform(0, 2, 4) * (rng.random(4) < 0.8), rng.choice([0.0, 1.0, 1.5, 2.0], (4, 3))
        size[:, 0] = np.maximum(size[:, 0], 1.0)
        capacity, most = rng.choice([2.0, 4.0, 6.0], 3), rng.choice([1.0, 2.0, np.inf], 4)
        ranges = [range(int(min(m, 6)) + 1) for m in most]
        feasible = [x for x in product(*ranges) if (np.array(x) @ size <= capacity + 1e-9).all()]
        want = max(float(np.array(x) @ value) for x in feasible)
        got, filling = best_filling(value, size, capacity, most, 10_000)
        assert got == pytest.approx(want)
        assert filling @ value == pytest.approx(want)
        assert best_filling(value, size, capacity, most, 3)[0] >= want - 1e-9


def test_shipped_scenarios_have_few_planes_that_gain() -> None:
    """Devices and conflicting resources show: on ``fractional`` and ``tight`` the mean bound rises by 5 % and more."""
    for name in ("fractional", "tight"):
        a = load_scenario(name, None, synthetic=True).spec.arrays
        samples = typical_counts(a, 50, np.random.default_rng(1))
        old = sum(float(bound_of(a, n)) for n in samples)
        assert sum(float(packing_bound_of(a, n)) for n in samples) > 1.05 * old
        assert 1 <= a.plane_usd_per_h.shape[1] <= 12


def test_without_the_option_it_is_the_resource_bound() -> None:
    """Specs that are made at every look at a live cluster take no time for it."""
    spec = dataclasses.replace(spec_of((node_type(4.0, 4.0, 8),), deployment(0, 0.6)), bounds_packing=False)
    assert bound(spec, 5) == pytest.approx(float(bound_of(spec.arrays, np.array([5])))) == pytest.approx(3.0)


def test_nothing_that_fits_gives_no_plane() -> None:
    """A deployment whose labels no node has asks for nothing."""
    spec = spec_of((node_type(1.0, 1.0, 2),), deployment(0, 1.0, label_selector={"no": "such"}))
    arrays: SpecArrays = spec.arrays
    assert packing_planes(arrays).shape == (2, 0)
    assert bound(spec, 3) == 0.0
