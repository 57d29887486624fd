"""Random states, filled in place: every count in them is kept by this file's own arithmetic.

Dims: N nodes, R replicas, G devices, K resources, M bundles. Devices are taken at random, not by Ray's rule.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.jit import inner, kernel
from rayfold.envs.state import NodePhase, ReplicaPhase, StateArrays
from rayfold.envs.views import by_reference
from tests.filter_fuzz.facts import Facts

__all__ = ["Others", "fill"]

_BOOTING, _ALIVE, _DRAINING = int(NodePhase.BOOTING), int(NodePhase.ALIVE), int(NodePhase.DRAINING)
_PENDING, _STARTING = int(ReplicaPhase.PENDING), int(ReplicaPhase.STARTING)
_RUNNING, _STOPPING = int(ReplicaPhase.RUNNING), int(ReplicaPhase.STOPPING)
_TRIES = 40  # replicas that are thrown at the nodes; those that fit stay
_ROOM = 1e-9


@by_reference(is_written=True)
class Others(NamedTuple):
    """What non-Serve work holds, by device: a state only has its sum."""

    devices: NDArray[np.float64]  # (N, G)


@inner
def _clear(st: StateArrays, others: Others) -> None:
    st.node_type[:], st.node_phase[:], st.replica_deployment[:], st.replica_node[:] = -1, 0, -1, -1
    st.node_free[:], st.gpu_free[:], st.node_others[:], others.devices[:] = 0.0, 0.0, 0.0, 0.0
    st.node_idle_since_s[:], st.node_fenced_until_s[:], st.deployment_moved_s[:] = np.inf, -np.inf, -np.inf
    st.node_releasable[:], st.node_is_head[:], st.node_is_opted_out[:] = True, False, False
    st.node_held[:], st.node_num_held[:] = 0, 0
    st.replica_spans[:], st.replica_bundle_node[:], st.replica_pinned_node[:] = False, -1, -1
    st.replica_phase[:], st.replica_peer[:], st.replica_gpus[:] = 0, -1, 0


@inner
def _add_nodes(facts: Facts, st: StateArrays, others: Others, now_s: float, rng: np.random.Generator) -> None:
    for n in range(st.node_type.shape[0]):
        if rng.random() < 0.1:
            continue
        t, luck = rng.integers(0, facts.capacity.shape[0]), rng.random()
        st.node_type[n] = t
        st.node_phase[n] = _BOOTING if luck < 0.07 else _DRAINING if luck < 0.14 else _ALIVE
        for k in range(facts.capacity.shape[1]):
            st.node_free[n, k] = facts.capacity[t, k]
        for g in range(int(facts.capacity[t, 0])):
            st.gpu_free[n, g] = 1.0
        st.node_idle_since_s[n] = now_s
        st.node_releasable[n] = rng.random() < 0.85
        st.node_is_head[n] = rng.random() < 0.05
        st.node_is_opted_out[n] = rng.random() < 0.1
        if rng.random() < 0.2:
            st.node_fenced_until_s[n] = now_s + rng.uniform(-100.0, 100.0)
        if rng.random() < 0.25:
            share, g = (0.5, 1.0)[rng.integers(0, 2)], int(rng.integers(0, int(facts.capacity[t, 0])))
            cpus = rng.uniform(0.0, facts.capacity[t, 1])
            others.devices[n, g] = share
            st.gpu_free[n, g] -= share
            st.node_others[n, 0], st.node_others[n, 1] = share, cpus
            st.node_free[n, 0] -= share
            st.node_free[n, 1] -= cpus


@inner
def _take(facts: Facts, st: StateArrays, d: int, j: int, n: int, rng: np.random.Generator) -> int:
    """Bundle ``j`` of ``d`` takes room on ``n``: the mask of its devices, -1 (and nothing is taken) if it has none."""
    for k in range(facts.capacity.shape[1]):
        if facts.bundles[d, j, k] > st.node_free[n, k] + _ROOM:
            return -1
    gpus, num_devices = facts.bundles[d, j, 0], int(facts.capacity[st.node_type[n], 0])
    left, mask, first = gpus, 0, int(rng.integers(0, num_devices))
    for i in range(num_devices):
        g = (first + i) % num_devices
        share = gpus if gpus < 1.0 else 1.0
        if left > 0.0 and st.gpu_free[n, g] >= share - _ROOM:
            mask |= 1 << g
            left -= share
    if left > 0.0:
        return -1
    for g in range(num_devices):
        if mask >> g & 1:
            st.gpu_free[n, g] -= gpus if gpus < 1.0 else 1.0
    for k in range(facts.capacity.shape[1]):
        st.node_free[n, k] -= facts.bundles[d, j, k]
    return mask


@inner
def _give_back(facts: Facts, st: StateArrays, d: int, j: int, n: int, mask: int) -> None:
    gpus = facts.bundles[d, j, 0]
    for g in range(st.gpu_free.shape[1]):
        if mask >> g & 1:
            st.gpu_free[n, g] += gpus if gpus < 1.0 else 1.0
    for k in range(facts.capacity.shape[1]):
        st.node_free[n, k] += facts.bundles[d, j, k]


@inner
def _add_replica(facts: Facts, sums_gpus: bool, st: StateArrays, r: int, d: int, rng: np.random.Generator) -> bool:
    """Puts row ``r`` somewhere, its bundles on several nodes if they may be; whether it found room."""
    num_nodes, spans = st.node_type.shape[0], facts.may_span[d] and rng.random() < 0.4
    first = int(rng.integers(0, num_nodes))
    for j in range(facts.num_bundles[d]):
        n = int(rng.integers(0, num_nodes)) if spans else first
        mask = -1
        if st.node_phase[n] >= _ALIVE:
            mask = _take(facts, st, d, j, n, rng)
        if mask < 0:
            for i in range(j):
                _give_back(facts, st, d, i, st.replica_bundle_node[r, i], st.replica_gpus[r, i])
            st.replica_gpus[r, :], st.replica_bundle_node[r, :] = 0, -1
            return False
        st.replica_gpus[r, j], st.replica_bundle_node[r, j] = mask, n
    st.replica_deployment[r], st.replica_node[r] = d, st.replica_bundle_node[r, 0]
    for j in range(facts.num_bundles[d]):
        n, is_new = st.replica_bundle_node[r, j], True
        for i in range(j):
            is_new = is_new and st.replica_bundle_node[r, i] != n
            st.replica_spans[r] = st.replica_spans[r] or st.replica_bundle_node[r, i] != n
        if is_new:
            st.node_held[n, d] += 1
            st.node_num_held[n] += 1
            st.node_idle_since_s[n] = np.inf
    if not st.replica_spans[r]:
        st.replica_bundle_node[r, :] = -1
        if sums_gpus:  # the state's way to write it: one mask for all
            for j in range(1, facts.num_bundles[d]):
                st.replica_gpus[r, 0] |= st.replica_gpus[r, j]
                st.replica_gpus[r, j] = 0
    return True


@kernel
def fill(
    facts: Facts,
    sums_gpus: NDArray[np.bool_],
    st: StateArrays,
    others: Others,
    now_s: float,
    rng: np.random.Generator,
) -> None:
    """Makes a random state.

    Args:
        facts: The cluster.
        sums_gpus: ``(D,)`` how the state writes a replica's devices: see ``SpecArrays``.
        st: Written.
        others: Written.
        now_s: Its clock.
        rng: Randomness.
    """
    _clear(st, others)
    _add_nodes(facts, st, others, now_s, rng)
    num_deployments, r = facts.num_bundles.shape[0], 0
    for _ in range(rng.integers(0, _TRIES)):
        d = int(rng.integers(0, num_deployments))
        if r < st.replica_phase.shape[0] - 4 and _add_replica(facts, sums_gpus[d], st, r, d, rng):
            luck = rng.random()
            st.replica_phase[r] = _STARTING if luck < 0.15 else _STOPPING if luck < 0.25 else _RUNNING
            r += 1
    _link(st, rng)
    for d in range(num_deployments):
        st.deployment_target[d] = rng.integers(0, 6)
        if rng.random() < 0.3:
            st.deployment_moved_s[d] = now_s - (0.0 if rng.random() < 0.2 else rng.uniform(0.0, 200.0))


@inner
def _link(st: StateArrays, rng: np.random.Generator) -> None:
    """Some of the starting replicas are replacements of running ones, and one may wait for its node."""
    num = st.replica_phase.shape[0]
    for r in range(num):
        if st.replica_phase[r] != _STARTING or rng.random() < 0.3:
            continue
        for s in range(num):
            same = st.replica_deployment[s] == st.replica_deployment[r] and st.replica_node[s] != st.replica_node[r]
            if st.replica_phase[s] == _RUNNING and st.replica_peer[s] < 0 and same:
                st.replica_peer[r], st.replica_peer[s] = s, r
                break
    last = num - 5
    for s in range(num):
        if st.replica_phase[s] == _RUNNING and st.replica_peer[s] < 0 and rng.random() < 0.05:
            if st.replica_phase[last] == 0:
                st.replica_phase[last], st.replica_deployment[last] = _PENDING, st.replica_deployment[s]
                st.replica_peer[last], st.replica_peer[s] = s, last
            break
