"""Encoder: ``ClusterState`` to the flat observation vector of ``layout.py``.

The same function serves training, evaluation and the live decider; it reads nothing that a live cluster cannot
report. Dims: N nodes, D deployments of the state; the layout may be larger (zero padding).
"""

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from rayfold.envs.cluster import SpecArrays
from rayfold.envs.dynamics import bound_usd_per_h
from rayfold.envs.evacuation import evacuation, move_price_usd
from rayfold.envs.layout import DEPLOYMENT_FEATURES, GLOBAL_FEATURES, NODE_FEATURES, ObsLayout
from rayfold.envs.safety import Limits, move_masks, moves_in_flight
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase, StateArrays

__all__ = ["encode_state"]

_ABSENT, _BOOTING, _ALIVE = int(NodePhase.ABSENT), int(NodePhase.BOOTING), int(NodePhase.ALIVE)
_PENDING, _STARTING = int(ReplicaPhase.PENDING), int(ReplicaPhase.STARTING)
_RUNNING, _STOPPING = int(ReplicaPhase.RUNNING), int(ReplicaPhase.STOPPING)
_CALM_SCALE_S = 600.0

# Numba reads module-level integers as constants.
_G_DT_INTERVALS = GLOBAL_FEATURES.index("dt_intervals")
_G_MOVES_IN_FLIGHT_FRAC = GLOBAL_FEATURES.index("moves_in_flight_frac")
_G_LOG_NUM_NODES = GLOBAL_FEATURES.index("log_num_nodes")
_G_LOG_NUM_REPLICAS = GLOBAL_FEATURES.index("log_num_replicas")
_G_BOOTING_FRAC = GLOBAL_FEATURES.index("booting_frac")
_G_BOUND_FRAC = GLOBAL_FEATURES.index("bound_frac")
_G_LOG_IDLE_TIMEOUT = GLOBAL_FEATURES.index("log_idle_timeout")
_G_LOG_INTERVAL_S = GLOBAL_FEATURES.index("log_interval_s")
_G_PACK = GLOBAL_FEATURES.index("pack")
_G_PENDING_FRAC = GLOBAL_FEATURES.index("pending_frac")
_N_PRESENT = NODE_FEATURES.index("present")
_N_ALIVE = NODE_FEATURES.index("alive")
_N_FENCED = NODE_FEATURES.index("fenced")
_N_RELEASABLE = NODE_FEATURES.index("releasable")
_N_HEAD = NODE_FEATURES.index("head")
_N_FREE_GPU_FRAC = NODE_FEATURES.index("free_gpu_frac")
_N_PRICE_REL = NODE_FEATURES.index("price_rel")
_N_LOG_NUM_GPUS = NODE_FEATURES.index("log_num_gpus")
_N_LOG_NUM_REPLICAS = NODE_FEATURES.index("log_num_replicas")
_N_OUTGOING_FRAC = NODE_FEATURES.index("outgoing_frac")
_N_INCOMING_FRAC = NODE_FEATURES.index("incoming_frac")
_N_IDLE_FRAC = NODE_FEATURES.index("idle_frac")
_N_EVACUABLE = NODE_FEATURES.index("evacuable")
_N_LOG_MOVES_NEEDED = NODE_FEATURES.index("log_moves_needed")
_N_COLDSTART_USD_REL = NODE_FEATURES.index("coldstart_usd_rel")
_N_OCCUPIED_FRAC = NODE_FEATURES.index("occupied_frac")
_D_PRESENT = DEPLOYMENT_FEATURES.index("present")
_D_MOVABLE = DEPLOYMENT_FEATURES.index("movable")
_D_DEMAND_GPU_FRAC = DEPLOYMENT_FEATURES.index("demand_gpu_frac")
_D_LOG_TARGET = DEPLOYMENT_FEATURES.index("log_target")
_D_LOG_RUNNING = DEPLOYMENT_FEATURES.index("log_running")
_D_STARTING_FRAC = DEPLOYMENT_FEATURES.index("starting_frac")
_D_LOAD = DEPLOYMENT_FEATURES.index("load")
_D_LOAD_SLOW = DEPLOYMENT_FEATURES.index("load_slow")
_D_WANTED_REL = DEPLOYMENT_FEATURES.index("wanted_rel")
_D_LOG_STARTUP = DEPLOYMENT_FEATURES.index("log_startup")
_D_COOLDOWN_FRAC = DEPLOYMENT_FEATURES.index("cooldown_frac")
_D_CALM = DEPLOYMENT_FEATURES.index("calm")


@njit(cache=True)
def _count_replicas(
    st: StateArrays, by_deployment: NDArray[np.int64], by_node: NDArray[np.int64], occupancy: NDArray[np.float32]
) -> int:
    """Counts replicas: ``(D, 5)`` by phase, ``(N, 3)`` held, outgoing, incoming, and cells; returns the total."""
    total = 0
    for r in range(st.replica_phase.shape[0]):
        phase = st.replica_phase[r]
        if phase == 0:
            continue
        d, n = st.replica_deployment[r], st.replica_node[r]
        is_replacement = st.replica_peer[r] >= 0 and phase < _RUNNING
        if not is_replacement:
            by_deployment[d, phase] += 1
        if phase != _STOPPING:
            total += 1
        if n < 0:
            continue
        by_node[n, 0] += 1
        if is_replacement:
            by_node[n, 2] += 1
        elif st.replica_peer[r] >= 0 or phase == _STOPPING:
            by_node[n, 1] += 1
        if phase == _RUNNING:
            occupancy[n, d] += 1.0
    return total


@njit(cache=True)
def _encode_nodes(
    spec: SpecArrays,
    st: StateArrays,
    now_s: float,
    limits: Limits,
    idle_timeout_s: float,
    move_frac: float,
    disruption_scale: float,
    may_take: NDArray[np.float32],
    by_node: NDArray[np.int64],
    out: NDArray[np.float32],
) -> None:
    num_present, price_sum = 0, 0.0
    for n in range(st.node_type.shape[0]):
        if st.node_phase[n] != _ABSENT:
            num_present += 1
            price_sum += spec.type_price_usd_per_h[st.node_type[n]]
    mean_price = max(1e-9, price_sum / max(1, num_present))
    destination = np.empty(st.replica_phase.shape[0], np.int64)
    for n in range(st.node_type.shape[0]):
        if st.node_phase[n] == _ABSENT:
            continue
        t, f = st.node_type[n], out[n]
        price = spec.type_price_usd_per_h[t]
        f[_N_PRESENT] = 1.0
        f[_N_ALIVE] = 1.0 if st.node_phase[n] == _ALIVE else 0.0
        f[_N_FENCED] = 1.0 if st.node_fenced_until_s[n] > now_s else 0.0
        f[_N_RELEASABLE] = 1.0 if st.node_releasable[n] else 0.0
        f[_N_HEAD] = 1.0 if st.node_is_head[n] else 0.0
        occupied = 0.0
        for k in range(spec.type_capacity.shape[1]):
            capacity = spec.type_capacity[t, k]
            if capacity > 0.0:
                if k < 3:
                    f[_N_FREE_GPU_FRAC + k] = st.node_free[n, k] / capacity
                occupied = max(occupied, (capacity - st.node_free[n, k] - st.node_others[n, k]) / capacity)
        f[_N_PRICE_REL] = price / mean_price
        f[_N_LOG_NUM_GPUS] = math.log1p(spec.type_num_gpus[t])
        held = by_node[n, 0]
        f[_N_LOG_NUM_REPLICAS] = math.log1p(held)
        if held > 0:
            f[_N_OUTGOING_FRAC] = by_node[n, 1] / held
            f[_N_INCOMING_FRAC] = by_node[n, 2] / held
        idle_s = now_s - st.node_idle_since_s[n]
        f[_N_IDLE_FRAC] = min(1.0, max(0.0, idle_s / max(1.0, idle_timeout_s))) if f[_N_ALIVE] > 0 else 0.0
        count = evacuation(spec, st, now_s, limits, may_take, n, destination) if f[_N_ALIVE] > 0 and held > 0 else -1
        if count > 0:
            f[_N_EVACUABLE] = 1.0
            f[_N_LOG_MOVES_NEEDED] = math.log1p(count)
            usd = 0.0
            for r in range(destination.shape[0]):
                if destination[r] >= 0:
                    usd += move_price_usd(spec, st.replica_deployment[r], move_frac, disruption_scale)
            f[_N_COLDSTART_USD_REL] = min(3.0, usd / max(1e-9, price))
        f[_N_OCCUPIED_FRAC] = occupied


@njit(cache=True)
def _encode_deployments(
    spec: SpecArrays,
    st: StateArrays,
    now_s: float,
    limits: Limits,
    interval_s: float,
    counts: NDArray[np.int64],
    out: NDArray[np.float32],
) -> None:
    num_types = spec.type_capacity.shape[0]
    for d in range(spec.demand.shape[0]):
        f = out[d]
        f[_D_PRESENT] = 1.0
        f[_D_MOVABLE] = 1.0 if spec.is_movable[d] else 0.0
        for k in range(3):
            largest = 0.0
            for t in range(num_types):
                largest = max(largest, spec.type_capacity[t, k])
            f[_D_DEMAND_GPU_FRAC + k] = spec.demand[d, k] / largest if largest > 0.0 else 0.0
        target, running = st.deployment_target[d], counts[d, _RUNNING]
        starting = counts[d, _STARTING] + counts[d, _PENDING]
        f[_D_LOG_TARGET] = math.log1p(target)
        f[_D_LOG_RUNNING] = math.log1p(running)
        f[_D_STARTING_FRAC] = min(3.0, starting / max(1, target))
        capacity = max(1, running) * spec.target_ongoing[d]
        f[_D_LOAD] = min(3.0, st.deployment_ongoing[d] / capacity)
        f[_D_LOAD_SLOW] = min(3.0, st.deployment_ongoing_slow[d] / capacity)
        wanted = math.ceil(st.deployment_ongoing[d] / spec.target_ongoing[d])
        wanted = min(max(wanted, spec.min_replicas[d]), spec.max_replicas[d])
        f[_D_WANTED_REL] = min(1.0, max(-1.0, (wanted - target) / max(1, target)))
        f[_D_LOG_STARTUP] = math.log1p(0.5 * (spec.startup_s[d, 0] + spec.startup_s[d, 1]) / interval_s)
        if limits.deployment_cooldown_s > 0.0:
            f[_D_COOLDOWN_FRAC] = min(
                1.0, max(0.0, 1.0 - (now_s - st.deployment_moved_s[d]) / limits.deployment_cooldown_s)
            )
        f[_D_CALM] = min(1.0, (now_s - st.deployment_changed_s[d]) / _CALM_SCALE_S)


@njit(cache=True)
def _encode(
    spec: SpecArrays,
    st: StateArrays,
    now_s: float,
    limits: Limits,
    is_pack: bool,
    idle_timeout_s: float,
    interval_s: float,
    move_frac: float,
    disruption_scale: float,
    dt_intervals: float,
    globals_: NDArray[np.float32],
    nodes: NDArray[np.float32],
    deployments: NDArray[np.float32],
    cells: NDArray[np.float32],
) -> None:
    by_deployment = np.zeros((spec.demand.shape[0], 5), np.int64)
    by_node = np.zeros((st.node_type.shape[0], 3), np.int64)
    total = _count_replicas(st, by_deployment, by_node, cells[0])
    move_masks(spec, st, now_s, limits, cells[1], cells[2])
    _encode_nodes(spec, st, now_s, limits, idle_timeout_s, move_frac, disruption_scale, cells[2], by_node, nodes)
    _encode_deployments(spec, st, now_s, limits, interval_s, by_deployment, deployments)
    present, booting, bill, pending = 0, 0, 0.0, 0
    for n in range(st.node_type.shape[0]):
        if st.node_phase[n] != _ABSENT:
            present += 1
            booting += int(st.node_phase[n] == _BOOTING)
            if not st.node_is_head[n]:
                bill += spec.type_price_usd_per_h[st.node_type[n]]
    for d in range(by_deployment.shape[0]):
        pending += by_deployment[d, _PENDING]
    globals_[_G_DT_INTERVALS] = dt_intervals
    globals_[_G_MOVES_IN_FLIGHT_FRAC] = moves_in_flight(st) / max(1, limits.max_concurrent_moves)
    globals_[_G_LOG_NUM_NODES] = math.log1p(present)
    globals_[_G_LOG_NUM_REPLICAS] = math.log1p(total)
    globals_[_G_BOOTING_FRAC] = booting / max(1, present)
    globals_[_G_BOUND_FRAC] = min(1.0, bound_usd_per_h(spec, st) / bill) if bill > 0.0 else 1.0
    globals_[_G_LOG_IDLE_TIMEOUT] = math.log1p(idle_timeout_s / interval_s)
    globals_[_G_LOG_INTERVAL_S] = math.log(interval_s) / 5.0
    globals_[_G_PACK] = 1.0 if is_pack else 0.0
    globals_[_G_PENDING_FRAC] = pending / max(1, total)


def encode_state(
    state: ClusterState,
    limits: Limits,
    layout: ObsLayout | None = None,
    dt_intervals: float = 0.0,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Encodes one state.

    Args:
        state: The cluster.
        limits: What the safety filter allows: gives the masks.
        layout: Padded size, at least that of the state; the state's own size if None.
        dt_intervals: Decision intervals passed since the previous observation: 0 after a move, 1 after NOOP.
        out: ``(layout.size,)`` float32 to write into; a new vector if None.

    Returns:
        ``(layout.size,)`` float32.

    Raises:
        ValueError: The state is larger than the layout.
    """
    st, spec, settings = state.arrays, state.spec, state.spec.settings
    own = ObsLayout(len(st.node_type), spec.num_deployments)
    layout = layout or own
    if layout.num_nodes < own.num_nodes or layout.num_deployments < own.num_deployments:
        # The kernels do not check bounds: they would write over the neighbours.
        raise ValueError(f"layout must be at least {own}, got {layout}")
    out = np.zeros(layout.size, np.float32) if out is None else out
    out[:] = 0.0
    parts = layout.split(out)
    start = layout.size - 3 * layout.num_nodes * layout.num_deployments
    cells = out[start:].reshape(3, layout.num_nodes, layout.num_deployments)
    _encode(
        spec.arrays,
        st,
        state.now_s,
        limits,
        spec.packs,
        settings.idle_timeout_s,
        settings.decision_interval_s,
        settings.prices.move_frac,
        settings.prices.disruption_scale,
        dt_intervals,
        parts["global"],
        parts["nodes"],
        parts["deployments"],
        cells,
    )
    return out
