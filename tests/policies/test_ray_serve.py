"""``ray_serve`` beside Ray's own classes: which node it empties, when it gives up, how long it then waits.

The comparisons are those of ``tests/ray_oracle/compaction.py``; below them, by hand, is what is ours: the safety filter
that comes after the decision, and looks that are a minute apart.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from ray.serve._private import constants, deployment_scheduler, deployment_state

from rayfold.envs.cluster import ClusterSpec
from rayfold.envs.placement import let_go
from rayfold.envs.safety import Limits
from rayfold.envs.simulator import Simulator
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase
from rayfold.envs.traffic import Traffic
from rayfold.policies import ray_serve
from rayfold.policies.ray_compaction import find_node
from rayfold.policies.ray_serve import RayServe
from tests.envs.clusters import add_node, add_replica, empty_state, small_spec
from tests.ray_oracle import compaction
from tests.ray_oracle.clock import Clock
from tests.ray_oracle.compaction import RaysManager, agree
from tests.ray_oracle.scheduler import packing

LIMITS = compaction.LIMITS
ONE, TWO, HALF = 0, 1, 2
FIXED = 5
NOW_S = 10_000.0


def rng() -> np.random.Generator:
    """The rule draws nothing; a generator is due all the same."""
    return np.random.default_rng(0)


def test_the_node_is_rays() -> None:
    """On 2,000 random states: the node that ``_find_best_node_to_compact`` finds, or none on both sides."""
    assert compaction.find_nodes(2000, seed=101).mismatches == ()


def test_the_life_of_an_evacuation_is_rays() -> None:
    """Over 50 random worlds, at each of 3,000 looks: the same node, failures, back-off and next scan."""
    assert compaction.sequences(3000, seed=101).mismatches == ()


def test_the_destinations_are_rays() -> None:
    """On 500 random states: the replacements go where ``schedule`` would put them."""
    assert compaction.destinations(500, seed=101).mismatches == ()


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("QUIET_S", 299.9),
        ("TIMEOUT_S", 1799.0),
        ("TIMEOUT_S", 1800.1),
        ("MAX_BACKOFF_S", 1.0),
        ("SCAN_INTERVAL_S", 9.0),
        ("_is_served", lambda state, deployments: True),
        ("_replicas_on", lambda state, node: frozenset(map(int, np.flatnonzero(state.arrays.replica_node == node)))),
    ],
)
def test_the_comparison_over_time_can_fail(monkeypatch: pytest.MonkeyPatch, name: str, wrong: Any) -> None:
    """A time that is off, a lost node taken for an emptied one, rows taken for replicas: each is seen."""
    monkeypatch.setattr(ray_serve, name, wrong)
    assert compaction.sequences(20_000, seed=101, max_mismatches=1).mismatches != ()


def test_the_comparison_of_nodes_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last row in place of the first of equal nodes is seen."""
    find: Callable[..., int] = find_node

    def last_of_equals(spec: Any, st: Any, is_fixed: Any) -> int:
        n = int(find(spec, st, is_fixed))
        counts = np.bincount(st.replica_node[st.replica_phase == ReplicaPhase.RUNNING], minlength=len(st.node_type))
        alike = (counts == counts[n]) & (st.node_type == st.node_type[n]) & ~st.node_is_head
        return int(np.flatnonzero(alike)[-1]) if n >= 0 else n

    monkeypatch.setattr(compaction, "find_node", last_of_equals)
    assert compaction.find_nodes(500, seed=101).mismatches != ()


def test_times_are_rays() -> None:
    """Quiet time, time-out, longest wait and scan interval are Ray's defaults."""
    assert ray_serve.QUIET_S == constants.RAY_SERVE_NODE_COMPACTION_DELAY_S
    assert ray_serve.TIMEOUT_S == constants.RAY_SERVE_COMPACTION_TIMEOUT_S
    assert ray_serve.MAX_BACKOFF_S == constants.RAY_SERVE_COMPACTION_MAX_BACKOFF_TIME_S
    assert ray_serve.SCAN_INTERVAL_S == deployment_scheduler.COMPACTION_SCAN_INTERVAL_S


def wavy_traffic(spec: ClusterSpec, num_steps: int) -> Traffic:
    """Load of two deployments that comes and goes, by whole replicas, with calm hours between."""
    steps = np.zeros((num_steps, spec.num_deployments))
    hour = np.arange(num_steps) * 5 // 3600
    for d, levels in ((ONE, (11.0, 2.0, 9.0, 1.0)), (TWO, (2.0, 7.0, 1.0, 1.0))):
        level = np.array(levels)[hour % 4]
        steps[:, d] = level
    look_back_s = np.full(spec.num_deployments, 5.0)
    return Traffic.of_steps(steps, look_back_s=look_back_s, step_s=5.0, tokens_per_ongoing_s=np.ones(len(look_back_s)))


def test_in_the_simulator_ray_would_do_the_same() -> None:
    """Two hours in steps of five seconds, Ray's classes told of all that happens: the same decisions at each step."""
    base = small_spec()
    settings = base.settings.__class__(
        scheduling=base.settings.scheduling, idle_timeout_s=120.0, decision_interval_s=5.0, substep_s=5.0
    )
    spec = ClusterSpec(node_types=base.node_types, deployments=base.deployments[:2], settings=settings)
    start = empty_state(spec, now_s=NOW_S, num_nodes=6, num_replicas=30)
    num_steps, clock, begun = 2 * 720, Clock(NOW_S), 0
    simulator = Simulator(start, wavy_traffic(spec, num_steps), LIMITS, rng())
    with packing(clock), clock.read_by(deployment_state, RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY=True):
        rays, ours = RaysManager(simulator.state()), RayServe(LIMITS)
        for step in range(num_steps - 1):
            simulator.advance(1)
            state, before = simulator.state(), ours.node
            clock.now_s = state.now_s
            rays.look(state)
            plan = ours.plan(state, rng())
            assert agree(ours, rays), (step, ours.node, rays.node, plan.reason)
            begun += before is None and ours.node is not None
            for move in plan.moves:
                simulator.start(state, move)
    assert begun > 0
    assert rays.scheduler._num_succeeded_compactions > 0


def settle(state: ClusterState) -> ClusterState:
    """Nothing has changed for an hour."""
    state.arrays.deployment_changed_s[:] = state.now_s - 3600.0
    return state


def later(state: ClusterState, seconds: float) -> ClusterState:
    """The same state at a later clock, at rest."""
    return settle(ClusterState(spec=state.spec, now_s=state.now_s + seconds, arrays=state.arrays.copy()))


def two_nodes(*deployments: int) -> ClusterState:
    """These replicas on node 0, one replica of ``one`` on node 1, at rest."""
    state = empty_state(small_spec(), now_s=NOW_S)
    add_node(state, 0)
    add_node(state, 1)
    for d in deployments:
        add_replica(state, d, 0)
    add_replica(state, ONE, 1)
    return settle(state)


def test_shares_of_devices_are_refused_after_the_decision() -> None:
    """0.5 and 0.5 free read as one GPU: Ray would empty node 1 there, the filter lets nothing go, it waits in vain."""
    state = two_nodes(TWO, ONE)
    st = state.arrays
    st.gpu_free[0], st.node_free[0, 0] = [0.0, 0.0, 0.5, 0.5], 1.0
    st.node_free[1, 0], st.gpu_free[1] = 0.0, 0.0  # and nothing may come from node 0
    policy = RayServe(LIMITS)
    plan = policy.plan(state, rng())
    assert (policy.node, plan.moves, plan.reason) == (1, (), "waiting for node 1")
    assert policy.plan(later(state, 1799.0), rng()).moves == ()
    assert policy.plan(later(state, 1800.0), rng()).reason == "gave up emptying node 1 after 1800 s"


def test_the_next_node_where_the_filter_refuses_rays() -> None:
    """Node 2 is fuller, and its GPU consists of two halves: the replica goes to node 0, as Ray's would spill."""
    state = two_nodes(ONE)
    st = state.arrays
    add_node(state, 2)
    add_replica(state, TWO, 2)
    st.gpu_free[2], st.node_free[2, 0] = [0.0, 0.0, 0.5, 0.5], 1.0
    settle(state)
    policy = RayServe(LIMITS)
    moves = policy.plan(state, rng()).moves
    assert (policy.node, [m.node_idx for m in moves]) == (0, [1])


def test_opted_out_replicas_stay_and_their_node_is_still_rays() -> None:
    """Ray knows no opt-out: the node is chosen, the other replica leaves it, the opted-out one keeps it."""
    state = two_nodes(ONE, FIXED)
    add_replica(state, ONE, 1)
    settle(state)
    policy = RayServe(LIMITS)
    moves = policy.plan(state, rng()).moves
    assert policy.node == 0
    assert [int(state.arrays.replica_deployment[m.replica_idx]) for m in moves] == [ONE]


def test_as_many_at_once_as_the_limit_lets() -> None:
    """Largest first; the next one follows once a replacement serves."""
    state = two_nodes(ONE, TWO)
    add_node(state, 2)
    for _ in range(3):
        add_replica(state, ONE, 2)
    state.arrays.node_free[1, 0] = 3.0
    settle(state)
    policy = RayServe(LIMITS._replace(max_concurrent_moves=1))
    policy.node, policy._known = 0, ray_serve._replicas_on(state, 0)
    policy._started_s = NOW_S
    first = policy.plan(state, rng()).moves
    assert [int(state.arrays.replica_deployment[m.replica_idx]) for m in first] == [TWO]
    moved = later(state, 60.0)
    let_go(state.spec.arrays, moved.arrays, first[0].replica_idx, moved.now_s)
    add_replica(moved, TWO, first[0].node_idx)
    second = policy.plan(moved, rng()).moves
    assert [int(moved.arrays.replica_deployment[m.replica_idx]) for m in second] == [ONE]


@pytest.mark.parametrize(("is_replaced", "failures"), [(True, 0), (False, 3)])
def test_a_node_that_left_between_two_looks(is_replaced: bool, failures: int) -> None:
    """Its replica runs elsewhere: it was emptied, failures are forgotten. It runs nowhere: the node was lost."""
    state = two_nodes(ONE)
    policy = RayServe(LIMITS)
    policy.plan(state, rng())
    policy.num_failures = 3
    gone = later(state, 60.0)
    let_go(state.spec.arrays, gone.arrays, 0, gone.now_s)
    gone.arrays.node_phase[0] = NodePhase.ABSENT
    if is_replaced:
        add_replica(gone, ONE, 1)
        gone.arrays.deployment_target[ONE] -= 1
    gone.arrays.deployment_changed_s[:] = gone.now_s
    reason = policy.plan(gone, rng()).reason
    assert ("released" in reason, "lost" in reason) == (is_replaced, not is_replaced)
    assert policy.num_failures == failures


def test_live_replicas_are_known_by_their_ids() -> None:
    """A snapshot may give other rows and times to the same replicas; another id on the node is a new replica."""
    state = two_nodes(ONE)
    live = ClusterState(
        spec=state.spec,
        now_s=NOW_S,
        arrays=state.arrays,
        replica_ids=("a", "b", *[""] * (len(state.arrays.replica_phase) - 2)),
    )
    policy = RayServe(LIMITS)
    policy.plan(live, rng())
    assert policy.node == 0
    restarted = later(live, 60.0)
    restarted.arrays.replica_since_s[:] = restarted.now_s
    for first, node in (("a", 0), ("c", None)):
        ids = (first, *live.replica_ids[1:])
        policy.plan(
            ClusterState(spec=state.spec, now_s=restarted.now_s, arrays=restarted.arrays, replica_ids=ids), rng()
        )
        assert policy.node == node


@pytest.mark.parametrize("has_failed", [False, True])
def test_reset_forgets_everything(has_failed: bool) -> None:
    """An evacuation under way, or a failure and its wait: afterwards it acts as one newly made."""
    state, policy = two_nodes(ONE), RayServe(LIMITS)
    assert policy.plan(state, rng()).moves
    if has_failed:
        state = later(state, 1800.0)
        assert "gave up" in policy.plan(state, rng()).reason
    policy.reset()
    fresh = RayServe(LIMITS)
    assert policy.plan(state, rng()) == fresh.plan(state, rng())
    assert vars(policy) == vars(fresh) or str(vars(policy)) == str(vars(fresh))
    assert policy.node == 0


def test_limits_are_kept() -> None:
    """What it proposes passes the filter with its default limits, too: at most four at once."""
    state = empty_state(small_spec(), now_s=NOW_S)
    for n in range(3):
        add_node(state, n)
    for d, n in ((HALF, 0),) * 5 and [(HALF, 0)] * 5 + [(ONE, 1), (ONE, 2)]:
        add_replica(state, d, n)
    policy = RayServe(Limits())
    policy.plan(settle(state), rng())
    assert len(policy.plan(settle(state), rng()).moves) <= 4
