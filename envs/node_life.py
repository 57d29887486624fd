"""Life of nodes in the simulator: launched, booted, busy with other work, interrupted, released.

Dims: N nodes, R replicas, T node types, K resources.
"""

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.devices import EPS, can_take_gpus, release_gpus, take_gpus
from rayfold.envs.draws import exponential, uniform, unit
from rayfold.envs.hidden import LOG_DONE, LOG_FAILED, Constants, Hidden, end_move
from rayfold.envs.jit import inner, kernel
from rayfold.envs.ledger import Entry
from rayfold.envs.node_autoscaler import add_node, choose_launches, is_expired, remove_node
from rayfold.envs.placement import let_go, member_node
from rayfold.envs.replica_life import drain, drop_move, migrate_replica
from rayfold.envs.safety import count_nodes
from rayfold.envs.spec_arrays import SpecArrays
from rayfold.envs.state import NodePhase, ReplicaPhase, StateArrays

__all__ = [
    "GRACEFUL_SHUTDOWN_S",
    "UNDONE_WINDOW_S",
    "begin_other_work",
    "book_launch",
    "finish_nodes",
    "is_out_of_stock",
    "match_release",
    "plan_life",
    "scale_nodes",
]

GRACEFUL_SHUTDOWN_S = 20.0  # Serve's default ``graceful_shutdown_timeout_s``
UNDONE_WINDOW_S = 1800.0  # a release followed by a launch within this long was undone (DESIGN §10)

_ABSENT, _BOOTING = int(NodePhase.ABSENT), int(NodePhase.BOOTING)
_ALIVE, _DRAINING = int(NodePhase.ALIVE), int(NodePhase.DRAINING)
_PENDING, _STARTING = int(ReplicaPhase.PENDING), int(ReplicaPhase.STARTING)
_RUNNING, _STOPPING, _EMPTY = int(ReplicaPhase.RUNNING), int(ReplicaPhase.STOPPING), int(ReplicaPhase.EMPTY)
_UNDONE, _FAILED = int(Entry.UNDONE_MOVES), int(Entry.FAILED_MOVES)
_LAUNCHED, _RELEASED = int(Entry.NODES_LAUNCHED), int(Entry.NODES_RELEASED)
_INTERRUPTED, _STOCKOUTS = int(Entry.NODES_INTERRUPTED), int(Entry.STOCKOUTS)


@kernel
def plan_life(spec: SpecArrays, st: StateArrays, hidden: Hidden, n: int, ready_s: float) -> None:
    """Draws what a node launched in row ``n`` will go through once it is ready."""
    t = st.node_type[n]
    hidden.node_ready_s[n] = ready_s
    hidden.node_moves_out[n] = 0
    hidden.node_work_until_s[n] = np.inf
    hidden.node_work_gpus[n] = 0
    hidden.node_notice_s[n] = np.inf
    hidden.node_end_s[n] = np.inf
    rate = spec.type_interruptions_per_h[t]
    if rate > 0.0:
        hidden.node_notice_s[n] = ready_s + exponential(hidden.stream, 3600.0 / rate)
        hidden.node_end_s[n] = hidden.node_notice_s[n] + spec.type_notice_s[t]


@kernel
def begin_other_work(spec: SpecArrays, st: StateArrays, hidden: Hidden, now_s: float, n: int) -> None:
    """A node that has just come up gets non-Serve work with the probability of its type, if it has room for it."""
    t = st.node_type[n]
    if spec.type_other_work_prob[t] <= 0.0 or unit(hidden.stream) >= spec.type_other_work_prob[t]:
        return
    work = spec.type_other_work[t]
    for k in range(work.shape[0]):
        if work[k] > st.node_free[n, k] + EPS:
            return
    if not can_take_gpus(st.gpu_free, n, work[0]):
        return
    hidden.node_work_gpus[n] = take_gpus(st.gpu_free, n, work[0])
    st.node_free[n] -= work
    st.node_others[n] = work
    st.node_releasable[n] = False
    hidden.node_work_until_s[n] = now_s + uniform(
        hidden.stream, spec.type_other_work_s[t, 0], spec.type_other_work_s[t, 1]
    )


@inner
def _end_other_work(st: StateArrays, hidden: Hidden, now_s: float, n: int) -> None:
    release_gpus(st.gpu_free, n, hidden.node_work_gpus[n], st.node_others[n, 0])
    st.node_free[n] += st.node_others[n]
    st.node_others[n] = 0.0
    st.node_releasable[n] = True
    hidden.node_work_until_s[n] = np.inf
    if st.node_num_held[n] == 0:
        st.node_idle_since_s[n] = now_s


@inner
def _is_on(st: StateArrays, r: int, n: int) -> bool:
    if st.replica_node[r] == n:
        return True
    if st.replica_spans[r]:
        for j in range(st.replica_bundle_node.shape[1]):
            if st.replica_bundle_node[r, j] == n:
                return True
    return False


@inner
def _runs_on(spec: SpecArrays, st: StateArrays, r: int, n: int) -> bool:
    """Whether the actor of ``r``, or of a member of the gang, is on ``n``."""
    is_there = False
    for j in range(spec.gang_size[st.replica_deployment[r]]):
        is_there |= member_node(spec, st, r, j) == n
    return is_there


@inner
def _give_notice(
    spec: SpecArrays, st: StateArrays, hidden: Hidden, now_s: float, n: int, ledger: NDArray[np.float64]
) -> None:
    """Node ``n`` will be interrupted: Ray drains it, Serve replaces its replicas elsewhere."""
    st.node_phase[n] = _DRAINING
    for r in range(st.replica_phase.shape[0]):
        phase = st.replica_phase[r]
        if phase == _EMPTY or not _runs_on(spec, st, r, n):
            continue
        if phase == _STARTING and st.replica_peer[r] >= 0:
            drop_move(spec, st, hidden, now_s, r, LOG_FAILED, ledger)
        elif phase == _STARTING:
            let_go(spec, st, r, now_s)
        elif phase == _RUNNING and st.replica_peer[r] < 0:
            migrate_replica(st, hidden, now_s, r)


@inner
def _stop_in_time(
    spec: SpecArrays, st: StateArrays, hidden: Hidden, now_s: float, n: int, ledger: NDArray[np.float64]
) -> None:
    """Node ``n`` is about to go: Serve stops what still runs there, served by a replacement or not."""
    for r in range(st.replica_phase.shape[0]):
        if st.replica_phase[r] != _RUNNING or not _runs_on(spec, st, r, n):
            continue
        peer = st.replica_peer[r]
        if peer >= 0:
            st.replica_peer[peer] = -1
            st.replica_pinned_node[peer] = -1
            st.replica_peer[r] = -1
        if end_move(hidden, r, LOG_FAILED):
            ledger[_FAILED] += 1
        st.deployment_changed_s[st.replica_deployment[r]] = now_s
        drain(spec, st, hidden, now_s, r)


@inner
def _lose(spec: SpecArrays, st: StateArrays, hidden: Hidden, now_s: float, n: int, ledger: NDArray[np.float64]) -> None:
    """Node ``n`` is gone with what is on it; a replacement elsewhere goes on as a replica of its own."""
    for r in range(st.replica_phase.shape[0]):
        phase, peer = st.replica_phase[r], st.replica_peer[r]
        if phase == _PENDING and st.replica_pinned_node[r] == n:
            drop_move(spec, st, hidden, now_s, r, LOG_FAILED, ledger)
        if phase <= _PENDING or not _is_on(st, r, n):
            continue
        st.deployment_changed_s[st.replica_deployment[r]] = now_s
        if phase == _STARTING and peer >= 0:
            drop_move(spec, st, hidden, now_s, r, LOG_FAILED, ledger)
            continue
        if phase == _RUNNING and peer >= 0:
            st.replica_peer[peer] = -1
            st.replica_pinned_node[peer] = -1
        if phase == _STOPPING:
            end_move(hidden, r, LOG_DONE)
        elif end_move(hidden, r, LOG_FAILED):
            ledger[_FAILED] += 1
        let_go(spec, st, r, now_s)
    remove_node(st, n)


@inner
def finish_nodes(spec: SpecArrays, st: StateArrays, hidden: Hidden, now_s: float, ledger: NDArray[np.float64]) -> None:
    """Boots, other work, notices and interruptions that are due."""
    phases, ready_s, end_s = st.node_phase, hidden.node_ready_s, hidden.node_end_s
    notice_s, work_until_s = hidden.node_notice_s, hidden.node_work_until_s
    for n in range(phases.shape[0]):
        phase = phases[n]
        if phase == _BOOTING and ready_s[n] <= now_s:
            if end_s[n] <= ready_s[n]:
                _lose(spec, st, hidden, now_s, n, ledger)  # it was out of stock and never came
                continue
            phases[n] = _ALIVE
            st.node_idle_since_s[n] = now_s
            begin_other_work(spec, st, hidden, now_s, n)
        if phase != _ABSENT and work_until_s[n] <= now_s:
            _end_other_work(st, hidden, now_s, n)
        if phases[n] == _ALIVE and notice_s[n] <= now_s:
            _give_notice(spec, st, hidden, now_s, n, ledger)
            notice_s[n] = end_s[n] - GRACEFUL_SHUTDOWN_S
        if phases[n] == _DRAINING and notice_s[n] <= now_s:
            _stop_in_time(spec, st, hidden, now_s, n, ledger)
            notice_s[n] = np.inf
        if phases[n] == _DRAINING and end_s[n] <= now_s:
            _lose(spec, st, hidden, now_s, n, ledger)
            ledger[_INTERRUPTED] += 1


@inner
def scale_nodes(
    spec: SpecArrays,
    st: StateArrays,
    hidden: Hidden,
    const: Constants,
    now_s: float,
    has_pending: bool,
    ledger: NDArray[np.float64],
) -> bool:
    """Releases nodes that have been empty for the idle time-out and launches nodes for pending replicas.

    Returns:
        Whether a node has come or gone.
    """
    num_types, has_changed = spec.type_capacity.shape[0], False
    counts, num_held, idle_since_s = count_nodes(st, num_types), st.node_num_held, st.node_idle_since_s
    for n in range(num_held.shape[0]):
        if num_held[n] > 0 or now_s < idle_since_s[n] or not is_expired(st, now_s, const.idle_timeout_s, n):
            continue
        t = st.node_type[n]
        if counts[t] > spec.type_min_nodes[t]:
            counts[t] -= 1
            hidden.released_s[n], hidden.released_type[n] = now_s, t
            hidden.released_moves[n] = hidden.node_moves_out[n]
            remove_node(st, n)
            ledger[_RELEASED] += 1
            has_changed = True
    if not has_pending:
        return has_changed
    launches = choose_launches(spec, st)
    for t in range(num_types):
        for _ in range(launches[t]):
            if is_out_of_stock(spec, hidden, now_s, t, ledger):
                break
            n = add_node(spec, st, t, _BOOTING, now_s)
            if n < 0:
                break
            book_launch(spec, st, hidden, now_s, n, False, ledger)
            has_changed = True
    return has_changed


@inner
def is_out_of_stock(spec: SpecArrays, hidden: Hidden, now_s: float, t: int, ledger: NDArray[np.float64]) -> bool:
    """Whether the cloud has no node of type ``t`` now; draws it where that is not known."""
    if now_s < hidden.stockout_until_s[t]:
        return True
    if spec.type_stockout_prob[t] <= 0.0 or unit(hidden.stream) >= spec.type_stockout_prob[t]:
        return False
    hidden.stockout_until_s[t] = now_s + uniform(hidden.stream, spec.type_stockout_s[t, 0], spec.type_stockout_s[t, 1])
    ledger[_STOCKOUTS] += 1
    return True


@inner
def book_launch(
    spec: SpecArrays,
    st: StateArrays,
    hidden: Hidden,
    now_s: float,
    n: int,
    is_missing: bool,
    ledger: NDArray[np.float64],
) -> None:
    """Draws the boot and the life of the node just launched in row ``n`` and enters it in the ledger.

    One that ``is_missing`` ends when its boot does; it is no launch to the ledger.
    """
    t = st.node_type[n]
    plan_life(spec, st, hidden, n, now_s + uniform(hidden.stream, spec.type_boot_s[t, 0], spec.type_boot_s[t, 1]))
    if is_missing:
        hidden.node_end_s[n] = hidden.node_ready_s[n]
        return
    ledger[_LAUNCHED] += 1
    match_release(hidden, now_s, t, ledger)


@kernel
def match_release(hidden: Hidden, now_s: float, t: int, ledger: NDArray[np.float64]) -> None:
    """A launch of type ``t`` undoes the earliest recent release of that type which moves had brought about."""
    best = -1
    for n in range(hidden.released_s.shape[0]):
        is_recent = now_s - hidden.released_s[n] <= UNDONE_WINDOW_S
        is_candidate = hidden.released_moves[n] > 0 and hidden.released_type[n] == t and is_recent
        if is_candidate and (best < 0 or hidden.released_s[n] < hidden.released_s[best]):
            best = n
    if best >= 0:
        ledger[_UNDONE] += hidden.released_moves[best]
        hidden.released_moves[best] = 0
