"""A cluster that changes at random, under no rule of Serve: for comparisons that go on over time."""

import numpy as np

from rayfold.envs.node_autoscaler import remove_node
from rayfold.envs.placement import hold, let_go
from rayfold.envs.safety import Reason, capacity_reason
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase
from tests.envs.clusters import add_node, add_replica

__all__ = ["World"]

_STEPS_S = (1.0, 5.0, 9.9, 10.0, 60.0, 299.0, 300.0, 301.0, 600.0, 1799.0, 1800.0)


class World:
    """Every change of a deployment leaves it off its target until a later step settles it, as in a real cluster."""

    def __init__(self, state: ClusterState, draw: np.random.Generator) -> None:
        self.state, self._draw = state, draw
        self._changes = (
            self._nothing,
            self._scale_up,
            self._scale_down,
            self._lose_node,
            self._launch_node,
            self._ask_for_one,
        )

    def snapshot(self) -> ClusterState:
        """The state now, unaffected by what comes."""
        return ClusterState(spec=self.state.spec, now_s=self.state.now_s, arrays=self.state.arrays.copy())

    def advance(self, emptying: int | None) -> float:
        """Time passes and something may happen; more often than not what an evacuation brings about.

        Args:
            emptying: Node row that is being emptied.

        Returns:
            The clock.
        """
        step_s = float(
            self._draw.choice(_STEPS_S[:5] if emptying is not None and self._draw.random() < 0.7 else _STEPS_S)
        )
        self.state = ClusterState(spec=self.state.spec, now_s=self.state.now_s + step_s, arrays=self.state.arrays)
        if self._draw.random() < 0.7:
            self._settle()
        if emptying is not None and self._draw.random() < 0.7:
            self._empty(emptying)
        elif self._draw.random() < 0.5:
            self._changes[int(self._draw.integers(len(self._changes)))]()
        return self.state.now_s

    def place(self, chosen: dict[int, int]) -> None:
        """PENDING rows start on the nodes that were chosen for them."""
        st = self.state.arrays
        for r, n in chosen.items():
            hold(self.state.spec.arrays, st, r, n)
            st.replica_phase[r], st.replica_since_s[r] = ReplicaPhase.STARTING, self.state.now_s

    def _rows(self, phase: ReplicaPhase, node: int | None = None) -> list[int]:
        st = self.state.arrays
        return [int(r) for r in np.flatnonzero(st.replica_phase == phase) if node in (None, st.replica_node[r])]

    def _changed(self, d: int) -> None:
        self.state.arrays.deployment_changed_s[d] = self.state.now_s

    def _settle(self) -> None:
        """Starting replicas run, stopping and pending ones are gone, targets are what runs."""
        st = self.state.arrays
        for r in self._rows(ReplicaPhase.STOPPING) + self._rows(ReplicaPhase.PENDING):
            self._changed(st.replica_deployment[r])
            let_go(self.state.spec.arrays, st, r, self.state.now_s)
        for r in self._rows(ReplicaPhase.STARTING):
            self._changed(st.replica_deployment[r])
            st.replica_phase[r], st.replica_since_s[r] = ReplicaPhase.RUNNING, self.state.now_s
        for d in range(self.state.spec.num_deployments):
            count = int((st.replica_deployment == d).sum())
            if st.deployment_target[d] != count:
                self._changed(d)
                st.deployment_target[d] = count

    def _nothing(self) -> None:
        pass

    def _fitting(self, d: int, but: int | None = None) -> list[int]:
        st = self.state.arrays
        return [
            int(n)
            for n in np.flatnonzero(st.node_phase == NodePhase.ALIVE)
            if n != but and capacity_reason(self.state.spec.arrays, st, d, int(n)) == Reason.ALLOWED
        ]

    def _start(self, d: int, but: int | None = None) -> bool:
        nodes = self._fitting(d, but)
        if nodes and (self.state.arrays.replica_phase == ReplicaPhase.EMPTY).any():
            add_replica(self.state, d, int(self._draw.choice(nodes)), ReplicaPhase.STARTING)
            self._changed(d)
        return bool(nodes)

    def _scale_up(self) -> None:
        self._start(int(self._draw.integers(self.state.spec.num_deployments)))

    def _scale_down(self) -> None:
        rows = self._rows(ReplicaPhase.RUNNING)
        if rows:
            r, st = int(self._draw.choice(rows)), self.state.arrays
            st.replica_phase[r], st.replica_since_s[r] = ReplicaPhase.STOPPING, self.state.now_s
            st.deployment_target[st.replica_deployment[r]] -= 1
            self._changed(st.replica_deployment[r])

    def _ask_for_one(self) -> None:
        """One more replica, for which the other side has to find the node."""
        st = self.state.arrays
        empty = np.flatnonzero(st.replica_phase == ReplicaPhase.EMPTY)
        if len(empty):
            d = int(self._draw.integers(self.state.spec.num_deployments))
            st.replica_deployment[empty[0]], st.replica_phase[empty[0]] = d, ReplicaPhase.PENDING
            st.replica_since_s[empty[0]] = self.state.now_s
            st.deployment_target[d] += 1
            self._changed(d)

    def _launch_node(self) -> None:
        absent = np.flatnonzero(self.state.arrays.node_phase == NodePhase.ABSENT)
        if len(absent):
            add_node(self.state, int(absent[0]), int(self._draw.integers(len(self.state.spec.node_types))))

    def _remove(self, n: int) -> None:
        """The node and all that is on it are gone."""
        st = self.state.arrays
        for r in np.flatnonzero(st.replica_node == n):
            self._changed(st.replica_deployment[r])
            let_go(self.state.spec.arrays, st, int(r), self.state.now_s)
        remove_node(st, n)

    def _lose_node(self) -> None:
        alive = np.flatnonzero(self.state.arrays.node_phase == NodePhase.ALIVE)
        if len(alive) > 2:
            self._remove(int(self._draw.choice(alive)))

    def _empty(self, n: int) -> None:
        """A replica of ``n`` is replaced and stops; once none is left, the node is released; rarely, it is lost."""
        st = self.state.arrays
        rows = self._rows(ReplicaPhase.RUNNING, n)
        if st.node_phase[n] != NodePhase.ALIVE:
            return
        if self._draw.random() < 0.05:
            self._remove(n)
        elif rows and self._draw.random() < 0.1:
            self._start(int(st.replica_deployment[rows[0]]))  # perhaps on n itself
        elif rows:
            for r in rows if self._draw.random() < 0.5 else rows[:1]:
                d = int(st.replica_deployment[r])
                if self._start(d, but=n):
                    st.deployment_target[d] -= 1  # the replacement is no replica more
                    st.replica_phase[r], st.replica_since_s[r] = ReplicaPhase.STOPPING, self.state.now_s
        elif self._draw.random() < 0.5 and not (st.replica_node == n).any():
            self._remove(n)
