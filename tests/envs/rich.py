"""A cluster in which everything happens that the simulator knows, and random play in it."""

import numpy as np

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
from rayfold.envs.encoding import encode_state
from rayfold.envs.initial_state import initial_state
from rayfold.envs.layout import ObsLayout
from rayfold.envs.moves import Move, MovePhase
from rayfold.envs.safety import Limits, movable_replica, move_masks
from rayfold.envs.simulator import Simulator
from rayfold.envs.traffic import Traffic
from tests.envs.clusters import constant_traffic

__all__ = ["LIMITS", "layout_of", "play_moves", "restless_traffic", "rich_simulators", "rich_spec"]

LIMITS = Limits(max_concurrent_moves=4, deployment_cooldown_s=0.0, fence_s=120.0, allow_new_nodes=True)


def rich_spec(*, packs: bool) -> ClusterSpec:
    """Spot nodes, stock-outs, other work, failures, slow starts, shares of GPUs; groups that span only if not packs."""
    scaling = AutoscalingConfig(
        min_replicas=0, max_replicas=5, target_ongoing_requests=2, upscale_delay_s=5, downscale_delay_s=15
    )

    def deployment(
        name: str,
        *bundles: dict[str, float],
        strategy: PlacementGroupStrategy = PlacementGroupStrategy.NONE,
        **more: object,
    ) -> Deployment:
        return Deployment(
            name=name,
            shape=ReplicaShape(bundles=bundles, strategy=strategy),
            autoscaling=scaling,
            startup_s=Interval(10.0, 40.0),
            drain_s=Interval(0.0, 15.0),
            **more,  # type: ignore[arg-type]  # a test's short hand
        )

    def gpus(amount: float) -> dict[str, float]:
        return {"GPU": amount, "CPU": 1.0}

    group = PlacementGroupStrategy
    spanning = (
        deployment("wide", gpus(2.0), gpus(2.0), gpus(2.0), strategy=group.PACK),
        deployment("pair", gpus(1.0), gpus(0.5), strategy=group.PACK),
        deployment("apart", gpus(1.0), gpus(1.0), strategy=group.SPREAD),
        deployment("gang", gpus(1.0), gang_size=2),
    )
    boot_s, resources = Interval(20.0, 60.0), {"GPU": 4.0, "CPU": 12.0, "memory_gib": 64.0}
    return ClusterSpec(
        node_types=(
            NodeType(
                name="plain",
                resources=resources,
                price_usd_per_h=4.0,
                min_nodes=1,
                max_nodes=5,
                boot_s=boot_s,
                other_work={"GPU": 0.5, "CPU": 2.0},
                other_work_prob=0.4,
                other_work_s=Interval(60.0, 200.0),
            ),
            NodeType(
                name="spot",
                resources=resources,
                price_usd_per_h=1.5,
                max_nodes=4,
                boot_s=boot_s,
                is_spot=True,
                interruptions_per_h=12.0,
                notice_s=30.0,
                stockout_prob=0.4,
                stockout_s=Interval(20.0, 90.0),
            ),
            NodeType(
                name="gold",
                resources={"GPU": 2.0, "CPU": 8.0, "memory_gib": 64.0},
                price_usd_per_h=3.0,
                labels={"tier": "gold"},
                max_nodes=3,
                boot_s=boot_s,
            ),
        ),
        deployments=(
            deployment("one", gpus(1.0), start_failure_prob=0.2),
            deployment("halves", gpus(0.5), gpus(0.5), strategy=group.STRICT_PACK),
            deployment("share", gpus(0.25), max_replicas_per_node=1, slow_start_prob=0.3),
            deployment("golden", gpus(1.0), label_selector={"tier": "gold"}, label_fallbacks=({},)),
            deployment("two", gpus(2.0)),
            *(() if packs else spanning),
        ),
        settings=ClusterSettings(
            scheduling=SchedulingStrategy.PACK if packs else SchedulingStrategy.SPREAD,
            idle_timeout_s=40.0,
            decision_interval_s=10.0,
            substep_s=5.0,
        ),
    )


def restless_traffic(spec: ClusterSpec, num_steps: int, rng: np.random.Generator) -> Traffic:
    """A load that jumps every 15 steps, to nothing now and then."""
    traffic = constant_traffic(spec, {}, num_steps)
    for first in range(0, num_steps, 15):
        level = rng.uniform(0.0, 7.0, spec.num_deployments) * (rng.random(spec.num_deployments) < 0.8)
        traffic.ongoing[traffic.num_before + first : traffic.num_before + first + 15] = level
    return traffic


def rich_simulators(seed: int, *, packs: bool, num_steps: int, is_tight: bool = False) -> list[Simulator]:
    """Two simulators of one future: the second evaluates every rule at every step. Tight: too few nodes for all."""
    rng = np.random.default_rng(seed)
    spec = rich_spec(packs=packs)
    if is_tight:
        spec.arrays.type_max_nodes[:] = (2, 1, 1)
    traffic = restless_traffic(spec, num_steps, rng)
    state = initial_state(spec, traffic, rng)
    return [
        Simulator(state, traffic, LIMITS, np.random.default_rng(seed), skips_quiet_steps=skips)
        for skips in (True, False)
    ]


def layout_of(spec: ClusterSpec) -> ObsLayout:
    """The cluster's own size."""
    return ObsLayout(spec.max_nodes, spec.num_deployments, len(spec.node_types))


def play_moves(sims: list[Simulator], rng: np.random.Generator, limits: Limits = LIMITS) -> None:
    """Moves, the same in every simulator: to nodes that are there, to new ones, of whole nodes; some are cancelled."""
    spec, layout = sims[0].spec, layout_of(sims[0].spec)
    under_way = [move_id for move_id in sims[0]._sources if sims[0].phase(move_id) is MovePhase.STARTING]
    if under_way and rng.random() < 0.1:
        given_up = str(rng.choice(under_way))
        for sim in sims:
            sim.cancel(given_up)
            assert sim.phase(given_up) is MovePhase.CANCELLED
    for _ in range(int(rng.integers(0, 3))):
        view = sims[0].view
        if rng.random() < 0.15:
            obs = layout.split(encode_state(view, limits, layout))
            nodes = np.flatnonzero(obs["evacuate_mask"] > 0)
            if len(nodes):
                chosen = 1 + layout.num_cells + int(rng.choice(nodes))
                started = {sim.act(layout, chosen, 0, 1) for sim in sims}
                assert started <= set(range(1, limits.max_concurrent_moves + 1))  # the mask is never wrong
            continue
        source, destination = np.zeros((2, layout.num_nodes, layout.num_deployments), np.float32)
        new_node = np.zeros((layout.num_types, layout.num_deployments), np.float32)
        move_masks(spec.arrays, view.arrays, view.now_s, limits, source, destination, new_node)
        cells = np.argwhere(source > 0)
        if not len(cells):
            continue
        n, d = cells[rng.integers(len(cells))]
        others = [m for m in np.flatnonzero(np.concatenate([destination, new_node])[:, d]) if m != n]
        r = movable_replica(spec.arrays, view.arrays, view.now_s, limits, n, d)
        assert not view.arrays.replica_spans[r]
        move, is_cancelled = Move(int(r), int(rng.choice(others))), rng.random() < 0.15
        for sim in sims:
            move_id = sim.start(sim.view, move)
            assert sim.phase(move_id) is MovePhase.STARTING
            if is_cancelled:
                sim.cancel(move_id)
                assert sim.phase(move_id) is MovePhase.CANCELLED
