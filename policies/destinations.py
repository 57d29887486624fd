"""Where a heuristic may move replicas to: the filter's masks, and nodes in the order of best fit.

Dims: N nodes, D deployments, T node types, K resources.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.safety import Limits, Reason, move_masks, moves_in_flight, source_reason
from rayfold.envs.state import ClusterState

__all__ = ["Masks", "fullest_first", "masks", "why_it_stays"]


class Masks(NamedTuple):
    """``move_masks`` of one state."""

    source: NDArray[np.bool_]  # (N, D) a replica of d may leave n, and there is somewhere to go
    destination: NDArray[np.bool_]  # (N, D) n may take a replica of d
    new_node: NDArray[np.bool_]  # (T, D) a new node of type t may take a replica of d


def masks(state: ClusterState, limits: Limits) -> Masks:
    """What the safety filter allows in a state, cell by cell."""
    shape = (len(state.arrays.node_type), state.spec.num_deployments)
    source, destination = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    new_node = np.zeros((len(state.spec.node_types), shape[1]), np.float32)
    move_masks(state.spec.arrays, state.arrays, state.now_s, limits, source, destination, new_node)
    return Masks(source > 0, destination > 0, new_node > 0)


def fullest_first(node_free: NDArray[np.float64], nodes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Nodes in the order of best fit: least left first, GPU before CPU, memory and custom; then in order of rows.

    Args:
        node_free: ``(N, K)``.
        nodes: Rows, ascending.
    """
    columns = node_free[nodes].round(9).T[::-1]  # the last key of lexsort counts first
    return nodes[np.lexsort(columns)] if len(nodes) else nodes


def why_it_stays(state: ClusterState, r: int, limits: Limits) -> Reason:
    """Why replica ``r`` may not leave its node, wherever it would go; ALLOWED if it may."""
    st = state.arrays
    return Reason(source_reason(state.spec.arrays, st, state.now_s, limits, r, moves_in_flight(st)))
