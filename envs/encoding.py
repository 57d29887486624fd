"""Encoder: ``ClusterState`` to the flat observation vector of ``layout.py``.

The same function serves training, evaluation and the live decider; it reads nothing that a live cluster cannot
report. Dims: N nodes, D deployments, T node types of the state; the layout may be larger (zero padding).
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.bound import bound_of
from rayfold.envs.cluster import ClusterSpec, SpecArrays
from rayfold.envs.evacuation import Workspace, new_workspace, plan_evacuations, prepare
from rayfold.envs.jit import inner, kernel
from rayfold.envs.layout import DEPLOYMENT_FEATURES, GLOBAL_FEATURES, NODE_FEATURES, NODE_TYPE_FEATURES, ObsLayout
from rayfold.envs.safety import Limits, count_nodes, move_masks, moves_in_flight
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase, StateArrays
from rayfold.envs.views import by_reference

__all__ = ["EncoderConstants", "Parts", "encode", "encode_state", "encoder_constants", "parts_of"]

_ABSENT, _BOOTING = int(NodePhase.ABSENT), int(NodePhase.BOOTING)
_ALIVE, _DRAINING = int(NodePhase.ALIVE), int(NodePhase.DRAINING)
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
_N_DRAINING = NODE_FEATURES.index("draining")
_N_SPOT = NODE_FEATURES.index("spot")
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
_T_PRESENT = NODE_TYPE_FEATURES.index("present")
_T_PRICE_REL = NODE_TYPE_FEATURES.index("price_rel")
_T_LOG_NUM_GPUS = NODE_TYPE_FEATURES.index("log_num_gpus")
_T_LOG_BOOT = NODE_TYPE_FEATURES.index("log_boot")
_T_SPOT = NODE_TYPE_FEATURES.index("spot")
_T_ROOM_FRAC = NODE_TYPE_FEATURES.index("room_frac")


@by_reference(is_written=False)
class EncoderConstants(NamedTuple):
    """Scalars of a cluster that observations tell."""

    is_pack: bool
    idle_timeout_s: float
    interval_s: float
    move_frac: float
    disruption_scale: float


@by_reference(is_written=True)
class Parts(NamedTuple):
    """An observation as views into its flat vector; see ``ObsLayout.shapes``."""

    globals: NDArray[np.float32]  # (G,)
    nodes: NDArray[np.float32]  # (N, FN)
    deployments: NDArray[np.float32]  # (D, FD)
    node_types: NDArray[np.float32]  # (T, FT)
    occupancy: NDArray[np.float32]  # (N, D)
    source_mask: NDArray[np.float32]  # (N, D)
    destination_mask: NDArray[np.float32]  # (N, D)
    new_node_mask: NDArray[np.float32]  # (T, D)
    evacuate_mask: NDArray[np.float32]  # (N,)


def encoder_constants(spec: ClusterSpec) -> EncoderConstants:
    """The scalars of a cluster."""
    settings = spec.settings
    return EncoderConstants(
        is_pack=spec.packs,
        idle_timeout_s=settings.idle_timeout_s,
        interval_s=settings.decision_interval_s,
        move_frac=settings.prices.move_frac,
        disruption_scale=settings.prices.disruption_scale,
    )


def parts_of(flat: NDArray[np.float32], layout: ObsLayout) -> Parts:
    """Views into one flat vector ``(layout.size,)``."""
    return Parts(*layout.split(flat).values())


@inner
def _count_replicas(
    st: StateArrays, by_deployment: NDArray[np.int64], by_node: NDArray[np.int64], occupancy: NDArray[np.float32]
) -> int:
    """Counts replicas: ``(D, 5)`` by phase, ``(N, 3)`` held, outgoing, incoming, and cells; returns the total."""
    total, phases, deployment, node, peer = 0, st.replica_phase, st.replica_deployment, st.replica_node, st.replica_peer
    for r in range(phases.shape[0]):
        phase = phases[r]
        if phase == 0:
            continue
        d, n = deployment[r], node[r]
        is_replacement = peer[r] >= 0 and phase < _RUNNING
        if not is_replacement:
            by_deployment[d, phase] += 1
        if phase != _STOPPING:
            total += 1
        if n < 0:
            continue
        by_node[n, 0] += 1
        if is_replacement:
            by_node[n, 2] += 1
        elif peer[r] >= 0 or phase == _STOPPING:
            by_node[n, 1] += 1
        if phase == _RUNNING:
            occupancy[n, d] += 1.0
    return total


@inner
def _encode_nodes(
    spec: SpecArrays,
    st: StateArrays,
    now_s: float,
    idle_timeout_s: float,
    mean_price: float,
    by_node: NDArray[np.int64],
    out: NDArray[np.float32],
) -> None:
    # Local names: numba counts references at every access to a field.
    node_type, phase, free, others = st.node_type, st.node_phase, st.node_free, st.node_others
    fenced_until_s, releasable, is_head = st.node_fenced_until_s, st.node_releasable, st.node_is_head
    idle_since_s, capacity, price = st.node_idle_since_s, spec.type_capacity, spec.type_price_usd_per_h
    is_spot, num_gpus = spec.type_is_spot, spec.type_num_gpus
    for n in range(node_type.shape[0]):
        if phase[n] == _ABSENT:
            continue
        t = node_type[n]
        out[n, _N_PRESENT] = 1.0
        out[n, _N_ALIVE] = 1.0 if phase[n] == _ALIVE else 0.0
        out[n, _N_FENCED] = 1.0 if fenced_until_s[n] > now_s else 0.0
        out[n, _N_RELEASABLE] = 1.0 if releasable[n] else 0.0
        out[n, _N_HEAD] = 1.0 if is_head[n] else 0.0
        out[n, _N_DRAINING] = 1.0 if phase[n] == _DRAINING else 0.0
        out[n, _N_SPOT] = 1.0 if is_spot[t] else 0.0
        occupied = 0.0
        for k in range(capacity.shape[1]):
            if capacity[t, k] > 0.0:
                if k < 3:
                    out[n, _N_FREE_GPU_FRAC + k] = free[n, k] / capacity[t, k]
                occupied = max(occupied, (capacity[t, k] - free[n, k] - others[n, k]) / capacity[t, k])
        out[n, _N_OCCUPIED_FRAC] = occupied
        out[n, _N_PRICE_REL] = price[t] / mean_price
        out[n, _N_LOG_NUM_GPUS] = math.log1p(num_gpus[t])
        held = by_node[n, 0]
        if held > 0:
            out[n, _N_LOG_NUM_REPLICAS] = math.log1p(held)
            out[n, _N_OUTGOING_FRAC] = by_node[n, 1] / held
            out[n, _N_INCOMING_FRAC] = by_node[n, 2] / held
        elif phase[n] == _ALIVE:
            idle_s = now_s - idle_since_s[n]
            out[n, _N_IDLE_FRAC] = min(1.0, max(0.0, idle_s / max(1.0, idle_timeout_s)))


@inner
def _encode_evacuations(
    spec: SpecArrays,
    st: StateArrays,
    const: EncoderConstants,
    has_room_to_move: bool,
    work: Workspace,
    destination_mask: NDArray[np.float32],
    out: NDArray[np.float32],
    evacuate_mask: NDArray[np.float32],
) -> None:
    count = np.empty(st.node_type.shape[0], np.int64)
    plan_evacuations(spec, st, destination_mask, work, count)
    node_type, price, deployment = st.node_type, spec.type_price_usd_per_h, st.replica_deployment
    begin, rows, startup_s, replica_usd = work.begin, work.rows, spec.startup_s, spec.replica_usd_per_h
    for n in range(count.shape[0]):
        if count[n] <= 0:
            continue
        usd = 0.0
        for i in range(begin[n], begin[n + 1]):
            d = deployment[rows[i]]
            usd += replica_usd[d] * (0.5 * (startup_s[d, 0] + startup_s[d, 1]) / 3600.0 + const.move_frac)
        usd *= const.disruption_scale
        out[n, _N_EVACUABLE] = 1.0
        out[n, _N_LOG_MOVES_NEEDED] = math.log1p(count[n])
        out[n, _N_COLDSTART_USD_REL] = min(3.0, usd / max(1e-9, price[node_type[n]]))
        evacuate_mask[n] = 1.0 if has_room_to_move else 0.0


@inner
def _encode_types(
    spec: SpecArrays, st: StateArrays, interval_s: float, mean_price: float, out: NDArray[np.float32]
) -> None:
    counts = count_nodes(st, spec.type_capacity.shape[0])
    for t in range(counts.shape[0]):
        f = out[t]
        f[_T_PRESENT] = 1.0
        f[_T_PRICE_REL] = min(64.0, spec.type_price_usd_per_h[t] / mean_price)
        f[_T_LOG_NUM_GPUS] = math.log1p(spec.type_num_gpus[t])
        f[_T_LOG_BOOT] = math.log1p(0.5 * (spec.type_boot_s[t, 0] + spec.type_boot_s[t, 1]) / interval_s)
        f[_T_SPOT] = 1.0 if spec.type_is_spot[t] else 0.0
        f[_T_ROOM_FRAC] = max(0, spec.type_max_nodes[t] - counts[t]) / max(1, spec.type_max_nodes[t])


@inner
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


@kernel
def encode(
    spec: SpecArrays,
    st: StateArrays,
    now_s: float,
    limits: Limits,
    const: EncoderConstants,
    dt_intervals: float,
    work: Workspace,
    parts: Parts,
) -> None:
    """Writes one observation into ``parts``, which must be zero; see ``encode_state``."""
    num_deployments = spec.demand.shape[0]
    by_deployment = np.zeros((num_deployments, 5), np.int64)
    by_node = np.zeros((st.node_type.shape[0], 3), np.int64)
    total = _count_replicas(st, by_deployment, by_node, parts.occupancy)
    move_masks(spec, st, now_s, limits, parts.source_mask, parts.destination_mask, parts.new_node_mask)
    prepare(spec, st, now_s, limits, work)
    present, booting, bill, price_sum, in_flight = 0, 0, 0.0, 0.0, moves_in_flight(st)
    for n in range(st.node_type.shape[0]):
        if st.node_phase[n] != _ABSENT:
            price = spec.type_price_usd_per_h[st.node_type[n]]
            present += 1
            booting += int(st.node_phase[n] == _BOOTING)
            price_sum += price
            bill += 0.0 if st.node_is_head[n] else price
    mean_price = max(1e-9, price_sum / max(1, present))
    has_room_to_move = in_flight < limits.max_concurrent_moves
    _encode_nodes(spec, st, now_s, const.idle_timeout_s, mean_price, by_node, parts.nodes)
    _encode_evacuations(
        spec, st, const, has_room_to_move, work, parts.destination_mask, parts.nodes, parts.evacuate_mask
    )
    _encode_deployments(spec, st, now_s, limits, const.interval_s, by_deployment, parts.deployments)
    _encode_types(spec, st, const.interval_s, mean_price, parts.node_types)
    live, pending = np.zeros(num_deployments, np.int64), 0
    for d in range(num_deployments):
        pending += by_deployment[d, _PENDING]
        live[d] = by_deployment[d, _PENDING] + by_deployment[d, _STARTING] + by_deployment[d, _RUNNING]
    g = parts.globals
    g[_G_DT_INTERVALS] = dt_intervals
    g[_G_MOVES_IN_FLIGHT_FRAC] = in_flight / max(1, limits.max_concurrent_moves)
    g[_G_LOG_NUM_NODES] = math.log1p(present)
    g[_G_LOG_NUM_REPLICAS] = math.log1p(total)
    g[_G_BOOTING_FRAC] = booting / max(1, present)
    g[_G_BOUND_FRAC] = min(1.0, bound_of(spec, live) / bill) if bill > 0.0 else 1.0
    g[_G_LOG_IDLE_TIMEOUT] = math.log1p(const.idle_timeout_s / const.interval_s)
    g[_G_LOG_INTERVAL_S] = math.log(const.interval_s) / 5.0
    g[_G_PACK] = 1.0 if const.is_pack else 0.0
    g[_G_PENDING_FRAC] = pending / max(1, total)


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
    st, spec = state.arrays, state.spec
    own = ObsLayout(len(st.node_type), spec.num_deployments, len(spec.node_types))
    layout = layout or own
    if any(size < least for size, least in zip(layout, own, strict=True)):
        # The kernels do not check bounds: they would write over the neighbours.
        raise ValueError(f"layout must be at least {own}, got {layout}")
    out = np.zeros(layout.size, np.float32) if out is None else out
    out[:] = 0.0
    parts = parts_of(out, layout)
    encode(spec.arrays, st, state.now_s, limits, encoder_constants(spec), dt_intervals, new_workspace(st), parts)
    return out
