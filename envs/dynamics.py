"""The simulator's clock: steps of ``dt_s`` in which every rule of Serve and of the autoscaler acts once.

Order in a step: the bill of the time that passes; what is due becomes due; Serve's replica autoscaler; Serve's
scheduler; the node autoscaler. Most steps are quiet: nothing is due and no target changes. What such a step needs is
counted once (``Tally``) and kept until something changes; ``Constants.skips_quiet_steps`` turns that off, with the
same result. Dims: N nodes, R replicas, D deployments, T node types, W rows of traffic before the first step.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.bound import packing_bound_of
from rayfold.envs.cluster import SpecArrays
from rayfold.envs.hidden import TOP, Constants, Hidden
from rayfold.envs.jit import inner, kernel
from rayfold.envs.ledger import DeploymentEntry, Entry
from rayfold.envs.node_life import book_launch, finish_nodes, is_out_of_stock, scale_nodes
from rayfold.envs.replica_life import decide_targets, finish_replicas, place_pending, reach_targets, start_move
from rayfold.envs.safety import count_nodes
from rayfold.envs.state import NodePhase, ReplicaPhase, StateArrays
from rayfold.envs.views import by_reference

__all__ = ["Tally", "fresh_tally", "launch_move", "step"]

_ABSENT, _BOOTING = int(NodePhase.ABSENT), int(NodePhase.BOOTING)
_ALIVE, _DRAINING = int(NodePhase.ALIVE), int(NodePhase.DRAINING)
_PENDING, _RUNNING = int(ReplicaPhase.PENDING), int(ReplicaPhase.RUNNING)
_COST_USD, _UNSERVED_USD, _BOUND_USD = int(Entry.COST_USD), int(Entry.UNSERVED_USD), int(Entry.BOUND_USD)
_NODE_H, _GPU_H, _UNSERVED_H = int(Entry.NODE_H), int(Entry.GPU_H), int(Entry.UNSERVED_REPLICA_H)
_TOKENS, _ELAPSED = int(Entry.TOKENS), int(Entry.ELAPSED_S)
_UNSERVED_REQUEST_S = int(Entry.UNSERVED_REQUEST_S)
_REPLICA_H = int(DeploymentEntry.REPLICA_H)
_UNSERVED_OF_DEPLOYMENT = int(DeploymentEntry.UNSERVED_REQUEST_S)

# Of Tally.sums.
_USD_PER_H, _GPUS, _NODES, _BOUND, _REPLICA_DUE_S, _NODE_DUE_S = range(6)


@by_reference(is_written=True)
class Tally(NamedTuple):
    """Counts over a state, valid until it changes."""

    running: NDArray[np.int64]  # (D,) running replicas
    live: NDArray[np.int64]  # (D,) replicas counted against the target: a replacement is not
    rows: NDArray[np.int64]  # (2,) rows in use: the highest + 1, pending replicas
    sums: NDArray[np.float64]  # (6,) USD/h, GPUs and number of nodes paid for, bound in USD/h, next due times


def fresh_tally(num_deployments: int) -> Tally:
    """Nothing counted yet."""
    return Tally(
        np.zeros(num_deployments, np.int64), np.zeros(num_deployments, np.int64), np.zeros(2, np.int64), np.zeros(6)
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
    tally.rows[0], tally.rows[1] = top, num_pending
    tally.sums[_REPLICA_DUE_S] = due_s
    tally.sums[_BOUND] = packing_bound_of(spec, live)


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
def _account(
    sums: NDArray[np.float64],
    running: NDArray[np.int64],
    max_ongoing: NDArray[np.float64],
    replica_usd_per_h: NDArray[np.float64],
    ongoing: NDArray[np.float32],
    row: int,
    tokens_per_ongoing_s: NDArray[np.float64],
    dt_s: float,
    unserved_factor: float,
    ledger: NDArray[np.float64],
    by_deployment: NDArray[np.float64],
) -> None:
    hours = dt_s / 3600.0
    ledger[_COST_USD] += sums[_USD_PER_H] * hours
    ledger[_NODE_H] += sums[_NODES] * hours
    ledger[_GPU_H] += sums[_GPUS] * hours
    ledger[_BOUND_USD] += sums[_BOUND] * hours
    ledger[_ELAPSED] += dt_s
    for d in range(running.shape[0]):
        offered, room = float(ongoing[row, d]), running[d] * max_ongoing[d]
        served = min(offered, room)
        by_deployment[_REPLICA_H, d] += running[d] * hours
        ledger[_TOKENS] += served * tokens_per_ongoing_s[d] * dt_s
        if offered > room:
            unserved_replicas = (offered - served) / max_ongoing[d]
            ledger[_UNSERVED_REQUEST_S] += (offered - served) * dt_s
            by_deployment[_UNSERVED_OF_DEPLOYMENT, d] += (offered - served) * dt_s
            ledger[_UNSERVED_H] += unserved_replicas * hours
            ledger[_UNSERVED_USD] += unserved_factor * replica_usd_per_h[d] * unserved_replicas * hours


@inner
def _observe_load(
    mean: NDArray[np.float64],
    slow: NDArray[np.float64],
    lookback_sum: NDArray[np.float64],
    ongoing: NDArray[np.float32],
    row: int,
    window: NDArray[np.int64],
    slow_weight: float,
) -> None:
    """What Serve's metrics say after the step of ``row``: means of the look-back period and of ten minutes."""
    for d in range(window.shape[0]):
        now = float(ongoing[row, d])
        lookback_sum[d] += now - float(ongoing[row - window[d], d])
        mean[d] = lookback_sum[d] / window[d]
        slow[d] += slow_weight * (now - slow[d])


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
    is_stale = True
    running, live, rows, sums = tally.running, tally.live, tally.rows, tally.sums
    mean, slow, target, changed_s = (
        st.deployment_ongoing,
        st.deployment_ongoing_slow,
        st.deployment_target,
        st.deployment_changed_s,
    )
    since_s, direction, lookback_sum = hidden.wish_since_s, hidden.wish_direction, hidden.lookback_sum
    max_ongoing, replica_usd_per_h, target_ongoing = spec.max_ongoing, spec.replica_usd_per_h, spec.target_ongoing
    up_factor, down_factor, up_delay_s = spec.upscaling_factor, spec.downscaling_factor, spec.upscale_delay_s
    down_delay_s, zero_delay_s = spec.downscale_delay_s, spec.downscale_to_zero_delay_s
    min_replicas, max_replicas, gang_size = spec.min_replicas, spec.max_replicas, spec.gang_size
    for i in range(row, row + num_steps):
        if is_stale or not const.skips_quiet_steps:
            _count_replicas(spec, st, hidden, tally)
            _count_nodes(spec, st, hidden, const.idle_timeout_s, tally)
            is_stale = False
        _account(
            sums,
            running,
            max_ongoing,
            replica_usd_per_h,
            ongoing,
            i,
            tokens_per_ongoing_s,
            const.dt_s,
            const.unserved_factor,
            ledger,
            hidden.deployment_ledger,
        )
        now_s += const.dt_s
        _observe_load(mean, slow, lookback_sum, ongoing, i, window, const.slow_weight)
        is_node_due = sums[_NODE_DUE_S] <= now_s or not const.skips_quiet_steps
        if is_node_due:
            finish_nodes(spec, st, hidden, now_s, ledger)
        if is_node_due or sums[_REPLICA_DUE_S] <= now_s:
            finish_replicas(spec, st, hidden, now_s, rows[0], ledger)
            _count_replicas(spec, st, hidden, tally)
            is_stale = True
        if decide_targets(
            now_s,
            mean,
            running,
            live,
            target,
            changed_s,
            since_s,
            direction,
            target_ongoing,
            up_factor,
            down_factor,
            up_delay_s,
            down_delay_s,
            zero_delay_s,
            min_replicas,
            max_replicas,
            gang_size,
        ):
            reach_targets(spec, st, hidden, now_s, live, ledger)
            is_stale = True
        # What happened between the calls, a move given up for one, may have made room for a pending replica.
        is_first = i == row and rows[1] > 0
        if not is_stale and not is_first and const.skips_quiet_steps:
            continue
        is_stale = True
        _count_replicas(spec, st, hidden, tally)
        if rows[1] > 0:
            place_pending(spec, st, hidden, const, now_s, ledger)
            _count_replicas(spec, st, hidden, tally)
        scale_nodes(spec, st, hidden, const, now_s, rows[1] > 0, ledger)
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
