"""Encoder: ``ClusterState`` to the flat observation vector of ``layout.py``.

The same function serves training, evaluation and the live decider; it reads nothing that a live cluster cannot
report. Dims: N nodes, D deployments, T node types of the state; the layout may be larger (zero padding).
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.bound import bound_of
from rayfold.envs.cluster import ClusterSpec
from rayfold.envs.evacuation import Workspace, new_workspace, plan_evacuations, sort_replicas
from rayfold.envs.jit import inner, kernel
from rayfold.envs.layout import DEPLOYMENT_FEATURES, GLOBAL_FEATURES, NODE_FEATURES, NODE_TYPE_FEATURES, ObsLayout
from rayfold.envs.safety import (
    Limits,
    cooled_deployments,
    count_nodes,
    mark_destinations,
    mark_new_nodes,
    mark_sources,
    open_nodes,
    source_node_reason,
)
from rayfold.envs.spec_arrays import SpecArrays
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase, StateArrays
from rayfold.envs.views import by_reference

__all__ = ["EncoderConstants", "Parts", "encode", "encode_state", "encoder_constants", "parts_of"]

_ABSENT, _BOOTING = int(NodePhase.ABSENT), int(NodePhase.BOOTING)
_ALIVE, _DRAINING = int(NodePhase.ALIVE), int(NodePhase.DRAINING)
_PENDING, _STARTING = int(ReplicaPhase.PENDING), int(ReplicaPhase.STARTING)
_RUNNING, _STOPPING = int(ReplicaPhase.RUNNING), int(ReplicaPhase.STOPPING)
_CALM_SCALE_S = 600.0
_LOG1P = np.array([math.log1p(i) for i in range(1024)])

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
    disruption_scale: float
    move_usd: NDArray[np.float64]  # (D,) expected price of moving a replica, before disruption_scale
    demand_frac: NDArray[np.float64]  # (D, 3) of the largest node
    log_startup: NDArray[np.float64]  # (D,) as the features of these names
    log_boot: NDArray[np.float64]  # (T,)


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
    settings, arrays = spec.settings, spec.arrays
    interval_s, largest = settings.decision_interval_s, arrays.type_capacity[:, :3].max(axis=0)
    startup_s, boot_s = (0.5 * (times[:, 0] + times[:, 1]) for times in (arrays.startup_s, arrays.type_boot_s))
    return EncoderConstants(
        is_pack=spec.packs,
        idle_timeout_s=settings.idle_timeout_s,
        interval_s=interval_s,
        disruption_scale=settings.prices.disruption_scale,
        move_usd=arrays.replica_usd_per_h * (startup_s / 3600.0 + settings.prices.move_frac),
        demand_frac=np.where(largest > 0.0, arrays.demand[:, :3] / np.where(largest > 0.0, largest, 1.0), 0.0),
        log_startup=np.array([math.log1p(s / interval_s) for s in startup_s]),
        log_boot=np.array([math.log1p(s / interval_s) for s in boot_s]),
    )


def parts_of(flat: NDArray[np.float32], layout: ObsLayout) -> Parts:
    """Views into one flat vector ``(layout.size,)``."""
    return Parts(*layout.split(flat).values())


@inner
def _log1p(count: int) -> float:
    return float(_LOG1P[count]) if count < _LOG1P.shape[0] else math.log1p(count)


@inner
def _count_replicas(st: StateArrays, top: int, work: Workspace, occupancy: NDArray[np.float32]) -> tuple[int, int, int]:
    """Counts the replicas of the first ``top`` rows: ``used``, ``by_deployment``, ``by_node``, and cells.

    Returns:
        Rows in use, replicas that are not stopping, moves in flight.
    """
    phases, deployment, node, peer = st.replica_phase, st.replica_deployment, st.replica_node, st.replica_peer
    used, by_deployment, by_node = work.used, work.by_deployment, work.by_node
    by_deployment[:] = 0
    by_node[:] = 0
    num_used, total, in_flight = 0, 0, 0
    for r in range(top):
        phase = phases[r]
        if phase == 0:
            continue
        used[num_used] = r
        num_used += 1
        d, n, has_peer = deployment[r], node[r], peer[r] >= 0
        is_replacement = has_peer and phase < _RUNNING
        if not is_replacement:
            by_deployment[d, phase] += 1
        if phase != _STOPPING:
            total += 1
        in_flight += int(has_peer and phase == _RUNNING)
        if n < 0:
            continue
        by_node[n, 0] += 1
        if is_replacement:
            by_node[n, 2] += 1
        elif has_peer or phase == _STOPPING:
            by_node[n, 1] += 1
        if phase == _RUNNING:
            occupancy[n, d] += 1.0
    return num_used, total, in_flight


@inner
def _encode_nodes(
    spec: SpecArrays,
    st: StateArrays,
    mean_price: float,
    by_node: NDArray[np.int64],
    out: NDArray[np.float32],
) -> None:
    node_type, phase, free, others = st.node_type, st.node_phase, st.node_free, st.node_others
    releasable, is_head, capacity, price = (
        st.node_releasable,
        st.node_is_head,
        spec.type_capacity,
        spec.type_price_usd_per_h,
    )
    is_spot, num_gpus = spec.type_is_spot, spec.type_num_gpus
    for n in range(node_type.shape[0]):
        if phase[n] == _ABSENT:
            continue
        t = node_type[n]
        out[n, _N_PRESENT] = 1.0
        out[n, _N_ALIVE] = 1.0 if phase[n] == _ALIVE else 0.0
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
        out[n, _N_LOG_NUM_GPUS] = _log1p(num_gpus[t])
        held = by_node[n, 0]
        if held > 0:
            out[n, _N_LOG_NUM_REPLICAS] = _log1p(held)
            out[n, _N_OUTGOING_FRAC] = by_node[n, 1] / held
            out[n, _N_INCOMING_FRAC] = by_node[n, 2] / held


@inner
def _encode_node_times(
    st: StateArrays, now_s: float, idle_timeout_s: float, by_node: NDArray[np.int64], out: NDArray[np.float32]
) -> None:
    """What changes on nodes though nothing happens."""
    phase, fenced_until_s, idle_since_s = st.node_phase, st.node_fenced_until_s, st.node_idle_since_s
    for n in range(phase.shape[0]):
        if phase[n] == _ABSENT:
            continue
        out[n, _N_FENCED] = 1.0 if fenced_until_s[n] > now_s else 0.0
        if by_node[n, 0] == 0 and phase[n] == _ALIVE:
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
    count = work.num_moves
    plan_evacuations(spec, st, destination_mask, work, count)
    node_type, price, deployment = st.node_type, spec.type_price_usd_per_h, st.replica_deployment
    begin, rows, move_usd = work.begin, work.rows, const.move_usd
    for n in range(count.shape[0]):
        if count[n] <= 0:
            continue
        usd = 0.0
        for i in range(begin[n], begin[n + 1]):
            usd += move_usd[deployment[rows[i]]]
        usd *= const.disruption_scale
        out[n, _N_EVACUABLE] = 1.0
        out[n, _N_LOG_MOVES_NEEDED] = _log1p(count[n])
        out[n, _N_COLDSTART_USD_REL] = min(3.0, usd / max(1e-9, price[node_type[n]]))
        evacuate_mask[n] = 1.0 if has_room_to_move else 0.0


@inner
def _encode_types(
    spec: SpecArrays,
    counts: NDArray[np.int64],
    log_boot: NDArray[np.float64],
    mean_price: float,
    out: NDArray[np.float32],
) -> None:
    for t in range(counts.shape[0]):
        f = out[t]
        f[_T_PRESENT] = 1.0
        f[_T_PRICE_REL] = min(64.0, spec.type_price_usd_per_h[t] / mean_price)
        f[_T_LOG_NUM_GPUS] = _log1p(spec.type_num_gpus[t])
        f[_T_LOG_BOOT] = log_boot[t]
        f[_T_SPOT] = 1.0 if spec.type_is_spot[t] else 0.0
        f[_T_ROOM_FRAC] = max(0, spec.type_max_nodes[t] - counts[t]) / max(1, spec.type_max_nodes[t])


@inner
def _encode_deployments(
    spec: SpecArrays,
    st: StateArrays,
    const: EncoderConstants,
    counts: NDArray[np.int64],
    out: NDArray[np.float32],
) -> None:
    for d in range(spec.demand.shape[0]):
        out[d, _D_PRESENT] = 1.0
        out[d, _D_MOVABLE] = 1.0 if spec.is_movable[d] else 0.0
        for k in range(3):
            out[d, _D_DEMAND_GPU_FRAC + k] = const.demand_frac[d, k]
        target, starting = st.deployment_target[d], counts[d, _STARTING] + counts[d, _PENDING]
        out[d, _D_LOG_TARGET] = _log1p(target)
        out[d, _D_LOG_RUNNING] = _log1p(counts[d, _RUNNING])
        out[d, _D_STARTING_FRAC] = min(3.0, starting / max(1, target))
        out[d, _D_LOG_STARTUP] = const.log_startup[d]


@inner
def _encode_load(
    spec: SpecArrays,
    st: StateArrays,
    now_s: float,
    cooldown_s: float,
    counts: NDArray[np.int64],
    out: NDArray[np.float32],
) -> None:
    """What changes on deployments though nothing happens."""
    targets, ongoing, slow, target_ongoing = (
        st.deployment_target,
        st.deployment_ongoing,
        st.deployment_ongoing_slow,
        spec.target_ongoing,
    )
    min_replicas, max_replicas, moved_s, changed_s = (
        spec.min_replicas,
        spec.max_replicas,
        st.deployment_moved_s,
        st.deployment_changed_s,
    )
    for d in range(targets.shape[0]):
        target = targets[d]
        capacity = max(1, counts[d, _RUNNING]) * target_ongoing[d]
        out[d, _D_LOAD] = min(3.0, ongoing[d] / capacity)
        out[d, _D_LOAD_SLOW] = min(3.0, slow[d] / capacity)
        wanted = math.ceil(ongoing[d] / target_ongoing[d])
        wanted = min(max(wanted, min_replicas[d]), max_replicas[d])
        out[d, _D_WANTED_REL] = min(1.0, max(-1.0, (wanted - target) / max(1, target)))
        if cooldown_s > 0.0:
            out[d, _D_COOLDOWN_FRAC] = min(1.0, max(0.0, 1.0 - (now_s - moved_s[d]) / cooldown_s))
        out[d, _D_CALM] = min(1.0, (now_s - changed_s[d]) / _CALM_SCALE_S)


@inner
def _copy(source: Parts, target: Parts) -> None:
    target.globals[:] = source.globals
    target.nodes[:] = source.nodes
    target.deployments[:] = source.deployments
    target.node_types[:] = source.node_types
    target.occupancy[:] = source.occupancy
    target.source_mask[:] = source.source_mask
    target.destination_mask[:] = source.destination_mask
    target.new_node_mask[:] = source.new_node_mask
    target.evacuate_mask[:] = source.evacuate_mask


@inner
def _clear(parts: Parts) -> None:
    parts.globals[:] = 0.0
    parts.nodes[:] = 0.0
    parts.deployments[:] = 0.0
    parts.node_types[:] = 0.0
    parts.occupancy[:] = 0.0
    parts.source_mask[:] = 0.0
    parts.destination_mask[:] = 0.0
    parts.new_node_mask[:] = 0.0
    parts.evacuate_mask[:] = 0.0


@kernel
def encode(
    spec: SpecArrays,
    st: StateArrays,
    now_s: float,
    limits: Limits,
    const: EncoderConstants,
    dt_intervals: float,
    top: int,
    changes: int,
    work: Workspace,
    last: Parts,
    parts: Parts,
) -> None:
    """Writes one observation into ``parts``; see ``encode_state``.

    Where neither a node nor a replica has changed since the last one, and the filter allows the same, what tells of
    them is copied.

    Args:
        spec: Static description.
        st: State.
        now_s: Its clock.
        limits: Of the safety filter.
        const: Scalars.
        dt_intervals: A feature.
        top: No replica row from here on is in use.
        changes: Differs where a node or a replica differs; -1 = unknown.
        work: Memory, written.
        last: The observation written last with this ``work``, written.
        parts: Written.
    """
    is_same = changes >= 0 and changes == work.seen[0]
    is_same &= cooled_deployments(spec, st, now_s, limits, work.may_move)
    is_same &= open_nodes(st, now_s, limits, work.is_open)
    if not is_same:
        _encode_all(spec, st, limits, const, top, work, last)
        work.seen[0] = changes
    last.globals[_G_DT_INTERVALS] = dt_intervals
    _encode_node_times(st, now_s, const.idle_timeout_s, work.by_node, last.nodes)
    _encode_load(spec, st, now_s, limits.deployment_cooldown_s, work.by_deployment, last.deployments)
    _copy(last, parts)


@inner
def _encode_all(
    spec: SpecArrays,
    st: StateArrays,
    limits: Limits,
    const: EncoderConstants,
    top: int,
    work: Workspace,
    parts: Parts,
) -> None:
    """All but what ``_encode_node_times`` and ``_encode_load`` write, where ``may_move`` and ``is_open`` are known."""
    _clear(parts)
    num_nodes, num_deployments = st.node_type.shape[0], spec.demand.shape[0]
    by_deployment, takers = work.by_deployment, work.takers
    num_used, total, in_flight = _count_replicas(st, top, work, parts.occupancy)
    counts = count_nodes(st, spec.type_capacity.shape[0])
    present, booting, bill, price_sum = 0, 0, 0.0, 0.0
    for n in range(num_nodes):
        work.can_leave[n] = source_node_reason(spec, st, counts, n) == 0
        if st.node_phase[n] != _ABSENT:
            price = spec.type_price_usd_per_h[st.node_type[n]]
            present += 1
            booting += int(st.node_phase[n] == _BOOTING)
            price_sum += price
            bill += 0.0 if st.node_is_head[n] else price
    takers[:] = 0
    mark_destinations(spec, st, work.is_open, parts.destination_mask, takers)
    mark_new_nodes(spec, counts, limits, parts.new_node_mask, takers)
    has_room_to_move = in_flight < limits.max_concurrent_moves
    if has_room_to_move:
        mark_sources(
            st, work.used, num_used, work.can_leave, work.may_move, parts.destination_mask, takers, parts.source_mask
        )
    sort_replicas(spec, st, num_used, work)
    mean_price = max(1e-9, price_sum / max(1, present))
    _encode_nodes(spec, st, mean_price, work.by_node, parts.nodes)
    _encode_evacuations(
        spec, st, const, has_room_to_move, work, parts.destination_mask, parts.nodes, parts.evacuate_mask
    )
    _encode_deployments(spec, st, const, by_deployment, parts.deployments)
    _encode_types(spec, counts, const.log_boot, mean_price, parts.node_types)
    live, pending = takers, 0  # its memory is free again
    for d in range(num_deployments):
        pending += by_deployment[d, _PENDING]
        live[d] = by_deployment[d, _PENDING] + by_deployment[d, _STARTING] + by_deployment[d, _RUNNING]
    g = parts.globals
    g[_G_MOVES_IN_FLIGHT_FRAC] = in_flight / max(1, limits.max_concurrent_moves)
    g[_G_LOG_NUM_NODES] = _log1p(present)
    g[_G_LOG_NUM_REPLICAS] = _log1p(total)
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
    out = np.empty(layout.size, np.float32) if out is None else out
    work, parts, top = new_workspace(st), parts_of(out, layout), len(st.replica_phase)
    encode(spec.arrays, st, state.now_s, limits, encoder_constants(spec), dt_intervals, top, -1, work, parts, parts)
    return out
