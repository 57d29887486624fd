"""Checks a state that comes from a file: the kernels follow its row numbers without looking.

``ClusterState.load`` has checked shapes and types; here is what the numbers must be. Dims as in ``state.py``.
"""

import math
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase
from rayfold.errors import InputError

__all__ = ["check_state"]


def check_state(state: ClusterState, where: str) -> None:
    """Refuses a state that no cluster can be in.

    Args:
        state: As loaded.
        where: The file, for the message.

    Raises:
        InputError: A number out of range, or rows that contradict each other; names array and row.
    """
    if not math.isfinite(state.now_s):
        raise InputError(f"{where}: now_s", "a time", state.now_s)
    _check_ranges(state, where)
    _check_rows(state, where)
    for name, values in state.arrays._asdict().items():
        if values.dtype == np.float64:
            _require(~np.isnan(values), where, name, "a number", values)


def _require(is_ok: NDArray[np.bool_], where: str, name: str, expected: str, got: NDArray[np.generic]) -> None:
    """Names the first row that is not as expected."""
    if is_ok.all():
        return
    at = tuple(int(i) for i in np.argwhere(~is_ok)[0])
    _refuse(where, name, at, expected, got[at].item())


def _refuse(where: str, name: str, at: tuple[int, ...], expected: str, got: object) -> NoReturn:
    raise InputError(f"{where}: {name}[{', '.join(map(str, at))}]", expected, got)


def _check_ranges(state: ClusterState, where: str) -> None:
    spec, st = state.spec, state.arrays
    num_nodes, num_replicas = len(st.node_type), len(st.replica_phase)
    for name, low, end in (
        ("node_type", -1, len(spec.node_types)),
        ("node_phase", 0, len(NodePhase)),
        ("replica_deployment", -1, spec.num_deployments),
        ("replica_node", -1, num_nodes),
        ("replica_phase", 0, len(ReplicaPhase)),
        ("replica_peer", -1, num_replicas),
        ("replica_bundle_node", -1, num_nodes),
        ("replica_pinned_node", -1, num_nodes),
    ):
        values = getattr(st, name)
        _require((values >= low) & (values < end), where, name, f"{low}..{end - 1}", values)
    for name in ("node_free", "gpu_free", "node_others", "deployment_target", "deployment_ongoing"):
        values = getattr(st, name)
        _require(np.isfinite(values) & (values >= -1e-6), where, name, "a finite number >= 0", values)
    slow = st.deployment_ongoing_slow
    _require(np.isfinite(slow) & (slow >= 0.0), where, "deployment_ongoing_slow", "a finite number >= 0", slow)


def _check_rows(state: ClusterState, where: str) -> None:
    st = state.arrays
    is_there, is_used = st.node_phase != NodePhase.ABSENT, st.replica_phase != ReplicaPhase.EMPTY
    _require(~is_there | (st.node_type >= 0), where, "node_type", "the type of a node that is there", st.node_type)
    _require(
        ~is_used | (st.replica_deployment >= 0),
        where,
        "replica_deployment",
        "the deployment of a replica that is there",
        st.replica_deployment,
    )
    node = st.replica_node
    lost = (node >= 0) & ~np.append(is_there, True)[node]  # -1 looks at the last one
    _require(~lost, where, "replica_node", "a node that is there", node)
    peer = st.replica_peer
    is_answered = (peer < 0) | (peer[peer] == np.arange(len(peer)))
    _require(is_answered, where, "replica_peer", "a link that is answered", peer)
    held = _held(state)
    _require(st.node_held == held, where, "node_held", "the replicas that hold something there", st.node_held)
    _require(st.node_num_held == held.sum(1), where, "node_num_held", "the sum of node_held", st.node_num_held)


def _held(state: ClusterState) -> NDArray[np.int64]:
    """``(N, D)`` counted from the replicas."""
    st = state.arrays
    held = np.zeros_like(st.node_held)
    for r in map(int, np.flatnonzero(st.replica_node >= 0)):
        nodes = st.replica_bundle_node[r] if st.replica_spans[r] else st.replica_node[r : r + 1]
        held[np.unique(nodes[nodes >= 0]), st.replica_deployment[r]] += 1
    return held
