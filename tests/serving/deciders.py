"""A decider without Ray: a hand-built cluster, an executor that remembers, a policy with a given answer."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from rayfold.envs.cluster import ClusterSpec, Deployment, NodeType, ReplicaShape
from rayfold.envs.moves import Move, MovePhase, Plan
from rayfold.envs.safety import Limits
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase, StateArrays
from rayfold.errors import ClusterError, ExecutorError
from rayfold.policies.best_fit import BestFit
from rayfold.policies.protocol import Policy
from rayfold.serving.decider import Decider
from rayfold.serving.decision import Mode
from rayfold.serving.history import History
from rayfold.serving.journal import Journal
from rayfold.serving.live_moves import MoveRecord, MoveStatus, destination_id
from rayfold.serving.live_settings import LiveSettings
from rayfold.serving.metrics import Metrics

NOW_S = 1000.0
SETTINGS = LiveSettings(limits=Limits(max_concurrent_moves=4), plan_deadline_s=5.0, decision_interval_s=0.01)


def two_nodes(now_s: float = NOW_S) -> ClusterState:
    """Two 4-GPU nodes with one replica each: either fits onto the other."""
    spec = ClusterSpec(
        node_types=(NodeType(name="gpu4", resources={"GPU": 4.0, "CPU": 8.0}, price_usd_per_h=4.0),),
        deployments=(Deployment(name="a", app="a", shape=ReplicaShape(bundles=({"GPU": 1.0, "CPU": 1.0},))),),
    )
    st = StateArrays.empty(spec, 2, 2)
    st.node_type[:], st.node_phase[:] = 0, NodePhase.ALIVE
    st.node_free[:] = [3.0, 7.0, 0.0]
    st.gpu_free[:] = [0.0, 1.0, 1.0, 1.0]
    st.replica_deployment[:], st.replica_node[:] = 0, [0, 1]
    st.replica_phase[:], st.replica_gpus[:] = ReplicaPhase.RUNNING, 1
    st.node_held[:], st.node_num_held[:], st.node_idle_since_s[:] = 1, 1, np.inf
    st.deployment_target[:] = 2
    return ClusterState(spec=spec, now_s=now_s, arrays=st, node_ids=("n0", "n1"), replica_ids=("r0", "r1"))


class FakeCluster:
    """An executor that remembers. Its moves may outlive it in a file, as a controller outlives its decider.

    Args:
        error: Every start is refused with this, where it is not empty.
        forbidden: Why it may not be touched at all, where it is not empty.
        path: Where the moves are kept.
    """

    def __init__(self, error: str = "", path: Path | None = None, forbidden: str = "") -> None:
        self.started: list[tuple[str, str]] = []
        self.ids: list[str] = []
        self.cancelled: list[str] = []
        self.detached = 0
        self.has_lost_attachment = False
        self._error, self._path, self._forbidden = error, path, forbidden
        self._known: dict[str, MoveStatus] = {}

    def _controller(self) -> dict[str, str]:
        """Phase by move id, as the cluster has it."""
        if self._path is None:
            return {move_id: status.phase.value for move_id, status in self._known.items()}
        return dict(json.loads(self._path.read_text())) if self._path.exists() else {}

    def set_phase(self, move_id: str, phase: MovePhase) -> None:
        """What the cluster says from now on."""
        if self._path is not None:
            self._path.write_text(json.dumps({**self._controller(), move_id: phase.value}))
        if move_id in self._known:
            self._known[move_id] = self._known[move_id]._replace(phase=phase)

    def start(self, state: ClusterState, move: Move, move_id: str = "") -> str:
        """Takes the move."""
        if self._error:
            raise ExecutorError(self._error)
        if move_id in self._controller():
            raise ExecutorError(f"move {move_id} is known already")
        replica_id, node_id = state.replica_ids[move.replica_idx], destination_id(state, move)
        self.started.append((replica_id, node_id))
        self.ids.append(move_id)
        self._known[move_id] = MoveStatus(MovePhase.STARTING, "", replica_id, None, node_id)
        self.set_phase(move_id, MovePhase.STARTING)
        return move_id

    def adopt(self, moves: Sequence[MoveRecord]) -> None:
        """What the cluster does not know is cancelled."""
        for record in moves:
            phase = MovePhase(self._controller().get(record.move_id, MovePhase.CANCELLED.value))
            self._known[record.move_id] = MoveStatus(phase, "", record.replica_id, None, record.to_node)

    def statuses(self) -> Mapping[str, MoveStatus]:
        """As the cluster has them."""
        phases = self._controller()
        return {m: s._replace(phase=MovePhase(phases.get(m, s.phase.value))) for m, s in self._known.items()}

    def check(self) -> None:
        """Raises where it may not be touched."""
        if self._forbidden:
            raise ClusterError(self._forbidden)

    def keep_attached(self) -> bool:
        """Whether it was lost is told by the test; where it may not be touched, it cannot."""
        self.check()
        lost, self.has_lost_attachment = self.has_lost_attachment, False
        return lost

    def detach(self) -> bool:
        """Counted."""
        self.detached += 1
        return True

    def cancel(self, move_id: str) -> None:
        """Remembers it too."""
        self.cancelled.append(move_id)
        self.set_phase(move_id, MovePhase.CANCELLED)


class FixedPolicy:
    """A policy with a given answer."""

    name = "fixed"

    def __init__(self, answer: Callable[[], Plan]) -> None:
        self._answer = answer

    def reset(self) -> None:
        """Nothing to forget."""

    def plan(self, state: ClusterState, rng: np.random.Generator) -> Plan:
        """The given answer."""
        return self._answer()


def plan_of(*moves: Move) -> Plan:
    """A plan of these moves."""
    return Plan(moves=moves, scores=(0.5,) * len(moves), reason="because")


def make_decider(
    answer: Callable[[], Plan],
    executor: FakeCluster,
    *,
    mode: Mode = Mode.ACT,
    snapshot: Callable[[], ClusterState] = two_nodes,
    fallback: Callable[[], Plan] | None = None,
    settings: LiveSettings = SETTINGS,
    journal: Journal | None = None,
    may_act: Callable[[], str] = lambda: "",
    stand_down: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = lambda: NOW_S,
    make_policy: Callable[[Limits], Policy] | None = None,
    metrics: Metrics | None = None,
) -> Decider:
    """A decider over the hand-built cluster."""
    return Decider(
        make_policy=make_policy or (lambda limits: FixedPolicy(answer)),
        make_fallback=BestFit if fallback is None else lambda limits: FixedPolicy(fallback),
        settings=settings,
        snapshot=snapshot,
        history=History(),
        executor=executor,
        mode=mode,
        journal=journal or Journal(),
        rng=np.random.default_rng(0),
        clock=clock,
        may_act=may_act,
        stand_down=stand_down,
        metrics=metrics,
    )
