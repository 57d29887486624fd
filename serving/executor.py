"""``ServeExecutor``: carries moves out in a running Serve cluster.

A thin shell over ``controller_patch``: what must happen between two control-loop steps happens there, what may
block happens here. Time-outs run inside the controller, so a move ends even if this process does not.
"""

import itertools
import logging
import secrets
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import ray

from rayfold.envs.moves import Move, MovePhase
from rayfold.envs.state import ClusterState, NodePhase
from rayfold.errors import ClusterError, ExecutorError
from rayfold.serving import controller_patch, controller_recovery
from rayfold.serving.live_moves import FINAL, MoveRecord, MoveStatus, RecordedPhase, destination_id
from rayfold.serving.live_settings import NodeTypeSettings

__all__ = ["MoveStatus", "ServeExecutor", "call_controller", "serve_controller"]

log = logging.getLogger(__name__)

_CALL_TIMEOUT_S = 20.0
_PICKLING = threading.Lock()


def serve_controller() -> Any:
    """Handle of the Serve controller of the cluster this process is connected to.

    Raises:
        ClusterError: Serve does not run there.
    """
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    try:
        return ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    except ValueError as err:
        raise ClusterError("expected a running Ray Serve in the cluster, found none") from err


def call_controller(fn: Callable[..., Any], *args: Any, timeout_s: float = _CALL_TIMEOUT_S) -> Any:
    """Runs ``fn(controller, *args)`` inside the Serve controller, with the module of ``fn`` by value.

    Raises:
        ClusterError: The controller did not answer in time or is gone.
    """
    cloudpickle: Any = ray.cloudpickle
    module, controller = sys.modules[fn.__module__], serve_controller()
    try:
        with _PICKLING:  # the registration is the process's, and the HTTP threads call too
            cloudpickle.register_pickle_by_value(module)
            try:
                ref = controller.__ray_call__.remote(fn, *args)
            finally:
                cloudpickle.unregister_pickle_by_value(module)
        return ray.get(ref, timeout=timeout_s)
    except (ray.exceptions.GetTimeoutError, ray.exceptions.RayActorError) as err:
        raise ClusterError(f"the Serve controller did not answer {fn.__name__}: {err}") from err


def _after_restart(known: MoveStatus) -> MoveStatus:
    """What becomes of a move that the controller does not know (any more): one that drained is brought to its end."""
    detail = "the controller restarted or does not know the move"
    ends_well = known.phase == MovePhase.DRAINING and call_controller(
        controller_recovery.end_draining, known.replica_id, known.replacement_id
    )
    return known._replace(phase=MovePhase.DONE if ends_well else MovePhase.FAILED, detail=detail)


class ServeExecutor:
    """Moves replicas of the Serve cluster this process is connected to. One thread at a time but for ``cancel``.

    Args:
        move_timeout_s: A replacement must serve by then, or its move is cancelled; on a new node, by so long after
            the longest boot of its type.
        fence_s: A node that a replica was moved off takes no new replicas for this long, while others have room.
        node_types: By name, where a move may launch a node.
        tested_ray: Versions of Ray that may be touched.
        clock: Unix time in seconds.
        term: Of the lease this process holds, 0 without one.
    """

    def __init__(
        self,
        *,
        move_timeout_s: float = 600.0,
        fence_s: float = 600.0,
        node_types: Mapping[str, NodeTypeSettings] | None = None,
        tested_ray: tuple[str, ...] = controller_patch.TESTED_RAY,
        clock: Callable[[], float] = time.time,
        term: Callable[[], int] = lambda: 0,
    ) -> None:
        self.move_timeout_s, self.fence_s, self.node_types = move_timeout_s, fence_s, node_types or {}
        self._tested_ray, self._clock, self._term = tested_ray, clock, term
        self._counter, self._prefix = itertools.count(), secrets.token_hex(4)
        self._known: dict[str, MoveStatus] = {}
        self._fences: dict[str, float] = {}  # what a restarted controller must be told again
        self._sources: dict[str, str] = {}  # move id to the node that the replica leaves
        self._doubtful: set[str] = set()  # the controller did not say whether it took them
        self._token = ""

    def check(self) -> None:
        """Whether this Ray may be touched; touches nothing.

        Raises:
            ClusterError: It may not (observing still works), or Serve cannot be reached.
        """
        reason = str(call_controller(controller_patch.untested, self._tested_ray))
        if reason:
            raise ClusterError(f"refused: {reason}; use mode observe or recommend")

    def attach(self) -> None:
        """Makes the controller able to move replicas; repeating it is harmless, and finds a restarted controller.

        Raises:
            ClusterError: Ray is not a tested version (observing still works), or Serve cannot be reached.
        """
        answer = str(call_controller(controller_patch.attach, self._tested_ray))
        if answer.startswith("refused"):
            raise ClusterError(f"{answer}; use mode observe or recommend")
        token = answer.rpartition(" ")[2]
        if token == self._token:
            return
        self._token = token
        now_s = self._clock()
        self._fences = {node: until_s for node, until_s in self._fences.items() if until_s > now_s}
        for node, until_s in self._fences.items():
            call_controller(controller_patch.fence, node, until_s)
        log.info("controller: %s", answer)

    def keep_attached(self) -> bool:
        """See ``LiveExecutor``: a restarted controller is told by its token, and gets its fences again.

        Raises:
            ClusterError: The controller did not answer.
        """
        before = self._token
        self.attach()
        return bool(before) and self._token != before

    def detach(self) -> bool:
        """Cancels what still starts and leaves the controller as it was found, unless another has taken it over."""
        if not self._token:
            return False
        self.statuses()
        call_controller(controller_patch.detach, self._term())
        self._token, self._fences = "", {}
        for move_id, status in self._known.items():
            if status.phase == MovePhase.STARTING:
                self._known[move_id] = status._replace(phase=MovePhase.CANCELLED, detail="detached")
            elif status.phase == MovePhase.DRAINING:
                detail = "detached: Serve stops the old replica by itself"
                self._known[move_id] = status._replace(phase=MovePhase.DONE, detail=detail)
        return True

    def start(self, state: ClusterState, move: Move, move_id: str = "") -> str:
        """Starts a move; see ``LiveExecutor``. The state must be a live snapshot.

        Raises:
            ExecutorError: The move cannot be started.
        """
        d = int(state.arrays.replica_deployment[move.replica_idx])
        deployment = state.spec.deployments[d]
        replica_id, node_id = state.replica_ids[move.replica_idx], destination_id(state, move)
        source = state.node_ids[int(state.arrays.replica_node[move.replica_idx])]
        move_id = move_id or f"{self._prefix}-{next(self._counter)}"
        timeout_s, labels, not_on = self._launch(state, move)
        args = (move_id, deployment.app, deployment.name, replica_id, node_id, timeout_s, self._term(), labels, not_on)
        try:
            self.attach()
        except ClusterError as err:
            raise ExecutorError(str(err)) from err
        status = MoveStatus(MovePhase.STARTING, "", replica_id, None, node_id)
        try:
            answer = str(call_controller(controller_patch.start_move, *args))
            if answer != "ok":
                raise ExecutorError(f"{deployment.key}: replica {replica_id} to node {node_id}: {answer}")
            self._known[move_id] = status
            self._fence(move_id, source)
        except ClusterError as err:
            # The move may be under way: the next look at the controller tells, or keeps it from beginning.
            log.warning("move %s: %s", move_id, err)
            if move_id not in self._known:
                self._known[move_id] = status
                self._doubtful.add(move_id)
        return move_id

    def _launch(self, state: ClusterState, move: Move) -> tuple[float, dict[str, str], list[str]]:
        """Time-out, labels of the node to launch, and the nodes of its type; a move to one that is there needs neither.

        Raises:
            ExecutorError: No move may launch such a node.
        """
        t = move.node_idx - len(state.arrays.node_type)
        if t < 0:
            return self.move_timeout_s, {}, []
        told = self.node_types.get(state.spec.node_types[t].name, NodeTypeSettings())
        if told.launch is None:
            raise ExecutorError(f"node type {state.spec.node_types[t].name}: the settings do not say how to launch one")
        st = state.arrays
        has_joined = (st.node_phase == NodePhase.ALIVE) | (st.node_phase == NodePhase.DRAINING)
        not_on = [state.node_ids[n] for n in np.flatnonzero((st.node_type == t) & has_joined)]
        return self.move_timeout_s + told.boot_s.max_s, dict(told.launch.labels), not_on

    def _fence(self, move_id: str, source: str) -> None:
        self._sources[move_id], self._fences[source] = source, self._clock() + self.fence_s
        call_controller(controller_patch.fence, source, self._fences[source])

    def adopt(self, moves: Sequence[MoveRecord]) -> None:
        """Takes over the moves of an earlier decider; see ``LiveExecutor``.

        Raises:
            ClusterError: The controller did not answer.
        """
        call_controller(controller_patch.close_moves, [m.move_id for m in moves])
        for record in moves:
            phase = MovePhase.STARTING if record.phase == RecordedPhase.INTENDED else MovePhase(record.phase.value)
            status = MoveStatus(phase, record.detail, record.replica_id, record.replacement_id or None, record.to_node)
            self._known[record.move_id] = status
            self._sources[record.move_id] = record.from_node
            self._fences[record.from_node] = record.started_s + self.fence_s

    def statuses(self) -> dict[str, MoveStatus]:
        """Every move this executor started or adopted, brought up to date.

        Raises:
            ClusterError: The controller did not answer.
        """
        waiting = [move_id for move_id, status in self._known.items() if status.phase not in FINAL]
        answer = call_controller(controller_patch.close_moves, sorted(self._doubtful)) if waiting else {}
        self._doubtful.clear()
        for move_id in waiting:
            known, seen = self._known[move_id], (answer or {}).get(move_id)
            if seen is None:
                self._known[move_id] = _after_restart(known)
            else:
                self._known[move_id] = known._replace(
                    phase=MovePhase(seen["phase"]),
                    detail=seen["detail"],
                    replacement_id=seen["replacement"],
                    ready_s=seen["ready_s"],
                )
            self._lift_fence(move_id)
        return dict(self._known)

    def _lift_fence(self, move_id: str) -> None:
        """Opens the source of a move that came to nothing, unless another move still empties or emptied it."""
        source, undone = self._sources.get(move_id, ""), (MovePhase.FAILED, MovePhase.CANCELLED)
        if self._known[move_id].phase not in undone or source not in self._fences:
            return
        if all(self._known[m].phase in undone for m, node in self._sources.items() if node == source):
            del self._fences[source]
            call_controller(controller_patch.fence, source, 0.0)

    def phase(self, move_id: str) -> MovePhase:
        """Where the move is now; see ``Executor``."""
        return self.statuses()[move_id].phase

    def cancel(self, move_id: str) -> None:
        """Stops the replacement and leaves the old replica serving; see ``Executor``."""
        call_controller(controller_patch.cancel_move, move_id)
