"""What kind of cluster it is, in numbers that neither its size nor the hour changes much.

Everything comes from ``ClusterState`` and ``Limits``, so that a live cluster can tell it too. Shares lie within 0 to 1;
logarithms are natural.
"""

import math

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.safety import Limits
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase
from rayfold.policies.evacuations import move_prices_usd

__all__ = ["WORLD_FEATURES", "world_features"]

_FLOOR = 1e-9
WORLD_FEATURES = (
    "new_nodes",  # moves may launch nodes
    "log_node_types",  # that can be launched and have GPUs
    "log_price_spread",  # dearest over cheapest price per GPU of these
    "interruptions_per_h",  # of the present nodes, mean, as the next two
    "stockout_prob",
    "log_boot",
    "log_startup",  # of running replicas, mean, as the next
    "log_drain",
    "packs",
    "log_disruption_scale",
    "log_unserved_factor",
    "move_price_h",  # moving every replica once, in hours of the node bill, at most 3
    "fractional_frac",  # running replicas below one GPU
    "large_frac",  # above one GPU
    "group_frac",  # of several bundles
    "immovable_frac",
)


def world_features(state: ClusterState, limits: Limits) -> NDArray[np.float64]:
    """``(len(WORLD_FEATURES),)`` float64, finite."""
    st, spec, settings = state.arrays, state.spec.arrays, state.spec.settings
    present = st.node_type[(st.node_phase != NodePhase.ABSENT) & ~st.node_is_head]
    running = st.replica_deployment[st.replica_phase == ReplicaPhase.RUNNING]
    gpus, price, prices = spec.type_num_gpus, spec.type_price_usd_per_h, settings.prices
    launchable = (gpus > 0) & (spec.type_max_nodes > 0)
    per_gpu = price[launchable] / gpus[launchable] if launchable.any() else np.ones(1)
    asked, count = spec.demand[running, 0], max(1, len(running))
    all_moves_usd = sum(
        n * usd
        for n, usd in zip(
            np.bincount(running, minlength=len(spec.demand)).tolist(), move_prices_usd(state).tolist(), strict=True
        )
    )
    values = [
        float(limits.allow_new_nodes),
        math.log1p(int(launchable.sum())),
        math.log(max(_FLOOR, float(per_gpu.max())) / max(_FLOOR, float(per_gpu.min()))),
        _mean(spec.type_interruptions_per_h[present]),
        _mean(spec.type_stockout_prob[present]),
        math.log1p(_mean(spec.type_boot_s[present])),
        math.log1p(_mean(spec.startup_s[running])),
        math.log1p(_mean(spec.drain_s[running])),
        float(state.spec.packs),
        math.log(max(1e-3, prices.disruption_scale)),
        math.log(max(1e-3, prices.unserved_factor)),
        min(3.0, float(all_moves_usd) / max(_FLOOR, float(price[present].sum()))),
        float((asked < 1.0).sum()) / count,
        float((asked > 1.0).sum()) / count,
        float((spec.num_bundles[running] > 1).sum()) / count,
        float((~spec.is_movable[running]).sum()) / count,
    ]
    return np.array(values, np.float64)


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else 0.0
