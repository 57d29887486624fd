"""The safety filter: may this replica move to that node now?

One pure rule set, used as action mask in the environment, in evaluation and live. The masks look a node and a
deployment up once for all cells; that they agree with the verdicts is tested cell by cell. Dims: N nodes, R replicas,
D deployments.
"""

import enum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.devices import EPS, NO_DEVICES, can_take_gpus, take_gpus
from rayfold.envs.jit import inlined, inner, kernel
from rayfold.envs.moves import Move
from rayfold.envs.spec_arrays import SpecArrays
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase, StateArrays
from rayfold.envs.views import by_reference

__all__ = [
    "Limits",
    "Reason",
    "Verdict",
    "can_take_bundles",
    "capacity_reason",
    "check_move",
    "cooled_deployments",
    "count_nodes",
    "destination_node_reason",
    "destination_reason",
    "has_capacity",
    "has_whole_capacity",
    "is_full",
    "mark_destinations",
    "mark_new_nodes",
    "mark_sources",
    "movable_replica",
    "move_masks",
    "move_reason",
    "moves_in_flight",
    "open_nodes",
    "replica_reason",
    "source_node_reason",
    "source_reason",
]


@by_reference(is_written=False)
class Limits(NamedTuple):
    """What the filter allows. Every default is a safe one."""

    max_concurrent_moves: int = 4  # replacements starting at once
    deployment_cooldown_s: float = 120.0  # between ticks that move replicas of one deployment
    fence_s: float = 600.0  # a node that a replica was moved off takes no new ones for this long
    use_unreleasable_nodes: bool = False  # as destinations; they are never emptied
    allow_new_nodes: bool = False  # as destinations: a move may first launch the node that it goes to


class Reason(enum.IntEnum):
    """Why a move is refused; ALLOWED where it is not."""

    ALLOWED = 0
    NO_SUCH_REPLICA = 1
    REPLICA_NOT_RUNNING = 2
    ALREADY_MOVING = 3
    DEPLOYMENT_OPTED_OUT = 4
    DEPLOYMENT_COOLDOWN = 5
    TOO_MANY_MOVES = 6
    SOURCE_IS_HEAD = 7
    SOURCE_NOT_RELEASABLE = 8
    SOURCE_AT_MIN_NODES = 9
    NO_SUCH_NODE = 10
    SAME_NODE = 11
    DESTINATION_NOT_ALIVE = 12
    DESTINATION_IS_HEAD = 13
    DESTINATION_NOT_RELEASABLE = 14
    DESTINATION_FENCED = 15
    LABELS_DO_NOT_MATCH = 16
    NO_CAPACITY = 17
    NO_GPU_DEVICE = 18
    MAX_REPLICAS_PER_NODE = 19
    REPLICA_SPANS_NODES = 20
    SOURCE_OPTED_OUT = 21
    SOURCE_NOT_ALIVE = 22
    NEW_NODES_NOT_ALLOWED = 23
    TYPE_AT_MAX_NODES = 24


class Verdict(NamedTuple):
    """Answer of the filter for one move."""

    allowed: bool
    reason: Reason


# Numba reads module-level integers as constants, and enum members not at all.
_ALLOWED = int(Reason.ALLOWED)
_NO_SUCH_REPLICA = int(Reason.NO_SUCH_REPLICA)
_REPLICA_NOT_RUNNING = int(Reason.REPLICA_NOT_RUNNING)
_ALREADY_MOVING = int(Reason.ALREADY_MOVING)
_OPTED_OUT = int(Reason.DEPLOYMENT_OPTED_OUT)
_COOLDOWN = int(Reason.DEPLOYMENT_COOLDOWN)
_TOO_MANY_MOVES = int(Reason.TOO_MANY_MOVES)
_SOURCE_IS_HEAD = int(Reason.SOURCE_IS_HEAD)
_SOURCE_NOT_RELEASABLE = int(Reason.SOURCE_NOT_RELEASABLE)
_SOURCE_AT_MIN = int(Reason.SOURCE_AT_MIN_NODES)
_NO_SUCH_NODE = int(Reason.NO_SUCH_NODE)
_SAME_NODE = int(Reason.SAME_NODE)
_NOT_ALIVE = int(Reason.DESTINATION_NOT_ALIVE)
_DESTINATION_IS_HEAD = int(Reason.DESTINATION_IS_HEAD)
_DESTINATION_NOT_RELEASABLE = int(Reason.DESTINATION_NOT_RELEASABLE)
_FENCED = int(Reason.DESTINATION_FENCED)
_LABELS = int(Reason.LABELS_DO_NOT_MATCH)
_NO_CAPACITY = int(Reason.NO_CAPACITY)
_NO_GPU_DEVICE = int(Reason.NO_GPU_DEVICE)
_MAX_PER_NODE = int(Reason.MAX_REPLICAS_PER_NODE)
_SPANS = int(Reason.REPLICA_SPANS_NODES)
_SOURCE_OPTED_OUT = int(Reason.SOURCE_OPTED_OUT)
_SOURCE_NOT_ALIVE = int(Reason.SOURCE_NOT_ALIVE)
_NO_NEW_NODES = int(Reason.NEW_NODES_NOT_ALLOWED)
_AT_MAX = int(Reason.TYPE_AT_MAX_NODES)
_ALIVE = int(NodePhase.ALIVE)
_RUNNING, _EMPTY = int(ReplicaPhase.RUNNING), int(ReplicaPhase.EMPTY)


@kernel
def moves_in_flight(st: StateArrays, top: int = -1) -> int:
    """Replicas whose replacement is still starting; no row from ``top`` on is in use, -1 = any may be."""
    count, phase, peer = 0, st.replica_phase, st.replica_peer
    for r in range(phase.shape[0] if top < 0 else top):
        if peer[r] >= 0 and phase[r] == _RUNNING:
            count += 1
    return count


@kernel
def count_nodes(st: StateArrays, num_types: int) -> NDArray[np.int64]:
    """Nodes present per type: ``(T,)``."""
    counts, node_type = np.zeros(num_types, np.int64), st.node_type
    for n in range(node_type.shape[0]):
        if node_type[n] >= 0:
            counts[node_type[n]] += 1
    return counts


@inner
def _is_cooling(now_s: float, moved_s: float, cooldown_s: float) -> bool:
    """Whether a deployment moved too lately.

    Moves decided at one tick share its clock, so a cooldown separates ticks, not moves of a plan.
    """
    since_s = now_s - moved_s
    return since_s > 0.0 and since_s < cooldown_s


@inner
def replica_reason(spec: SpecArrays, st: StateArrays, now_s: float, limits: Limits, r: int, in_flight: int) -> int:
    """Why replica ``r`` may not be moved, for reasons of its own; see ``source_reason``."""
    if r < 0 or r >= st.replica_phase.shape[0] or st.replica_phase[r] == _EMPTY:
        return _NO_SUCH_REPLICA
    if st.replica_phase[r] != _RUNNING:
        return _REPLICA_NOT_RUNNING
    if st.replica_peer[r] >= 0:
        return _ALREADY_MOVING
    d = st.replica_deployment[r]
    if not spec.is_movable[d]:
        return _OPTED_OUT
    if st.replica_spans[r]:
        return _SPANS
    if _is_cooling(now_s, st.deployment_moved_s[d], limits.deployment_cooldown_s):
        return _COOLDOWN
    if in_flight >= limits.max_concurrent_moves:
        return _TOO_MANY_MOVES
    return _ALLOWED


@inner
def source_node_reason(spec: SpecArrays, st: StateArrays, counts: NDArray[np.int64], n: int) -> int:
    """Why no replica may leave node ``n``; ``counts`` is ``count_nodes``."""
    if st.node_phase[n] != _ALIVE:
        return _SOURCE_NOT_ALIVE
    if st.node_is_head[n]:
        return _SOURCE_IS_HEAD
    if st.node_is_opted_out[n]:
        return _SOURCE_OPTED_OUT
    if not st.node_releasable[n]:
        return _SOURCE_NOT_RELEASABLE
    if counts[st.node_type[n]] <= spec.type_min_nodes[st.node_type[n]]:
        return _SOURCE_AT_MIN
    return _ALLOWED


@kernel
def source_reason(spec: SpecArrays, st: StateArrays, now_s: float, limits: Limits, r: int, in_flight: int) -> int:
    """Why replica ``r`` may not leave its node, wherever it would go.

    Args:
        spec: Static description.
        st: State.
        now_s: Its clock.
        limits: Limits.
        r: Replica row.
        in_flight: ``moves_in_flight(st)``.

    Returns:
        A ``Reason``; that of the replica before that of the node.
    """
    reason = replica_reason(spec, st, now_s, limits, r, in_flight)
    if reason != _ALLOWED:
        return reason
    return source_node_reason(spec, st, count_nodes(st, spec.type_capacity.shape[0]), st.replica_node[r])


@kernel
def movable_replica(
    spec: SpecArrays, st: StateArrays, now_s: float, limits: Limits, n: int, d: int, top: int = -1
) -> int:
    """First replica of deployment ``d`` that may leave node ``n``, -1 if there is none; see ``moves_in_flight``."""
    if st.node_held[n, d] == 0:
        return -1
    if source_node_reason(spec, st, count_nodes(st, spec.type_capacity.shape[0]), n) != _ALLOWED:
        return -1
    in_flight = moves_in_flight(st, top)
    node, deployment = st.replica_node, st.replica_deployment
    for r in range(node.shape[0]):
        if node[r] == n and deployment[r] == d and replica_reason(spec, st, now_s, limits, r, in_flight) == _ALLOWED:
            return r
    return -1


@inner
def can_take_bundles(
    bundle: NDArray[np.float64], num_bundles: NDArray[np.int64], gpu_free: NDArray[np.float64], d: int, n: int
) -> bool:
    """Whether the devices of ``n`` hold every bundle of ``d``, each on devices of its own choice."""
    before = gpu_free[n].copy()
    fits = True
    for j in range(num_bundles[d]):
        if take_gpus(gpu_free, n, bundle[d, j, 0]) == NO_DEVICES:
            fits = False
            break
    gpu_free[n] = before
    return fits


@inlined
def has_capacity(
    demand: NDArray[np.float64],
    bundle: NDArray[np.float64],
    num_bundles: NDArray[np.int64],
    max_per_node: NDArray[np.int64],
    sums_gpus: NDArray[np.bool_],
    node_free: NDArray[np.float64],
    gpu_free: NDArray[np.float64],
    held: NDArray[np.int64],
    d: int,
    n: int,
) -> bool:
    """``safety.capacity_reason`` without the labels, on the arrays themselves."""
    for k in range(demand.shape[1]):
        if demand[d, k] > node_free[n, k] + EPS:
            return False
    if max_per_node[d] > 0 and held[n, d] >= max_per_node[d]:
        return False
    if sums_gpus[d]:
        return bool(can_take_gpus(gpu_free, n, demand[d, 0]))
    return bool(can_take_bundles(bundle, num_bundles, gpu_free, d, n))


@inner
def has_whole_capacity(
    demand: NDArray[np.float64],
    max_per_node: NDArray[np.int64],
    node_free: NDArray[np.float64],
    whole: NDArray[np.int64],
    held: NDArray[np.int64],
    d: int,
    n: int,
) -> bool:
    """``has_capacity`` where every demand is whole devices, of which ``whole`` ``(N,)`` are free."""
    for k in range(demand.shape[1]):
        if demand[d, k] > node_free[n, k] + EPS:
            return False
    if max_per_node[d] > 0 and held[n, d] >= max_per_node[d]:
        return False
    return bool(demand[d, 0] <= EPS or whole[n] + EPS >= demand[d, 0])


@kernel
def capacity_reason(spec: SpecArrays, st: StateArrays, d: int, n: int) -> int:
    """Why one more replica of ``d`` does not fit on ``n``: labels, resources, devices, replicas per node."""
    if not spec.fits_type[d, st.node_type[n]]:
        return _LABELS
    for k in range(spec.demand.shape[1]):
        if spec.demand[d, k] > st.node_free[n, k] + EPS:
            return _NO_CAPACITY
    if spec.sums_gpus[d]:
        if not can_take_gpus(st.gpu_free, n, spec.demand[d, 0]):
            return _NO_GPU_DEVICE
    elif not can_take_bundles(spec.bundle, spec.num_bundles, st.gpu_free, d, n):
        return _NO_GPU_DEVICE
    if spec.max_per_node[d] > 0 and st.node_held[n, d] >= spec.max_per_node[d]:
        return _MAX_PER_NODE
    return _ALLOWED


@inner
def destination_node_reason(st: StateArrays, now_s: float, limits: Limits, n: int) -> int:
    """Why no replica at all may be moved to node ``n``."""
    if st.node_phase[n] != _ALIVE:
        return _NOT_ALIVE
    if st.node_is_head[n]:
        return _DESTINATION_IS_HEAD
    if not st.node_releasable[n] and not limits.use_unreleasable_nodes:
        return _DESTINATION_NOT_RELEASABLE
    if st.node_fenced_until_s[n] > now_s:
        return _FENCED
    return _ALLOWED


@kernel
def destination_reason(spec: SpecArrays, st: StateArrays, now_s: float, limits: Limits, d: int, n: int) -> int:
    """Why no replica of deployment ``d`` may be moved to node ``n``, whichever it is; a ``Reason``."""
    reason = destination_node_reason(st, now_s, limits, n)
    return reason if reason != _ALLOWED else capacity_reason(spec, st, d, n)


@inner
def new_node_reason(spec: SpecArrays, counts: NDArray[np.int64], limits: Limits, d: int, t: int) -> int:
    """Why no replica of ``d`` may be moved to a new node of type ``t``; ``counts`` is ``count_nodes``."""
    if not limits.allow_new_nodes:
        return _NO_NEW_NODES
    if counts[t] >= spec.type_max_nodes[t]:
        return _AT_MAX
    return _ALLOWED if spec.fits_type[d, t] else _LABELS


@kernel
def move_masks(
    spec: SpecArrays,
    st: StateArrays,
    now_s: float,
    limits: Limits,
    source: NDArray[np.float32],
    destination: NDArray[np.float32],
    new_node: NDArray[np.float32],
) -> None:
    """Writes the masks of both stages (1 = allowed).

    Args:
        spec: Static description.
        st: State.
        now_s: Its clock.
        limits: Limits.
        source: ``(>=N, >=D)``, written: a replica of d may leave n, and some other node, or a new one, may take it.
        destination: ``(>=N, >=D)``, written: n may take a replica of d.
        new_node: ``(>=T, >=D)``, written: a new node of type t may take a replica of d.
    """
    num_nodes, num_deployments = st.node_type.shape[0], spec.demand.shape[0]
    source[:] = 0.0
    destination[:] = 0.0
    new_node[:] = 0.0
    counts = count_nodes(st, spec.type_capacity.shape[0])
    takers = np.zeros(num_deployments, np.int64)
    is_open = np.zeros(num_nodes, np.bool_)
    open_nodes(st, now_s, limits, is_open)
    mark_destinations(spec, st, is_open, destination, takers)
    mark_new_nodes(spec, counts, limits, new_node, takers)
    if moves_in_flight(st) >= limits.max_concurrent_moves:
        return
    can_leave, may_move = np.zeros(num_nodes, np.bool_), np.zeros(num_deployments, np.bool_)
    for n in range(num_nodes):
        can_leave[n] = source_node_reason(spec, st, counts, n) == _ALLOWED
    cooled_deployments(spec, st, now_s, limits, may_move)
    rows = np.arange(st.replica_phase.shape[0])
    mark_sources(st, rows, rows.shape[0], can_leave, may_move, destination, takers, source)


@inner
def open_nodes(st: StateArrays, now_s: float, limits: Limits, is_open: NDArray[np.bool_]) -> bool:
    """Writes ``(N,)``: ``destination_node_reason`` is none. Returns whether that was written there before."""
    is_same = True
    for n in range(is_open.shape[0]):
        before, is_open[n] = is_open[n], destination_node_reason(st, now_s, limits, n) == _ALLOWED
        is_same = is_same and bool(is_open[n] == before)
    return is_same


@inner
def cooled_deployments(
    spec: SpecArrays, st: StateArrays, now_s: float, limits: Limits, may_move: NDArray[np.bool_]
) -> bool:
    """Writes ``(D,)``: neither opted out nor in their cooldown; see ``replica_reason``.

    Returns:
        Whether that was written there before.
    """
    is_movable, moved_s, cooldown_s, is_same = (
        spec.is_movable,
        st.deployment_moved_s,
        limits.deployment_cooldown_s,
        True,
    )
    for d in range(is_movable.shape[0]):
        before, may_move[d] = may_move[d], is_movable[d] and not _is_cooling(now_s, moved_s[d], cooldown_s)
        is_same = is_same and bool(may_move[d] == before)
    return is_same


@inner
def mark_new_nodes(
    spec: SpecArrays,
    counts: NDArray[np.int64],
    limits: Limits,
    new_node: NDArray[np.float32],
    takers: NDArray[np.int64],
) -> None:
    """Writes 1 into the mask of new nodes where it is due, and counts it as a taker."""
    if not limits.allow_new_nodes:
        return
    for t in range(counts.shape[0]):
        for d in range(takers.shape[0]):
            if new_node_reason(spec, counts, limits, d, t) == _ALLOWED:
                new_node[t, d] = 1.0
                takers[d] += 1


@inner
def mark_sources(
    st: StateArrays,
    rows: NDArray[np.int64],
    num_rows: int,
    can_leave: NDArray[np.bool_],
    may_move: NDArray[np.bool_],
    destination: NDArray[np.float32],
    takers: NDArray[np.int64],
    source: NDArray[np.float32],
) -> None:
    """Writes 1 into the mask of sources where it is due.

    Args:
        st: State, in which no more moves may be in flight than the limit allows.
        rows: Replica rows; all that are used are among them.
        num_rows: How many.
        can_leave: ``(N,)`` ``source_node_reason`` is none.
        may_move: ``(D,)`` ``cooled_deployments``.
        destination: Mask of destinations.
        takers: ``(D,)`` nodes and new nodes that may take a replica.
        source: Zero, written.
    """
    phase, node, deployment, peer = st.replica_phase, st.replica_node, st.replica_deployment, st.replica_peer
    spans = st.replica_spans
    for i in range(num_rows):
        r = rows[i]
        if phase[r] != _RUNNING or peer[r] >= 0 or spans[r]:
            continue
        n, d = node[r], deployment[r]
        if can_leave[n] and may_move[d] and takers[d] > int(destination[n, d]):
            source[n, d] = 1.0


@inner
def mark_destinations(
    spec: SpecArrays,
    st: StateArrays,
    is_open: NDArray[np.bool_],
    destination: NDArray[np.float32],
    takers: NDArray[np.int64],
) -> None:
    """``destination_reason`` of every cell at once: what a node has is looked up once for all deployments.

    Writes 1 into the mask where a node may take a replica, and counts it as a taker; ``is_open`` is ``open_nodes``.
    """
    demand, fits_type, sums_gpus, max_per_node = spec.demand, spec.fits_type, spec.sums_gpus, spec.max_per_node
    node_type, node_free, gpu_free, node_held = st.node_type, st.node_free, st.gpu_free, st.node_held
    num_resources, least_demand = demand.shape[1], spec.least_demand
    for n in range(node_type.shape[0]):
        if not is_open[n] or is_full(least_demand, node_free, n):
            continue
        t, whole, largest = node_type[n], 0, 0.0
        for g in range(gpu_free.shape[1]):
            if gpu_free[n, g] >= 1.0 - EPS:
                whole += 1
            largest = max(largest, gpu_free[n, g])
        for d in range(demand.shape[0]):
            fits = fits_type[d, t]
            for k in range(num_resources):
                fits = fits and demand[d, k] <= node_free[n, k] + EPS
            gpus = demand[d, 0]
            if not fits or (max_per_node[d] > 0 and node_held[n, d] >= max_per_node[d]):
                continue
            if not sums_gpus[d]:
                if not can_take_bundles(spec.bundle, spec.num_bundles, st.gpu_free, d, n):
                    continue
            elif gpus > EPS and (gpus > largest + EPS if gpus < 1.0 - EPS else gpus > whole + EPS):
                continue
            destination[n, d] = 1.0
            takers[d] += 1


@inner
def is_full(least_demand: NDArray[np.float64], node_free: NDArray[np.float64], n: int) -> bool:
    """Whether node ``n`` lacks what every deployment asks for; the arguments are the fields of these names."""
    lacks = False
    for k in range(least_demand.shape[0]):
        lacks = lacks or bool(least_demand[k] > node_free[n, k] + EPS)
    return lacks


def check_move(state: ClusterState, move: Move, limits: Limits) -> Verdict:
    """Whether one move may be made now.

    Args:
        state: The cluster.
        move: Rows of that state; a destination ``N + t`` is a new node of type t.
        limits: What is allowed.

    Returns:
        The verdict; its reason is the first rule that refuses, replica rules before node rules.
    """
    reason = move_reason(state.spec.arrays, state.arrays, state.now_s, limits, move.replica_idx, move.node_idx)
    return Verdict(reason == _ALLOWED, Reason(reason))


@kernel
def move_reason(spec: SpecArrays, st: StateArrays, now_s: float, limits: Limits, r: int, n: int, top: int = -1) -> int:
    """``check_move`` as a ``Reason``; see ``moves_in_flight``."""
    reason = source_reason(spec, st, now_s, limits, r, moves_in_flight(st, top))
    if reason != _ALLOWED:
        return int(reason)
    num_nodes, num_types = st.node_type.shape[0], spec.type_capacity.shape[0]
    d = st.replica_deployment[r]
    if n < 0 or n >= num_nodes + num_types:
        return _NO_SUCH_NODE
    if n >= num_nodes:
        return int(new_node_reason(spec, count_nodes(st, num_types), limits, d, n - num_nodes))
    if n == st.replica_node[r]:
        return _SAME_NODE
    return int(destination_reason(spec, st, now_s, limits, d, n))
