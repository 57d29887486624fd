"""The cases of Ray's own ``TestActiveCompaction``, put to ``RayServe`` and to Ray's classes side by side.

Each test has the name of the case in ``TestActiveCompaction`` (``python/ray/serve/tests/unit``), as published before
the class came into Ray's main branch (pull request #66108); the last two are cases of the deployment manager from the
same time. Where 2.60 has changed the outcome, the test says so and follows 2.60.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pytest
from ray.serve._private import deployment_state

from rayfold.envs.cluster import AutoscalingConfig, ClusterSpec, Deployment, NodeType, ReplicaShape
from rayfold.envs.placement import let_go
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase
from rayfold.policies.ray_serve import RayServe
from tests.envs.clusters import add_node, add_replica, empty_state
from tests.ray_oracle.clock import Clock
from tests.ray_oracle.compaction import LIMITS, RaysManager, agree
from tests.ray_oracle.scheduler import packing

NOW_S = 10_000.0
CPU_3_2 = {"node1": {"CPU": 3.0}, "node2": {"CPU": 2.0}}
CLOCK = Clock(NOW_S)
ONE_CPU = {"d": {"CPU": 1.0}}
TWO_ONE = (("d", "node1"), ("d", "node1"), ("d", "node2"))


class Pair:
    """One cluster, and both sides looking at it. Names are those of the cases."""

    def __init__(
        self,
        nodes: Mapping[str, Mapping[str, float]],
        deployments: Mapping[str, Mapping[str, float]],
        replicas: Sequence[tuple[str, str]],
        head: str | None = None,
        absent: Sequence[str] = (),
    ) -> None:
        self.nodes, self.deployments = list(nodes), list(deployments)
        types = [NodeType(name=n, resources=dict(r), price_usd_per_h=1.0, max_nodes=1) for n, r in nodes.items()]
        scaling = AutoscalingConfig(min_replicas=0, max_replicas=20)
        wanted = [
            Deployment(name=d, shape=ReplicaShape(bundles=(dict(b),)), autoscaling=scaling)
            for d, b in deployments.items()
        ]
        spec = ClusterSpec(node_types=tuple(types), deployments=tuple(wanted))
        self.state = empty_state(spec, now_s=NOW_S, num_nodes=len(nodes), num_replicas=24)
        for n, name in enumerate(nodes):
            self.state.arrays.node_is_head[n] = name == head
            if name not in absent:
                add_node(self.state, n, n)
        self.rows = [self.run(d, n) for d, n in replicas]
        self.ours, self.rays = RayServe(LIMITS), RaysManager(self._seen(is_settled=True))

    def run(self, deployment: str, node: str) -> int:
        """A replica runs there; its row."""
        return add_replica(self.state, self.deployments.index(deployment), self.nodes.index(node))

    def stop(self, row: int) -> None:
        """A replica is gone."""
        self.state.arrays.deployment_target[self.state.arrays.replica_deployment[row]] -= 1
        let_go(self.state.spec.arrays, self.state.arrays, row, CLOCK.now_s)

    def launch(self, node: str) -> None:
        """A node comes."""
        add_node(self.state, self.nodes.index(node), self.nodes.index(node))

    def release(self, node: str) -> None:
        """A node goes."""
        self.state.arrays.node_phase[self.nodes.index(node)] = NodePhase.ABSENT

    def _seen(self, is_settled: bool) -> ClusterState:
        state = ClusterState(spec=self.state.spec, now_s=CLOCK.now_s, arrays=self.state.arrays.copy())
        state.arrays.deployment_changed_s[:] = CLOCK.now_s - (3600.0 if is_settled else 0.0)
        return state

    def node(self, after_s: float = 0.0, allow: bool = True) -> str | None:
        """So much later: the node that is being emptied, on which both agree.

        Args:
            after_s: Seconds.
            allow: Ray's ``allow_new_compaction``; the cluster counts as quiet.
        """
        CLOCK.now_s += after_s
        seen = self._seen(allow)
        self.rays.tell(seen)
        self.rays.scheduler.get_node_to_compact(allow_new_compaction=allow)
        self.ours.plan(seen, np.random.default_rng(0))
        assert agree(self.ours, self.rays)
        return None if self.ours.node is None else self.nodes[self.ours.node]


@pytest.fixture(autouse=True)
def pack() -> Iterator[None]:
    """Ray packs and reads the clock of these tests."""
    CLOCK.now_s = NOW_S
    with packing(CLOCK), CLOCK.read_by(deployment_state, RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY=True):
        yield


def test_basic() -> None:
    """The node with the single replica; asked again, the same one, quiet or not."""
    pair = Pair(
        {"node1": {"GPU": 4.0, "CPU": 8.0}, "node2": {"GPU": 10.0, "CPU": 2.0}},
        {"d1": {"GPU": 1.0, "CPU": 2.0}, "d2": {"GPU": 1.0, "CPU": 1.0}},
        [("d1", "node1")] * 3 + [("d2", "node2")],
    )
    assert pair.node() == "node2"
    assert pair.node(allow=False) == "node2"


def test_no_compaction_opportunity() -> None:
    """The replica of node2 asks for one GPU more than node1 has."""
    pair = Pair(
        {"node1": {"GPU": 4.0, "CPU": 8.0}, "node2": {"GPU": 10.0, "CPU": 2.0}},
        {"d1": {"GPU": 1.0, "CPU": 2.0}, "d2": {"GPU": 2.0, "CPU": 1.0}},
        [("d1", "node1")] * 3 + [("d2", "node2")],
    )
    assert pair.node() is None


def test_idle_nodes() -> None:
    """Nothing is moved to a node without replicas."""
    pair = Pair({"node1": {"CPU": 3.0}, "node2": {"CPU": 3.0}}, ONE_CPU, [("d", "node1")])
    assert pair.node() is None


def test_compaction_completes() -> None:
    """2.60 keeps the empty node marked until it is gone; only then has it succeeded."""
    pair = Pair(CPU_3_2, ONE_CPU, TWO_ONE)
    assert pair.node() == "node2"
    pair.run("d", "node1")
    pair.stop(pair.rows[2])
    assert pair.node(allow=False) == "node2"
    pair.release("node2")
    assert pair.node(allow=False) is None
    assert pair.rays.scheduler._num_succeeded_compactions == 1


def test_compaction_cancelled() -> None:
    """A new replica on the node ends it, though the cluster may be compacted otherwise."""
    pair = Pair(CPU_3_2, ONE_CPU, TWO_ONE)
    assert pair.node() == "node2"
    pair.run("d", "node2")
    assert pair.node() is None
    assert pair.ours.num_failures == 1


def test_compaction_timeout() -> None:
    """After 100 and 1,100 s it goes on, after 11,100 s it does not."""
    pair = Pair(CPU_3_2, ONE_CPU, TWO_ONE)
    assert pair.node() == "node2"
    assert pair.node(100.0, allow=False) == "node2"
    assert pair.node(1000.0, allow=False) == "node2"
    assert pair.node(10_000.0, allow=False) is None


def test_exponential_backoff_cancellation() -> None:
    """2, 4, 8, 16 and 32 s after one cancellation after another, and not half of it."""
    pair = Pair(CPU_3_2, ONE_CPU, TWO_ONE)
    assert pair.node() == "node2"
    for i in range(5):
        new = pair.run("d", "node2")
        assert pair.node() is None
        pair.stop(new)
        assert pair.node(2.0**i) is None
        assert pair.node(2.0**i) == "node2"


def test_exponential_backoff_timeout() -> None:
    """The same after one time-out of 1,800 s after another."""
    pair = Pair(CPU_3_2, ONE_CPU, TWO_ONE)
    assert pair.node() == "node2"
    for i in range(5):
        assert pair.node(1000.0) == "node2"
        assert pair.node(800.0) is None
        assert pair.node(2.0**i) is None
        assert pair.node(2.0**i) == "node2"


def test_head_node_not_considered() -> None:
    """There is no point in emptying the head."""
    pair = Pair({"head": {"CPU": 1.0}, "worker": {"CPU": 3.0}}, ONE_CPU, [("d", "head"), ("d", "worker")], head="head")
    assert pair.node() is None


def test_custom_resources() -> None:
    """A replica that asks for a custom resource goes where there is one; 2.60 looks again only after 10 s."""
    nodes = {"node1": {"CPU": 3.0}, "node2": {"CPU": 1.0, "customx": 1.0}, "node3": {"CPU": 3.0, "customx": 1.0}}
    wanted = {"d1": {"CPU": 1.0}, "d2": {"CPU": 1.0, "customx": 0.1}}
    pair = Pair(nodes, wanted, [("d1", "node1"), ("d1", "node1"), ("d2", "node2")], absent=["node3"])
    assert pair.node() is None
    pair.launch("node3")
    pair.run("d1", "node3")
    pair.run("d1", "node3")
    assert pair.node(9.9) is None
    assert pair.node(0.1) == "node2"


def test_migrate_to_multiple_nodes() -> None:
    """Three replicas fit onto two other nodes together, where neither has room for all."""
    nodes = {"node1": {"CPU": 6.0}, "node2": {"CPU": 6.0}, "node3": {"CPU": 3.0}}
    pair = Pair(nodes, ONE_CPU, [("d", "node1")] * 5 + [("d", "node2")] * 4 + [("d", "node3")] * 3)
    assert pair.node() == "node3"
    assert pair.node(allow=False) == "node3"


@pytest.mark.parametrize(("first", "second", "larger"), [((4, 8), (10, 2), "node2"), ((10, 2), (4, 8), "node1")])
def test_prioritize_larger_nodes_to_compact(first: tuple[int, int], second: tuple[int, int], larger: str) -> None:
    """More GPUs are more, whatever the CPUs."""
    nodes = {n: {"GPU": float(g), "CPU": float(c)} for n, (g, c) in (("node1", first), ("node2", second))}
    pair = Pair(nodes, {"d": {"GPU": 1.0, "CPU": 1.0}}, [("d", "node1"), ("d", "node2")])
    assert pair.node() == larger
    assert pair.node(allow=False) == larger


def test_compact_node() -> None:
    """The last replica of node3 moves to node2, and the node stays marked while it stands empty."""
    nodes = {"node1": {"CPU": 9.0}, "node2": {"CPU": 4.0}, "node3": {"CPU": 5.0}}
    wanted = {"a": {"CPU": 1.0}, "b": {"CPU": 2.0}, "c": {"CPU": 3.0}}
    placed = [("a", "node2"), ("a", "node2"), ("b", "node3"), ("c", "node1"), ("c", "node1")]
    pair = Pair(nodes, wanted, placed)
    assert pair.node() == "node3"
    plan = RayServe(LIMITS).plan(pair._seen(is_settled=True), np.random.default_rng(0))
    assert [(m.replica_idx, pair.nodes[m.node_idx]) for m in plan.moves] == [(pair.rows[2], "node2")]
    pair.run("b", "node2")
    pair.stop(pair.rows[2])
    for _ in range(3):
        assert pair.node(5.0, allow=False) == "node3"
    pair.release("node3")
    assert pair.node(5.0, allow=False) is None


def test_compaction_cancelled_by_an_upscale() -> None:
    """``test_compaction_cancelled`` of the manager: one replica more fits on the emptied node only, and has it."""
    pair = Pair({"node1": {"CPU": 3.0}, "node2": {"CPU": 3.0}}, ONE_CPU, TWO_ONE)
    CLOCK.now_s += 3600.0
    pair.rays.look(pair._seen(is_settled=True))  # the manager first has to see a quiet cluster
    CLOCK.now_s += 300.5
    seen = pair._seen(is_settled=True)
    pair.rays.look(seen)
    pair.ours.plan(seen, np.random.default_rng(0))
    assert agree(pair.ours, pair.rays)
    assert pair.ours.node == 1
    st = pair.state.arrays
    replacement = pair.run("d", "node1")
    st.replica_phase[replacement] = ReplicaPhase.STARTING
    upscaled = int(np.flatnonzero(st.replica_phase == ReplicaPhase.EMPTY)[0])
    st.replica_deployment[upscaled], st.replica_phase[upscaled] = 0, ReplicaPhase.PENDING
    CLOCK.now_s += 1.0
    seen = pair._seen(is_settled=False)
    assert pair.rays.look(seen) == {}
    pair.ours.plan(seen, np.random.default_rng(0))
    assert agree(pair.ours, pair.rays)
    assert pair.ours.node is None
    assert pair.ours.num_failures == 1
