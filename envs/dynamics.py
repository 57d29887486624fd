"""One simulator step: time passes by ``dt_s`` and every rule of Serve and of the autoscaler acts once.

Order: what is due becomes due, Serve's replica autoscaler, Serve's scheduler, the node autoscaler, the bill.
Dims: N nodes, R replicas, D deployments, T node types.
"""

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from rayfold.envs.cluster import SpecArrays
from rayfold.envs.ledger import Entry
from rayfold.envs.node_autoscaler import add_node, choose_launches, count_nodes, is_expired, remove_node
from rayfold.envs.placement import active_nodes, asks_more, hold, let_go, next_to_stop, pack_node, spread_node
from rayfold.envs.replica_autoscaler import decide_target
from rayfold.envs.state import NodePhase, ReplicaPhase, StateArrays
from rayfold.envs.transition import cancel_move, free_row

__all__ = ["UNDONE_WINDOW_S", "Constants", "Hidden", "add_pending", "place_pending", "step"]

UNDONE_WINDOW_S = 1800.0  # a release followed by a launch within this long was undone (DESIGN §10)

_BOOTING, _ALIVE, _ABSENT = int(NodePhase.BOOTING), int(NodePhase.ALIVE), int(NodePhase.ABSENT)
_PENDING, _STARTING = int(ReplicaPhase.PENDING), int(ReplicaPhase.STARTING)
_RUNNING, _STOPPING = int(ReplicaPhase.RUNNING), int(ReplicaPhase.STOPPING)
_NODE_USD, _UNSERVED_USD, _BOUND_USD = int(Entry.NODE_USD), int(Entry.UNSERVED_USD), int(Entry.BOUND_USD)
_NODE_H, _GPU_H, _UNSERVED_H = int(Entry.NODE_H), int(Entry.GPU_H), int(Entry.UNSERVED_REPLICA_H)
_TOKENS, _UNDONE, _CANCELLED = int(Entry.TOKENS), int(Entry.UNDONE_MOVES), int(Entry.CANCELLED_MOVES)
_LAUNCHED, _RELEASED, _ELAPSED = int(Entry.NODES_LAUNCHED), int(Entry.NODES_RELEASED), int(Entry.ELAPSED_S)


class Hidden(NamedTuple):
    """What the simulator knows and no decision may depend on."""

    node_ready_s: NDArray[np.float64]  # (N,) end of boot
    node_moves_out: NDArray[np.int64]  # (N,) moves away since its launch, cancelled ones left out
    released_s: NDArray[np.float64]  # (N,) last release of this row, -inf = none
    released_type: NDArray[np.int64]  # (N,) type it had
    released_moves: NDArray[np.int64]  # (N,) moves that emptied it, 0 once matched with a launch
    replica_due_s: NDArray[np.float64]  # (R,) end of start-up or of draining
    replica_serial: NDArray[np.int64]  # (R,) creation order
    wish_since_s: NDArray[np.float64]  # (D,) replica autoscaler: see decide_target
    wish_direction: NDArray[np.int64]  # (D,)
    counters: NDArray[np.int64]  # (2,) next serial, spread cursor


class Constants(NamedTuple):
    """Scalars of a simulation."""

    dt_s: float
    is_pack: bool
    idle_timeout_s: float
    unserved_factor: float


@njit(cache=True)
def add_pending(st: StateArrays, hidden: Hidden, now_s: float, d: int) -> bool:
    """Serve asks for one more replica of ``d``; False if no row is unused."""
    row = free_row(st)
    if row < 0:
        return False
    st.replica_deployment[row] = d
    st.replica_node[row] = -1
    st.replica_phase[row] = _PENDING
    st.replica_since_s[row] = now_s
    hidden.replica_serial[row] = hidden.counters[0]
    hidden.counters[0] += 1
    return True


@njit(cache=True)
def _finish_due(spec: SpecArrays, st: StateArrays, hidden: Hidden, now_s: float, rng: np.random.Generator) -> None:
    for n in range(st.node_type.shape[0]):
        if st.node_phase[n] == _BOOTING and hidden.node_ready_s[n] <= now_s:
            st.node_phase[n] = _ALIVE
            st.node_idle_since_s[n] = now_s
    for r in range(st.replica_phase.shape[0]):
        if hidden.replica_due_s[r] > now_s:
            continue
        d = st.replica_deployment[r]
        if st.replica_phase[r] == _STARTING:
            st.replica_phase[r] = _RUNNING
            st.replica_since_s[r] = now_s
            st.deployment_changed_s[d] = now_s
            source = st.replica_peer[r]
            if source >= 0:
                st.replica_peer[r] = -1
                st.replica_peer[source] = -1
                _drain(spec, st, hidden, now_s, source, rng)
        elif st.replica_phase[r] == _STOPPING:
            let_go(spec, st, r, now_s)
            st.deployment_changed_s[d] = now_s


@njit(cache=True)
def _drain(spec: SpecArrays, st: StateArrays, hidden: Hidden, now_s: float, r: int, rng: np.random.Generator) -> None:
    d = st.replica_deployment[r]
    st.replica_phase[r] = _STOPPING
    st.replica_since_s[r] = now_s
    hidden.replica_due_s[r] = now_s + rng.uniform(spec.drain_s[d, 0], spec.drain_s[d, 1])


@njit(cache=True)
def _scale_replicas(
    spec: SpecArrays,
    st: StateArrays,
    hidden: Hidden,
    now_s: float,
    ledger: NDArray[np.float64],
    rng: np.random.Generator,
) -> None:
    num_deployments = spec.demand.shape[0]
    running = np.zeros(num_deployments, np.int64)
    live = np.zeros(num_deployments, np.int64)  # counted against the target: a replacement is not
    for r in range(st.replica_phase.shape[0]):
        phase = st.replica_phase[r]
        if phase == _RUNNING:
            running[st.replica_deployment[r]] += 1
            live[st.replica_deployment[r]] += 1
        elif (phase in (_PENDING, _STARTING)) and st.replica_peer[r] < 0:
            live[st.replica_deployment[r]] += 1
    for d in range(num_deployments):
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
        for _ in range(target - live[d]):
            if not add_pending(st, hidden, now_s, d):
                break
        for _ in range(live[d] - target):
            r = next_to_stop(st, d, hidden.replica_serial)
            if r < 0:
                break
            if st.replica_phase[r] != _RUNNING:
                let_go(spec, st, r, now_s)
                continue
            if st.replica_peer[r] >= 0:
                hidden.node_moves_out[st.replica_node[r]] -= 1
                cancel_move(spec, st, now_s, st.replica_peer[r])
                ledger[_CANCELLED] += 1
            _drain(spec, st, hidden, now_s, r, rng)


@njit(cache=True)
def place_pending(
    spec: SpecArrays, st: StateArrays, hidden: Hidden, now_s: float, is_pack: bool, rng: np.random.Generator
) -> None:
    """Serve's scheduler: every pending replica goes to a node if one takes it, largest first under pack."""
    num_replicas = st.replica_phase.shape[0]
    tried = np.zeros(num_replicas, np.bool_)
    active = active_nodes(st)
    while True:
        best = -1
        for r in range(num_replicas):
            if st.replica_phase[r] != _PENDING or tried[r]:
                continue
            if best < 0 or (is_pack and asks_more(spec, st.replica_deployment[r], st.replica_deployment[best])):
                best = r
        if best < 0:
            return
        tried[best] = True
        d = st.replica_deployment[best]
        n = pack_node(spec, st, now_s, d, active) if is_pack else spread_node(spec, st, now_s, d, hidden.counters[1])
        if n < 0:
            continue
        hidden.counters[1] = n + 1
        st.node_fenced_until_s[n] = -np.inf  # the replica fits nowhere else: the fence yields
        active[n] = True
        hold(spec, st, best, n)
        st.replica_phase[best] = _STARTING
        st.replica_since_s[best] = now_s
        hidden.replica_due_s[best] = now_s + rng.uniform(spec.startup_s[d, 0], spec.startup_s[d, 1])


@njit(cache=True)
def _scale_nodes(
    spec: SpecArrays,
    st: StateArrays,
    hidden: Hidden,
    now_s: float,
    idle_timeout_s: float,
    ledger: NDArray[np.float64],
    rng: np.random.Generator,
) -> None:
    num_types = spec.type_capacity.shape[0]
    counts = count_nodes(st, num_types)
    for n in range(st.node_type.shape[0]):
        t = st.node_type[n]
        if is_expired(st, now_s, idle_timeout_s, n) and counts[t] > spec.type_min_nodes[t]:
            counts[t] -= 1
            hidden.released_s[n], hidden.released_type[n] = now_s, t
            hidden.released_moves[n] = hidden.node_moves_out[n]
            remove_node(st, n)
            ledger[_RELEASED] += 1
    launches = choose_launches(spec, st)
    for t in range(num_types):
        for _ in range(launches[t]):
            n = add_node(spec, st, t, _BOOTING, now_s)
            if n < 0:
                break
            hidden.node_ready_s[n] = now_s + rng.uniform(spec.type_boot_s[t, 0], spec.type_boot_s[t, 1])
            hidden.node_moves_out[n] = 0
            ledger[_LAUNCHED] += 1
            _match_release(hidden, now_s, t, ledger)


@njit(cache=True)
def _match_release(hidden: Hidden, now_s: float, t: int, ledger: NDArray[np.float64]) -> None:
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


@njit(cache=True)
def bound_usd_per_h(spec: SpecArrays, st: StateArrays) -> float:
    """Least price per hour of nodes that could hold the present replicas.

    For each resource: every replica pays for its share at the cheapest unit price among the types it fits; the
    dearest resource is a valid bound, since each alone is a relaxation of vector bin packing.
    """
    num_types, num_resources = spec.type_capacity.shape
    num_deployments = spec.demand.shape[0]
    held = np.zeros(num_deployments, np.int64)
    for r in range(st.replica_phase.shape[0]):
        phase = st.replica_phase[r]
        is_replacement = st.replica_peer[r] >= 0 and phase != _RUNNING
        if phase >= _PENDING and phase <= _RUNNING and not is_replacement:
            held[st.replica_deployment[r]] += 1
    best = 0.0
    for k in range(num_resources):
        total = 0.0
        for d in range(num_deployments):
            if held[d] == 0 or spec.demand[d, k] <= 0.0:
                continue
            unit = np.inf
            for t in range(num_types):
                if spec.fits_type[d, t]:
                    unit = min(unit, spec.type_price_usd_per_h[t] / spec.type_capacity[t, k])
            if unit < np.inf:
                total += held[d] * spec.demand[d, k] * unit
        best = max(best, total)
    return best


@njit(cache=True)
def _account(
    spec: SpecArrays,
    st: StateArrays,
    ongoing: NDArray[np.float64],
    tokens_per_ongoing_s: NDArray[np.float64],
    const: Constants,
    ledger: NDArray[np.float64],
) -> None:
    hours = const.dt_s / 3600.0
    for n in range(st.node_type.shape[0]):
        if st.node_phase[n] != _ABSENT and not st.node_is_head[n]:
            t = st.node_type[n]
            ledger[_NODE_USD] += spec.type_price_usd_per_h[t] * hours
            ledger[_NODE_H] += hours
            ledger[_GPU_H] += spec.type_num_gpus[t] * hours
    serving = np.zeros(spec.demand.shape[0], np.int64)
    for r in range(st.replica_phase.shape[0]):
        if st.replica_phase[r] == _RUNNING:
            serving[st.replica_deployment[r]] += 1
    for d in range(serving.shape[0]):
        served = min(ongoing[d], serving[d] * spec.max_ongoing[d])
        unserved_replicas = (ongoing[d] - served) / spec.max_ongoing[d]
        ledger[_TOKENS] += served * tokens_per_ongoing_s[d] * const.dt_s
        ledger[_UNSERVED_H] += unserved_replicas * hours
        ledger[_UNSERVED_USD] += const.unserved_factor * spec.replica_usd_per_h[d] * unserved_replicas * hours
    ledger[_BOUND_USD] += bound_usd_per_h(spec, st) * hours
    ledger[_ELAPSED] += const.dt_s


@njit(cache=True)
def step(
    spec: SpecArrays,
    st: StateArrays,
    hidden: Hidden,
    now_s: float,
    num_steps: int,
    ongoing: NDArray[np.float64],
    lookback: NDArray[np.float64],
    slow: NDArray[np.float64],
    tokens_per_ongoing_s: NDArray[np.float64],
    const: Constants,
    ledger: NDArray[np.float64],
    rng: np.random.Generator,
) -> float:
    """Advances the state by ``num_steps`` steps, in place.

    Args:
        spec: Static description.
        st: State, written.
        hidden: Hidden state, written.
        now_s: Clock before.
        num_steps: Steps to make.
        ongoing: ``(num_steps, D)`` offered concurrent requests in each step.
        lookback: ``(num_steps, D)`` their mean over the look-back period.
        slow: ``(num_steps, D)`` their ten-minute mean.
        tokens_per_ongoing_s: ``(D,)`` output tokens per ongoing request and second.
        const: Scalars.
        ledger: ``(len(Entry),)``, written.
        rng: Draws start-up, drain and boot times.

    Returns:
        Clock after.
    """
    for i in range(num_steps):
        _account(spec, st, ongoing[i], tokens_per_ongoing_s, const, ledger)
        now_s += const.dt_s
        st.deployment_ongoing[:] = lookback[i]
        st.deployment_ongoing_slow[:] = slow[i]
        _finish_due(spec, st, hidden, now_s, rng)
        _scale_replicas(spec, st, hidden, now_s, ledger, rng)
        place_pending(spec, st, hidden, now_s, const.is_pack, rng)
        _scale_nodes(spec, st, hidden, now_s, const.idle_timeout_s, ledger, rng)
    return now_s
