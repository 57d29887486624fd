"""Ray's node autoscaler: nodes are launched for replicas that fit nowhere and released after the idle time-out.

Launch follows ``ray.autoscaler.v2.scheduler`` (Ray 2.60): pending requests are packed onto nodes already booting,
then onto the node type that they use best, until all are placed or no type is left. Dims: N nodes, R replicas,
T node types, K resources.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from rayfold.envs.cluster import SpecArrays
from rayfold.envs.devices import EPS
from rayfold.envs.state import NodePhase, ReplicaPhase, StateArrays

__all__ = ["add_node", "choose_launches", "count_nodes", "is_expired", "remove_node"]

_ABSENT, _BOOTING, _ALIVE = int(NodePhase.ABSENT), int(NodePhase.BOOTING), int(NodePhase.ALIVE)
_PENDING = int(ReplicaPhase.PENDING)
_MEMORY = 2  # index in ClusterSpec.resource_names


@njit(cache=True)
def count_nodes(st: StateArrays, num_types: int) -> NDArray[np.int64]:
    """Nodes present per type: ``(T,)``."""
    counts = np.zeros(num_types, np.int64)
    for n in range(st.node_type.shape[0]):
        if st.node_phase[n] != _ABSENT:
            counts[st.node_type[n]] += 1
    return counts


@njit(cache=True)
def _fill(
    spec: SpecArrays, waiting: NDArray[np.int64], taken: NDArray[np.bool_], t: int, free: NDArray[np.float64]
) -> tuple[tuple[float, float, float, float, float], int]:
    """Packs waiting deployments, in their order, into ``free`` of a node of type ``t``, marking them in ``taken``.

    Returns:
        Score to compare types by, higher is better (``_compute_score``), and how many were packed. First comes a type
        that has labels asked for; a GPU node is kept for those that ask for GPUs; then count the kinds of resources
        asked for, then lowest and mean of ``capacity * use ** 3``.
    """
    num_resources = spec.demand.shape[1]
    packed, wants_gpu, has_labels = 0, False, False
    is_asked = np.zeros(num_resources, np.bool_)
    for i in range(waiting.shape[0]):
        d = waiting[i]
        if taken[i] or not spec.fits_type[d, t]:
            continue
        fits = True
        for k in range(num_resources):
            if spec.demand[d, k] > free[k] + EPS:
                fits = False
        if fits:
            taken[i] = True
            packed += 1
            wants_gpu = wants_gpu or spec.demand[d, 0] > 0.0
            has_labels = has_labels or spec.num_labels[d] > 0
            for k in range(num_resources):
                free[k] -= spec.demand[d, k]
                is_asked[k] = is_asked[k] or spec.demand[d, k] > 0.0
    lowest, total, kinds, matching = np.inf, 0.0, 0, 0
    for k in range(num_resources):
        capacity = spec.type_capacity[t, k]
        if capacity > 0.0:
            # Ray counts memory in bytes here, which outweighs every other resource in the mean.
            unit = 2.0**30 if k == _MEMORY else 1.0
            use = unit * capacity * (1.0 - free[k] / capacity) ** 3
            lowest = min(lowest, use)
            total += use
            kinds += 1
            matching += int(is_asked[k])
    is_kept = spec.type_num_gpus[t] > 0 and not wants_gpu
    score = (1.0 if has_labels else 0.0, 0.0 if is_kept else 1.0, float(matching), lowest, total / max(1, kinds))
    return score, packed


@njit(cache=True)
def choose_launches(spec: SpecArrays, st: StateArrays) -> NDArray[np.int64]:
    """Nodes to launch now, per type: ``(T,)``."""
    num_types, _num_resources = spec.type_capacity.shape
    launches = np.zeros(num_types, np.int64)
    waiting_rows = [r for r in range(st.replica_phase.shape[0]) if st.replica_phase[r] == _PENDING]
    if len(waiting_rows) == 0:
        return launches
    waiting = np.array([st.replica_deployment[r] for r in waiting_rows])
    waiting = waiting[np.argsort(spec.launch_rank[waiting], kind="mergesort")]
    taken = np.zeros(waiting.shape[0], np.bool_)
    for n in range(st.node_type.shape[0]):
        if st.node_phase[n] == _BOOTING:
            _fill(spec, waiting, taken, st.node_type[n], spec.type_capacity[st.node_type[n]].copy())
    counts = count_nodes(st, num_types)
    turn = np.arange(num_types)  # of equal types the one whose turn is first; a launched one goes to the end
    while True:
        best, best_score = -1, (-1.0, -1.0, -1.0, -1.0, -1.0)
        best_taken = taken
        for t in range(num_types):
            if counts[t] + launches[t] >= spec.type_max_nodes[t]:
                continue
            trial = taken.copy()
            score, packed = _fill(spec, waiting, trial, t, spec.type_capacity[t].copy())
            is_next = best >= 0 and score == best_score and turn[t] < turn[best]
            if packed > 0 and (score > best_score or is_next):
                best, best_score, best_taken = t, score, trial
        if best < 0:
            return launches
        launches[best] += 1
        turn[best] = turn.max() + 1
        taken = best_taken


@njit(cache=True)
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
            return n
    return -1


@njit(cache=True)
def remove_node(st: StateArrays, n: int) -> None:
    """Makes row ``n`` absent, in place."""
    st.node_type[n] = -1
    st.node_phase[n] = _ABSENT
    st.node_free[n] = 0.0
    st.gpu_free[n] = 0.0
    st.node_idle_since_s[n] = np.inf
    st.node_fenced_until_s[n] = -np.inf


@njit(cache=True)
def is_expired(st: StateArrays, now_s: float, idle_timeout_s: float, n: int) -> bool:
    """Whether node ``n`` has been empty long enough to be released; the caller checks ``min_nodes``."""
    return bool(
        st.node_phase[n] == _ALIVE
        and st.node_releasable[n]
        and not st.node_is_head[n]
        and now_s - st.node_idle_since_s[n] >= idle_timeout_s - 1e-9
    )
