"""The ports under one name each, so that a change of a kernel's signature is a change of one line here."""

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.dynamics import Hidden, place_pending
from rayfold.envs.placement import let_go, next_to_stop
from rayfold.envs.state import ClusterState, ReplicaPhase
from rayfold.envs.traffic import _moving_mean

__all__ = ["look_back_means", "place", "stop"]


def place(state: ClusterState) -> dict[int, int]:
    """Node rows for the PENDING rows that are placed now, under pack; the state is written."""
    st = state.arrays
    waiting = np.flatnonzero(st.replica_phase == ReplicaPhase.PENDING)
    num_nodes, num_replicas, num_deployments = len(st.node_type), len(st.replica_phase), len(st.deployment_target)
    hidden = Hidden(
        node_ready_s=np.zeros(num_nodes),
        node_moves_out=np.zeros(num_nodes, np.int64),
        released_s=np.zeros(num_nodes),
        released_type=np.zeros(num_nodes, np.int64),
        released_moves=np.zeros(num_nodes, np.int64),
        replica_due_s=np.zeros(num_replicas),
        replica_serial=np.arange(num_replicas),
        wish_since_s=np.zeros(num_deployments),
        wish_direction=np.zeros(num_deployments, np.int64),
        counters=np.zeros(2, np.int64),
    )
    place_pending(state.spec.arrays, st, hidden, state.now_s, True, np.random.default_rng(0))
    return {int(r): int(st.replica_node[r]) for r in waiting if st.replica_node[r] >= 0}


def stop(state: ClusterState, d: int, count: int, serial: NDArray[np.int64]) -> list[int]:
    """Rows of ``d`` that a downscale by ``count`` stops; the state is written."""
    rows: list[int] = []
    for _ in range(count):
        r = int(next_to_stop(state.arrays, d, serial))
        if r < 0:
            break
        rows.append(r)
        let_go(state.spec.arrays, state.arrays, r, state.now_s)
    return rows


def look_back_means(ongoing: NDArray[np.float64], *, step_s: float, look_back_s: float) -> list[float]:
    """Mean requests of the look-back period at the end of each step, for loads ``(T,)``."""
    window = np.array([round(look_back_s / step_s)], np.int64)
    means: list[float] = _moving_mean(ongoing[:, None], window)[:, 0].tolist()
    return means
