"""The cluster map: replayed from its changes it is the cluster, tick by tick."""

from typing import Any

import numpy as np

from rayfold.envs.scenario import Split, load_scenario
from rayfold.envs.simulator import Simulator
from rayfold.envs.state import NodePhase, ReplicaPhase
from rayfold.policies.best_fit import BestFit
from rayfold.training import episode_result
from rayfold.training.episode_result import run_episode
from rayfold.training.replay_record import FREE, ReplayRecorder, node_cells


class Checking(ReplayRecorder):
    """Keeps the whole map of every tick beside the changes."""

    whole: list[dict[int, list[int]]]

    def decided(self, sim: Simulator) -> None:
        """Notes both, and compares cells with what the state holds."""
        super().decided(sim)
        st, cells = sim.view.arrays, node_cells(sim)
        present = np.flatnonzero(st.node_phase != NodePhase.ABSENT).tolist()
        self.whole.append({n: cells[n] for n in present})
        for n in present:
            num_gpus = int(sim.spec.arrays.type_num_gpus[st.node_type[n]])
            assert len(cells[n]) == num_gpus
            assert cells[n].count(FREE) == int((st.gpu_free[n, :num_gpus] > 1.0 - 1e-9).sum())
        running = int((st.replica_phase == ReplicaPhase.RUNNING).sum())
        assert sum(1 for n in present for code in cells[n] if code >= 0 and code % 4 in (0, 3)) >= running


def test_changes_replay_to_the_cluster(monkeypatch: Any) -> None:
    """Frame upon frame gives each tick's nodes and cells; the moves that best fit makes are seen leaving."""
    whole: list[dict[int, list[int]]] = []
    Checking.whole = whole
    monkeypatch.setattr(episode_result, "ReplayRecorder", Checking)
    scenario = load_scenario("smoke")
    recording = run_episode(scenario, BestFit(scenario.limits), 3, Split.VALIDATION, is_recorded=True).recording
    assert recording is not None
    assert recording["frame_ticks"] == list(range(60))
    shown: dict[int, list[int]] = {}
    for frame, expected in zip(recording["frames"], whole, strict=True):
        for row, *rest in frame:
            if rest:
                shown[row] = rest[2]
            else:
                del shown[row]
        assert shown == expected
    assert sum(map(len, recording["frames"])) < sum(map(len, whole)) / 2  # only changes
    assert any(code >= 0 and code % 4 == 3 for cells in whole for node in cells.values() for code in node)
