"""A controller that restarted while a replica drained: whichever it took for running, the drained one is stopped."""

from types import SimpleNamespace
from typing import Any

import pytest

from rayfold.serving.controller_recovery import end_draining


class Replicas:
    """Serve's container, of one deployment; as a ``DeploymentState`` it remembers what it stopped."""

    def __init__(self, **phases: str) -> None:
        self._replicas = self
        self.stopped: list[str] = []
        self._all = {
            name: SimpleNamespace(
                replica_id=SimpleNamespace(unique_id=name),
                actor_details=SimpleNamespace(state=SimpleNamespace(value=phase)),
            )
            for name, phase in phases.items()
        }

    def get(self) -> list[Any]:
        """All."""
        return list(self._all.values())

    def remove(self, replica_ids: list[Any]) -> list[Any]:
        """Takes them out."""
        return [self._all.pop(replica_id.unique_id) for replica_id in replica_ids]

    def _stop_replica(self, replica: Any, *, graceful_stop: bool) -> None:
        assert graceful_stop
        self.stopped.append(replica.replica_id.unique_id)


@pytest.mark.parametrize(
    ("phases", "stopped", "serves"),
    [
        ({"old": "RUNNING", "new": "RUNNING"}, ["old"], True),
        ({"old": "RECOVERING", "new": "RECOVERING"}, ["old"], True),
        ({"old": "STOPPING", "new": "RUNNING"}, [], True),
        ({"old": "RUNNING", "new": "STOPPING"}, ["old"], False),
        ({"old": "RUNNING"}, ["old"], False),
        ({"new": "RUNNING"}, [], True),
        ({"other": "RUNNING"}, [], False),
    ],
)
def test_the_drained_replica_is_stopped(phases: dict[str, str], stopped: list[str], serves: bool) -> None:
    """Once, gracefully, and nothing else is; the answer says whether its replacement goes on."""
    state, bystander = Replicas(**phases), Replicas(bystander="RUNNING")
    states = {"d": state, "e": bystander}
    controller = SimpleNamespace(deployment_state_manager=SimpleNamespace(_deployment_states=states))
    assert end_draining(controller, "old", "new") is serves
    assert state.stopped == stopped
    assert bystander.stopped == []
