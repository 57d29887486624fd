"""Deciders that are killed by SIGKILL, each at a named point of its first move: run as a process by ``test_crash.py``.

Argument: a folder; each decider leaves its journal and its cluster in ``FOLDER/POINT``. They are forked, so that what
they import is imported once.
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


def _decide(folder: Path, point: str) -> None:
    """Decides once, and dies."""

    def may_act() -> str:
        if point == "before_intent":
            _die()
        return ""

    executor, journal = Deadly(point, folder / "cluster"), Journal(folder / "j.sqlite3")
    make_decider(lambda: plan_of(Move(0, 1)), executor, journal=journal, may_act=may_act).tick()
    _die()


def main(folder: Path) -> None:
    """Exits with 0 if all of them died as they should."""
    for point in POINTS:
        pid = os.fork()
        if pid == 0:
            _decide(folder / point, point)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            sys.exit(f"{point}: status {status}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
