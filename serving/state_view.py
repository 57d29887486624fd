"""A state in words, for people: what ``GET /state`` shows."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase

__all__ = ["describe_state"]


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _nobody(node_id: str) -> tuple[str, ...]:
    return ()


def describe_state(state: ClusterState, tenants: Callable[[str], tuple[str, ...]] = _nobody) -> dict[str, Any]:
    """A state in words, for people: JSON values only.

    Args:
        state: The state.
        tenants: By node id the actors that keep it from being released.
    """
    st, spec = state.arrays, state.spec
    types = {n: spec.node_types[int(st.node_type[n])] for n in np.flatnonzero(st.node_phase > 0)}
    nodes = [
        {
            "node_id": state.node_ids[n],
            "node_type": node_type.name,
            "phase": NodePhase(int(st.node_phase[n])).name.lower(),
            "free": dict(zip(spec.resource_names, st.node_free[n].tolist(), strict=True)),
            "releasable": bool(st.node_releasable[n]),
            "kept_by": list(tenants(state.node_ids[n])),
            "fenced": bool(st.node_fenced_until_s[n] > state.now_s),
            "idle_s": _finite(state.now_s - st.node_idle_since_s[n]),
            "price_usd_per_h": node_type.price_usd_per_h,
        }
        for n, node_type in types.items()
    ]
    replicas = [
        {
            "replica_id": state.replica_ids[r],
            "deployment": spec.deployments[int(st.replica_deployment[r])].key,
            "node_id": state.node_ids[st.replica_node[r]] if st.replica_node[r] >= 0 else None,
            "phase": ReplicaPhase(int(st.replica_phase[r])).name.lower(),
            "moving": bool(st.replica_peer[r] >= 0),
        }
        for r in range(len(state.replica_ids))
    ]
    deployments = [
        {"deployment": d.key, "target": int(st.deployment_target[i]), "ongoing": float(st.deployment_ongoing[i])}
        for i, d in enumerate(spec.deployments)
    ]
    return {"now_s": state.now_s, "nodes": nodes, "replicas": replicas, "deployments": deployments}
