"""``ClusterSpec`` as arrays: order of resources, which type takes what, prices of replicas, order of launches."""

import numpy as np
import pytest

from rayfold.envs.cluster import (
    AutoscalingConfig,
    ClusterSettings,
    ClusterSpec,
    Deployment,
    Interval,
    NodeType,
    PlacementGroupStrategy,
    ReplicaShape,
    SchedulingStrategy,
)


def deployment(name: str, *bundles: dict[str, float], **more: object) -> Deployment:
    """A deployment of these bundles."""
    return Deployment(name=name, shape=ReplicaShape(bundles=bundles), **more)  # type: ignore[arg-type]


SPEC = ClusterSpec(
    node_types=(
        NodeType(name="cpu", resources={"CPU": 16.0, "memory_gib": 32.0}, price_usd_per_h=1.0, max_nodes=3),
        NodeType(
            name="gpu",
            resources={"GPU": 4.0, "CPU": 32.0, "memory_gib": 128.0, "slot": 2.0},
            price_usd_per_h=8.0,
            labels={"zone": "a", "disk": "ssd"},
            max_nodes=2,
        ),
    ),
    deployments=(
        deployment("web", {"CPU": 4.0}),
        deployment("llm", {"GPU": 1.0, "CPU": 2.0}, {"GPU": 1.0, "memory_gib": 96.0}),
        deployment("zoned", {"CPU": 1.0}, label_selector={"zone": "a"}),
        deployment("elsewhere", {"CPU": 1.0}, label_selector={"zone": "b"}),
        deployment("slotted", {"CPU": 1.0, "slot": 1.0, "alpha": 0.0}),
        deployment("huge", {"GPU": 8.0}),
    ),
)


def test_resources_in_order() -> None:
    """GPU, CPU and memory come first, custom ones by name; bundles add up."""
    assert SPEC.resource_names == ("GPU", "CPU", "memory_gib", "alpha", "slot")
    assert SPEC.arrays.type_capacity.tolist() == [[0.0, 16.0, 32.0, 0.0, 0.0], [4.0, 32.0, 128.0, 0.0, 2.0]]
    assert SPEC.arrays.demand[1].tolist() == [2.0, 2.0, 96.0, 0.0, 0.0]
    assert (SPEC.max_nodes, SPEC.num_deployments, SPEC.max_gpus) == (5, 6, 4)
    assert SPEC.arrays.type_num_gpus.tolist() == [0, 4]


def test_which_type_takes_what() -> None:
    """By size and by labels."""
    assert SPEC.arrays.fits_type.tolist() == [
        [True, True],
        [False, True],
        [False, True],
        [False, False],
        [False, True],
        [False, False],
    ]


def test_price_of_a_replica_by_hand() -> None:
    """Largest share of the node, at the cheapest type that takes it; 0 where none does."""
    want = [
        1.0 * 4 / 16,  # a quarter of the CPU node; on the GPU node an eighth of 8 USD
        8.0 * 96 / 128,  # three quarters of the memory, half of the GPUs
        8.0 / 32,
        0.0,
        8.0 / 2,
        0.0,
    ]
    np.testing.assert_allclose(SPEC.arrays.replica_usd_per_h, want)


def test_order_of_launches_by_hand() -> None:
    """Labels first, then kinds of resources, then the sum with memory in bytes, then CPUs; equal requests share."""
    deployments = (
        deployment("gpus", {"GPU": 4.0, "CPU": 1.0}),
        deployment("memory", {"GPU": 1.0, "CPU": 1.0, "memory_gib": 1.0}),
        deployment("more_memory", {"GPU": 1.0, "CPU": 1.0, "memory_gib": 2.0}),
        deployment("label", {"CPU": 1.0}, label_selector={"zone": "a"}),
        deployment("gpus_too", {"CPU": 1.0, "GPU": 2.0}, {"GPU": 2.0, "memory_gib": 0.0}),
        deployment("cpus", {"GPU": 1.0, "CPU": 4.0}),
        deployment("one", {"CPU": 1.0}),
    )
    spec = ClusterSpec(node_types=SPEC.node_types, deployments=deployments)
    ranks = dict(zip((d.name for d in deployments), spec.arrays.launch_rank.tolist(), strict=True))
    assert ranks == {"label": 0, "more_memory": 1, "memory": 2, "cpus": 3, "gpus": 4, "gpus_too": 4, "one": 6}


@pytest.mark.parametrize(("initial", "want"), [(None, -1), (0, 0), (5, 5)])
def test_initial_replicas(initial: int | None, want: int) -> None:
    """-1 where Serve's setting is absent; 0 is a setting."""
    scaling = AutoscalingConfig(min_replicas=2, initial_replicas=initial)
    spec = ClusterSpec(node_types=SPEC.node_types, deployments=(deployment("web", {"CPU": 1.0}, autoscaling=scaling),))
    assert spec.arrays.initial_replicas.tolist() == [want]


@pytest.mark.parametrize("group", PlacementGroupStrategy)
@pytest.mark.parametrize("scheduling", SchedulingStrategy)
def test_one_pack_group_makes_serve_spread(scheduling: SchedulingStrategy, group: PlacementGroupStrategy) -> None:
    """Serve packs if it is told to and no deployment has a placement group that may span nodes."""
    shape = ReplicaShape(bundles=({"CPU": 1.0},), strategy=group)
    spec = ClusterSpec(
        node_types=SPEC.node_types,
        deployments=(deployment("web", {"CPU": 1.0}), Deployment(name="group", shape=shape)),
        settings=ClusterSettings(scheduling=scheduling),
    )
    assert spec.packs is (scheduling == "pack" and group not in ("PACK", "SPREAD"))


def test_a_cluster_without_gpus_keeps_a_column() -> None:
    """Arrays per device are never empty."""
    spec = ClusterSpec(node_types=SPEC.node_types[:1], deployments=SPEC.deployments[:1])
    assert spec.max_gpus == 1
    assert spec.arrays.type_num_gpus.tolist() == [0]


def test_names_and_means() -> None:
    """``app/name``, and the middle of an interval."""
    assert deployment("web", app="shop").key == "shop/web"
    assert Interval(10.0, 30.0).mean_s == 20.0
