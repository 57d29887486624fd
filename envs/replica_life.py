"""Life of replicas in the simulator: asked for, placed, started, moved, drained, failed, scaled away.

Dims: N nodes, R replicas, D deployments.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from rayfold.envs.cluster import SpecArrays
from rayfold.envs.draws import uniform, unit
from rayfold.envs.groups import hold_group
from rayfold.envs.hidden import CURSOR, LOG_CANCELLED, LOG_DONE, LOG_FAILED, NEXT_SERIAL, Constants, Hidden, end_move
from rayfold.envs.ledger import Entry
from rayfold.envs.placement import (
    active_nodes,
    asks_more,
    hold,
    let_go,
    pack_node,
    replicas_to_stop,
    spread_node,
)
from rayfold.envs.replica_autoscaler import decide_target
from rayfold.envs.safety import capacity_reason
from rayfold.envs.state import NodePhase, ReplicaPhase, StateArrays
from rayfold.envs.transition import begin_move, cancel_move, free_row

__all__ = [
    "add_pending",
    "drop_move",
    "finish_replicas",
    "is_on_draining_node",
    "migrate_replica",
    "new_serial",
    "place_pending",
    "scale_replicas",
    "start_move",
]

_ALIVE, _BOOTING, _DRAINING = int(NodePhase.ALIVE), int(NodePhase.BOOTING), int(NodePhase.DRAINING)
_PENDING, _STARTING = int(ReplicaPhase.PENDING), int(ReplicaPhase.STARTING)
_RUNNING, _STOPPING = int(ReplicaPhase.RUNNING), int(ReplicaPhase.STOPPING)
_DISRUPTION_USD, _COLD_START_GPU_H = int(Entry.DISRUPTION_USD), int(Entry.COLD_START_GPU_H)
_MOVES, _CANCELLED, _FAILED = int(Entry.MOVES), int(Entry.CANCELLED_MOVES), int(Entry.FAILED_MOVES)
_FAILED_STARTS = int(Entry.FAILED_STARTS)


@njit(cache=True)
def new_serial(hidden: Hidden, r: int) -> int:
    """Gives row ``r`` the next number of the order of creation."""
    serial = hidden.counters[NEXT_SERIAL]
    hidden.counters[NEXT_SERIAL] += 1
    hidden.replica_serial[r] = serial
    hidden.replica_move[r] = -1
    hidden.replica_fails[r] = False
    hidden.replica_due_s[r] = np.inf
    return int(serial)


@njit(cache=True)
def add_pending(st: StateArrays, hidden: Hidden, now_s: float, d: int) -> int:
    """Serve asks for one more replica of ``d``; its row, -1 if none is unused."""
    row = free_row(st)
    if row < 0:
        return -1
    st.replica_deployment[row] = d
    st.replica_node[row] = -1
    st.replica_phase[row] = _PENDING
    st.replica_since_s[row] = now_s
    new_serial(hidden, row)
    return row


@njit(cache=True)
def _start(
    spec: SpecArrays,
    st: StateArrays,
    hidden: Hidden,
    const: Constants,
    now_s: float,
    r: int,
    ledger: NDArray[np.float64],
) -> None:
    """Replica ``r`` holds its resources: draws its start-up; that of a move is charged (DESIGN §5)."""
    d = st.replica_deployment[r]
    startup_s = uniform(hidden.stream, spec.startup_s[d, 0], spec.startup_s[d, 1])
    if spec.slow_start_prob[d] > 0.0 and unit(hidden.stream) < spec.slow_start_prob[d]:
        startup_s *= spec.slow_start_factor[d]
    hidden.replica_fails[r] = spec.start_failure_prob[d] > 0.0 and unit(hidden.stream) < spec.start_failure_prob[d]
    hidden.replica_due_s[r] = now_s + startup_s
    st.replica_phase[r] = _STARTING
    st.replica_since_s[r] = now_s
    source = st.replica_peer[r]
    if source < 0 or hidden.replica_move[source] < 0:
        return
    t, share = st.node_type[st.replica_node[r]], 0.0
    for k in range(spec.demand.shape[1]):
        if spec.type_capacity[t, k] > 0.0:
            share = max(share, spec.demand[d, k] / spec.type_capacity[t, k])
    usd_per_h = share * spec.type_price_usd_per_h[t]
    ledger[_DISRUPTION_USD] += usd_per_h * (startup_s / 3600.0 + const.move_frac) * const.disruption_scale
    ledger[_COLD_START_GPU_H] += spec.demand[d, 0] * startup_s / 3600.0


@njit(cache=True)
def start_move(
    spec: SpecArrays,
    st: StateArrays,
    hidden: Hidden,
    const: Constants,
    now_s: float,
    source: int,
    n: int,
    ledger: NDArray[np.float64],
) -> int:
    """Starts the move of ``source`` to node ``n``, or to a new node of type ``n - N``, which the filter allows.

    Returns:
        Row of the replacement, -1 if no row is unused. The caller draws the boot of a new node.
    """
    row = begin_move(spec, st, now_s, const.fence_s, source, n)
    if row < 0:
        return -1
    hidden.replica_move[source] = new_serial(hidden, row)
    hidden.node_moves_out[st.replica_node[source]] += 1
    ledger[_MOVES] += 1
    if st.replica_phase[row] == _STARTING:
        _start(spec, st, hidden, const, now_s, row, ledger)
    return row


@njit(cache=True)
def drop_move(
    spec: SpecArrays, st: StateArrays, hidden: Hidden, now_s: float, row: int, how: int, ledger: NDArray[np.float64]
) -> None:
    """Ends a move, or Serve's own migration, by giving up its replacement in ``row``; the old replica stays.

    If that runs on a node that drains, Serve asks for another replacement.
    """
    source = st.replica_peer[row]
    if end_move(hidden, source, how):
        hidden.node_moves_out[st.replica_node[source]] -= 1
        ledger[_CANCELLED if how == LOG_CANCELLED else _FAILED] += 1
    cancel_move(spec, st, now_s, row)
    if st.replica_phase[source] == _RUNNING and is_on_draining_node(st, source):
        migrate_replica(st, hidden, now_s, source)


@njit(cache=True)
def is_on_draining_node(st: StateArrays, r: int) -> bool:
    """Whether a node that replica ``r`` is on will be interrupted."""
    if st.node_phase[st.replica_node[r]] == _DRAINING:
        return True
    if st.replica_spans[r]:
        for j in range(st.replica_bundle_node.shape[1]):
            n = st.replica_bundle_node[r, j]
            if n >= 0 and st.node_phase[n] == _DRAINING:
                return True
    return False


@njit(cache=True)
def migrate_replica(st: StateArrays, hidden: Hidden, now_s: float, source: int) -> None:
    """Serve asks for a replacement of ``source``, whose node drains (``migrate_replicas_on_draining_nodes``)."""
    row = add_pending(st, hidden, now_s, st.replica_deployment[source])
    if row >= 0:
        st.replica_peer[row] = source
        st.replica_peer[source] = row


@njit(cache=True)
def _drain(spec: SpecArrays, st: StateArrays, hidden: Hidden, now_s: float, r: int) -> None:
    d = st.replica_deployment[r]
    st.replica_phase[r] = _STOPPING
    st.replica_since_s[r] = now_s
    hidden.replica_due_s[r] = now_s + uniform(hidden.stream, spec.drain_s[d, 0], spec.drain_s[d, 1])


@njit(cache=True)
def finish_replicas(
    spec: SpecArrays, st: StateArrays, hidden: Hidden, now_s: float, top: int, ledger: NDArray[np.float64]
) -> None:
    """Ends the start-ups and drains of the first ``top`` rows that are due."""
    for r in range(top):
        if hidden.replica_due_s[r] > now_s:
            continue
        hidden.replica_due_s[r] = np.inf
        d, source = st.replica_deployment[r], st.replica_peer[r]
        if st.replica_phase[r] == _STARTING and hidden.replica_fails[r]:
            ledger[_FAILED_STARTS] += 1
            if source >= 0:
                drop_move(spec, st, hidden, now_s, r, LOG_FAILED, ledger)
            else:
                let_go(spec, st, r, now_s)  # Serve asks for another one
            st.deployment_changed_s[d] = now_s
        elif st.replica_phase[r] == _STARTING:
            st.replica_phase[r] = _RUNNING
            st.replica_since_s[r] = now_s
            st.deployment_changed_s[d] = now_s
            if source >= 0:
                st.replica_peer[r] = -1
                st.replica_peer[source] = -1
                _drain(spec, st, hidden, now_s, source)
        elif st.replica_phase[r] == _STOPPING:
            end_move(hidden, r, LOG_DONE)
            let_go(spec, st, r, now_s)
            st.deployment_changed_s[d] = now_s


@njit(cache=True)
def scale_replicas(
    spec: SpecArrays,
    st: StateArrays,
    hidden: Hidden,
    now_s: float,
    running: NDArray[np.int64],
    live: NDArray[np.int64],
    ledger: NDArray[np.float64],
) -> bool:
    """Serve's replica autoscaler, and what it asks of every deployment.

    Args:
        spec: Static description.
        st: State, written.
        hidden: Hidden state, written.
        now_s: Clock.
        running: ``(D,)`` running replicas.
        live: ``(D,)`` replicas counted against the target: a replacement is not.
        ledger: Written.

    Returns:
        Whether a target or a replica has changed.
    """
    has_changed = False
    for d in range(spec.demand.shape[0]):
        target, since_s, direction = decide_target(
            now_s,
            st.deployment_ongoing[d],
            running[d],
            st.deployment_target[d],
            hidden.wish_since_s[d],
            hidden.wish_direction[d],
            spec.target_ongoing[d],
            spec.upscaling_factor[d],
            spec.downscaling_factor[d],
            spec.upscale_delay_s[d],
            spec.downscale_delay_s[d],
            spec.downscale_to_zero_delay_s[d],
            spec.min_replicas[d],
            spec.max_replicas[d],
        )
        hidden.wish_since_s[d], hidden.wish_direction[d] = since_s, direction
        if target != st.deployment_target[d]:
            st.deployment_target[d] = target
            st.deployment_changed_s[d] = now_s
            has_changed = True
        for _ in range(target - live[d]):
            if add_pending(st, hidden, now_s, d) < 0:
                break
            has_changed = True
        if live[d] <= target:
            continue
        for r in replicas_to_stop(spec, st, d, live[d] - target, hidden.replica_serial):
            has_changed = True
            if st.replica_phase[r] != _RUNNING:
                let_go(spec, st, r, now_s)
                continue
            replacement = st.replica_peer[r]
            _drain(spec, st, hidden, now_s, r)  # first, so that it is not migrated again
            if replacement >= 0:
                drop_move(spec, st, hidden, now_s, replacement, LOG_CANCELLED, ledger)
    return has_changed


@njit(cache=True)
def _place_pinned(
    spec: SpecArrays,
    st: StateArrays,
    hidden: Hidden,
    const: Constants,
    now_s: float,
    ledger: NDArray[np.float64],
) -> None:
    """Replacements that wait for a node of their own: on it once it is alive, given up if it has no room."""
    for r in range(st.replica_phase.shape[0]):
        n = st.replica_pinned_node[r]
        if st.replica_phase[r] != _PENDING or n < 0 or st.node_phase[n] == _BOOTING:
            continue
        if st.node_phase[n] != _ALIVE or capacity_reason(spec, st, st.replica_deployment[r], n) != 0:
            drop_move(spec, st, hidden, now_s, r, LOG_FAILED, ledger)
            continue
        hold(spec, st, r, n)
        st.replica_pinned_node[r] = -1
        _start(spec, st, hidden, const, now_s, r, ledger)


@njit(cache=True)
def place_pending(
    spec: SpecArrays,
    st: StateArrays,
    hidden: Hidden,
    const: Constants,
    now_s: float,
    ledger: NDArray[np.float64],
) -> None:
    """Serve's scheduler: every pending replica goes to a node if one takes it, largest first under pack."""
    _place_pinned(spec, st, hidden, const, now_s, ledger)
    num_replicas, num_deployments = st.replica_phase.shape[0], spec.demand.shape[0]
    tried = np.zeros(num_replicas, np.bool_)
    is_full = np.zeros(num_deployments, np.bool_)  # of one shape none fits once one does not
    active = active_nodes(st)
    while True:
        best = -1
        for r in range(num_replicas):
            if st.replica_phase[r] != _PENDING or tried[r] or st.replica_pinned_node[r] >= 0:
                continue
            if is_full[st.replica_deployment[r]]:
                continue
            if best < 0 or (const.is_pack and asks_more(spec, st.replica_deployment[r], st.replica_deployment[best])):
                best = r
        if best < 0:
            return
        tried[best] = True
        d = st.replica_deployment[best]
        if spec.can_span[d]:
            if hold_group(spec, st, now_s, best):
                _start(spec, st, hidden, const, now_s, best, ledger)
            else:
                is_full[d] = True
            continue
        cursor = hidden.counters[CURSOR]
        n = pack_node(spec, st, now_s, d, active) if const.is_pack else spread_node(spec, st, now_s, d, cursor)
        if n < 0:
            is_full[d] = True
            continue
        hidden.counters[CURSOR] = (n + 1) % st.node_type.shape[0]
        st.node_fenced_until_s[n] = -np.inf  # the replica fits nowhere else: the fence yields
        active[n] = True
        hold(spec, st, best, n)
        _start(spec, st, hidden, const, now_s, best, ledger)
