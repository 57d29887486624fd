"""The node autoscaler: launches are those of Ray's own scheduler, and nodes are released when Ray would."""

import numpy as np
import pytest
from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.common_pb2 import LabelSelectorOperator  # type: ignore[attr-defined]  # generated

from rayfold.envs.cluster import ClusterSpec, Deployment, NodeType, ReplicaShape
from rayfold.envs.node_autoscaler import add_node, choose_launches, is_expired, remove_node
from rayfold.envs.safety import count_nodes
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase, StateArrays
from tests.envs.clusters import add_node as put_node
from tests.envs.clusters import add_replica, empty_state, small_spec

GIB = 2.0**30


def in_rays_units(resources: dict[str, float]) -> dict[str, float]:
    """Ray's name and unit of memory; resources of which nothing is asked are left out."""
    named = {
        "memory" if k == "memory_gib" else k: v * (GIB if k == "memory_gib" else 1.0) for k, v in resources.items()
    }
    return {name: amount for name, amount in named.items() if amount > 0}


def rays_launches(spec: ClusterSpec, waiting: list[int]) -> list[int]:
    """What ``ray.autoscaler.v2`` launches for these deployments in an empty cluster, per type."""
    configs = {
        t.name: NodeTypeConfig(
            name=t.name,
            min_worker_nodes=0,
            max_worker_nodes=t.max_nodes,
            resources=in_rays_units(dict(t.resources)),
            labels=dict(t.labels),
        )
        for t in spec.node_types
    }
    requests = []
    for d in waiting:
        deployment = spec.deployments[d]
        is_in = LabelSelectorOperator.LABEL_OPERATOR_IN
        selector = [(name, is_in, [value]) for name, value in deployment.label_selector.items()]
        wanted = in_rays_units(dict(deployment.shape.bundles[0]))
        requests.append(ResourceRequestUtil.make(wanted, label_selectors=[selector] if selector else None))
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=configs,
        max_num_nodes=1000,
        resource_requests=ResourceRequestUtil.group_by_count(requests),
    )
    launches = {x.instance_type: x.count for x in ResourceDemandScheduler(None).schedule(request).to_launch}
    return [launches.get(t.name, 0) for t in spec.node_types]


def random_demand(rng: np.random.Generator) -> tuple[ClusterSpec, list[int]]:
    """One to three node types, up to four deployments, up to eleven replicas that wait."""
    types = tuple(
        NodeType(
            name=f"t{i}",
            resources={
                "GPU": float(rng.choice([0, 1, 2, 4, 8])),
                "CPU": float(rng.choice([8, 16, 32, 64])),
                "memory_gib": float(rng.choice([0, 32, 64, 128, 256])),
            },
            labels={"zone": str(rng.choice(["a", "b"]))},
            price_usd_per_h=1.0,
            max_nodes=int(rng.integers(1, 5)),
        )
        for i in range(rng.integers(1, 4))
    )
    deployments = tuple(
        Deployment(
            name=f"d{i}",
            shape=ReplicaShape(
                bundles=(
                    {
                        "GPU": float(rng.choice([0, 0.5, 1, 2, 4])),
                        "CPU": float(rng.choice([1, 2, 4])),
                        "memory_gib": float(rng.choice([0, 4, 16, 48])),
                    },
                )
            ),
            label_selector={"zone": "a"} if rng.random() < 0.25 else {},
        )
        for i in range(rng.integers(1, 5))
    )
    waiting = [int(d) for d in rng.integers(len(deployments), size=int(rng.integers(1, 12)))]
    return ClusterSpec(node_types=types, deployments=deployments), waiting


def our_launches(spec: ClusterSpec, waiting: list[int]) -> list[int]:
    """The same question put to ``choose_launches``."""
    st = StateArrays.empty(spec, 12, 12)
    st.replica_deployment[: len(waiting)] = waiting
    st.replica_phase[: len(waiting)] = ReplicaPhase.PENDING
    launches: list[int] = choose_launches(spec.arrays, st).tolist()
    return launches


def test_launches_are_those_of_rays_scheduler() -> None:
    """On 600 random demands: the same number of every type, labels, order, ties and limits included."""
    several = 0
    for seed in range(600):
        spec, waiting = random_demand(np.random.default_rng(seed))
        ours = our_launches(spec, waiting)
        assert ours == rays_launches(spec, waiting), seed
        several += sum(n > 0 for n in ours) > 1
    assert several > 50


def test_the_comparison_can_fail() -> None:
    """In another order of packing (largest GPU first, as this port once had it) some launches differ."""
    differing = 0
    for seed in range(200):
        spec, waiting = random_demand(np.random.default_rng(seed))
        rank = np.argsort(np.argsort([-d.shape.total("GPU") for d in spec.deployments]))
        spec.arrays.launch_rank[:] = rank
        differing += our_launches(spec, waiting) != rays_launches(spec, waiting)
    assert differing > 0


def waiting_ones(state: ClusterState, count: int) -> None:
    """``count`` pending replicas of ``one`` (1 GPU)."""
    st = state.arrays
    for r in np.flatnonzero(st.replica_phase == ReplicaPhase.EMPTY)[:count]:
        st.replica_deployment[r], st.replica_phase[r] = 0, ReplicaPhase.PENDING


@pytest.mark.parametrize(("waiting", "booting", "launched"), [(4, 1, 0), (5, 1, 1), (5, 0, 2), (0, 0, 0), (9, 2, 1)])
def test_booting_nodes_are_filled_before_others_are_launched(waiting: int, booting: int, launched: int) -> None:
    """A 4-GPU node on its way takes four of those that wait; only the rest asks for another."""
    state = empty_state(small_spec())
    state.spec.arrays.type_max_nodes[1] = 0
    for n in range(booting):
        put_node(state, n, phase=NodePhase.BOOTING)
    waiting_ones(state, waiting)
    assert choose_launches(state.spec.arrays, state.arrays).tolist() == [launched, 0]


def test_limits_count_the_nodes_there_are() -> None:
    """Of five plain nodes allowed four are there: one more, and the rest goes to gold nodes."""
    state = empty_state(small_spec(), num_nodes=7, num_replicas=48)
    for n in range(4):
        put_node(state, n)
    waiting_ones(state, 20)
    assert choose_launches(state.spec.arrays, state.arrays).tolist() == [1, 2]
    assert count_nodes(state.arrays, 2).tolist() == [4, 0]


def test_what_fits_no_type_launches_nothing() -> None:
    """A replica larger than every node waits for ever; those beside it do not."""
    state = empty_state(small_spec())
    state.spec.arrays.fits_type[1] = False
    waiting_ones(state, 2)
    state.arrays.replica_deployment[0] = 1
    assert choose_launches(state.spec.arrays, state.arrays).sum() == 1
    state.arrays.replica_phase[1] = ReplicaPhase.EMPTY
    assert choose_launches(state.spec.arrays, state.arrays).tolist() == [0, 0]


def test_add_and_remove_by_hand() -> None:
    """A gold node has two devices of the four columns; removed, its row is as if it had never been."""
    state = empty_state(small_spec(), num_nodes=2)
    st, before = state.arrays, state.digest()
    assert add_node(state.spec.arrays, st, 1, int(NodePhase.BOOTING), 7.0) == 0
    assert st.gpu_free[0].tolist() == [1.0, 1.0, 0.0, 0.0]
    assert st.node_free[0].tolist() == [2.0, 8.0, 64.0]
    assert st.node_idle_since_s[0] == 7.0
    assert add_node(state.spec.arrays, st, 0, int(NodePhase.ALIVE), 8.0) == 1
    assert add_node(state.spec.arrays, st, 0, int(NodePhase.ALIVE), 9.0) == -1
    remove_node(st, 1)
    remove_node(st, 0)
    assert state.digest() == before


def test_expiry_by_hand() -> None:
    """Empty for longer than the time-out, alive, releasable and not the head: each one is needed."""
    state = empty_state(small_spec(), now_s=1000.0)
    st = state.arrays
    put_node(state, 0)
    assert not is_expired(st, 1060.0, 60.0, 0)  # strictly longer, as by Ray
    assert is_expired(st, 1061.0, 60.0, 0)
    for name, value in (("node_releasable", False), ("node_is_head", True), ("node_phase", NodePhase.BOOTING)):
        array = getattr(st, name)
        kept, array[0] = array[0], value
        assert not is_expired(st, 1061.0, 60.0, 0), name
        array[0] = kept
    add_replica(state, 0, 0)
    assert not is_expired(st, 9999.0, 60.0, 0)
