"""Where an episode begins: a cluster that already serves the traffic of its first step."""

import numpy as np

from rayfold.envs.cluster import ClusterSpec
from rayfold.envs.hidden import constants_of, fresh_hidden
from rayfold.envs.ledger import Ledger
from rayfold.envs.node_autoscaler import add_node, choose_launches
from rayfold.envs.node_life import begin_other_work
from rayfold.envs.replica_life import add_pending, place_pending
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase, StateArrays
from rayfold.envs.traffic import Traffic

__all__ = ["initial_state", "num_replica_rows"]

_ALIVE = int(NodePhase.ALIVE)


def num_replica_rows(spec: ClusterSpec) -> int:
    """Replica rows that are always enough: every replica at its maximum, moving, and draining ones beside."""
    return 3 * int(spec.arrays.max_replicas.sum()) + 8


def initial_state(spec: ClusterSpec, traffic: Traffic, rng: np.random.Generator) -> ClusterState:
    """A cluster that already serves the traffic of the first step, as Serve would have placed it.

    A deployment with ``initial_replicas`` has so many, whatever the traffic.

    Args:
        spec: Static description.
        traffic: What it was just before the first step sets the targets.
        rng: Draws the order in which replicas were placed, and which nodes have non-Serve work.

    Returns:
        A state at the traffic's ``start_s`` with every replica running that fits.
    """
    arrays, st = spec.arrays, StateArrays.empty(spec, spec.max_nodes, num_replica_rows(spec))
    hidden = fresh_hidden(spec, spec.max_nodes, len(st.replica_phase), rng)
    const, ledger = constants_of(spec, 0.0), Ledger.zeros()
    now_s = traffic.start_s
    st.deployment_ongoing[:] = traffic.lookback_sum() / traffic.window
    st.deployment_ongoing_slow[:] = traffic.slow_mean(spec.settings.substep_s)
    wanted = np.ceil(st.deployment_ongoing / arrays.target_ongoing).astype(np.int64)
    wanted = np.where(arrays.initial_replicas >= 0, arrays.initial_replicas, wanted)
    st.deployment_target[:] = np.clip(wanted, arrays.min_replicas, arrays.max_replicas)

    def launch(t: int) -> bool:
        n = add_node(arrays, st, t, _ALIVE, now_s)
        if n >= 0:
            begin_other_work(arrays, st, hidden, now_s, n)
        return n >= 0

    for t, node_type in enumerate(spec.node_types):
        for _ in range(node_type.min_nodes):
            launch(t)
        if node_type.is_head:
            head = st.node_type == t
            st.node_is_head[head], st.node_releasable[head] = True, False
    pending = np.repeat(np.arange(spec.num_deployments), st.deployment_target)
    for d in rng.permutation(pending):
        add_pending(st, hidden, now_s, int(d))
    place_pending(arrays, st, hidden, const, now_s, ledger)
    while (launches := choose_launches(arrays, st)).any():
        launched = [launch(t) for t, count in enumerate(launches) for _ in range(count)]
        before = int((st.replica_phase == ReplicaPhase.PENDING).sum())
        place_pending(arrays, st, hidden, const, now_s, ledger)
        if not any(launched) or before == int((st.replica_phase == ReplicaPhase.PENDING).sum()):
            break  # other work took the room, or a group does not fit as launched for
    st.replica_phase[st.replica_phase == ReplicaPhase.STARTING] = ReplicaPhase.RUNNING
    return ClusterState(spec=spec, now_s=now_s, arrays=st)
