"""What is owed to a Serve controller that restarted in the middle of a move; run inside it, like ``controller_patch``.

Imports nothing of rayfold, and travels by value.
"""

from typing import Any

__all__ = ["end_draining"]


def end_draining(controller: Any, old: str, replacement: str | None) -> bool:
    """Stops a replica that an earlier controller had told to stop; needs no attachment.

    A new controller takes every living replica for a running one, so it may keep the one that has shut itself down
    (``Replica._quiescing``: alive, healthy, and refusing all requests) and stop its replacement.

    Args:
        controller: The Serve controller.
        old: Unique id of the replica that was draining.
        replacement: Of the one that serves in its place.

    Returns:
        Whether the replacement goes on serving; if not, Serve starts another replica by itself.
    """
    serves = False
    for state in controller.deployment_state_manager._deployment_states.values():
        for replica in state._replicas.get():
            name, phase = replica.replica_id.unique_id, str(replica.actor_details.state.value)
            if name == replacement:
                serves = phase in ("RUNNING", "RECOVERING")
            elif name == old and phase != "STOPPING":
                for taken in state._replicas.remove([replica.replica_id]):
                    state._stop_replica(taken, graceful_stop=True)
    return serves
