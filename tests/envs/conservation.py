"""What holds in every state: a recount of nodes, devices and links from the replica rows."""

import numpy as np
import pytest

from rayfold.envs.simulator import Simulator
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase

__all__ = ["check_conserved", "check_simulator", "holdings", "running_counts"]


def holdings(state: ClusterState, r: int) -> list[tuple[int, float, np.ndarray, int]]:
    """What replica ``r`` holds: node, GPUs, ``(K,)`` resources, device bits; by bundle where devices are held by it."""
    st, spec = state.arrays, state.spec.arrays
    d, n = int(st.replica_deployment[r]), int(st.replica_node[r])
    if n < 0:
        return []
    if spec.sums_gpus[d] and not st.replica_spans[r]:
        assert (st.replica_gpus[r, 1:] == 0).all()
        return [(n, float(spec.demand[d, 0]), spec.demand[d], int(st.replica_gpus[r, 0]))]
    nodes = st.replica_bundle_node[r] if st.replica_spans[r] else np.full(spec.num_bundles[d], n)
    return [
        (int(nodes[j]), float(spec.bundle[d, j, 0]), spec.bundle[d, j], int(st.replica_gpus[r, j]))
        for j in range(spec.num_bundles[d])
    ]


def check_conserved(state: ClusterState, others_devices: np.ndarray | None = None) -> None:
    """Free and held resources add up to the node, per resource and device; phases and links are consistent.

    Args:
        state: The state.
        others_devices: ``(N,)`` bit masks of the devices that other work holds; it holds none if not given.
    """
    st, spec = state.arrays, state.spec.arrays
    num_gpus = st.gpu_free.shape[1]
    held, devices = np.zeros_like(st.node_free), np.zeros_like(st.gpu_free)
    counts, bits = np.zeros_like(st.node_held), np.arange(num_gpus)
    for r in np.flatnonzero(st.replica_phase != ReplicaPhase.EMPTY):
        parts = holdings(state, int(r))
        for n, gpus, resources, mask in parts:
            mine = (mask >> bits) & 1
            assert mine.sum() * min(1.0, gpus) == pytest.approx(gpus)
            held[n] += resources
            devices[n] += mine * min(1.0, gpus)
        nodes = {part[0] for part in parts}
        assert (len(nodes) > 1) == st.replica_spans[r]
        for n in nodes:
            counts[n, st.replica_deployment[r]] += 1
        assert st.replica_spans[r] or (st.replica_bundle_node[r] == -1).all()
    for n in map(int, np.flatnonzero(st.node_others[:, 0] > 0)):
        assert others_devices is not None
        mine = (int(others_devices[n]) >> bits) & 1
        assert mine.sum() * min(1.0, st.node_others[n, 0]) == pytest.approx(st.node_others[n, 0])
        devices[n] += mine * min(1.0, st.node_others[n, 0])
    present = st.node_phase != NodePhase.ABSENT
    capacity = np.where(present[:, None], spec.type_capacity[st.node_type], 0.0)
    np.testing.assert_allclose(st.node_free + held + st.node_others, capacity, atol=1e-6)
    assert (st.node_free >= -1e-6).all()
    exists = present[:, None] & (bits < spec.type_num_gpus[st.node_type][:, None])
    np.testing.assert_allclose(st.gpu_free, np.where(exists, 1.0 - devices, 0.0), atol=1e-6)
    assert (devices <= exists + 1e-6).all()
    np.testing.assert_array_equal(st.node_held, counts)
    np.testing.assert_array_equal(st.node_num_held, counts.sum(1))
    np.testing.assert_array_equal(np.isinf(st.node_idle_since_s), ~present | (counts.sum(1) > 0))
    limited = spec.max_per_node > 0
    assert (counts[:, limited] <= spec.max_per_node[limited]).all()
    booting = np.isin(st.node_phase, (NodePhase.BOOTING, NodePhase.ABSENT))
    assert (counts[booting] == 0).all()
    _check_links(state)


def _check_links(state: ClusterState) -> None:
    """Rows in use, and both ends of every migration."""
    st = state.arrays
    empty = st.replica_phase == ReplicaPhase.EMPTY
    for name, nothing in (("deployment", -1), ("node", -1), ("peer", -1), ("pinned_node", -1), ("spans", False)):
        assert (getattr(st, f"replica_{name}")[empty] == nothing).all(), name
    assert (st.replica_deployment[~empty] >= 0).all()
    assert ((st.replica_node >= 0) == (st.replica_phase >= ReplicaPhase.STARTING)).all()
    assert ((st.replica_gpus == 0).all(1) | (st.replica_node >= 0)).all()
    for r in np.flatnonzero(st.replica_peer >= 0):
        peer = int(st.replica_peer[r])
        assert st.replica_peer[peer] == r
        assert st.replica_deployment[peer] == st.replica_deployment[r]
        phases = sorted((int(st.replica_phase[r]), int(st.replica_phase[peer])))
        assert phases[0] in (ReplicaPhase.PENDING, ReplicaPhase.STARTING)
        assert phases[1] == ReplicaPhase.RUNNING
    for r in np.flatnonzero(st.replica_pinned_node >= 0):
        assert st.replica_phase[r] == ReplicaPhase.PENDING
        assert st.replica_peer[r] >= 0
        assert st.node_phase[st.replica_pinned_node[r]] == NodePhase.BOOTING


def check_simulator(sim: Simulator) -> None:
    """``check_conserved``, with the devices of other work, which only the simulator knows."""
    check_conserved(sim.view, sim._hidden.node_work_gpus)


def running_counts(state: ClusterState) -> np.ndarray:
    """Replicas that serve: ``(D,)``."""
    is_running = state.arrays.replica_phase == ReplicaPhase.RUNNING
    return np.bincount(state.arrays.replica_deployment[is_running], minlength=state.spec.num_deployments)
