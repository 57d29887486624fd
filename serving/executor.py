"""``ServeExecutor``: carries moves out in a running Serve cluster.

A thin shell over ``controller_patch``: what must happen between two control-loop steps happens there, what may
block happens here. Time-outs run inside the controller, so a move ends even if this process does not.
"""

import itertools
import logging
import secrets
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import ray

from rayfold.envs.moves import Move, MovePhase
from rayfold.envs.state import ClusterState
from rayfold.errors import ClusterError, ExecutorError
from rayfold.serving import controller_patch

__all__ = ["MoveStatus", "ServeExecutor", "call_controller", "serve_controller"]

log = logging.getLogger(__name__)

_CALL_TIMEOUT_S = 20.0
_FINAL = (MovePhase.DONE, MovePhase.FAILED, MovePhase.CANCELLED)


class MoveStatus(NamedTuple):
    """What is known of one move."""

    phase: MovePhase
    detail: str  # why it failed or was cancelled
    replica_id: str
    replacement_id: str | None
    node_id: str


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
    module = sys.modules[fn.__module__]
    cloudpickle.register_pickle_by_value(module)
    try:
        ref = serve_controller().__ray_call__.remote(fn, *args)
        return ray.get(ref, timeout=timeout_s)
    except (ray.exceptions.GetTimeoutError, ray.exceptions.RayActorError) as err:
        raise ClusterError(f"the Serve controller did not answer {fn.__name__}: {err}") from err
    finally:
        cloudpickle.unregister_pickle_by_value(module)


class ServeExecutor:
    """Moves replicas of the Serve cluster this process is connected to.

    Args:
        move_timeout_s: A replacement must serve by then, or its move is cancelled.
        fence_s: A node that a replica was moved off takes no new replicas for this long, while others have room.
        tested_ray: Versions of Ray that may be touched.
        clock: Unix time in seconds.
    """

    def __init__(
        self,
        *,
        move_timeout_s: float = 600.0,
        fence_s: float = 600.0,
        tested_ray: tuple[str, ...] = controller_patch.TESTED_RAY,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.move_timeout_s, self.fence_s = move_timeout_s, fence_s
        self._tested_ray, self._clock = tested_ray, clock
        self._counter, self._prefix = itertools.count(), secrets.token_hex(4)
        self._known: dict[str, MoveStatus] = {}

    def attach(self) -> None:
        """Makes the controller able to move replicas; repeating it is harmless.

        Raises:
            ClusterError: Ray is not a tested version (observing still works), or Serve cannot be reached.
        """
        answer = str(call_controller(controller_patch.attach, self._tested_ray))
        if answer.startswith("refused"):
            raise ClusterError(f"{answer}; use mode observe or recommend")
        log.info("controller: %s", answer)

    def detach(self) -> None:
        """Cancels what still starts and leaves the controller as it was found."""
        self.statuses()
        call_controller(controller_patch.detach)
        for move_id, status in self._known.items():
            if status.phase == MovePhase.STARTING:
                self._known[move_id] = status._replace(phase=MovePhase.CANCELLED, detail="detached")

    def start(self, state: ClusterState, move: Move) -> str:
        """Starts a move; see ``Executor``. The state must be a live snapshot.

        Raises:
            ExecutorError: The move cannot be started.
        """
        d = int(state.arrays.replica_deployment[move.replica_idx])
        deployment = state.spec.deployments[d]
        replica_id, node_id = state.replica_ids[move.replica_idx], state.node_ids[move.node_idx]
        source = state.node_ids[int(state.arrays.replica_node[move.replica_idx])]
        move_id = f"{self._prefix}-{next(self._counter)}"
        args = (move_id, deployment.app, deployment.name, replica_id, node_id, self.move_timeout_s)
        try:
            self.attach()
            answer = str(call_controller(controller_patch.start_move, *args))
            if answer == "ok":
                call_controller(controller_patch.fence, source, self._clock() + self.fence_s)
        except ClusterError as err:
            raise ExecutorError(str(err)) from err
        if answer != "ok":
            raise ExecutorError(f"{deployment.key}: replica {replica_id} to node {node_id}: {answer}")
        self._known[move_id] = MoveStatus(MovePhase.STARTING, "", replica_id, None, node_id)
        return move_id

    def statuses(self) -> dict[str, MoveStatus]:
        """Every move this executor started, brought up to date.

        Raises:
            ClusterError: The controller did not answer.
        """
        if all(status.phase in _FINAL for status in self._known.values()):
            return dict(self._known)
        answer = call_controller(controller_patch.move_status)
        for move_id, known in self._known.items():
            if known.phase in _FINAL:
                continue
            seen = (answer or {}).get(move_id)
            if seen is None:  # a restarted controller keeps both replicas and stops one by its own rule
                self._known[move_id] = known._replace(phase=MovePhase.FAILED, detail="the controller restarted")
                continue
            phase = MovePhase(seen["phase"])
            self._known[move_id] = known._replace(
                phase=phase, detail=seen["detail"], replacement_id=seen["replacement"]
            )
        return dict(self._known)

    def phase(self, move_id: str) -> MovePhase:
        """Where the move is now; see ``Executor``."""
        return self.statuses()[move_id].phase

    def cancel(self, move_id: str) -> None:
        """Stops the replacement and leaves the old replica serving; see ``Executor``."""
        call_controller(controller_patch.cancel_move, move_id)
