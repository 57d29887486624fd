"""Life of replicas in the simulator: asked for, placed, started, moved, drained, failed, scaled away.

Dims: N nodes, R replicas, D deployments.
"""

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.draws import uniform, unit
from rayfold.envs.groups import hold_group
from rayfold.envs.hidden import (
    CHANGES,
    CURSOR,
    LOG_CANCELLED,
    LOG_DONE,
    LOG_FAILED,
    NEXT_SERIAL,
    TOP,
    Constants,
    Hidden,
    end_move,
)
from rayfold.envs.jit import inner, kernel
from rayfold.envs.ledger import DeploymentEntry, Entry
from rayfold.envs.placement import (
    active_nodes,
    hold,
    let_go,
    member_node,
    pack_node,
    replicas_to_stop,
    spread_node,
)
from rayfold.envs.replica_autoscaler import decide_target
from rayfold.envs.safety import capacity_reason
from rayfold.envs.spec_arrays import SpecArrays
from rayfold.envs.state import NodePhase, ReplicaPhase, StateArrays
from rayfold.envs.transition import begin_move, cancel_move, free_row

__all__ = [
    "add_pending",
    "decide",
    "drain",
    "drop_move",
    "finish_replicas",
    "is_on_draining_node",
    "migrate_replica",
    "new_serial",
    "place_pending",
    "reach_targets",
    "start_move",
]

_ALIVE, _BOOTING, _DRAINING = int(NodePhase.ALIVE), int(NodePhase.BOOTING), int(NodePhase.DRAINING)
_PENDING, _STARTING = int(ReplicaPhase.PENDING), int(ReplicaPhase.STARTING)
_RUNNING, _STOPPING = int(ReplicaPhase.RUNNING), int(ReplicaPhase.STOPPING)
_DISRUPTION_USD, _COLD_START_GPU_H = int(Entry.DISRUPTION_USD), int(Entry.COLD_START_GPU_H)
_DEPLOYMENT_MOVES = int(DeploymentEntry.MOVES)
_MOVES, _CANCELLED, _FAILED = int(Entry.MOVES), int(Entry.CANCELLED_MOVES), int(Entry.FAILED_MOVES)
_FAILED_STARTS = int(Entry.FAILED_STARTS)


@inner
def new_serial(hidden: Hidden, r: int) -> int:
    """Gives row ``r`` the next number of the order of creation."""
    serial = hidden.counters[NEXT_SERIAL]
    hidden.counters[NEXT_SERIAL] += 1
    hidden.counters[TOP] = max(hidden.counters[TOP], r + 1)
    hidden.replica_serial[r] = serial
    hidden.replica_move[r] = -1
    hidden.replica_fails[r] = False
    hidden.replica_due_s[r] = np.inf
    return int(serial)


@kernel
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


@inner
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


@inner
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
    hidden.counters[CHANGES] += 1
    hidden.replica_move[source] = new_serial(hidden, row)
    hidden.node_moves_out[st.replica_node[source]] += 1
    ledger[_MOVES] += 1
    hidden.deployment_ledger[_DEPLOYMENT_MOVES, st.replica_deployment[source]] += 1
    if st.replica_phase[row] == _STARTING:
        _start(spec, st, hidden, const, now_s, row, ledger)
    return row


@kernel
def drop_move(
    spec: SpecArrays, st: StateArrays, hidden: Hidden, now_s: float, row: int, how: int, ledger: NDArray[np.float64]
) -> None:
    """Ends a move, or Serve's own migration, by giving up its replacement in ``row``; the old replica stays.

    If that runs on a node that drains, Serve asks for another replacement.
    """
    source = st.replica_peer[row]
    hidden.counters[CHANGES] += 1
    if end_move(hidden, source, how):
        hidden.node_moves_out[st.replica_node[source]] -= 1
        ledger[_CANCELLED if how == LOG_CANCELLED else _FAILED] += 1
    cancel_move(spec, st, now_s, row)
    if st.replica_phase[source] == _RUNNING and is_on_draining_node(spec, st, source):
        migrate_replica(st, hidden, now_s, source)


@kernel
def is_on_draining_node(spec: SpecArrays, st: StateArrays, r: int) -> bool:
    """Whether a node that replica ``r`` runs on, or a member of gang ``r``, will be interrupted.

    Of a group that spans nodes Serve knows where its actor is, and of no other bundle.
    """
    for j in range(spec.gang_size[st.replica_deployment[r]]):
        if st.node_phase[member_node(spec, st, r, j)] == _DRAINING:
            return True
    return False


@inner
def _deadline_s(spec: SpecArrays, st: StateArrays, hidden: Hidden, r: int) -> float:
    """The earliest interruption of a node that ``r`` runs on, inf if none drains."""
    deadline_s = np.inf
    for j in range(spec.gang_size[st.replica_deployment[r]]):
        n = member_node(spec, st, r, j)
        if st.node_phase[n] == _DRAINING:
            deadline_s = min(deadline_s, hidden.node_end_s[n])
    return deadline_s


@inner
def _first_due(spec: SpecArrays, st: StateArrays, hidden: Hidden, d: int) -> int:
    """Of the replicas of ``d`` that Serve moves off draining nodes, the one whose node goes first; -1 if none is."""
    best, best_key = -1, (np.inf, np.inf, 0)
    for r in range(hidden.counters[TOP]):
        is_leaving = st.replica_phase[r] == _RUNNING and st.replica_deployment[r] == d and st.replica_peer[r] >= 0
        if not is_leaving or hidden.replica_move[r] >= 0:
            continue
        key = (_deadline_s(spec, st, hidden, r), st.replica_since_s[r], hidden.replica_serial[r])
        if key < best_key:
            best, best_key = r, key
    return best


@inner
def _link(st: StateArrays, source: int, replacement: int) -> None:
    st.replica_peer[source], st.replica_peer[replacement] = replacement, source


@inner
def _migrated(spec: SpecArrays, st: StateArrays, hidden: Hidden, now_s: float, r: int) -> int:
    """The replica on a draining node that stops now that its replacement ``r`` serves, or another one, -1 if none does.

    Serve counts (``_partition_groups_to_stop``): all of them go on until as many run as the target says, and then
    those whose node goes first stop first. To Serve replacements are all alike: links are changed to that end.
    """
    d, source, running, waiting = st.replica_deployment[r], st.replica_peer[r], 0, -1
    for i in range(hidden.counters[TOP]):
        if st.replica_deployment[i] != d:
            continue
        running += int(st.replica_phase[i] == _RUNNING)
        if st.replica_peer[i] < 0 and (st.replica_phase[i] == _PENDING or st.replica_phase[i] == _STARTING):
            waiting = i
    if running > st.deployment_target[d]:
        first = _first_due(spec, st, hidden, d)
        if first != source:
            _link(st, source, st.replica_peer[first])
            _link(st, first, r)
        return first
    st.replica_peer[r] = -1
    if waiting >= 0:
        _link(st, source, waiting)
    else:
        migrate_replica(st, hidden, now_s, source)  # what was waited for has just gone with a draining node
    return -1


@kernel
def migrate_replica(st: StateArrays, hidden: Hidden, now_s: float, source: int) -> None:
    """Serve asks for a replacement of ``source``, whose node drains (``migrate_replicas_on_draining_nodes``)."""
    row = add_pending(st, hidden, now_s, st.replica_deployment[source])
    if row >= 0:
        st.replica_peer[row] = source
        st.replica_peer[source] = row


@inner
def drain(spec: SpecArrays, st: StateArrays, hidden: Hidden, now_s: float, r: int) -> None:
    """Running replica ``r`` stops once its requests are done."""
    d = st.replica_deployment[r]
    st.replica_phase[r] = _STOPPING
    st.replica_since_s[r] = now_s
    hidden.replica_due_s[r] = now_s + uniform(hidden.stream, spec.drain_s[d, 0], spec.drain_s[d, 1])


@inner
def finish_replicas(
    spec: SpecArrays, st: StateArrays, hidden: Hidden, now_s: float, top: int, ledger: NDArray[np.float64]
) -> None:
    """Ends the start-ups and drains of the first ``top`` rows that are due."""
    due_s = hidden.replica_due_s
    for r in range(top):
        if due_s[r] > now_s:
            continue
        due_s[r] = np.inf
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
            if source >= 0 and hidden.replica_move[source] < 0 and is_on_draining_node(spec, st, source):
                source = _migrated(spec, st, hidden, now_s, r)
            if source >= 0:
                st.replica_peer[r] = -1
                st.replica_peer[source] = -1
                drain(spec, st, hidden, now_s, source)
        elif st.replica_phase[r] == _STOPPING:
            end_move(hidden, r, LOG_DONE)
            let_go(spec, st, r, now_s)
            st.deployment_changed_s[d] = now_s


@inner
def decide(
    spec: SpecArrays, st: StateArrays, hidden: Hidden, now_s: float, d: int, total: float, running: int, live: int
) -> bool:
    """Serve's replica autoscaler: writes target and wish of deployment ``d``.

    Serve's rule counts replicas, everything else here gangs.

    Args:
        spec: Static description.
        st: State, written.
        hidden: Hidden state, written.
        now_s: Clock.
        d: Deployment row.
        total: Its ongoing requests, mean of the look-back period.
        running: Its running replicas.
        live: Its replicas counted against the target.

    Returns:
        Whether the target has changed, or replicas are still to be added or stopped.
    """
    size, target = spec.gang_size[d], st.deployment_target[d]
    wanted, hidden.wish_since_s[d], hidden.wish_direction[d] = decide_target(
        now_s,
        total,
        running * size,
        target * size,
        hidden.wish_since_s[d],
        hidden.wish_direction[d],
        spec.target_ongoing[d] / size,
        spec.upscaling_factor[d],
        spec.downscaling_factor[d],
        spec.upscale_delay_s[d],
        spec.downscale_delay_s[d],
        spec.downscale_to_zero_delay_s[d],
        spec.min_replicas[d] * size,
        spec.max_replicas[d] * size,
        size,
    )
    wanted //= size
    if wanted != target:
        st.deployment_target[d] = wanted
        st.deployment_changed_s[d] = now_s
    return bool(wanted != target or wanted != live)


@inner
def _stop_migrating(
    spec: SpecArrays, st: StateArrays, hidden: Hidden, now_s: float, d: int, num: int, ledger: NDArray[np.float64]
) -> int:
    """Stops replicas on draining nodes, those whose node goes first, once no other one waits to be stopped.

    Args:
        spec: Static description.
        st: State, written.
        hidden: Hidden state, written.
        now_s: Clock.
        d: Deployment row.
        num: Replicas of it that are to go.
        ledger: Written.

    Returns:
        How many it has stopped.
    """
    count, has_draining, node_phase = num, False, st.node_phase
    for n in range(node_phase.shape[0]):
        has_draining |= node_phase[n] == _DRAINING
    if not has_draining:
        return 0
    phase, deployment, peer = st.replica_phase, st.replica_deployment, st.replica_peer
    for r in range(hidden.counters[TOP]):
        waits = phase[r] == _PENDING or phase[r] == _STARTING
        count -= int(waits and deployment[r] == d and peer[r] < 0)
    for i in range(count):
        first = _first_due(spec, st, hidden, d)
        if first < 0 or not is_on_draining_node(spec, st, first):
            return i
        replacement = st.replica_peer[first]
        drain(spec, st, hidden, now_s, first)  # first, so that it is not migrated again
        drop_move(spec, st, hidden, now_s, replacement, LOG_CANCELLED, ledger)
    return max(0, count)


@inner
def reach_targets(
    spec: SpecArrays,
    st: StateArrays,
    hidden: Hidden,
    now_s: float,
    live: NDArray[np.int64],
    ledger: NDArray[np.float64],
) -> None:
    """Serve asks for the replicas that a target wants, and stops those beyond it.

    Args:
        spec: Static description.
        st: State, written.
        hidden: Hidden state, written.
        now_s: Clock.
        live: ``(D,)`` replicas counted against the target: a replacement is not.
        ledger: Written.
    """
    for d in range(spec.demand.shape[0]):
        target = st.deployment_target[d]
        for _ in range(target - live[d]):
            if add_pending(st, hidden, now_s, d) < 0:
                break
        if live[d] <= target:
            continue
        num = live[d] - target - _stop_migrating(spec, st, hidden, now_s, d, live[d] - target, ledger)
        for r in replicas_to_stop(spec, st, d, num, hidden.replica_serial, hidden.counters[TOP]):
            if st.replica_phase[r] != _RUNNING:
                let_go(spec, st, r, now_s)
                continue
            replacement = st.replica_peer[r]
            drain(spec, st, hidden, now_s, r)  # first, so that it is not migrated again
            if replacement >= 0:
                drop_move(spec, st, hidden, now_s, replacement, LOG_CANCELLED, ledger)


@inner
def _place_pinned(
    spec: SpecArrays,
    st: StateArrays,
    hidden: Hidden,
    const: Constants,
    now_s: float,
    ledger: NDArray[np.float64],
) -> None:
    """Replacements that wait for a node of their own: on it once it is alive, given up if it has no room."""
    pinned, phase, node_phase = st.replica_pinned_node, st.replica_phase, st.node_phase
    for r in range(hidden.counters[TOP]):
        n = pinned[r]
        if n < 0 or phase[r] != _PENDING or node_phase[n] == _BOOTING:
            continue
        if st.node_phase[n] != _ALIVE or capacity_reason(spec, st, st.replica_deployment[r], n) != 0:
            drop_move(spec, st, hidden, now_s, r, LOG_FAILED, ledger)
            continue
        hold(spec, st, r, n)
        st.replica_pinned_node[r] = -1
        _start(spec, st, hidden, const, now_s, r, ledger)


@inner
def _in_order(spec: SpecArrays, st: StateArrays, hidden: Hidden, is_pack: bool) -> NDArray[np.int64]:
    """Rows of pending replicas that are pinned to no node, in the order of placement; equal ones as created."""
    phase, pinned, deployment, serial = (
        st.replica_phase,
        st.replica_pinned_node,
        st.replica_deployment,
        hidden.replica_serial,
    )
    rows = np.empty(hidden.counters[TOP], np.int64)
    count = 0
    for r in range(rows.shape[0]):
        if phase[r] == _PENDING and pinned[r] < 0:
            rows[count] = r
            count += 1
    rows = rows[:count]
    if count < 2:
        return rows
    ranks, keys = spec.placement_rank, np.empty(count, np.int64)
    for i in range(count):
        d = deployment[rows[i]]
        keys[i] = ((ranks[d] if is_pack else d) << 40) + serial[rows[i]]
    return rows[np.argsort(keys)]


@kernel
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
    is_full = np.zeros(spec.demand.shape[0], np.bool_)  # of one shape none fits once one does not
    active = active_nodes(spec, st)
    for r in _in_order(spec, st, hidden, const.is_pack):
        d = st.replica_deployment[r]
        if is_full[d]:
            continue
        if spec.can_span[d]:
            if hold_group(spec, st, now_s, r):
                _start(spec, st, hidden, const, now_s, r, ledger)
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
        hold(spec, st, r, n)
        _start(spec, st, hidden, const, now_s, r, ledger)
