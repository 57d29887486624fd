"""Lower bounds on the hourly price of the nodes that the present replicas need.

Dims: D deployments.
"""

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.bound import bound_of, packing_bound_of
from rayfold.envs.jit import inner, kernel
from rayfold.envs.spec_arrays import SpecArrays
from rayfold.envs.state import ReplicaPhase, StateArrays

__all__ = ["bound_usd_per_h", "relaxed_bound_usd_per_h"]

_PENDING, _RUNNING = int(ReplicaPhase.PENDING), int(ReplicaPhase.RUNNING)


@kernel
def bound_usd_per_h(spec: SpecArrays, st: StateArrays) -> float:
    """``packing_bound_of`` the replicas of a state; of a move only one side counts."""
    return packing_bound_of(spec, _live(spec, st))


@kernel
def relaxed_bound_usd_per_h(spec: SpecArrays, st: StateArrays) -> float:
    """``bound_of`` the same replicas."""
    return bound_of(spec, _live(spec, st))


@inner
def _live(spec: SpecArrays, st: StateArrays) -> NDArray[np.int64]:
    live = np.zeros(spec.demand.shape[0], np.int64)
    for r in range(st.replica_phase.shape[0]):
        phase = st.replica_phase[r]
        is_replacement = st.replica_peer[r] >= 0 and phase != _RUNNING
        if phase >= _PENDING and phase <= _RUNNING and not is_replacement:
            live[st.replica_deployment[r]] += 1
    return live
