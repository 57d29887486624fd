"""A decider killed at any point of a move: the next one finishes it or closes it, and moves nothing twice."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from rayfold.envs.moves import Move, MovePhase
from rayfold.envs.state import ClusterState
from rayfold.serving.journal import Journal
from tests.serving.deciders import FakeCluster, make_decider, plan_of, two_nodes
from tests.serving.killed_decider import POINTS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """One folder per point, with the journal and the cluster that its decider left."""
    folder = tmp_path_factory.mktemp("killed")
    folders = {point: folder / point for point in POINTS}
    for one in folders.values():
        one.mkdir()
    subprocess.run([sys.executable, "-m", "tests.serving.killed_decider", str(folder)], cwd=ROOT, check=True)
    return folders


@pytest.mark.parametrize("point", POINTS)
def test_killed_decider_is_taken_over(killed: Mapping[str, Path], point: str) -> None:
    """What the cluster took is followed to its end; what it did not take is closed; the replica moves once."""
    journal, cluster = Journal(killed[point] / "j.sqlite3"), killed[point] / "cluster"
    taken = json.loads(cluster.read_text()) if cluster.exists() else {}
    assert len(taken) == (1 if point in ("taken", "starting") else 0)
    left = {"before_intent": 0, "intended": 1, "taken": 1, "starting": 1}[point]
    assert len(journal.open_moves()) == left
    executor = FakeCluster(path=cluster)
    after = make_decider(plan_of, executor, journal=journal)
    after.tick()
    if taken:
        (move_id,) = taken
        assert [m.move_id for m in journal.open_moves()] == [move_id]
        executor.set_phase(move_id, MovePhase.DONE)
        after.tick()
    assert journal.open_moves() == []
    assert [m["phase"] for m in journal.moves(9)] == (["done"] if taken else ["cancelled"] * left)
    assert executor.started == []
    assert json.loads(cluster.read_text() if cluster.exists() else "{}").keys() == taken.keys()
    journal.close()


def test_nothing_is_decided_before_the_takeover() -> None:
    """While the cluster does not answer for the open moves, not even a snapshot is taken."""
    journal = Journal()
    make_decider(lambda: plan_of(Move(0, 1)), FakeCluster(), journal=journal).tick()
    looks: list[int] = []

    class Silent(FakeCluster):
        def adopt(self, moves: object) -> None:
            raise ConnectionError("planted")

    def look() -> ClusterState:
        looks.append(1)
        return two_nodes()

    after = make_decider(lambda: plan_of(Move(1, 0)), Silent(), journal=journal, snapshot=look)
    with pytest.raises(ConnectionError):
        after.tick()
    assert looks == []
