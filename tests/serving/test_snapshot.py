"""The meaning of a raw view: hand-computed arrays, and the encoding of the equal simulated state."""

import dataclasses
import math
from collections.abc import Mapping

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
)
from rayfold.envs.encoding import encode_state
from rayfold.envs.layout import ObsLayout
from rayfold.envs.moves import Move
from rayfold.envs.safety import Limits, Reason, check_move
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase, StateArrays
from rayfold.policies.exact import Exact
from rayfold.serving.decision import checked_move, same_move
from rayfold.serving.history import History
from rayfold.serving.live_moves import destination_id
from rayfold.serving.live_settings import DeploymentSettings, LaunchSettings, LiveSettings, NodeTypeSettings
from rayfold.serving.raw_cluster import RawCluster, RawDeployment, RawNode, RawReplica
from rayfold.serving.snapshot import build_state
from rayfold.serving.state_view import describe_state
from tests.envs.conservation import check_conserved

NOW_S = 1_000_000.0
FULL = {"GPU": 4.0, "CPU": 8.0, "memory": 8 * 2.0**30, "node:10.0.0.1": 1.0, "object_store_memory": 8e7}
SMALL_TOTAL = {"GPU": 2.0, "CPU": 4.0, "memory": 4 * 2.0**30}
STARTUP = DeploymentSettings(startup_s=Interval(2.0, 5.0), drain_s=Interval(1.0, 2.0))
SETTINGS = LiveSettings(
    idle_timeout_s=15.0,
    decision_interval_s=5.0,
    node_types={"gpu4": NodeTypeSettings(price_usd_per_h=4.0, max_nodes=4, boot_s=Interval(8.0, 15.0))},
    deployments={"a": STARTUP, "c": STARTUP},
)


def _node(node_id: str, gpus_used: float = 0.0, cpus_used: float = 0.0, **kwargs: object) -> RawNode:
    available = {**FULL, "GPU": FULL["GPU"] - gpus_used, "CPU": FULL["CPU"] - cpus_used}
    values: dict[str, object] = {"node_type": "gpu4", "total": FULL, "available": available, **kwargs}
    return RawNode(node_id=node_id, **values)  # type: ignore[arg-type]  # a test's short hand


def _replica(replica_id: str, app: str, node_id: str | None, state: str = "RUNNING", **kwargs: object) -> RawReplica:
    values: dict[str, object] = {"start_s": NOW_S - 100.0, **kwargs}
    return RawReplica(app=app, name=app, replica_id=replica_id, state=state, node_id=node_id, **values)  # type: ignore[arg-type]


def _plain(target: int, ongoing: float = 0.0, autoscaling: Mapping[str, object] | None = None) -> RawDeployment:
    return RawDeployment(
        app="a",
        name="a",
        actor_resources={"GPU": 1.0, "CPU": 1.0},
        autoscaling=autoscaling,
        target=target,
        ongoing=ongoing,
    )


PACK = RawDeployment(
    app="c", name="c", bundles=({"GPU": 1.0, "CPU": 1.0}, {"GPU": 1.0, "CPU": 1.0}), strategy="PACK", target=1
)


def _raw(
    nodes: list[RawNode], deployments: list[RawDeployment], replicas: list[RawReplica], **kwargs: object
) -> RawCluster:
    return RawCluster(
        now_s=NOW_S,
        nodes=tuple(nodes),
        deployments=tuple(deployments),
        replicas=tuple(replicas),
        **kwargs,  # type: ignore[arg-type]
    )


def test_hand_computed_arrays() -> None:
    """Free room, devices, phases and idle time are what one computes by hand."""
    raw = _raw(
        [_node("n1", 3, 3), _node("n2", idle_s=7.0)],
        [PACK, _plain(1)],
        [_replica("r1", "a", "n1"), _replica("r2", "c", "n1", bundle_node_ids=("n1", "n1"))],
        fences={"n1": NOW_S + 50.0},
        booting_types=("gpu4",),
    )
    state = build_state(raw, SETTINGS, History())
    st = state.arrays
    assert [d.key for d in state.spec.deployments] == ["a/a", "c/c"]
    assert state.node_ids[:2] == ("n1", "n2")
    assert state.replica_ids == ("r1", "r2")
    assert st.node_phase.tolist() == [NodePhase.ALIVE, NodePhase.ALIVE, NodePhase.BOOTING]
    assert st.node_free[:2].tolist() == [[1.0, 5.0, 8.0], [4.0, 8.0, 8.0]]
    assert st.gpu_free[:2].tolist() == [[0.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]]
    assert not st.node_others.any()
    assert st.node_releasable.all()
    assert st.replica_gpus.tolist() == [[0b001, 0], [0b110, 0]]
    assert st.node_held.tolist() == [[1, 1], [0, 0], [0, 0]]
    assert st.node_num_held.tolist() == [2, 0, 0]
    assert st.replica_since_s.tolist() == [NOW_S - 100.0] * 2
    assert st.node_idle_since_s[0] == math.inf
    assert st.node_idle_since_s[1] == NOW_S - 7.0
    assert st.node_fenced_until_s.tolist() == [NOW_S + 50.0, -math.inf, -math.inf]
    assert state.spec.arrays.is_movable.tolist() == [True, True]
    assert state.spec.node_types[0].price_usd_per_h == 4.0


def test_non_serve_work_pins_its_node() -> None:
    """What no replica explains is other work: the node holds it, is not releasable, and not idle."""
    raw = _raw([_node("n1", 1, 1), _node("n2", 1.5, 0)], [_plain(1)], [_replica("r1", "a", "n1")])
    st = build_state(raw, SETTINGS, History()).arrays
    assert st.node_others[:, 0].tolist() == [0.0, 1.5]
    assert st.node_releasable.tolist() == [True, False]
    assert st.node_idle_since_s.tolist() == [math.inf, math.inf]
    assert st.gpu_free[1].tolist() == [0.0, 0.0, 1.0, 1.0]


def test_actor_without_resources_pins_its_node() -> None:
    """Nothing of its node is used, and it is kept all the same, not idle, and told by whom."""
    raw = _raw([_node("n1", 1, 1), _node("n2", tenants=("cache",))], [_plain(1)], [_replica("r1", "a", "n1")])
    history = History()
    state = build_state(raw, SETTINGS, history)
    assert not state.arrays.node_others.any()
    assert state.arrays.node_releasable.tolist() == [True, False]
    assert state.arrays.node_idle_since_s.tolist() == [math.inf, math.inf]
    told = {node["node_id"]: node["kept_by"] for node in describe_state(state, history.tenants)["nodes"]}
    assert told == {"n1": [], "n2": ["cache"]}


def test_opted_out_node_keeps_its_replicas() -> None:
    """No replica is moved off it; another's may come."""
    told = dataclasses.replace(SETTINGS, opted_out_nodes=("n0",))
    replicas = [_replica("r0", "a", "n0"), _replica("r1", "a", "n1")]
    nodes = [_node("n0", 1.0, 1.0), _node("n1", 1.0, 1.0)]
    state = build_state(_raw(nodes, [_plain(2)], replicas), told, History())
    assert check_move(state, Move(0, 1), Limits()).reason == Reason.SOURCE_OPTED_OUT
    assert check_move(state, Move(1, 0), Limits()).allowed


def test_believes_the_worse_of_two_views() -> None:
    """A replica that the scheduler's numbers do not show yet takes its room all the same."""
    raw = _raw([_node("n1")], [_plain(1)], [_replica("r1", "a", "n1", "STARTING")])
    st = build_state(raw, SETTINGS, History()).arrays
    assert st.node_free[0].tolist() == [3.0, 7.0, 8.0]


def test_group_over_two_nodes_is_unmovable() -> None:
    """A PACK group that spans nodes cannot be moved; it holds each bundle where that is, which is no other work."""
    raw = _raw(
        [_node("n1", 1, 1), _node("n2", 1, 1)], [PACK], [_replica("r1", "c", "n1", bundle_node_ids=("n1", "n2"))]
    )
    state = build_state(raw, SETTINGS, History())
    st = state.arrays
    assert check_move(state, Move(0, 1), Limits()).reason is Reason.REPLICA_SPANS_NODES
    assert st.replica_spans.tolist() == [True]
    assert st.replica_bundle_node.tolist() == [[0, 1]]
    assert st.replica_gpus.tolist() == [[0b1, 0b1]]
    assert st.node_held.tolist() == [[1], [1]]
    assert st.node_num_held.tolist() == [1, 1]
    assert not st.node_others.any()
    assert st.node_idle_since_s.tolist() == [math.inf, math.inf]
    assert st.gpu_free.tolist() == [[0.0, 1.0, 1.0, 1.0]] * 2
    check_conserved(state)
    layout = ObsLayout(2, 1, 1)
    obs = layout.split(encode_state(state, Limits(), layout))
    assert obs["source_mask"].sum() == obs["evacuate_mask"].sum() == 0.0


def test_head_is_never_a_choice() -> None:
    """A head without replicas is left out; one with replicas is marked and not releasable."""
    head = _node("n0", 0, 0, is_head=True)
    raw = _raw([head, _node("n1", 1, 1)], [_plain(1)], [_replica("r1", "a", "n1")])
    assert build_state(raw, SETTINGS, History()).node_ids == ("n1",)
    raw = _raw([_node("n0", 1, 1, is_head=True), _node("n1")], [_plain(1)], [_replica("r1", "a", "n0")])
    state = build_state(raw, SETTINGS, History())
    assert state.node_ids == ("n0", "n1")
    assert state.arrays.node_is_head.tolist() == [True, False]
    assert state.arrays.node_releasable.tolist() == [False, True]


def test_moves_link_both_replicas() -> None:
    """A move under way links old and replacement; a replacement not yet placed counts at its destination."""
    raw = _raw(
        [_node("n1", 1, 1), _node("n2")],
        [_plain(1)],
        [_replica("old", "a", "n1", "PENDING_MIGRATION"), _replica("new", "a", None, "STARTING")],
        moves=({"old": "old", "replacement": "new", "node": "n2", "not_on": []},),
    )
    st = build_state(raw, SETTINGS, History()).arrays
    assert st.replica_peer.tolist() == [1, 0]
    assert st.replica_phase.tolist() == [ReplicaPhase.RUNNING, ReplicaPhase.STARTING]
    assert st.replica_node.tolist() == [0, 1]


def test_unplaced_replica_is_pending() -> None:
    """A starting replica without a node waits for one."""
    raw = _raw([_node("n1")], [_plain(1)], [_replica("r1", "a", None, "STARTING")])
    st = build_state(raw, SETTINGS, History()).arrays
    assert st.replica_phase.tolist() == [ReplicaPhase.PENDING]
    assert st.replica_node.tolist() == [-1]


def test_history_remembers_phases_changes_and_load() -> None:
    """Times of a second snapshot: phase entered now, target changed now, ten-minute mean of the load."""
    history = History()
    first = _raw([_node("n1", 1, 1)], [_plain(1, ongoing=2.0)], [_replica("r1", "a", "n1", "STARTING")])
    build_state(first, SETTINGS, history)
    assert history.changed_s("a/a") == -math.inf
    second = dataclasses.replace(
        first, now_s=NOW_S + 600.0, deployments=(_plain(2, ongoing=4.0),), replicas=(_replica("r1", "a", "n1"),)
    )
    st = build_state(second, SETTINGS, history).arrays
    assert st.replica_since_s.tolist() == [NOW_S + 600.0]
    assert st.deployment_changed_s.tolist() == [NOW_S + 600.0]
    assert st.deployment_ongoing_slow[0] == pytest.approx(2.0 + (1.0 - math.exp(-1.0)) * 2.0)
    history.note_move("a/a", NOW_S + 601.0)
    st = build_state(dataclasses.replace(second, now_s=NOW_S + 700.0), SETTINGS, history).arrays
    assert st.deployment_moved_s.tolist() == [NOW_S + 601.0]
    assert st.replica_since_s.tolist() == [NOW_S + 600.0]


def test_unknown_node_type_gets_the_default_price(caplog: pytest.LogCaptureFixture) -> None:
    """Four GPUs of an unlisted type cost four times the GPU price, with a warning that says so."""
    raw = _raw([_node("n1", 1, 1, node_type="other")], [_plain(1)], [_replica("r1", "a", "n1")])
    state = build_state(raw, dataclasses.replace(SETTINGS, usd_per_gpu_h=2.5), History())
    assert state.spec.node_types[0].price_usd_per_h == 10.0
    assert "other" in caplog.text


SMALL = NodeTypeSettings(
    price_usd_per_h=1.0,
    max_nodes=2,
    launch=LaunchSettings(labels={"size": "small"}, resources={"GPU": 2.0, "CPU": 4.0, "memory_gib": 4.0}),
)
RIGHT_SIZING = dataclasses.replace(
    SETTINGS, node_types={**SETTINGS.node_types, "small": SMALL}, limits=Limits(allow_new_nodes=True)
)


def test_launchable_type_is_told_before_there_is_a_node_of_it() -> None:
    """A move may launch it, and none of the type that does not say how; with the limit off, it is not there."""
    raw = _raw([_node("n1", 1, 1)], [_plain(1)], [_replica("r1", "a", "n1")])
    assert [t.name for t in build_state(raw, SETTINGS, History()).spec.node_types] == ["gpu4"]
    state = build_state(raw, RIGHT_SIZING, History())
    gpu4, small = state.spec.node_types
    assert (small.name, small.price_usd_per_h, small.labels) == ("small", 1.0, {"size": "small"})
    assert dict(small.resources) == {"GPU": 2.0, "CPU": 4.0, "memory_gib": 4.0}
    assert gpu4.max_nodes == 1, "as many as there are"
    assert check_move(state, Move(0, 2), RIGHT_SIZING.limits).allowed
    assert check_move(state, Move(0, 1), RIGHT_SIZING.limits).reason == Reason.TYPE_AT_MAX_NODES
    plan = Exact(RIGHT_SIZING.limits).plan(state, np.random.default_rng(0))
    assert plan.moves == (Move(0, 2),)
    item = checked_move(state, plan.moves[0], allowed=True, reason="allowed")
    assert item.to_node == "new:small"
    more = build_state(dataclasses.replace(raw, nodes=(*raw.nodes, _node("n2"))), RIGHT_SIZING, History())
    assert same_move(more, item) == Move(0, 3), "another row of the same type"
    assert same_move(build_state(raw, SETTINGS, History()), item) is None
    assert destination_id(state, Move(0, 3)) == destination_id(state, Move(0, -1)) == ""


def _launching(nodes: list[RawNode], **kwargs: object) -> ClusterState:
    """A replica on n1 whose replacement, not placed, waits for a small node that is not n1 or n2."""
    raw = _raw(
        nodes,
        [_plain(1)],
        [_replica("old", "a", "n1", "PENDING_MIGRATION"), _replica("new", "a", None, "STARTING")],
        moves=({"old": "old", "replacement": "new", "node": "new:small", "not_on": ["n1", "n2"]},),
        **kwargs,
    )
    return build_state(raw, RIGHT_SIZING, History())


@pytest.mark.parametrize("told", [(), ("small",)])
def test_node_that_a_move_waits_for_is_counted_once(told: tuple[str, ...]) -> None:
    """Whether or not the autoscaler has begun: one node is under way, and the replacement may start there only."""
    state = _launching([_node("n1", 1, 1), _node("n2", node_type="small", total=SMALL_TOTAL)], booting_types=told)
    st = state.arrays
    assert state.node_ids == ("n1", "n2", "booting-0")
    assert st.node_phase.tolist() == [NodePhase.ALIVE, NodePhase.ALIVE, NodePhase.BOOTING]
    assert st.replica_phase.tolist() == [ReplicaPhase.RUNNING, ReplicaPhase.PENDING]
    assert st.replica_node.tolist() == [0, -1]
    assert st.replica_pinned_node.tolist() == [-1, 2]
    assert st.replica_peer.tolist() == [1, 0]
    encode_state(state, RIGHT_SIZING.limits)


def test_node_that_has_joined_for_a_move_is_not_counted_again() -> None:
    """The replacement is about to start there."""
    state = _launching([_node("n1", 1, 1), _node("n3", node_type="small", total=SMALL_TOTAL)])
    assert state.node_ids == ("n1", "n3")
    assert state.arrays.replica_pinned_node.tolist() == [-1, 1]


def _simulated() -> ClusterState:
    """By hand: two gpu4 nodes, a/a on the first, c/c on the second, nothing moving."""
    bundle = {"GPU": 1.0, "CPU": 1.0}
    scaling = {"min_replicas": 1, "max_replicas": 8, "target_ongoing_requests": 2.0}
    startup_s, drain_s = Interval(2.0, 5.0), Interval(1.0, 2.0)
    node_type = NodeType(
        name="gpu4",
        resources={"GPU": 4.0, "CPU": 8.0, "memory_gib": 8.0},
        price_usd_per_h=4.0,
        max_nodes=4,
        boot_s=Interval(8.0, 15.0),
    )
    spec = ClusterSpec(
        node_types=(node_type,),
        deployments=(
            Deployment(
                name="a",
                app="a",
                shape=ReplicaShape(bundles=(bundle,)),
                autoscaling=AutoscalingConfig(**scaling),  # type: ignore[arg-type]
                startup_s=startup_s,
                drain_s=drain_s,
            ),
            Deployment(
                name="c",
                app="c",
                shape=ReplicaShape(bundles=(bundle, bundle), strategy=PlacementGroupStrategy.PACK),
                autoscaling=AutoscalingConfig(min_replicas=1, max_replicas=1),
                startup_s=startup_s,
                drain_s=drain_s,
            ),
        ),
        settings=ClusterSettings(idle_timeout_s=15.0, decision_interval_s=5.0, substep_s=1.0),
    )
    st = StateArrays.empty(spec, 2, 2)
    st.node_type[:], st.node_phase[:] = 0, NodePhase.ALIVE
    st.node_free[:] = [[3.0, 7.0, 8.0], [2.0, 6.0, 8.0]]
    st.gpu_free[:] = [[0.0, 1.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]]
    st.replica_deployment[:], st.replica_node[:] = [0, 1], [0, 1]
    st.replica_phase[:], st.replica_since_s[:] = ReplicaPhase.RUNNING, 100.0
    st.replica_gpus[:] = [[0b01, 0], [0b11, 0]]
    st.node_held[:], st.node_num_held[:] = [[1, 0], [0, 1]], 1
    st.node_idle_since_s[:] = math.inf
    check_conserved(ClusterState(spec=spec, now_s=200.0, arrays=st))
    st.deployment_target[:] = 1
    st.deployment_ongoing[:] = st.deployment_ongoing_slow[:] = [1.5, 0.0]
    return ClusterState(spec=spec, now_s=200.0, arrays=st)


def _live() -> RawCluster:
    scaling = {"min_replicas": 1, "max_replicas": 8, "target_ongoing_requests": 2.0}
    return _raw(
        [_node("n1", 1, 1), _node("n2", 2, 2)],
        [PACK, _plain(1, 1.5, scaling)],
        [_replica("r1", "a", "n1"), _replica("r2", "c", "n2", bundle_node_ids=("n2", "n2"))],
    )


def test_snapshot_encodes_as_the_equal_simulated_state() -> None:
    """The policy cannot tell a live cluster from the equal simulated one; a different one, it can."""
    limits = Limits()
    live = encode_state(build_state(_live(), SETTINGS, History()), limits)
    np.testing.assert_array_equal(live, encode_state(_simulated(), limits))
    other = dataclasses.replace(_live(), nodes=(_node("n1", 1, 1), _node("n2", 3, 2)))
    assert not np.array_equal(live, encode_state(build_state(other, SETTINGS, History()), limits))
