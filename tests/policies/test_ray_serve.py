"""``ray_serve`` beside Ray's own scheduler: which node it empties, when it gives up, how long it then waits."""

import logging
from typing import Any

import numpy as np
import pytest
from ray.serve._private import constants, deployment_scheduler
from ray.serve._private.deployment_scheduler import DeploymentScheduler

from rayfold.envs.safety import Limits
from rayfold.envs.state import ClusterState, NodePhase
from rayfold.policies import ray_serve
from rayfold.policies.ray_serve import RayServe
from tests.envs.clusters import add_node, add_replica, empty_state, small_spec
from tests.envs.test_ray_rules import Need, NodeInfo, rays_scheduler

LIMITS = Limits(max_concurrent_moves=100, deployment_cooldown_s=0.0, fence_s=1e6)
WHOLE_GPUS = (0, 1, 3, 4)  # Ray sums shares of devices, and has no opt-out
NOW_S = 10_000.0


class Totals(NodeInfo):
    """With what Ray's compaction asks for besides, and nodes in order of rows: Ray breaks ties by its iteration."""

    def get_active_node_ids(self) -> Any:
        """Nodes that are alive: a set that keeps its order, where Ray's own goes by the hash of the day."""
        return dict.fromkeys(sorted(super().get_active_node_ids())).keys()

    def get_total_resources_per_node(self) -> dict[str, dict[str, float]]:
        """All resources of the nodes that are alive; Ray subtracts the replicas itself."""
        types = self.state.spec.node_types
        return {
            n: {
                {"memory_gib": "memory"}.get(k, k): v * (2**30 if k == "memory_gib" else 1.0)
                for k, v in types[self.state.arrays.node_type[int(n)]].resources.items()
            }
            for n in self.get_active_node_ids()
        }

    get_available_resources_per_node = get_total_resources_per_node


class Clock:
    """Stands in for the module ``time`` that Ray's scheduler reads."""

    now_s = NOW_S

    def time(self) -> float:
        """Present time."""
        return self.now_s


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    """Ray logs a line for each of hundreds of choices."""
    caplog.set_level(logging.ERROR, logger="ray.serve")


def rng() -> np.random.Generator:
    """The rule draws nothing; a generator is due all the same."""
    return np.random.default_rng(0)


def settle(state: ClusterState) -> ClusterState:
    """Nothing has changed for an hour."""
    state.arrays.deployment_changed_s[:] = state.now_s - 3600.0
    return state


def two_nodes() -> ClusterState:
    """One replica on each of two equal nodes, at rest."""
    state = empty_state(small_spec(), now_s=NOW_S)
    for n in range(2):
        add_node(state, n)
        add_replica(state, 0, n)
    return settle(state)


def random_quiet_state(seed: int) -> ClusterState:
    """Random running replicas of whole GPUs on up to five nodes of two sizes."""
    draw = np.random.default_rng(seed)
    state = empty_state(small_spec(), now_s=NOW_S)
    st, spec = state.arrays, state.spec
    for n in range(int(draw.integers(2, 6))):
        add_node(state, n, int(draw.random() < 0.35))
    for _ in range(int(draw.integers(1, 12))):
        d, n = int(draw.choice(WHOLE_GPUS)), int(draw.choice(np.flatnonzero(st.node_phase == NodePhase.ALIVE)))
        has_room = st.node_free[n, 0] >= spec.deployments[d].shape.total("GPU") and st.node_free[n, 1] >= 1.0
        is_labelled = spec.arrays.fits_type[d, st.node_type[n]]
        held = int(((st.replica_node == n) & (st.replica_deployment == d)).sum())
        if has_room and is_labelled and (not spec.arrays.max_per_node[d] or held < spec.arrays.max_per_node[d]):
            add_replica(state, d, n)
    return settle(state)


def rays_compaction(state: ClusterState) -> DeploymentScheduler:
    """Ray's scheduler that knows the nodes, the replicas and what each replica asks for."""
    scheduler = rays_scheduler(state)
    scheduler._cluster_node_info_cache = Totals(state)  # type: ignore[assignment]
    deployments: dict[str, Any] = {key.name: value for key, value in scheduler._deployments.items()}
    for deployment in state.spec.deployments:
        deployments[deployment.name].actor_resources = Need(
            {"GPU": deployment.shape.total("GPU"), "CPU": deployment.shape.total("CPU")}
        )
        deployments[deployment.name].max_replicas_per_node = deployment.max_replicas_per_node or None
    return scheduler


def emptied(state: ClusterState) -> int | None:
    """Node that our rule empties, None if it moves nothing."""
    sources = {int(state.arrays.replica_node[m.replica_idx]) for m in RayServe(LIMITS).plan(state, rng()).moves}
    assert len(sources) <= 1
    return next(iter(sources), None)


def test_it_empties_the_node_that_ray_would() -> None:
    """On 500 random quiet states: Ray's own choice, the first row of equal ones; or none on both sides."""
    chosen: list[int] = []
    none_at_all = 0
    for seed in range(500):
        state = random_quiet_state(seed)
        rays = rays_compaction(state)._find_best_node_to_compact()
        ours = emptied(state)
        assert ours == (None if rays is None else int(rays)), seed
        if ours is None:
            none_at_all += 1
        else:
            chosen.append(ours)
    assert none_at_all > 50
    assert len(chosen) > 200
    assert set(chosen) == set(range(5))


def test_times_are_rays() -> None:
    """Quiet time, time-out and longest wait are Ray's defaults."""
    assert ray_serve.QUIET_S == constants.RAY_SERVE_NODE_COMPACTION_DELAY_S
    assert ray_serve.TIMEOUT_S == constants.RAY_SERVE_COMPACTION_TIMEOUT_S
    assert ray_serve.MAX_BACKOFF_S == constants.RAY_SERVE_COMPACTION_MAX_BACKOFF_TIME_S


def test_time_outs_and_back_off_beside_rays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that never empties, fifteen times over: both begin, give up and begin again at the same seconds."""
    clock, state = Clock(), two_nodes()
    monkeypatch.setattr(deployment_scheduler, "time", clock)
    monkeypatch.setattr(deployment_scheduler, "RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY", True)
    rays, ours = rays_compaction(state), RayServe(LIMITS)

    def is_emptying(seconds: float, fenced_until_s: float) -> bool:
        """So much later: whether an evacuation is under way, on which both agree."""
        clock.now_s += seconds
        now = settle(ClusterState(spec=state.spec, now_s=clock.now_s, arrays=state.arrays.copy()))
        now.arrays.node_fenced_until_s[:] = fenced_until_s
        is_rays = rays.get_node_to_compact(allow_new_compaction=True) is not None
        plan = ours.plan(now, rng())
        assert (bool(plan.moves) or "waiting" in plan.reason) == is_rays, (clock.now_s, plan.reason)
        return is_rays

    waits = []
    for _ in range(15):
        assert is_emptying(0.0, -np.inf)
        assert is_emptying(1799.5, np.inf)
        assert not is_emptying(0.5, np.inf)
        waits.append(rays._next_allowed_compaction_timestamp_s - clock.now_s)
        assert not is_emptying(waits[-1] - 0.5, -np.inf)
        clock.now_s += 0.5
    assert waits == [min(2.0**n, 3600.0) for n in range(1, 16)]


def begun() -> tuple[RayServe, ClusterState, int]:
    """The rule with an evacuation under way; the state has the fence, and the node's row follows."""
    policy, state = RayServe(LIMITS), two_nodes()
    move = policy.plan(state, rng()).moves[0]
    node = int(state.arrays.replica_node[move.replica_idx])
    state.arrays.node_fenced_until_s[node] = state.now_s + 600.0
    return policy, state, node


def later(state: ClusterState, seconds: float) -> ClusterState:
    """The same state at a later clock, at rest."""
    return settle(ClusterState(spec=state.spec, now_s=state.now_s + seconds, arrays=state.arrays.copy()))


def test_it_gives_up_a_node_that_takes_new_replicas() -> None:
    """Placement lifts the fence when it needs the node: long before the time-out, and with a back-off."""
    policy, state, node = begun()
    assert "emptying" in policy.plan(later(state, 60.0), rng()).reason
    refilled = later(state, 120.0)
    refilled.arrays.node_fenced_until_s[node] = -np.inf
    assert "gave up" in policy.plan(refilled, rng()).reason
    assert "backing off" in policy.plan(later(state, 121.9), rng()).reason


def test_fence_that_runs_out_ends_the_evacuation() -> None:
    """At its last second the fence holds no more, as in the safety filter."""
    policy, state, _ = begun()
    assert "gave up" not in policy.plan(later(state, 599.9), rng()).reason
    assert "gave up" in policy.plan(later(state, 600.0), rng()).reason


def test_it_goes_on_with_its_own_node_only() -> None:
    """While its node cannot be emptied, another one that could be is left alone."""
    policy, state, node = begun()
    st = state.arrays
    st.node_fenced_until_s[1 - node] = state.now_s + 1e6  # nothing may go there: its node has to wait
    assert policy.plan(later(state, 60.0), rng()).reason == f"waiting for node {node}"


def test_success_forgets_the_failures() -> None:
    """After a release the next failure waits 2 s again, not 4 s."""
    policy, state, node = begun()
    assert "gave up" in policy.plan(later(state, 600.0), rng()).reason
    state.arrays.node_fenced_until_s[:] = -np.inf
    assert policy.plan(later(state, 602.0), rng()).moves
    released = later(state, 700.0)
    released.arrays.node_phase[node] = NodePhase.ABSENT
    assert policy.plan(released, rng()).reason == f"node {node} is released"
    assert policy.plan(later(state, 800.0), rng()).moves
    assert "gave up" in policy.plan(later(state, 810.0), rng()).reason
    assert "backing off" in policy.plan(later(state, 811.9), rng()).reason
    assert policy.plan(later(state, 812.0), rng()).moves


@pytest.mark.parametrize("when_s", [60.0, 600.5])
def test_reset_forgets_everything(when_s: float) -> None:
    """An evacuation under way (60 s), or a failure and its wait (600.5 s): afterwards it acts as one newly made."""
    policy, state, _ = begun()
    if when_s > 600.0:
        assert "gave up" in policy.plan(later(state, 600.0), rng()).reason
    state.arrays.node_fenced_until_s[:] = -np.inf
    policy.reset()
    now = later(state, when_s)
    assert policy.plan(now, rng()).moves == RayServe(LIMITS).plan(now, rng()).moves != ()
    assert "gave up" in policy.plan(later(now, 1.0), rng()).reason
    assert "backing off" in policy.plan(later(now, 2.9), rng()).reason
    assert policy.plan(later(now, 3.0), rng()).moves
