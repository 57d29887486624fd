"""The ports under one name each, so that a change of a kernel's signature is a change of one line here."""

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.cluster import AutoscalingConfig, ClusterSettings, ClusterSpec, Deployment, NodeType, ReplicaShape
from rayfold.envs.hidden import constants_of, fresh_hidden
from rayfold.envs.ledger import Entry
from rayfold.envs.placement import let_go
from rayfold.envs.placement import replicas_to_stop as rows_to_stop
from rayfold.envs.replica_life import place_pending
from rayfold.envs.safety import Limits
from rayfold.envs.simulator import Simulator
from rayfold.envs.state import ClusterState, ReplicaPhase, StateArrays
from rayfold.envs.traffic import Traffic

__all__ = ["look_back_means", "place", "stop"]


def place(state: ClusterState) -> dict[int, int]:
    """Node rows for the PENDING rows that are placed now, under pack; the state is written."""
    st = state.arrays
    waiting = np.flatnonzero(st.replica_phase == ReplicaPhase.PENDING)
    rng = np.random.default_rng(0)
    hidden = fresh_hidden(state.spec, len(st.node_type), len(st.replica_phase), rng)
    place_pending(state.spec.arrays, st, hidden, constants_of(state.spec, 600.0), state.now_s, np.zeros(len(Entry)))
    return {int(r): int(st.replica_node[r]) for r in waiting if st.replica_node[r] >= 0}


def stop(state: ClusterState, d: int, count: int, serial: NDArray[np.int64]) -> list[int]:
    """Rows of ``d`` that a downscale by ``count`` stops; the state is written."""
    rows = [int(r) for r in rows_to_stop(state.spec.arrays, state.arrays, d, count, serial)]
    for r in rows:
        let_go(state.spec.arrays, state.arrays, r, state.now_s)
    return rows


def look_back_means(ongoing: NDArray[np.float64], *, step_s: float, look_back_s: float) -> list[float]:
    """Mean requests of the look-back period at the end of each step, for loads ``(T,)``, as the simulator has it."""
    scaling = AutoscalingConfig(min_replicas=0, look_back_period_s=look_back_s)
    deployment = Deployment(name="d", shape=ReplicaShape(bundles=({"CPU": 1.0},)), autoscaling=scaling)
    spec = ClusterSpec(
        node_types=(NodeType(name="t", resources={"CPU": 1.0}, price_usd_per_h=1.0, max_nodes=1),),
        deployments=(deployment,),
        settings=ClusterSettings(decision_interval_s=step_s, substep_s=step_s),
    )
    traffic = Traffic.of_steps(
        ongoing[:, None], look_back_s=np.array([look_back_s]), step_s=step_s, tokens_per_ongoing_s=np.ones(1)
    )
    state = ClusterState(spec=spec, now_s=0.0, arrays=StateArrays.empty(spec, 1, 20))
    simulator, means = Simulator(state, traffic, Limits(), np.random.default_rng(0)), []
    for _ in range(len(ongoing)):
        simulator.advance(1)
        means.append(float(simulator.state().arrays.deployment_ongoing[0]))
    return means
