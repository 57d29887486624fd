"""A decider that is killed by SIGKILL at a named point of its first move: run as a process by ``test_crash.py``.

Arguments: journal, cluster file, point.
"""

import os
import signal
import sys
from pathlib import Path

from rayfold.envs.moves import Move
from rayfold.envs.state import ClusterState
from rayfold.serving.journal import Journal
from tests.serving.deciders import FakeCluster, make_decider, plan_of

POINTS = ("before_intent", "intended", "taken", "starting")


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Deadly(FakeCluster):
    """Dies right before or right after the cluster has taken the move."""

    def __init__(self, point: str, path: Path) -> None:
        super().__init__(path=path)
        self._point = point

    def start(self, state: ClusterState, move: Move, move_id: str = "") -> str:
        """Dies, or starts the move and dies."""
        if self._point == "intended":
            _die()
        super().start(state, move, move_id)
        if self._point == "taken":
            _die()
        return move_id


def main(journal: str, cluster: str, point: str) -> None:
    """Decides once, and dies."""

    def may_act() -> str:
        if point == "before_intent":
            _die()
        return ""

    executor = Deadly(point, Path(cluster))
    make_decider(lambda: plan_of(Move(0, 1)), executor, journal=Journal(Path(journal)), may_act=may_act).tick()
    _die()


if __name__ == "__main__":
    main(*sys.argv[1:])
