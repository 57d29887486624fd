"""What a single snapshot cannot tell: since when things are as they are. Kept by the decider between snapshots."""

import math

from rayfold.envs.state import ReplicaPhase
from rayfold.serving.raw_cluster import RawCluster

__all__ = ["History"]

_SLOW_S = 600.0  # time constant of the slow mean of ongoing requests


class History:
    """Memory of the snapshots so far. All times are Unix seconds, given by the caller."""

    def __init__(self) -> None:
        self._phases: dict[str, tuple[ReplicaPhase, float]] = {}
        self._empty: dict[str, float] = {}
        self._sets: dict[str, tuple[int, frozenset[str]]] = {}
        self._changed_s: dict[str, float] = {}
        self._moved_s: dict[str, float] = {}
        self._slow: dict[str, float] = {}
        self._seen_s: float | None = None
        self._tenants: dict[str, tuple[str, ...]] = {}

    def tenants(self, node_id: str) -> tuple[str, ...]:
        """Actors that keep a node from being released, as last seen."""
        return self._tenants.get(node_id, ())

    def note_move(self, key: str, now_s: float) -> None:
        """A replica of deployment ``key`` has begun to move."""
        self._moved_s[key] = now_s

    def moved_s(self, key: str) -> float:
        """Last move of a deployment, -inf if none was noted."""
        return self._moved_s.get(key, -math.inf)

    def changed_s(self, key: str) -> float:
        """Last change of a deployment's target or replicas, -inf if none was seen."""
        return self._changed_s.get(key, -math.inf)

    def slow_ongoing(self, key: str) -> float:
        """Exponential mean over ten minutes of a deployment's ongoing requests."""
        return self._slow.get(key, 0.0)

    def phase_since_s(self, replica_id: str) -> float:
        """When a replica entered its phase: its creation where it was first seen in it."""
        return self._phases[replica_id][1]

    def empty_since_s(self, node_id: str) -> float:
        """When a node was first seen empty, inf where it is not."""
        return self._empty.get(node_id, math.inf)

    def observe(self, raw: RawCluster, phases: dict[str, ReplicaPhase], empty_nodes: set[str]) -> None:
        """Takes in one snapshot.

        Args:
            raw: The snapshot.
            phases: Phase of each replica, by id.
            empty_nodes: Ids of the nodes without any work.
        """
        now_s = raw.now_s
        starts = {r.replica_id: r.start_s for r in raw.replicas}
        self._phases = {
            replica_id: self._phases[replica_id]
            if self._phases.get(replica_id, (None,))[0] == phase
            else (phase, now_s if replica_id in self._phases else starts[replica_id])
            for replica_id, phase in phases.items()
        }
        self._tenants = {node.node_id: node.tenants for node in raw.nodes}
        self._empty = {node: self._empty.get(node, now_s) for node in empty_nodes}
        weight = 1.0 if self._seen_s is None else 1.0 - math.exp(-max(0.0, now_s - self._seen_s) / _SLOW_S)
        for deployment in raw.deployments:
            key = f"{deployment.app}/{deployment.name}"
            serving = frozenset(
                r.replica_id
                for r in raw.replicas
                if (r.app, r.name) == (deployment.app, deployment.name) and phases.get(r.replica_id) is not None
            )
            seen = (deployment.target, serving)
            if key in self._sets and self._sets[key] != seen:
                self._changed_s[key] = now_s
            self._sets[key] = seen
            before = self._slow.get(key, deployment.ongoing)
            self._slow[key] = before + weight * (deployment.ongoing - before)
        self._seen_s = now_s
