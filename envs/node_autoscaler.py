"""Ray's node autoscaler: nodes are launched for replicas that fit nowhere and released after the idle time-out.

Launch follows ``ray.autoscaler.v2.scheduler`` (Ray 2.60): pending requests are packed onto nodes already booting,
then onto the node type that they use best, until all are placed or no type is left. Dims: N nodes, R replicas,
T node types, K resources, I items: whole replicas, or single bundles of groups that no node holds whole.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.cluster import MEMORY_IDX
from rayfold.envs.devices import EPS
from rayfold.envs.jit import inner, kernel
from rayfold.envs.safety import count_nodes
from rayfold.envs.spec_arrays import SpecArrays
from rayfold.envs.state import NodePhase, ReplicaPhase, StateArrays

__all__ = ["add_node", "choose_launches", "is_expired", "remove_node"]

_ABSENT, _BOOTING, _ALIVE = int(NodePhase.ABSENT), int(NodePhase.BOOTING), int(NodePhase.ALIVE)
_PENDING = int(ReplicaPhase.PENDING)


class _Items(NamedTuple):
    """What waits for a node, in the order in which Ray packs it."""

    deployment: NDArray[np.int64]  # (I,)
    is_whole: NDArray[np.bool_]  # (I,) the whole replica, not one of its bundles
    asked: NDArray[np.float64]  # (I, K)


@inner
def _fill(
    spec: SpecArrays, items: _Items, taken: NDArray[np.bool_], t: int, free: NDArray[np.float64]
) -> tuple[tuple[float, float, float, float, float], int]:
    """Packs waiting items, in their order, into ``free`` of a node of type ``t``, marking them in ``taken``.

    Returns:
        Score to compare types by, higher is better (``_compute_score``), and how many were packed. First comes a type
        whose labels are asked for, by the first selector rather than by a fallback; a GPU node is kept for those that
        ask for GPUs; then count the kinds of resources asked for, then lowest and mean of ``capacity * use ** 3``.
    """
    deployment, is_whole, asked = items.deployment, items.is_whole, items.asked
    fits_type, bundle_fits_type, num_labels = spec.fits_type, spec.bundle_fits_type, spec.num_labels
    num_selectors, label_rank = spec.num_selectors, spec.label_rank
    num_resources = asked.shape[1]
    packed, wants_gpu, label_score = 0, False, 0.0
    is_asked = np.zeros(num_resources, np.bool_)
    for i in range(deployment.shape[0]):
        d = deployment[i]
        if taken[i] or not (fits_type[d, t] if is_whole[i] else bundle_fits_type[d, t]):
            continue
        fits = True
        for k in range(num_resources):
            if asked[i, k] > free[k] + EPS:
                fits = False
        if fits:
            taken[i] = True
            packed += 1
            wants_gpu = wants_gpu or asked[i, 0] > 0.0
            if num_labels[d] > 0:
                label_score = max(label_score, float(num_selectors[d] - label_rank[d, t]))
            for k in range(num_resources):
                free[k] -= asked[i, k]
                is_asked[k] = is_asked[k] or asked[i, k] > 0.0
    lowest, total, kinds, matching = np.inf, 0.0, 0, 0
    for k in range(num_resources):
        capacity = spec.type_capacity[t, k]
        if capacity > 0.0:
            # Ray counts memory in bytes here, which outweighs every other resource in the mean.
            unit = 2.0**30 if k == MEMORY_IDX else 1.0
            use = unit * capacity * (1.0 - free[k] / capacity) ** 3
            lowest = min(lowest, use)
            total += use
            kinds += 1
            matching += int(is_asked[k])
    is_kept = spec.type_num_gpus[t] > 0 and not wants_gpu
    score = (label_score, 0.0 if is_kept else 1.0, float(matching), lowest, total / max(1, kinds))
    return score, packed


@inner
def _waiting(spec: SpecArrays, st: StateArrays) -> _Items:
    """Pending replicas that no node is being launched for; bundle by bundle those that may and have to span nodes."""
    phase, pinned, rows_of = st.replica_phase, st.replica_pinned_node, st.replica_deployment
    needs_whole = np.zeros(spec.demand.shape[0], np.bool_)
    for d in range(needs_whole.shape[0]):
        needs_whole[d] = not spec.can_span[d] or spec.fits_type[d].any()
    num_items = 0
    for r in range(phase.shape[0]):
        if phase[r] == _PENDING and pinned[r] < 0:
            num_items += 1 if needs_whole[rows_of[r]] else spec.num_bundles[rows_of[r]]
    deployment, bundle = np.empty(num_items, np.int64), np.full(num_items, -1)
    i = 0
    for r in range(phase.shape[0]):
        if phase[r] == _PENDING and pinned[r] < 0:
            d = rows_of[r]
            for j in range(1 if needs_whole[d] else spec.num_bundles[d]):
                deployment[i] = d
                bundle[i] = -1 if needs_whole[d] else j
                i += 1
    order = np.argsort(spec.launch_rank[deployment], kind="mergesort")
    deployment, bundle = deployment[order], bundle[order]
    asked = np.empty((num_items, spec.demand.shape[1]))
    for i in range(num_items):
        d, j = deployment[i], bundle[i]
        for k in range(asked.shape[1]):
            asked[i, k] = spec.demand[d, k] if j < 0 else spec.bundle[d, j, k]
    return _Items(deployment, bundle < 0, asked)


@kernel
def choose_launches(spec: SpecArrays, st: StateArrays) -> NDArray[np.int64]:
    """Nodes to launch now, per type: ``(T,)``. A type that is out of stock is asked for again and again, as by Ray."""
    num_types = spec.type_capacity.shape[0]
    launches, counts = np.zeros(num_types, np.int64), count_nodes(st, num_types)
    if (counts >= spec.type_max_nodes).all():
        return launches
    items = _waiting(spec, st)
    if items.deployment.shape[0] == 0:
        return launches
    taken = np.zeros(items.deployment.shape[0], np.bool_)
    for n in range(st.node_type.shape[0]):
        if st.node_phase[n] == _BOOTING:
            _fill(spec, items, taken, st.node_type[n], _free_for_others(spec, st, n))
    turn = np.arange(num_types)  # of equal types the one whose turn is first; a launched one goes to the end
    while True:
        best, best_score = -1, (-1.0, -1.0, -1.0, -1.0, -1.0)
        best_taken = taken
        for t in range(num_types):
            if counts[t] + launches[t] >= spec.type_max_nodes[t]:
                continue
            trial = taken.copy()
            score, packed = _fill(spec, items, trial, t, spec.type_capacity[t].copy())
            is_next = best >= 0 and score == best_score and turn[t] < turn[best]
            if packed > 0 and (score > best_score or is_next):
                best, best_score, best_taken = t, score, trial
        if best < 0:
            return launches
        launches[best] += 1
        turn[best] = turn.max() + 1
        taken = best_taken


@inner
def _free_for_others(spec: SpecArrays, st: StateArrays, n: int) -> NDArray[np.float64]:
    """``(K,)`` what a booting node leaves to replicas that are not pinned to it."""
    free: NDArray[np.float64] = st.node_free[n].copy()
    phase, pinned = st.replica_phase, st.replica_pinned_node
    for r in range(phase.shape[0]):
        if pinned[r] == n and phase[r] == _PENDING:
            free -= spec.demand[st.replica_deployment[r]]
    return free


@kernel
def add_node(spec: SpecArrays, st: StateArrays, t: int, phase: int, now_s: float) -> int:
    """Puts a node of type ``t`` into the first absent row, in place; -1 if there is none."""
    for n in range(st.node_type.shape[0]):
        if st.node_phase[n] == _ABSENT:
            st.node_type[n] = t
            st.node_phase[n] = phase
            st.node_free[n] = spec.type_capacity[t]
            for g in range(st.gpu_free.shape[1]):
                st.gpu_free[n, g] = 1.0 if g < spec.type_num_gpus[t] else 0.0
            st.node_idle_since_s[n] = now_s
            st.node_fenced_until_s[n] = -np.inf
            st.node_others[n] = 0.0
            st.node_releasable[n] = True
            st.node_is_head[n] = False
            st.node_is_opted_out[n] = spec.type_is_opted_out[t]
            return n
    return -1


@kernel
def remove_node(st: StateArrays, n: int) -> None:
    """Makes row ``n`` absent, in place."""
    st.node_type[n] = -1
    st.node_phase[n] = _ABSENT
    st.node_free[n] = 0.0
    st.gpu_free[n] = 0.0
    st.node_others[n] = 0.0
    st.node_idle_since_s[n] = np.inf
    st.node_fenced_until_s[n] = -np.inf


@kernel
def is_expired(st: StateArrays, now_s: float, idle_timeout_s: float, n: int) -> bool:
    """Whether node ``n`` has been empty long enough to be released; the caller checks ``min_nodes``."""
    return bool(
        st.node_phase[n] == _ALIVE
        and st.node_releasable[n]
        and not st.node_is_head[n]
        and now_s - st.node_idle_since_s[n] > idle_timeout_s + 1e-9  # AS:2278 is strict
    )
