"""Placement groups: where bundles go, all or none, and what a replica that spans nodes means for moves."""

import numpy as np
import pytest

from rayfold.envs.cluster import ClusterSpec, Deployment, NodeType, PlacementGroupStrategy, ReplicaShape
from rayfold.envs.encoding import encode_state
from rayfold.envs.evacuation import new_workspace, prepare
from rayfold.envs.groups import hold_group
from rayfold.envs.layout import ObsLayout
from rayfold.envs.moves import Move
from rayfold.envs.node_autoscaler import choose_launches
from rayfold.envs.placement import let_go
from rayfold.envs.safety import Limits, Reason, check_move
from rayfold.envs.simulator import Simulator
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase, StateArrays
from tests.envs.clusters import add_node, add_replica, constant_traffic, empty_state
from tests.envs.conservation import check_conserved

PAIR, WIDE, APART, MIXED, STRICT, ONE, HUGE, GANG = range(8)
LIMITS = Limits(max_concurrent_moves=9, deployment_cooldown_s=0.0)


def group_spec() -> ClusterSpec:
    """Nodes of 4 GPUs; groups of each kind."""
    group = PlacementGroupStrategy

    def deployment(name: str, strategy: PlacementGroupStrategy, *gpus: float, **more: int) -> Deployment:
        shape = ReplicaShape(bundles=tuple({"GPU": g, "CPU": 1.0} for g in gpus), strategy=strategy)
        return Deployment(name=name, shape=shape, **more)  # type: ignore[arg-type]  # a test's short hand

    return ClusterSpec(
        node_types=(NodeType(name="n", resources={"GPU": 4.0, "CPU": 16.0}, price_usd_per_h=4.0, max_nodes=5),),
        deployments=(
            deployment("pair", group.PACK, 1.0, 1.0),
            deployment("wide", group.PACK, 2.0, 2.0, 2.0),
            deployment("apart", group.SPREAD, 1.0, 1.0),
            deployment("mixed", group.PACK, 0.5, 2.0, 0.5),
            deployment("strict", group.STRICT_PACK, 0.5, 0.5),
            deployment("one", group.NONE, 1.0),
            deployment("huge", group.STRICT_PACK, 2.0, 2.0, 2.0),
            deployment("gang", group.NONE, 1.0, gang_size=3),
        ),
    )


def cluster(*free_gpus: int) -> ClusterState:
    """One alive node for each number, with so many GPUs free."""
    state = empty_state(group_spec())
    for n, free in enumerate(free_gpus):
        add_node(state, n)
        for _ in range(4 - free):
            add_replica(state, ONE, n)
    return state


def pending(state: ClusterState, d: int) -> int:
    """A replica that waits."""
    r = int(np.flatnonzero(state.arrays.replica_phase == ReplicaPhase.EMPTY)[0])
    state.arrays.replica_deployment[r], state.arrays.replica_phase[r] = d, ReplicaPhase.PENDING
    return r


def place(state: ClusterState, d: int) -> int:
    """A replica of ``d`` placed and running; -1 if it does not fit, and then nothing has changed."""
    r, st = pending(state, d), state.arrays
    before = st.copy()
    if not hold_group(state.spec.arrays, st, state.now_s, r):
        assert all(np.array_equal(a, b) for a, b in zip(before, st, strict=True))
        let_go(state.spec.arrays, st, r, state.now_s)
        return -1
    st.replica_phase[r] = ReplicaPhase.RUNNING
    check_conserved(state)
    return r


@pytest.mark.parametrize(("free", "want"), [((1, 2, 4), 2), ((1, 3, 2), 1), ((2, 1, 2), 0), ((1, 1, 2), 2)])
def test_pack_takes_one_node_where_one_holds_all(free: tuple[int, ...], want: int) -> None:
    """The node with the largest share left, of equal ones the first; kept as any other replica."""
    state = cluster(*free)
    r, st = place(state, PAIR), state.arrays
    assert st.replica_node[r] == want
    assert not st.replica_spans[r]
    assert (st.replica_bundle_node[r] == -1).all()
    assert bin(int(st.replica_gpus[r, 0])).count("1") == 2
    assert st.node_held[:, PAIR].tolist() == [int(n == want) for n in range(5)]


def test_pack_spans_where_it_has_to() -> None:
    """Three pairs of GPUs on nodes of four: two on the first node, the third on the second, each with its devices."""
    state = cluster(4, 4)
    r, st = place(state, WIDE), state.arrays
    assert st.replica_spans[r]
    assert st.replica_node[r] == 0
    assert st.replica_bundle_node[r].tolist() == [0, 0, 1]
    assert st.replica_gpus[r].tolist() == [0b0011, 0b1100, 0b0011]
    assert st.node_held[:2, WIDE].tolist() == [1, 1]
    assert st.node_free[:2, 0].tolist() == [0.0, 2.0]
    assert st.node_free[:2, 1].tolist() == [14.0, 15.0]


@pytest.mark.parametrize(("free", "d"), [((4, 1), WIDE), ((1, 1, 1, 1), WIDE), ((1,), PAIR), ((0, 0), MIXED)])
def test_all_bundles_or_none(free: tuple[int, ...], d: int) -> None:
    """Where one bundle finds no node, none is placed and not a bit has changed."""
    assert place(cluster(*free), d) == -1


def test_spread_takes_different_nodes_first() -> None:
    """A node each while there is one, the one with the largest share left first; else one node for both."""
    state = cluster(2, 4)
    r = place(state, APART)
    assert state.arrays.replica_bundle_node[r].tolist()[:2] == [1, 0]
    assert state.arrays.replica_spans[r]
    state = cluster(0, 2)
    r = place(state, APART)
    assert not state.arrays.replica_spans[r]
    assert state.arrays.replica_node[r] == 1


def test_shares_and_whole_devices_of_one_group() -> None:
    """Two halves and a pair of GPUs: the halves share a device, and each bundle gives its own back."""
    state = cluster(4)
    st, free = state.arrays, state.arrays.gpu_free.copy()
    r = place(state, MIXED)
    assert not st.replica_spans[r]
    assert st.replica_gpus[r].tolist() == [0b0001, 0b0110, 0b0001]
    assert st.gpu_free[0].tolist() == [0.0, 0.0, 0.0, 1.0]
    let_go(state.spec.arrays, st, r, state.now_s)
    np.testing.assert_array_equal(st.gpu_free, free)


def test_a_gang_is_one_group() -> None:
    """Three replicas of one GPU, packed by the gang's own strategy over as few nodes as it can."""
    state = cluster(2, 1, 0)
    r = place(state, GANG)
    assert state.arrays.replica_bundle_node[r].tolist() == [0, 0, 1]
    assert not state.spec.arrays.is_movable[GANG]
    assert check_move(state, Move(r, 1), LIMITS).reason is Reason.DEPLOYMENT_OPTED_OUT


def test_let_go_is_the_inverse() -> None:
    """On random clusters, for every group: placed and let go, all is as before but for idle clocks."""
    num_spanning = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        state = cluster(*rng.integers(0, 5, size=4))
        for d in (PAIR, WIDE, APART, MIXED, GANG):
            before = state.arrays.copy()
            r = place(state, d)
            if r < 0:
                continue
            num_spanning += bool(state.arrays.replica_spans[r])
            let_go(state.spec.arrays, state.arrays, r, state.now_s)
            for name in StateArrays._fields:
                if name != "node_idle_since_s":
                    np.testing.assert_allclose(getattr(state.arrays, name), getattr(before, name), err_msg=name)
    assert num_spanning > 100


def test_pack_spans_only_where_no_node_holds_it_whole() -> None:
    """On random clusters: of equal bundles all go to one node exactly if some node has room for all."""
    whole = spans = none = 0
    for seed in range(300):
        free = np.random.default_rng(seed).integers(0, 5, size=4)
        for d, bundle, count in ((PAIR, 1, 2), (GANG, 1, 3), (WIDE, 2, 3)):
            state = cluster(*free)
            r = place(state, d)
            fits_whole = bool((free >= bundle * count).any())
            fits = bool((free // bundle).sum() >= count)
            assert (r >= 0) == fits, (seed, d)
            if r >= 0:
                assert state.arrays.replica_spans[r] == (not fits_whole), (seed, d)
            whole, spans, none = whole + fits_whole, spans + (fits and not fits_whole), none + (not fits)
    assert min(whole, spans, none) > 20


def test_a_fence_yields_to_a_group_that_fits_nowhere_else() -> None:
    """As to any replica: not before, and then it is gone."""
    state = cluster(2, 4)
    st = state.arrays
    st.node_fenced_until_s[1] = state.now_s + 100.0
    assert st.replica_node[place(state, PAIR)] == 0
    assert st.node_fenced_until_s[1] == state.now_s + 100.0
    assert st.replica_node[place(state, PAIR)] == 1
    assert st.node_fenced_until_s[1] == -np.inf


@pytest.mark.parametrize("phase", [NodePhase.BOOTING, NodePhase.DRAINING])
def test_only_nodes_that_are_alive(phase: NodePhase) -> None:
    """A node that boots or drains takes no bundle."""
    state = cluster(4, 4)
    state.arrays.node_phase[0] = phase
    assert place(state, WIDE) == -1
    assert state.arrays.replica_node[place(state, PAIR)] == 1


def test_what_spans_is_never_moved() -> None:
    """By verdict, by mask, and no node that it is on can be evacuated; on one node the same group may be moved."""
    state = cluster(4, 4, 4)
    r = place(state, WIDE)
    assert check_move(state, Move(r, 2), LIMITS) == (False, Reason.REPLICA_SPANS_NODES)
    layout = ObsLayout(5, 8, 1)
    obs = layout.split(encode_state(state, LIMITS, layout))
    assert obs["source_mask"][:, WIDE].sum() == 0.0
    work = new_workspace(state.arrays)
    prepare(state.spec.arrays, state.arrays, state.now_s, LIMITS, work)
    assert work.is_blocked[:3].tolist() == [True, True, False]
    whole = place(state, PAIR)
    assert not state.arrays.replica_spans[whole]
    assert check_move(state, Move(whole, 1), LIMITS).allowed


def test_launches_for_groups() -> None:
    """Three pairs of GPUs ask for two nodes; the same as STRICT_PACK fits no node, and nothing is launched for it."""
    for d, launched in ((WIDE, 2), (HUGE, 0), (PAIR, 1), (GANG, 1)):
        state = cluster()
        pending(state, d)
        assert choose_launches(state.spec.arrays, state.arrays).tolist() == [launched], d


def test_a_strict_group_too_large_waits_for_ever() -> None:
    """No node takes it whole, and it never spans: it stays pending, on no node's bill."""
    state = cluster(4, 4, 4)
    state.spec.arrays.min_replicas[:] = 0
    state.arrays.deployment_target[HUGE] = 1
    r = pending(state, HUGE)
    traffic = constant_traffic(state.spec, {"huge": 1.0}, 40)
    sim = Simulator(state, traffic, LIMITS, np.random.default_rng(0))
    sim.advance(40)
    assert sim.view.arrays.replica_phase[r] == ReplicaPhase.PENDING
    assert (sim.view.arrays.node_phase != NodePhase.ABSENT).sum() <= 3
    assert not sim.view.arrays.replica_spans.any()
