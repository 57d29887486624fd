"""The simulator's clock: steps of ``dt_s`` in which every rule of Serve and of the autoscaler acts once.

Order in a step: the bill of the time that passes; what is due becomes due; Serve's replica autoscaler; Serve's
scheduler; the node autoscaler. Most steps are quiet: nothing is due and no target changes. What such a step needs is
counted once (``Tally``) and kept until something changes; ``Constants.skips_quiet_steps`` turns that off, with the
same result. Dims: N nodes, R replicas, D deployments, T node types, W rows of traffic before the first step.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.bound import bound_of, packing_bound_of
from rayfold.envs.hidden import CHANGES, TOP, Constants, Hidden
from rayfold.envs.jit import inner, kernel
from rayfold.envs.ledger import DeploymentEntry, Entry
from rayfold.envs.node_life import book_launch, finish_nodes, is_out_of_stock, scale_nodes
from rayfold.envs.replica_autoscaler import DELAY_EPS_S, wish_cuts
from rayfold.envs.replica_life import decide, finish_replicas, place_pending, reach_targets, start_move
from rayfold.envs.safety import count_nodes
from rayfold.envs.spec_arrays import SpecArrays
from rayfold.envs.state import NodePhase, ReplicaPhase, StateArrays
from rayfold.envs.views import by_reference

__all__ = ["Tally", "fresh_tally", "launch_move", "step"]

_ABSENT, _BOOTING = int(NodePhase.ABSENT), int(NodePhase.BOOTING)
_ALIVE, _DRAINING = int(NodePhase.ALIVE), int(NodePhase.DRAINING)
_PENDING, _RUNNING = int(ReplicaPhase.PENDING), int(ReplicaPhase.RUNNING)
_COST_USD, _UNSERVED_USD, _BOUND_USD = int(Entry.COST_USD), int(Entry.UNSERVED_USD), int(Entry.BOUND_USD)
_NODE_H, _GPU_H, _UNSERVED_H = int(Entry.NODE_H), int(Entry.GPU_H), int(Entry.UNSERVED_REPLICA_H)
_TOKENS, _ELAPSED, _RELAXED_BOUND_USD = int(Entry.TOKENS), int(Entry.ELAPSED_S), int(Entry.RELAXED_BOUND_USD)
_UNSERVED_REQUEST_S = int(Entry.UNSERVED_REQUEST_S)
_REPLICA_H = int(DeploymentEntry.REPLICA_H)
_UNSERVED_OF_DEPLOYMENT = int(DeploymentEntry.UNSERVED_REQUEST_S)

_COUNTED = 2  # of Tally.rows
# Of Tally.sums.
_USD_PER_H, _GPUS, _NODES, _BOUND, _RELAXED, _REPLICA_DUE_S, _NODE_DUE_S, _WISH_DUE_S = range(8)


@by_reference(is_written=True)
class Tally(NamedTuple):
    """Counts over a state, valid until it changes."""

    running: NDArray[np.int64]  # (D,) running replicas
    live: NDArray[np.int64]  # (D,) replicas counted against the target: a replacement is not
    rows: NDArray[np.int64]  # (3,) rows in use: the highest + 1, pending replicas; CHANGES when all this was counted
    sums: NDArray[np.float64]  # (8,) USD/h, GPUs and number of nodes paid for, two bounds in USD/h, next due times
    room: NDArray[np.float64]  # (D,) requests that the running replicas take
    cuts: NDArray[np.float64]  # (D, 4) see wish_cuts, of the sum over the look-back period
    low: NDArray[np.float64]  # (D,) from this sum on, and
    high: NDArray[np.float64]  # (D,) up to this one, the wish stays as it is
    wish_due_s: NDArray[np.float64]  # (D,) when its delay is over


def fresh_tally(num_deployments: int) -> Tally:
    """Nothing counted yet."""
    d = num_deployments
    return Tally(
        *(np.zeros(d, np.int64), np.zeros(d, np.int64), np.full(3, -1), np.zeros(8)),
        *(np.zeros(d), np.zeros((d, 4)), np.zeros(d), np.zeros(d), np.zeros(d)),
    )


@inner
def _count_replicas(spec: SpecArrays, st: StateArrays, hidden: Hidden, tally: Tally) -> None:
    phases, deployment, peer, due_at_s = st.replica_phase, st.replica_deployment, st.replica_peer, hidden.replica_due_s
    running, live = tally.running, tally.live
    running[:] = 0
    live[:] = 0
    top, num_pending, due_s = 0, 0, np.inf
    for r in range(hidden.counters[TOP]):
        phase = phases[r]
        if phase == 0:
            continue
        top = r + 1
        due_s = min(due_s, due_at_s[r])
        if phase == _RUNNING:
            running[deployment[r]] += 1
            live[deployment[r]] += 1
        elif phase < _RUNNING:
            live[deployment[r]] += int(peer[r] < 0)
            num_pending += int(phase == _PENDING)
    hidden.counters[TOP] = top
    for d in range(running.shape[0]):
        tally.room[d] = running[d] * spec.max_ongoing[d]
    tally.rows[0], tally.rows[1] = top, num_pending
    tally.sums[_REPLICA_DUE_S] = due_s
    tally.sums[_BOUND], tally.sums[_RELAXED] = packing_bound_of(spec, live), bound_of(spec, live)


@inner
def _count_nodes(spec: SpecArrays, st: StateArrays, hidden: Hidden, idle_timeout_s: float, tally: Tally) -> None:
    counts = count_nodes(st, spec.type_capacity.shape[0])
    phases, node_type, is_head, releasable = st.node_phase, st.node_type, st.node_is_head, st.node_releasable
    idle_since_s, ready_s, notice_s, end_s = (
        st.node_idle_since_s,
        hidden.node_ready_s,
        hidden.node_notice_s,
        hidden.node_end_s,
    )
    work_until_s, price, num_gpus = hidden.node_work_until_s, spec.type_price_usd_per_h, spec.type_num_gpus
    min_nodes = spec.type_min_nodes
    usd_per_h, gpus, paid, due_s = 0.0, 0, 0, np.inf
    for n in range(phases.shape[0]):
        phase, t = phases[n], node_type[n]
        if phase == _ABSENT:
            continue
        never_comes = phase == _BOOTING and end_s[n] <= ready_s[n]
        if not is_head[n] and not never_comes:
            usd_per_h += price[t]
            gpus += num_gpus[t]
            paid += 1
        due_s = min(due_s, work_until_s[n])
        if phase == _BOOTING:
            due_s = min(due_s, ready_s[n])
        elif phase == _DRAINING:
            due_s = min(due_s, notice_s[n], end_s[n])
        else:
            due_s = min(due_s, notice_s[n])
            if releasable[n] and not is_head[n] and counts[t] > min_nodes[t]:
                due_s = min(due_s, idle_since_s[n] + idle_timeout_s)
    if tally.rows[1] > 0:
        for t in range(hidden.stockout_until_s.shape[0]):
            if hidden.stockout_until_s[t] > -np.inf:
                due_s = -np.inf  # what is out of stock is asked for at every step
    tally.sums[_USD_PER_H], tally.sums[_GPUS], tally.sums[_NODES] = usd_per_h, gpus, paid
    tally.sums[_NODE_DUE_S] = due_s


@inner
def _note_wish(spec: SpecArrays, st: StateArrays, hidden: Hidden, tally: Tally, d: int) -> None:
    """Notes the loads that leave the wish of ``d`` as it is, and when that is due."""
    cuts, direction, since_s = tally.cuts, hidden.wish_direction[d], hidden.wish_since_s[d]
    low, high, due_s = np.inf, -np.inf, np.inf
    if direction < 0:
        low, high = -np.inf, cuts[d, 0]
        is_last = st.deployment_target[d] == 1
        due_s = since_s + (spec.downscale_to_zero_delay_s[d] if is_last else spec.downscale_delay_s[d])
    elif direction > 0:
        low, high, due_s = cuts[d, 3], np.inf, since_s + spec.upscale_delay_s[d]
    elif since_s == np.inf:
        low, high = cuts[d, 1], cuts[d, 2]
    tally.low[d], tally.high[d], tally.wish_due_s[d] = low, high, due_s - 2.0 * DELAY_EPS_S


@inner
def _note_wishes(spec: SpecArrays, st: StateArrays, hidden: Hidden, tally: Tally, window: NDArray[np.int64]) -> None:
    cuts, due_s = tally.cuts, np.inf
    for d in range(window.shape[0]):
        cuts[d] = np.nan
        if tally.live[d] == st.deployment_target[d]:
            down, same, same_end, up = wish_cuts(
                tally.running[d],
                st.deployment_target[d],
                spec.target_ongoing[d],
                spec.upscaling_factor[d],
                spec.downscaling_factor[d],
                spec.min_replicas[d],
                spec.max_replicas[d],
                spec.gang_size[d],
            )
            rows = window[d]
            cuts[d, 0], cuts[d, 1], cuts[d, 2], cuts[d, 3] = down * rows, same * rows, same_end * rows, up * rows
        _note_wish(spec, st, hidden, tally, d)
        due_s = min(due_s, tally.wish_due_s[d])
    tally.sums[_WISH_DUE_S] = due_s


@inner
def _decide(spec: SpecArrays, st: StateArrays, hidden: Hidden, tally: Tally, now_s: float, d: int, window: int) -> bool:
    """``replica_life.decide`` where the load of ``d`` has left what is noted, or its wish is due."""
    total, cuts, is_due = hidden.lookback_sum[d], tally.cuts, tally.wish_due_s[d] <= now_s
    if not is_due and cuts[d, 1] <= total <= cuts[d, 2]:
        hidden.wish_direction[d], hidden.wish_since_s[d] = 0, np.inf
    elif not is_due and total <= cuts[d, 0] and hidden.wish_direction[d] >= 0:
        hidden.wish_direction[d], hidden.wish_since_s[d] = -1, now_s
    elif not is_due and total >= cuts[d, 3] and hidden.wish_direction[d] <= 0:
        hidden.wish_direction[d], hidden.wish_since_s[d] = 1, now_s
    elif decide(spec, st, hidden, now_s, d, total / window, tally.running[d], tally.live[d]):
        return True
    _note_wish(spec, st, hidden, tally, d)
    if tally.wish_due_s[d] <= now_s and decide(
        spec, st, hidden, now_s, d, total / window, tally.running[d], tally.live[d]
    ):
        return True
    tally.sums[_WISH_DUE_S] = min(tally.sums[_WISH_DUE_S], tally.wish_due_s[d])
    return False


@inner
def _pass_steps(
    spec: SpecArrays,
    st: StateArrays,
    hidden: Hidden,
    tally: Tally,
    now_s: float,
    first: int,
    end: int,
    ongoing: NDArray[np.float32],
    window: NDArray[np.int64],
    tokens_per_ongoing_s: NDArray[np.float64],
    const: Constants,
    ledger: NDArray[np.float64],
) -> tuple[float, int, bool]:
    """Lets steps pass up to the first one after which something has to be done.

    In each: the bill of the time that passes, what Serve's metrics say afterwards (the sum of the look-back period and
    the mean of ten minutes), and, where that is not known to change nothing, the replica autoscaler.

    Returns:
        Clock, row after the last step, and whether a target has changed; that is not looked at where something is due.
    """
    sums, running, room, wish_due_s = tally.sums, tally.running, tally.room, tally.wish_due_s
    low, high = tally.low, tally.high
    lookback_sum, slow, max_ongoing = hidden.lookback_sum, st.deployment_ongoing_slow, spec.max_ongoing
    by_deployment, replica_usd_per_h = hidden.deployment_ledger, spec.replica_usd_per_h
    dt_s, slow_weight, unserved_factor = const.dt_s, const.slow_weight, const.unserved_factor
    hours = dt_s / 3600.0
    cost_usd, node_h, gpu_h = sums[_USD_PER_H] * hours, sums[_NODES] * hours, sums[_GPUS] * hours
    bound_usd, relaxed_usd = sums[_BOUND] * hours, sums[_RELAXED] * hours
    due_s = min(sums[_NODE_DUE_S], sums[_REPLICA_DUE_S])
    tokens, unserved_request_s = ledger[_TOKENS], ledger[_UNSERVED_REQUEST_S]
    unserved_h, unserved_usd = ledger[_UNSERVED_H], ledger[_UNSERVED_USD]
    is_changed, is_due, i = False, False, first
    while i < end and not is_due and not is_changed:
        now_s += dt_s
        ledger[_COST_USD] += cost_usd
        ledger[_NODE_H] += node_h
        ledger[_GPU_H] += gpu_h
        ledger[_BOUND_USD] += bound_usd
        ledger[_RELAXED_BOUND_USD] += relaxed_usd
        ledger[_ELAPSED] += dt_s
        is_due = due_s <= now_s or not const.skips_quiet_steps
        is_wish_due = sums[_WISH_DUE_S] <= now_s
        for d in range(window.shape[0]):
            load = float(ongoing[i, d])
            served = min(load, room[d])
            by_deployment[_REPLICA_H, d] += running[d] * hours
            tokens += served * tokens_per_ongoing_s[d] * dt_s
            if load > room[d]:
                unserved_replicas = (load - served) / max_ongoing[d]
                unserved_request_s += (load - served) * dt_s
                by_deployment[_UNSERVED_OF_DEPLOYMENT, d] += (load - served) * dt_s
                unserved_h += unserved_replicas * hours
                unserved_usd += unserved_factor * replica_usd_per_h[d] * unserved_replicas * hours
            total = lookback_sum[d] + (load - float(ongoing[i - window[d], d]))
            lookback_sum[d] = total
            slow[d] += slow_weight * (load - slow[d])
            is_as_noted = low[d] <= total <= high[d] and not (is_wish_due and wish_due_s[d] <= now_s)
            if not (is_as_noted or is_due):
                is_changed |= _decide(spec, st, hidden, tally, now_s, d, window[d])
        if is_wish_due:
            sums[_WISH_DUE_S] = wish_due_s.min()
        i += 1
    ledger[_TOKENS], ledger[_UNSERVED_REQUEST_S] = tokens, unserved_request_s
    ledger[_UNSERVED_H], ledger[_UNSERVED_USD] = unserved_h, unserved_usd
    return now_s, i, is_changed


@kernel
def step(
    spec: SpecArrays,
    st: StateArrays,
    hidden: Hidden,
    tally: Tally,
    now_s: float,
    num_steps: int,
    ongoing: NDArray[np.float32],
    row: int,
    window: NDArray[np.int64],
    tokens_per_ongoing_s: NDArray[np.float64],
    const: Constants,
    ledger: NDArray[np.float64],
) -> float:
    """Advances the state by ``num_steps`` steps, in place.

    Args:
        spec: Static description.
        st: State, written.
        hidden: Hidden state, written.
        tally: Written; need not be valid.
        now_s: Clock before.
        num_steps: Steps to make.
        ongoing: ``(W + steps, D)`` offered concurrent requests in each step.
        row: Its row of the first step, at least ``window.max()``.
        window: ``(D,)`` rows of each look-back period.
        tokens_per_ongoing_s: ``(D,)`` output tokens per ongoing request and second.
        const: Scalars.
        ledger: ``(len(Entry),)``, written.

    Returns:
        Clock after.
    """
    if num_steps <= 0:
        return now_s
    counters, rows, i, end = hidden.counters, tally.rows, row, row + num_steps
    is_stale = rows[_COUNTED] != counters[CHANGES] or not const.skips_quiet_steps
    # What happened between the calls, a move given up for one, may have made room for a pending replica.
    is_first = True
    while i < end:
        if is_stale:
            _count_replicas(spec, st, hidden, tally)
            _count_nodes(spec, st, hidden, const.idle_timeout_s, tally)
            _note_wishes(spec, st, hidden, tally, window)
            rows[_COUNTED], is_stale = counters[CHANGES], False
        has_to_place = is_first and rows[1] > 0
        now_s, i, is_changed = _pass_steps(
            spec,
            st,
            hidden,
            tally,
            now_s,
            i,
            i + 1 if has_to_place else end,
            ongoing,
            window,
            tokens_per_ongoing_s,
            const,
            ledger,
        )
        is_first = False
        is_node_due = tally.sums[_NODE_DUE_S] <= now_s or not const.skips_quiet_steps
        if is_node_due:
            finish_nodes(spec, st, hidden, now_s, ledger)
        if is_node_due or tally.sums[_REPLICA_DUE_S] <= now_s:
            finish_replicas(spec, st, hidden, now_s, rows[0], ledger)
            _count_replicas(spec, st, hidden, tally)
            is_stale = True
            for d in range(window.shape[0]):
                total = hidden.lookback_sum[d] / window[d]
                is_changed |= decide(spec, st, hidden, now_s, d, total, tally.running[d], tally.live[d])
        if is_changed:
            reach_targets(spec, st, hidden, now_s, tally.live, ledger)
        if not (is_stale or is_changed or has_to_place):
            continue
        is_stale = True
        counters[CHANGES] += 1
        _count_replicas(spec, st, hidden, tally)
        if rows[1] > 0:
            place_pending(spec, st, hidden, const, now_s, ledger)
            _count_replicas(spec, st, hidden, tally)
        scale_nodes(spec, st, hidden, const, now_s, rows[1] > 0, ledger)
    for d in range(window.shape[0]):
        st.deployment_ongoing[d] = hidden.lookback_sum[d] / window[d]
    return now_s


@kernel
def launch_move(
    spec: SpecArrays,
    st: StateArrays,
    hidden: Hidden,
    const: Constants,
    now_s: float,
    source: int,
    n: int,
    ledger: NDArray[np.float64],
) -> int:
    """Starts a move that the filter allows; a new node is launched first.

    If the cloud has no such node, that shows when it should have come: the move fails then, and it costs nothing.

    Returns:
        Row of the replacement, -1 if no row is unused.
    """
    num_nodes = st.node_type.shape[0]
    row = start_move(spec, st, hidden, const, now_s, source, n, ledger)
    if row < 0 or n < num_nodes:
        return row
    launched = st.replica_pinned_node[row]
    is_missing = is_out_of_stock(spec, hidden, now_s, n - num_nodes, ledger)
    book_launch(spec, st, hidden, now_s, launched, is_missing, ledger)
    return row
