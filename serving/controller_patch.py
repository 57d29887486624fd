"""Moves of single replicas, run inside the Serve controller of a running cluster.

Every public function here is called as ``controller.__ray_call__.remote(fn, ...)`` and travels by value
(``ray.cloudpickle.register_pickle_by_value``): nothing is installed on the head node, nothing restarts. So this
module imports nothing of rayfold, and Ray only inside functions. It reaches into Serve's private classes and is
therefore refused on any Ray but the tested one. A controller call runs between two control-loop steps.

Words: the *desk* keeps the moves and fences, on the scheduler of the controller. A move *binds* the first new
replica of its deployment that Serve schedules after the old one was set aside (``PENDING_MIGRATION``, in which a
replica keeps serving); that replacement is pinned to the destination.
"""

import time
from typing import Any

__all__ = [
    "attach",
    "attach_scheduler",
    "cancel_move",
    "close_moves",
    "detach",
    "fence",
    "move_status",
    "patched",
    "start_move",
    "untested",
]

TESTED_RAY = ("2.60.0",)
STARTING, DRAINING, DONE, FAILED, CANCELLED = "starting", "draining", "done", "failed", "cancelled"
_NODE_LABEL = "ray.io/node-id"
_SETTLE_S = 0.5  # both replicas serve this long, so that every router knows the new one before the old one stops
_KEEP_FINAL = 500  # final moves remembered


class Desk:
    """Moves and fences of one controller.

    Attributes:
        moves: By move id: dict of deployment_id, old (unique id), node, labels, not_on, phase, replacement, detail,
            deadline_s, marked, ready_s. With ``labels`` the replacement waits for a new node that has them, which the
            autoscaler launches for it, and lands on none of ``not_on``.
        fences: Node id to the time (s) until which new replicas avoid it.
        token: Of this desk: another one means that the controller, or the attachment, is another.
        term: Highest term of a decider's lease that a move was started under.
    """

    def __init__(self, original_migrate: Any, original_class: type, token: str) -> None:
        self.token, self.term = token, 0
        self.moves: dict[str, dict[str, Any]] = {}
        self.fences: dict[str, float] = {}
        self.original_migrate = original_migrate
        self.original_class = original_class

    def active(self, deployment_id: Any) -> list[dict[str, Any]]:
        """Moves of a deployment that are not final."""
        live = (STARTING, DRAINING)
        return [m for m in self.moves.values() if m["deployment_id"] == deployment_id and m["phase"] in live]

    def fenced(self) -> set[str]:
        """Nodes fenced now; forgets the fences that have run out."""
        now_s = time.time()
        self.fences = {node: until_s for node, until_s in self.fences.items() if until_s > now_s}
        return set(self.fences)

    def bind(self, request: Any) -> dict[str, Any] | None:
        """Gives a new replica to a move that waits for one, and returns it; None where no move waits."""
        for move in self.active(request.replica_id.deployment_id):
            if move["marked"] and move["replacement"] is None:
                move["replacement"] = request.replica_id.unique_id
                return move
        return None

    def step(self, state: Any, scheduler: Any) -> None:
        """Advances the moves of one deployment; called in every control-loop step.

        Args:
            state: ``DeploymentState``.
            scheduler: ``DeploymentScheduler``.
        """
        nodes = scheduler._cluster_node_info_cache.get_active_node_ids()
        for move in self.active(state._id):
            replicas = {r.replica_id.unique_id: r for r in state._replicas.get()}
            old = replicas.get(move["old"])
            new = replicas.get(move["replacement"]) if move["replacement"] else None
            if move["phase"] == DRAINING:
                if old is None:
                    move["phase"] = DONE
                continue
            self._step_starting(state, move, old, new, nodes)

    def _step_starting(self, state: Any, move: dict[str, Any], old: Any, new: Any, nodes: set[str]) -> None:
        verdict = _why_stop(state, move, old, new, nodes)
        if verdict is not None:
            phase, detail = verdict
            _finish(move, phase, detail)
            # Serve keeps a replacement whose old replica is gone: it is an ordinary replica now.
            if new is not None and old is not None and _state(old) != "STOPPING":
                _stop(state, new)
            return
        if new is None or _state(new) != "RUNNING":
            move["marked"] = True
            _set_aside(state, old)
            return
        move["ready_s"] = move["ready_s"] or time.time()
        _set_aside(state, old)
        if time.time() - move["ready_s"] >= _SETTLE_S:
            _stop(state, old)
            move["phase"] = DRAINING
            move["detail"] = f"on new node {new.actor_node_id}" if move["labels"] else ""


def _state(replica: Any) -> str:
    return str(replica.actor_details.state.value)


def _finish(move: dict[str, Any], phase: str, detail: str) -> None:
    move["phase"], move["detail"] = phase, detail


def _set_aside(state: Any, replica: Any) -> None:
    from ray.serve._private.common import ReplicaState

    for taken in state._replicas.remove([replica.replica_id]):
        state._replicas.add(ReplicaState.PENDING_MIGRATION, taken)


def _stop(state: Any, replica: Any) -> None:
    for taken in state._replicas.remove([replica.replica_id]):
        state._stop_replica(taken, graceful_stop=True)


def _why_stop(state: Any, move: dict[str, Any], old: Any, new: Any, nodes: set[str]) -> tuple[str, str] | None:
    """Phase and reason if the move cannot go on, else None."""
    if old is None or _state(old) not in ("RUNNING", "PENDING_MIGRATION"):
        return FAILED, "the old replica ended before its replacement was ready"
    if move["cancel"]:
        return CANCELLED, str(move["cancel"])
    if old.version != state._target_state.version:
        return CANCELLED, "the deployment got a new version"
    if time.time() > move["deadline_s"]:
        return CANCELLED, "time-out"
    if not move["labels"] and move["node"] not in nodes:
        return FAILED, "the destination node is gone or draining"
    if move["marked"] and move["replacement"] is None:
        return CANCELLED, "Serve started no replacement: the deployment is scaling down"
    if move["replacement"] is not None and (new is None or _state(new) in ("STOPPING", "RECOVERING")):
        return FAILED, "the replacement ended before it was ready"
    if new is not None and new.actor_node_id is not None and not _is_destination(move, new.actor_node_id):
        return FAILED, f"the replacement landed on node {new.actor_node_id}"
    return None


def _is_destination(move: dict[str, Any], node: str) -> bool:
    return node not in move["not_on"] if move["labels"] else node == move["node"]


def _scheduler(controller: Any) -> Any:
    return controller.deployment_state_manager._deployment_scheduler


def _desk(controller: Any) -> Desk | None:
    return getattr(_scheduler(controller), "_rayfold_desk", None)


def _pin(request: Any, move: dict[str, Any]) -> None:
    """Makes the request land on the destination of the move or nowhere; one that is new, Ray's autoscaler launches."""
    wanted = {_NODE_LABEL: move["node"]}
    if move["labels"]:
        others = {_NODE_LABEL: f"!in({','.join(move['not_on'])})"} if move["not_on"] else {}  # Ray takes no empty list
        wanted = {**move["labels"], **others}
    if request.placement_group_bundles is not None:
        selectors = request.placement_group_bundle_label_selector or [{}] * len(request.placement_group_bundles)
        request.placement_group_bundle_label_selector = [{**s, **wanted} for s in selectors]
    elif move["labels"]:
        selector = request.actor_options.get("label_selector") or {}
        request.actor_options = {**request.actor_options, "label_selector": {**selector, **wanted}}
    else:
        request.target_node_id = move["node"]


def _avoid(scheduler: Any, request: Any, fenced: set[str]) -> None:
    """Keeps an ordinary new replica off fenced nodes, if another node has room for it now."""
    import ray._raylet as raylet
    from ray.serve._private import deployment_scheduler

    resources: Any = deployment_scheduler.RequestedResources
    bundles = request.placement_group_bundles
    need = request.requested_resources
    selectors = [request.actor_options.get("label_selector") or {}]
    if bundles is not None:
        need = sum((resources(b) for b in bundles), resources())
        selectors = list(request.placement_group_bundle_label_selector or [{}] * len(bundles))
    if any(_NODE_LABEL in s for s in selectors) or request.gang_placement_group is not None:
        return
    matches: Any = raylet.node_labels_match_selector  # type: ignore[attr-defined]  # compiled, untyped
    cache = scheduler._cluster_node_info_cache
    room = scheduler._get_available_resources_per_node()

    def suits(node: str) -> bool:
        labels = cache.get_node_labels(node)
        return room[node].can_fit(need) and all(matches(labels, s) for s in selectors)

    if not any(node not in fenced and suits(node) for node in room):
        return
    selectors = [{**s, _NODE_LABEL: f"!in({','.join(sorted(fenced))})"} for s in selectors]
    if bundles is not None:
        request.placement_group_bundle_label_selector = selectors
    else:
        request.actor_options = {**request.actor_options, "label_selector": selectors[0]}


def _moving_scheduler(base: type) -> type:
    class MovingScheduler(base):  # type: ignore[misc]  # the class is Serve's own
        def _schedule_replica(
            self, scheduling_request: Any, default_scheduling_strategy: str, target_node_id: Any = None, **kw: Any
        ) -> bool:
            desk, request = self._rayfold_desk, scheduling_request
            move = desk.bind(request)
            fenced = desk.fenced()
            if move is not None:
                _pin(request, move)
                target_node_id, kw = None, {}
            elif fenced and request.target_node_id is None and target_node_id is None:
                _avoid(self, request, fenced)
            done = super()._schedule_replica(request, default_scheduling_strategy, target_node_id, **kw)
            return bool(done)

        def _find_best_fit_node_for_pack(self, required: Any, available: dict[str, Any], *a: Any, **kw: Any) -> Any:
            fenced = self._rayfold_desk.fenced()
            open_nodes = {node: room for node, room in available.items() if node not in fenced}
            choose = super()._find_best_fit_node_for_pack
            return choose(required, open_nodes, *a, **kw) or choose(required, available, *a, **kw)

        def get_node_to_compact(self, allow_new_compaction: bool) -> Any:
            # Never two compactors: one that Ray has begun may end, and no other begins.
            return super().get_node_to_compact(allow_new_compaction and self._compacting_node is not None)

    return MovingScheduler


def attach(controller: Any, tested_ray: tuple[str, ...] = TESTED_RAY) -> str:
    """Makes the controller able to move single replicas.

    Args:
        controller: The Serve controller.
        tested_ray: Versions of Ray that may be touched.

    Returns:
        ``attached <token>``, ``already attached <token>``, or ``refused: <why>`` with the controller untouched.
    """
    return attach_scheduler(_scheduler(controller), tested_ray)


def attach_scheduler(scheduler: Any, tested_ray: tuple[str, ...] = TESTED_RAY) -> str:
    """As ``attach``, for the scheduler of a controller that is being made."""
    import secrets

    from ray.serve._private import deployment_state as ds

    reason, present = untested(None, tested_ray), getattr(scheduler, "_rayfold_desk", None)
    if reason:
        return f"refused: {reason}"
    if present is not None:
        return f"already attached {present.token}"
    deployment_state: Any = ds.DeploymentState
    original = deployment_state.migrate_replicas_on_draining_nodes
    desk = Desk(original, type(scheduler), secrets.token_hex(8))

    def migrate(self: Any, draining_nodes: Any, compacting_node_id: Any = None) -> None:
        original(self, draining_nodes, compacting_node_id=compacting_node_id)
        if desk.active(self._id):
            desk.step(self, scheduler)

    scheduler._rayfold_desk = desk
    scheduler.__class__ = _moving_scheduler(type(scheduler))
    deployment_state.migrate_replicas_on_draining_nodes = migrate
    return f"attached {desk.token}"


def untested(controller: Any, tested_ray: tuple[str, ...] = TESTED_RAY) -> str:
    """Why the Ray of this controller may not be touched; empty if it may."""
    import ray

    if ray.__version__ in tested_ray:
        return ""
    return f"Ray {ray.__version__} is not a tested version ({', '.join(tested_ray)})"


def patched(controller: Any) -> list[str]:
    """Names of what an attachment has changed in this controller; empty where it is as Serve made it."""
    from ray.serve._private import deployment_scheduler, deployment_state

    scheduler, found = _scheduler(controller), []
    deployment_class: Any = deployment_state.DeploymentState
    if hasattr(scheduler, "_rayfold_desk"):
        found.append("DeploymentScheduler._rayfold_desk")
    if type(scheduler).__module__ != deployment_scheduler.__name__:
        found.append("DeploymentScheduler.__class__")
    if deployment_class.migrate_replicas_on_draining_nodes.__module__ != deployment_state.__name__:
        found.append("DeploymentState.migrate_replicas_on_draining_nodes")
    return found


def detach(controller: Any, term: int | None = None) -> str:
    """Cancels the moves that still start, drops the fences, and leaves the controller as it was found.

    Args:
        controller: The Serve controller.
        term: Of the caller's lease: where a later one has moved something, nothing is done. None = do it anyway.
    """
    from ray.serve._private import deployment_state as ds

    desk, scheduler = _desk(controller), _scheduler(controller)
    if desk is None:
        return "not attached"
    if term is not None and term < desk.term:
        return "another decider has taken over"
    for move in desk.moves.values():
        if move["phase"] == STARTING:
            cancel_move(controller, move["id"], "detached")
    for state in controller.deployment_state_manager._deployment_states.values():
        desk.step(state, scheduler)
    deployment_state: Any = ds.DeploymentState
    deployment_state.migrate_replicas_on_draining_nodes = desk.original_migrate
    scheduler.__class__ = desk.original_class
    del scheduler._rayfold_desk
    return "detached"


def start_move(
    controller: Any,
    move_id: str,
    app: str,
    name: str,
    old: str,
    node: str,
    timeout_s: float,
    term: int = 0,
    labels: dict[str, str] | None = None,
    not_on: list[str] | None = None,
) -> str:
    """Enters a move; the control loop begins it at its next step. An id is taken once and never again.

    Args:
        controller: The Serve controller.
        move_id: Name of the move.
        app: Application of the deployment.
        name: Its name.
        old: Unique id of the replica to move.
        node: Ray id of the destination, or a name for a new one.
        timeout_s: The replacement must serve by then, or the move is cancelled.
        term: Of the lease that the caller holds; a lower one than any before is refused. 0 = no lease.
        labels: Of a new node; None or empty = ``node`` is there.
        not_on: Ray ids of the nodes that have them already.

    Returns:
        ``ok`` or ``refused: <why>``.
    """
    from ray.serve._private.common import DeploymentID

    desk, manager = _desk(controller), controller.deployment_state_manager
    if desk is None:
        return "refused: not attached"
    if move_id in desk.moves:
        return f"refused: move {move_id} is known already"
    if 0 < term < desk.term:
        return "refused: another decider has taken over"
    desk.term = max(desk.term, term)
    deployment_id = DeploymentID(name=name, app_name=app)
    state = manager._deployment_states.get(deployment_id)
    if state is None:
        return f"refused: no deployment {app}/{name}"
    if state._is_gang_deployment or state.is_ingress_request_router():
        return f"refused: {app}/{name} pins its replicas"
    if _scheduler(controller)._compacting_node is not None:
        return "refused: Ray is compacting a node itself"
    replica = next((r for r in state._replicas.get() if r.replica_id.unique_id == old), None)
    if replica is None or _state(replica) != "RUNNING":
        return f"refused: no running replica {old}"
    if replica.version != state._target_state.version:
        return "refused: the deployment is being updated"
    if any(m["old"] == old for m in desk.active(deployment_id)):
        return f"refused: replica {old} is being moved already"
    if node == replica.actor_node_id:
        return "refused: the replica is on that node"
    if not labels and node not in controller.cluster_node_info_cache.get_active_node_ids():
        return f"refused: no active node {node}"
    move = _entry(move_id, deployment_id, old, node, time.time() + timeout_s)
    desk.moves[move_id] = {**move, "labels": labels or {}, "not_on": list(not_on or ())}
    final = [key for key, move in desk.moves.items() if move["phase"] not in (STARTING, DRAINING)]
    for key in final[: max(0, len(final) - _KEEP_FINAL)]:
        del desk.moves[key]
    return "ok"


def _entry(move_id: str, deployment_id: Any, old: str, node: str, deadline_s: float) -> dict[str, Any]:
    return {
        "id": move_id,
        "deployment_id": deployment_id,
        "old": old,
        "node": node,
        "labels": {},
        "not_on": [],
        "phase": STARTING,
        "replacement": None,
        "detail": "",
        "deadline_s": deadline_s,
        "marked": False,
        "ready_s": 0.0,
        "cancel": "",
    }


def close_moves(controller: Any, move_ids: list[str]) -> dict[str, dict[str, Any]] | None:
    """Closes the moves that the controller does not know, so that a call still under way cannot start them.

    Returns:
        As ``move_status``.
    """
    desk = _desk(controller)
    if desk is not None:
        for move_id in move_ids:
            if move_id not in desk.moves:
                desk.moves[move_id] = _entry(move_id, None, "", "", 0.0)
                _finish(desk.moves[move_id], CANCELLED, "the controller had not begun it")
    return move_status(controller)


def cancel_move(controller: Any, move_id: str, why: str = "cancelled") -> None:
    """Asks a move that still starts to end; no effect on any other."""
    desk = _desk(controller)
    move = desk.moves.get(move_id) if desk else None
    if move is not None and move["phase"] == STARTING:
        move["cancel"] = why


def fence(controller: Any, node: str, until_s: float) -> None:
    """Keeps new replicas off a node, while another has room, until ``until_s`` (Unix time); 0 lifts the fence."""
    desk = _desk(controller)
    if desk is not None:
        desk.fences[node] = until_s


def move_status(controller: Any) -> dict[str, dict[str, Any]] | None:
    """Phase, detail, replacement, old, node and ready_s by move id; None where the controller is not attached."""
    desk = _desk(controller)
    if desk is None:
        return None
    keys = ("phase", "detail", "replacement", "old", "node", "ready_s")
    return {move_id: {key: move[key] for key in keys} for move_id, move in desk.moves.items()}
