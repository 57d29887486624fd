"""What there is to decide in a state, as counts of identical replicas: the input of ``exact_program``.

A *bin* is a node that may give or take replicas, or a node that may be launched. Room is what is free now: the room
that a move leaves behind is fenced (``Limits.fence_s``) and held until the old replica has drained, so a plan that
starts now cannot use it. Only where limits fence nothing does it count (``reuses_room``), and a plan then takes
several ticks. Dims: B bins, D deployments, K resources, G devices, Q sizes of GPU shares.
"""

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.devices import EPS
from rayfold.envs.evacuation import new_workspace, prepare
from rayfold.envs.safety import (
    Limits,
    Reason,
    count_nodes,
    destination_reason,
    source_reason,
)
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase
from rayfold.policies.evacuations import move_prices_usd

__all__ = ["CountProblem", "count_problem"]

_MANY = 1_000_000
_OF_NODE = (
    Reason.DESTINATION_NOT_ALIVE,
    Reason.DESTINATION_IS_HEAD,
    Reason.DESTINATION_NOT_RELEASABLE,
    Reason.DESTINATION_FENCED,
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CountProblem:
    """Which replicas may go where, and what it is worth."""

    num_rows: int  # N, of the state
    node: NDArray[np.int64]  # (B,) node row, or N + t for a new node of type t
    node_type: NDArray[np.int64]  # (B,)
    can_empty: NDArray[np.bool_]  # (B,) all that it holds may leave
    count: NDArray[np.int64]  # (B, D) replicas that may leave
    on_device: NDArray[np.int64]  # (B, G, D) those of them that hold one share of a device and no other GPU
    slots: NDArray[np.int64]  # (B, D) replicas it may take by labels and max_replicas_per_node, whatever their size
    free: NDArray[np.float64]  # (B, K)
    devices: NDArray[np.float64]  # (B, G) free share of each
    saving_usd: NDArray[np.float64]  # (B,) if it is emptied
    opening_usd: NDArray[np.float64]  # (B,) if it is empty, or not there yet, and takes a replica
    may_leave: NDArray[np.int64]  # (T,) nodes of a type that may be emptied before the least number is reached
    move_usd: NDArray[np.float64]  # (D,) price of moving one
    demand: NDArray[np.float64]  # (D, K)
    whole_gpus: NDArray[np.float64]  # (D,) whole devices of one replica
    share: NDArray[np.float64]  # (Q,) sizes of GPU shares
    num_shares: NDArray[np.int64]  # (D, Q) how many of each one replica has
    max_moves: int
    reuses_room: bool

    def equals(self, other: "CountProblem") -> bool:
        """Whether the other is the same in every number, and so has the same solutions."""
        return all(np.array_equal(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))


def count_problem(
    state: ClusterState,
    limits: Limits,
    *,
    look_ahead_s: float,
    min_saving_frac: float,
    max_moves: int,
    max_new_nodes: int,
) -> CountProblem:
    """The problem of a state.

    Args:
        state: The cluster.
        limits: What the safety filter allows; its limit on concurrent moves restricts a tick, not the problem.
        look_ahead_s: For how long the price of an emptied node is saved.
        min_saving_frac: Share of that price by which an evacuation must pay, unless it is under way.
        max_moves: Of the plan.
        max_new_nodes: Of each type, that it may launch.
    """
    st, spec = state.arrays, state.spec.arrays
    num_nodes, num_deployments = len(st.node_type), state.spec.num_deployments
    can_empty, count = _sources(state, limits)
    slots = np.zeros((num_nodes, num_deployments), np.int64)
    for n in range(num_nodes):
        is_coming = limits.allow_new_nodes and st.node_phase[n] == NodePhase.BOOTING
        if is_coming or destination_reason(spec, st, state.now_s, limits, 0, n) not in _OF_NODE:
            slots[n] = _slots(state, n)
    price_usd = spec.type_price_usd_per_h * look_ahead_s / 3600.0
    is_underway = (st.node_fenced_until_s > state.now_s) & (st.node_num_held > 0)
    saving_usd = price_usd[st.node_type] * np.where(is_underway, 1.0, 1.0 - min_saving_frac)
    is_idle = (st.node_phase == NodePhase.ALIVE) & (st.node_num_held == 0) & st.node_releasable & ~st.node_is_head
    used = np.flatnonzero(can_empty | slots.any(1) | (limits.fence_s <= 0.0) & count.any(1))
    new = _new_bins(state, limits, max_new_nodes)
    share, num_shares = _shares(state)
    whole_gpus = spec.demand[:, 0] - num_shares @ share
    free = st.node_free.copy()
    for r in np.flatnonzero(st.replica_pinned_node >= 0):
        free[st.replica_pinned_node[r]] -= spec.demand[st.replica_deployment[r]]
    is_device = np.arange(st.gpu_free.shape[1])[None] < spec.type_num_gpus[:, None]
    on_device = _on_device(state, count, (num_shares.sum(1) == 1) & (whole_gpus < 0.5))
    no_source = np.zeros((len(new), num_deployments), np.int64)
    return CountProblem(
        num_rows=num_nodes,
        node=np.concatenate([used, num_nodes + new]),
        node_type=np.concatenate([st.node_type[used], new]),
        can_empty=np.concatenate([can_empty[used], np.zeros(len(new), np.bool_)]),
        count=np.concatenate([count[used], no_source]),
        on_device=np.concatenate([on_device[used], np.zeros((len(new), *on_device.shape[1:]), np.int64)]),
        slots=np.concatenate([slots[used], _new_slots(state)[new]]),
        free=np.concatenate([free[used], spec.type_capacity[new]]),
        devices=np.concatenate([st.gpu_free[used], is_device[new].astype(np.float64)]),
        saving_usd=np.concatenate([saving_usd[used], np.zeros(len(new))]),
        opening_usd=np.concatenate([np.where(is_idle, price_usd[st.node_type], 0.0)[used], price_usd[new]]),
        may_leave=_may_leave(state),
        move_usd=move_prices_usd(state),
        demand=spec.demand,
        whole_gpus=np.round(whole_gpus),
        share=share,
        num_shares=num_shares,
        max_moves=max_moves,
        reuses_room=limits.fence_s <= 0.0,
    )


def _sources(state: ClusterState, limits: Limits) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Nodes that can be emptied ``(N,)``, and replicas that may leave a node ``(N, D)``."""
    st, spec = state.arrays, state.spec.arrays
    work = new_workspace(st)
    prepare(spec, st, state.now_s, limits, work)
    can_empty = ~work.is_blocked & (np.diff(work.begin) > 0)
    leaves = (st.replica_phase == ReplicaPhase.RUNNING) & (st.replica_peer < 0) & ~st.replica_spans
    count = np.zeros((len(st.node_type), state.spec.num_deployments), np.int64)
    np.add.at(count, (st.replica_node[leaves], st.replica_deployment[leaves]), 1)
    representative = {(int(st.replica_node[r]), int(st.replica_deployment[r])): int(r) for r in np.flatnonzero(leaves)}
    for (n, d), r in representative.items():
        if source_reason(spec, st, state.now_s, limits, r, 0) != 0:
            count[n, d] = 0
    return can_empty, count


def _slots(state: ClusterState, n: int) -> NDArray[np.int64]:
    """Replicas per deployment that a node may take, ``(D,)``, whatever their size."""
    st, spec = state.arrays, state.spec.arrays
    left = np.where(spec.max_per_node > 0, spec.max_per_node - st.node_held[n], _MANY)
    slots: NDArray[np.int64] = np.where(spec.fits_type[:, st.node_type[n]], np.maximum(left, 0), 0)
    return slots


def _new_slots(state: ClusterState) -> NDArray[np.int64]:
    """The same for an empty node of each type: ``(T, D)``."""
    spec = state.spec.arrays
    most = np.where(spec.max_per_node > 0, spec.max_per_node, _MANY)
    slots: NDArray[np.int64] = np.where(spec.fits_type.T, most, 0)
    return slots


def _new_bins(state: ClusterState, limits: Limits, most: int) -> NDArray[np.int64]:
    """Types of the nodes that may be launched."""
    spec = state.spec.arrays
    if not limits.allow_new_nodes:
        return np.zeros(0, np.int64)
    left = spec.type_max_nodes - count_nodes(state.arrays, len(spec.type_capacity))
    left = np.where(spec.fits_type.any(0), np.clip(left, 0, most), 0)
    return np.repeat(np.arange(len(left), dtype=np.int64), left)


def _may_leave(state: ClusterState) -> NDArray[np.int64]:
    """Nodes per type that may be emptied, those already empty or leaving counted out: ``(T,)``."""
    st, spec = state.arrays, state.spec.arrays
    num_types = len(spec.type_capacity)
    stays = (st.replica_node >= 0) & (st.replica_phase != ReplicaPhase.STOPPING)
    stays &= ~((st.replica_phase == ReplicaPhase.RUNNING) & (st.replica_peer >= 0))
    is_held = np.zeros(len(st.node_type), np.bool_)
    is_held[st.replica_node[stays]] = True
    for r in np.flatnonzero(st.replica_spans):
        is_held[st.replica_bundle_node[r][st.replica_bundle_node[r] >= 0]] = True
    leaving = (st.node_phase == NodePhase.ALIVE) & ~is_held & st.node_releasable & ~st.node_is_head
    counts = count_nodes(st, num_types) - np.bincount(st.node_type[leaving], minlength=num_types)
    most: NDArray[np.int64] = np.maximum(counts - spec.type_min_nodes, 0)
    return most


def _shares(state: ClusterState) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Sizes of GPU shares ``(Q,)``, and how many of each a replica has ``(D, Q)``.

    Bundles on one node take devices one by one, or as their sum (``SpecArrays.sums_gpus``).
    """
    spec = state.spec.arrays
    pieces = [
        [spec.demand[d, 0]] if spec.sums_gpus[d] else list(spec.bundle[d, : spec.num_bundles[d], 0])
        for d in range(state.spec.num_deployments)
    ]
    parts = [[round(float(g), 9) for g in row if EPS < g < 1.0 - EPS] for row in pieces]
    share = sorted({g for row in parts for g in row}, reverse=True)
    num = np.array([[row.count(g) for g in share] for row in parts], np.int64)
    return np.array(share), num.reshape(len(parts), len(share))


def _on_device(state: ClusterState, count: NDArray[np.int64], has_one: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Replicas of ``count`` by the device that they hold a share of, where ``has_one`` ``(D,)``: ``(N, G, D)``."""
    st, (num_nodes, num_devices) = state.arrays, state.arrays.gpu_free.shape
    found = np.zeros((num_nodes, num_devices, len(has_one)), np.int64)
    rows = np.flatnonzero((st.replica_phase == ReplicaPhase.RUNNING) & (st.replica_peer < 0) & ~st.replica_spans)
    rows = rows[has_one[st.replica_deployment[rows]]]
    rows = rows[count[st.replica_node[rows], st.replica_deployment[rows]] > 0]
    masks = st.replica_gpus[rows].max(1)
    device = np.log2(np.maximum(masks, 1)).astype(np.int64)
    np.add.at(found, (st.replica_node[rows], device, st.replica_deployment[rows]), 1)
    return found
