"""What the switch sees: the cluster in some fifty numbers without its size, and how it has gone in the last hours.

Everything comes from ``ClusterState`` and from the policy's own memory of it, so that a live cluster can tell it too.
Shares of the bill, of GPUs and of replicas lie within 0 to 1; *rel* is a ratio to the present; logarithms are natural.
"""

import math
from collections import deque
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.evacuation import move_price_usd
from rayfold.envs.safety import Limits, moves_in_flight
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase
from rayfold.policies.evacuations import Evacuation, evacuations

__all__ = ["FEATURES", "Memory"]

SAMPLE_S, SPANS_S = 300.0, (3600.0, 10800.0)
_FLOOR = 1e-9

_CLUSTER = (
    "log_nodes",
    "log_replicas",
    "log_deployments",
    "bound_frac",  # cheapest share of the dearest resource over the node bill
    "booting_frac",  # of the bill, as the next five
    "empty_frac",
    "fenced_frac",
    "draining_frac",
    "spot_frac",
    "pinned_frac",  # cannot be released
    "in_flight_frac",  # moves, of the limit
    "pending_frac",  # replicas waiting for a node
    "used_gpu",  # of what occupied nodes have, as the next two
    "used_cpu",
    "used_memory",
    "fill_mean",  # dominant share per occupied node
    "fill_std",
    "below_half_frac",  # occupied nodes whose dominant share is below a half
)
_EVACUATIONS = (
    "evacuable_frac",  # occupied nodes that can be emptied, of all
    "evacuable_usd_frac",  # their price, of the bill
    "best_saving_frac",  # price of the dearest of them, of the bill
    "best_moves_log",
    "best_price_h",  # price of its moves, in hours of its own price
    "least_price_h",  # least such ratio
)
_WORLD = (
    "new_nodes",  # moves may launch nodes
    "log_node_types",
    "log_price_spread",  # dearest over cheapest price per GPU of types that can be launched
    "log_present_price",  # mean price per GPU of the present nodes over that cheapest one
    "interruptions_per_h",  # of the present nodes, mean
    "stockout_prob",
    "log_boot",
    "log_startup",  # of running replicas, as the next
    "log_drain",
    "log_idle_timeout",
    "log_interval",
    "log_fence",
    "log_cooldown",
    "log_max_moves",
    "packs",
    "log_disruption_scale",
    "log_unserved_factor",
    "move_price_h",  # moving every replica once, in hours of the bill
    "fractional_frac",  # running replicas below one GPU
    "large_frac",  # above one GPU
    "immovable_frac",
)
_DEMAND = (
    "wanted_rel",  # GPUs the load of now asks for over those of the targets
    "wanted_slow_rel",  # over ten minutes
    "running_rel",  # GPUs running over those of the targets
    "calm_frac",  # of the targets' GPUs: deployments without a change in ten minutes
)
_HISTORY = (
    "history_h",  # how much of three hours is known
    *(f"{what}_{span_s / 3600:g}h" for span_s in SPANS_S for what in ("mean_rel", "least_rel", "most_rel", "change")),
    *(f"bill_{span_s / 3600:g}h" for span_s in SPANS_S),  # mean over the present bill
    "slope_half_h",  # change of the targets' GPUs, of those now
)
FEATURES = (*_CLUSTER, *_EVACUATIONS, *_WORLD, *_DEMAND, *_HISTORY)


class _Sample(NamedTuple):
    at_s: float
    gpus: float  # of the targets
    bill_usd_per_h: float


class Memory:
    """Looks at every tick, remembers every five minutes, and describes the present when asked.

    Args:
        limits: What the safety filter allows.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.reset()

    def reset(self) -> None:
        """Nothing has been seen."""
        self._samples: deque[_Sample] = deque(maxlen=1 + int(SPANS_S[-1] / SAMPLE_S))

    def look(self, state: ClusterState) -> None:
        """Remembers the state if it is time."""
        if not self._samples or state.now_s - self._samples[-1].at_s >= SAMPLE_S - 1e-6:
            self._samples.append(_Sample(state.now_s, _target_gpus(state), _bill(state)))

    def features(self, state: ClusterState) -> NDArray[np.float32]:
        """``(len(FEATURES),)`` float32, finite, within -10 to 10."""
        values = [
            *_cluster(state, self._limits),
            *_of_evacuations(state, evacuations(state, self._limits)),
            *_world(state, self._limits),
            *_demand(state),
            *self._history(state),
        ]
        return np.clip(np.nan_to_num(np.array(values, np.float32)), -10.0, 10.0)

    def _history(self, state: ClusterState) -> list[float]:
        now_gpus, now_bill = max(_FLOOR, _target_gpus(state)), max(_FLOOR, _bill(state))
        at_s = np.array([s.at_s for s in self._samples])
        gpus = np.array([s.gpus for s in self._samples]) / now_gpus
        bill = np.array([s.bill_usd_per_h for s in self._samples]) / now_bill
        if not len(at_s):
            at_s, gpus, bill = np.array([state.now_s]), np.ones(1), np.ones(1)
        out = [min(SPANS_S[-1], state.now_s - at_s[0]) / 3600.0]
        spans = [at_s >= state.now_s - span_s - 1e-6 for span_s in SPANS_S]
        for known in spans:
            part = gpus[known] if known.any() else np.ones(1)
            changes = np.abs(np.diff(part)).mean() if len(part) > 1 else 0.0
            out += [_rel(part.mean()), _rel(part.min()), _rel(part.max()), float(changes)]
        out += [_rel(bill[known].mean()) if known.any() else 1.0 for known in spans]
        earlier = gpus[at_s <= state.now_s - 1800.0 + 1e-6]
        return [*out, 1.0 - _rel(earlier[-1]) if len(earlier) else 0.0]


def _rel(ratio: float) -> float:
    return float(min(3.0, ratio))


def _bill(state: ClusterState) -> float:
    """Node bill per hour."""
    st = state.arrays
    return float(state.spec.arrays.type_price_usd_per_h[st.node_type[st.node_phase != NodePhase.ABSENT]].sum())


def _target_gpus(state: ClusterState) -> float:
    return float(state.arrays.deployment_target @ state.spec.arrays.demand[:, 0])


def _cluster(state: ClusterState, limits: Limits) -> list[float]:
    st, spec = state.arrays, state.spec.arrays
    nodes = np.flatnonzero((st.node_phase != NodePhase.ABSENT) & ~st.node_is_head)
    types, phase = st.node_type[nodes], st.node_phase[nodes]
    price, held = spec.type_price_usd_per_h[types], st.node_num_held[nodes]
    bill = max(_FLOOR, float(price.sum()))
    live = np.isin(st.replica_phase, (ReplicaPhase.PENDING, ReplicaPhase.STARTING, ReplicaPhase.RUNNING))
    live &= (st.replica_phase == ReplicaPhase.RUNNING) | (st.replica_peer < 0)  # of a move one side counts
    counts = np.bincount(st.replica_deployment[live], minlength=len(spec.demand))
    bound = float((counts @ spec.bound_usd_per_h).max(initial=0.0))
    capacity = spec.type_capacity[types]
    used = capacity - st.node_free[nodes] - st.node_others[nodes]
    occupied = held > 0
    fill = np.divide(used, capacity, out=np.zeros_like(used), where=capacity > 0)[occupied].max(1, initial=0.0)
    shares = [
        phase == NodePhase.BOOTING,
        (phase == NodePhase.ALIVE) & ~occupied,
        st.node_fenced_until_s[nodes] > state.now_s,
        phase == NodePhase.DRAINING,
        spec.type_is_spot[types],
        ~st.node_releasable[nodes],
    ]
    total, taken = capacity[occupied].sum(0), used[occupied].sum(0)
    return [
        math.log1p(len(nodes)),
        math.log1p(int(live.sum())),
        math.log1p(len(spec.demand)),
        min(1.0, bound / bill),
        *(float(price[share].sum()) / bill for share in shares),
        moves_in_flight(st) / max(1, limits.max_concurrent_moves),
        float((st.replica_phase == ReplicaPhase.PENDING).sum()) / max(1, int(live.sum())),
        *(float(taken[k] / total[k]) if total[k] > 0 else 0.0 for k in range(3)),
        float(fill.mean()) if len(fill) else 0.0,
        float(fill.std()) if len(fill) else 0.0,
        float((fill < 0.5).mean()) if len(fill) else 0.0,
    ]


def _of_evacuations(state: ClusterState, found: list[Evacuation]) -> list[float]:
    st, bill = state.arrays, max(_FLOOR, _bill(state))
    if not found:
        return [0.0, 0.0, 0.0, 0.0, 3.0, 3.0]
    best = max(found, key=lambda e: (e.node_usd_per_h, -e.price_usd))
    price_h = [e.price_usd / max(_FLOOR, e.node_usd_per_h) for e in found]
    return [
        len(found) / max(1, int((st.node_num_held > 0).sum())),
        sum(e.node_usd_per_h for e in found) / bill,
        best.node_usd_per_h / bill,
        math.log1p(len(best.moves)),
        min(3.0, best.price_usd / max(_FLOOR, best.node_usd_per_h)),
        min(3.0, *price_h, 3.0),
    ]


def _world(state: ClusterState, limits: Limits) -> list[float]:
    st, spec, settings = state.arrays, state.spec.arrays, state.spec.settings
    present = st.node_type[(st.node_phase != NodePhase.ABSENT) & ~st.node_is_head]
    gpus, price = spec.type_num_gpus, spec.type_price_usd_per_h
    launchable = (gpus > 0) & (spec.type_max_nodes > 0)
    per_gpu = price[launchable] / gpus[launchable] if launchable.any() else np.ones(1)
    paid = price[present].sum() / max(1, gpus[present].sum())
    cheapest = max(_FLOOR, float(per_gpu.min()))
    running = st.replica_deployment[st.replica_phase == ReplicaPhase.RUNNING]
    asked = spec.demand[running, 0]
    count = max(1, len(running))
    prices = settings.prices
    all_moves = sum(
        int(n) * move_price_usd(spec, d, prices.move_frac, prices.disruption_scale)
        for d, n in enumerate(np.bincount(running, minlength=len(spec.demand)))
    )

    def mean_log(times_s: NDArray[np.float64], rows: NDArray[np.int64]) -> float:
        return math.log1p(float(times_s[rows].mean())) if len(rows) else 0.0

    return [
        float(limits.allow_new_nodes),
        math.log1p(int(launchable.sum())),
        math.log(max(_FLOOR, float(per_gpu.max())) / cheapest),
        math.log(max(_FLOOR, float(paid)) / cheapest) if len(present) else 0.0,
        float(spec.type_interruptions_per_h[present].mean()) if len(present) else 0.0,
        float(spec.type_stockout_prob[present].mean()) if len(present) else 0.0,
        mean_log(spec.type_boot_s, present),
        mean_log(spec.startup_s, running),
        mean_log(spec.drain_s, running),
        math.log1p(settings.idle_timeout_s),
        math.log1p(settings.decision_interval_s),
        math.log1p(max(0.0, limits.fence_s)),
        math.log1p(max(0.0, limits.deployment_cooldown_s)),
        math.log1p(limits.max_concurrent_moves),
        float(state.spec.packs),
        math.log(max(1e-3, prices.disruption_scale)),
        math.log(max(1e-3, prices.unserved_factor)),
        min(3.0, float(all_moves) / max(_FLOOR, _bill(state))),
        float((asked < 1.0).sum()) / count,
        float((asked > 1.0).sum()) / count,
        float((~spec.is_movable[running]).sum()) / count,
    ]


def _demand(state: ClusterState) -> list[float]:
    st, spec = state.arrays, state.spec.arrays
    gpu = spec.demand[:, 0]
    target = max(_FLOOR, _target_gpus(state))
    running = st.replica_deployment[st.replica_phase == ReplicaPhase.RUNNING]
    per_replica = np.maximum(_FLOOR, spec.target_ongoing)
    calm = state.now_s - st.deployment_changed_s > 600.0
    return [
        _rel(float(gpu @ (st.deployment_ongoing / per_replica)) / target),
        _rel(float(gpu @ (st.deployment_ongoing_slow / per_replica)) / target),
        _rel(float(gpu[running].sum()) / target),
        float(gpu[calm] @ st.deployment_target[calm]) / target,
    ]
