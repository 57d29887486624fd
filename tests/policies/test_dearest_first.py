"""``dearest_first`` prefers the dear node."""

import numpy as np
import pytest

from rayfold.envs.cluster import AutoscalingConfig, ClusterSpec, Deployment, NodeType, ReplicaShape
from rayfold.envs.placement import hold
from rayfold.envs.safety import Limits
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase, StateArrays
from rayfold.policies.best_fit import BestFit
from rayfold.policies.dearest_first import DearestFirst


def state(price_usd_per_h: float) -> ClusterState:
    """Three 4-GPU nodes: one of the other price with two replicas, two at 10 USD/h with one replica each."""
    resources = {"GPU": 4.0, "CPU": 16.0, "memory_gib": 64.0}
    spec = ClusterSpec(
        node_types=(
            NodeType(name="plain", resources=resources, price_usd_per_h=10.0),
            NodeType(name="other", resources=resources, price_usd_per_h=price_usd_per_h),
        ),
        deployments=(
            Deployment(
                name="m",
                shape=ReplicaShape(bundles=({"GPU": 1.0, "CPU": 1.0},)),
                autoscaling=AutoscalingConfig(max_replicas=8),
            ),
        ),
    )
    st = StateArrays.empty(spec, 3, 16)
    for n, node_type in enumerate((1, 0, 0)):
        st.node_type[n], st.node_phase[n] = node_type, int(NodePhase.ALIVE)
        st.node_free[n] = spec.arrays.type_capacity[node_type]
        st.gpu_free[n] = 1.0
    for r, n in enumerate((0, 0, 1, 2)):
        st.replica_deployment[r], st.replica_phase[r] = 0, int(ReplicaPhase.RUNNING)
        hold(spec.arrays, st, r, n)
    st.deployment_target[0] = 4
    return ClusterState(spec=spec, now_s=1000.0, arrays=st)


@pytest.mark.parametrize(("price", "emptied", "num_moves"), [(30.0, 0, 2), (5.0, 1, 1)])
def test_it_empties_the_dearest_node(price: float, emptied: int, num_moves: int) -> None:
    """The dear node goes although it takes two moves; where it is the cheap one, one of the others goes."""
    view = state(price)
    plan = DearestFirst(Limits()).plan(view, np.random.default_rng(0))
    assert {int(view.arrays.replica_node[move.replica_idx]) for move in plan.moves} == {emptied}
    assert len(plan.moves) == num_moves


def test_best_fit_does_not() -> None:
    """The case tells the two rules apart."""
    view = state(30.0)
    plan = BestFit(Limits()).plan(view, np.random.default_rng(0))
    assert {int(view.arrays.replica_node[move.replica_idx]) for move in plan.moves} == {1}
