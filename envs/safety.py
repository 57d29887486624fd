"""The safety filter: may this replica move to that node now?

One pure rule set, used as action mask in the environment, in evaluation and live. The masks and the verdict
of a single move come from the same two kernels, so they cannot disagree. Dims: N nodes, R replicas,
D deployments.
"""

import enum
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from rayfold.envs.cluster import SpecArrays
from rayfold.envs.devices import EPS, can_take_gpus
from rayfold.envs.moves import Move
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase, StateArrays

__all__ = [
    "Limits",
    "Reason",
    "Verdict",
    "check_move",
    "destination_reason",
    "movable_replica",
    "move_masks",
    "moves_in_flight",
    "source_reason",
]


class Limits(NamedTuple):
    """What the filter allows. Every default is a safe one."""

    max_concurrent_moves: int = 4  # replacements starting at once
    deployment_cooldown_s: float = 120.0  # between ticks that move replicas of one deployment
    fence_s: float = 600.0  # a node that a replica was moved off takes no new ones for this long
    use_unreleasable_nodes: bool = False  # as destinations; they are never emptied


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
_NOT_ALIVE = int(Reason.DESTINATION_NOT_ALIVE)
_DESTINATION_IS_HEAD = int(Reason.DESTINATION_IS_HEAD)
_DESTINATION_NOT_RELEASABLE = int(Reason.DESTINATION_NOT_RELEASABLE)
_FENCED = int(Reason.DESTINATION_FENCED)
_LABELS = int(Reason.LABELS_DO_NOT_MATCH)
_NO_CAPACITY = int(Reason.NO_CAPACITY)
_NO_GPU_DEVICE = int(Reason.NO_GPU_DEVICE)
_MAX_PER_NODE = int(Reason.MAX_REPLICAS_PER_NODE)
_ALIVE, _ABSENT = int(NodePhase.ALIVE), int(NodePhase.ABSENT)
_RUNNING, _EMPTY = int(ReplicaPhase.RUNNING), int(ReplicaPhase.EMPTY)


@njit(cache=True)
def moves_in_flight(st: StateArrays) -> int:
    """Replicas whose replacement is still starting."""
    count = 0
    for r in range(st.replica_phase.shape[0]):
        if st.replica_phase[r] == _RUNNING and st.replica_peer[r] >= 0:
            count += 1
    return count


@njit(cache=True, inline="always")
def _num_present(st: StateArrays, node_type: int) -> int:
    count = 0
    for n in range(st.node_type.shape[0]):
        if st.node_phase[n] != _ABSENT and st.node_type[n] == node_type:
            count += 1
    return count


@njit(cache=True, inline="always")
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
        A ``Reason``.
    """
    if r < 0 or r >= st.replica_phase.shape[0] or st.replica_phase[r] == _EMPTY:
        return _NO_SUCH_REPLICA
    if st.replica_phase[r] != _RUNNING:
        return _REPLICA_NOT_RUNNING
    if st.replica_peer[r] >= 0:
        return _ALREADY_MOVING
    d, n = st.replica_deployment[r], st.replica_node[r]
    if not spec.is_movable[d]:
        return _OPTED_OUT
    # Moves decided at one tick share its clock, so a cooldown separates ticks, not moves of a plan.
    since_s = now_s - st.deployment_moved_s[d]
    if since_s > 0.0 and since_s < limits.deployment_cooldown_s:
        return _COOLDOWN
    if in_flight >= limits.max_concurrent_moves:
        return _TOO_MANY_MOVES
    if st.node_is_head[n]:
        return _SOURCE_IS_HEAD
    if not st.node_releasable[n]:
        return _SOURCE_NOT_RELEASABLE
    node_type = st.node_type[n]
    if _num_present(st, node_type) <= spec.type_min_nodes[node_type]:
        return _SOURCE_AT_MIN
    return _ALLOWED


@njit(cache=True)
def movable_replica(spec: SpecArrays, st: StateArrays, now_s: float, limits: Limits, n: int, d: int) -> int:
    """First replica of deployment ``d`` that may leave node ``n``, -1 if there is none."""
    in_flight = moves_in_flight(st)
    for r in range(st.replica_phase.shape[0]):
        is_there = st.replica_node[r] == n and st.replica_deployment[r] == d
        if is_there and source_reason(spec, st, now_s, limits, r, in_flight) == _ALLOWED:
            return r
    return -1


@njit(cache=True, inline="always")
def capacity_reason(spec: SpecArrays, st: StateArrays, d: int, n: int) -> int:
    """Why one more replica of ``d`` does not fit on ``n``: labels, resources, devices, replicas per node."""
    if not spec.fits_type[d, st.node_type[n]]:
        return _LABELS
    for k in range(spec.demand.shape[1]):
        if spec.demand[d, k] > st.node_free[n, k] + EPS:
            return _NO_CAPACITY
    if not can_take_gpus(st.gpu_free, n, spec.demand[d, 0]):
        return _NO_GPU_DEVICE
    if spec.max_per_node[d] > 0:
        count = 0
        for r in range(st.replica_phase.shape[0]):
            if st.replica_node[r] == n and st.replica_deployment[r] == d:
                count += 1
        if count >= spec.max_per_node[d]:
            return _MAX_PER_NODE
    return _ALLOWED


@njit(cache=True, inline="always")
def destination_reason(spec: SpecArrays, st: StateArrays, now_s: float, limits: Limits, d: int, n: int) -> int:
    """Why no replica of deployment ``d`` may be moved to node ``n``, whichever it is; a ``Reason``."""
    if st.node_phase[n] != _ALIVE:
        return _NOT_ALIVE
    if st.node_is_head[n]:
        return _DESTINATION_IS_HEAD
    if not st.node_releasable[n] and not limits.use_unreleasable_nodes:
        return _DESTINATION_NOT_RELEASABLE
    if st.node_fenced_until_s[n] > now_s:
        return _FENCED
    return int(capacity_reason(spec, st, d, n))


@njit(cache=True)
def move_masks(
    spec: SpecArrays,
    st: StateArrays,
    now_s: float,
    limits: Limits,
    source: NDArray[np.float32],
    destination: NDArray[np.float32],
) -> None:
    """Writes the masks of both stages (1 = allowed).

    Args:
        spec: Static description.
        st: State.
        now_s: Its clock.
        limits: Limits.
        source: ``(>=N, >=D)``, written: a replica of d may leave n, and some other node may take it.
        destination: ``(>=N, >=D)``, written: n may take a replica of d.
    """
    num_nodes, num_deployments = st.node_type.shape[0], spec.demand.shape[0]
    source[:] = 0.0
    destination[:] = 0.0
    for n in range(num_nodes):
        for d in range(num_deployments):
            if destination_reason(spec, st, now_s, limits, d, n) == _ALLOWED:
                destination[n, d] = 1.0
    in_flight = moves_in_flight(st)
    for r in range(st.replica_phase.shape[0]):
        if st.replica_phase[r] != _RUNNING:
            continue
        n, d = st.replica_node[r], st.replica_deployment[r]
        if source[n, d] > 0.0 or source_reason(spec, st, now_s, limits, r, in_flight) != _ALLOWED:
            continue
        for m in range(num_nodes):
            if m != n and destination[m, d] > 0.0:
                source[n, d] = 1.0
                break


def check_move(state: ClusterState, move: Move, limits: Limits) -> Verdict:
    """Whether one move may be made now.

    Args:
        state: The cluster.
        move: Rows of that state.
        limits: What is allowed.

    Returns:
        The verdict; its reason is the first rule that refuses, replica rules before node rules.
    """
    spec, st = state.spec.arrays, state.arrays
    r, n = move
    reason = source_reason(spec, st, state.now_s, limits, r, moves_in_flight(st))
    if reason == _ALLOWED:
        if not 0 <= n < len(st.node_type):
            reason = Reason.NO_SUCH_NODE
        elif n == st.replica_node[r]:
            reason = Reason.SAME_NODE
        else:
            d = st.replica_deployment[r]
            reason = destination_reason(spec, st, state.now_s, limits, d, n)
    return Verdict(reason == _ALLOWED, Reason(reason))
