"""What the report's cluster map replays: per tick only the nodes that have changed since the tick before.

A frame is a list of changed nodes. A node is ``[row]`` when it is gone, else ``[row, type, state, cells]``: ``state``
sums the ``FLAGS`` it has; ``cells`` has one number per GPU device, or per replica on a node without GPUs:
``-1`` free, ``-2`` other work, else ``4 * deployment + stage`` with the stages 0 serves, 1 starts, 2 drains, 3 is
about to leave for its replacement. Of several replicas that share a device the first row is shown.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.simulator import Simulator
from rayfold.envs.state import NodePhase, ReplicaPhase, StateArrays

__all__ = ["FLAGS", "FREE", "OTHER_WORK", "ReplayRecorder", "node_cells"]

FLAGS = {"booting": 1, "draining": 2, "fenced": 4, "head": 8, "pinned": 16}
FREE, OTHER_WORK = -1, -2
_MAX_NODE_FRAMES = 60_000  # nodes times frames: what a browser and a reader of the file can bear


class ReplayRecorder:
    """A ``Recorder`` of the cluster map, as each tick's moves have left it."""

    def __init__(self) -> None:
        self._frames: list[list[list[Any]]] = []
        self._ticks: list[int] = []
        self._last: dict[int, list[Any]] = {}
        self._tick, self._pending = 0, list[int]()
        self._every = 0

    def decided(self, sim: Simulator) -> None:
        """Notes what has changed."""
        if self._every == 0:
            self._every = _frame_interval(sim)
        st = sim.view.arrays
        self._pending.append(int((st.replica_phase == ReplicaPhase.PENDING).sum()))
        if self._tick % self._every == 0:
            self._ticks.append(self._tick)
            self._frames.append(self._changes(sim, st))
        self._tick += 1

    def passed(self, sim: Simulator) -> None:
        """Nothing: a frame is one moment."""

    def _changes(self, sim: Simulator, st: StateArrays) -> list[list[Any]]:
        cells = node_cells(sim)
        present = {int(n) for n in np.flatnonzero(st.node_phase != NodePhase.ABSENT)}
        changes: list[list[Any]] = [[n] for n in sorted(self._last.keys() - present)]
        now: dict[int, list[Any]] = {}
        for n in sorted(present):
            now[n] = [n, int(st.node_type[n]), _flags(sim, st, n), cells[n]]
            if self._last.get(n) != now[n]:
                changes.append(now[n])
        self._last = now
        return changes

    def record(self) -> dict[str, Any]:
        """What was noted."""
        return {"frames": self._frames, "frame_ticks": self._ticks, "pending": self._pending}


def _frame_interval(sim: Simulator) -> int:
    """Ticks from frame to frame."""
    settings = sim.spec.settings
    num_ticks = sim.num_steps_left * settings.substep_s / settings.decision_interval_s
    return max(1, round(sim.spec.max_nodes * num_ticks / _MAX_NODE_FRAMES))


def _flags(sim: Simulator, st: StateArrays, n: int) -> int:
    is_fenced = st.node_fenced_until_s[n] > sim.now_s
    has = {
        "booting": st.node_phase[n] == NodePhase.BOOTING,
        "draining": st.node_phase[n] == NodePhase.DRAINING,
        "fenced": is_fenced,
        "head": st.node_is_head[n],
        "pinned": not st.node_releasable[n] and not st.node_is_head[n],
    }
    return sum(FLAGS[name] for name, is_so in has.items() if is_so)


def node_cells(sim: Simulator) -> list[list[int]]:
    """What each node row holds, in the numbers of a frame."""
    st, spec = sim.view.arrays, sim.spec
    num_gpus = spec.arrays.type_num_gpus
    sizes = [int(num_gpus[t]) if t >= 0 else 0 for t in st.node_type]
    cells = [_free_cells(st.gpu_free[n, :size]) for n, size in enumerate(sizes)]
    held = (ReplicaPhase.STARTING, ReplicaPhase.RUNNING, ReplicaPhase.STOPPING)
    for r in map(int, np.flatnonzero(np.isin(st.replica_phase, held))[::-1]):  # so that the first row is shown
        code = 4 * int(st.replica_deployment[r]) + _stage(st, r)
        for n, mask in _places(st, r):
            if sizes[n] == 0:
                cells[n].insert(0, code)
            for g in range(sizes[n]):
                if mask >> g & 1:
                    cells[n][g] = code
    return cells


def _free_cells(gpu_free: NDArray[np.float64]) -> list[int]:
    """Devices before replicas are drawn in: what they do not hold is free, or held by other work."""
    return [FREE if free > 1e-6 else OTHER_WORK for free in gpu_free]


def _places(st: StateArrays, r: int) -> list[tuple[int, int]]:
    """Node row and bit mask of devices of each bundle of a replica."""
    if not st.replica_spans[r]:
        mask = int(np.bitwise_or.reduce(st.replica_gpus[r]))
        return [(int(st.replica_node[r]), mask)] if st.replica_node[r] >= 0 else []
    pairs = zip(st.replica_bundle_node[r].tolist(), st.replica_gpus[r].tolist(), strict=True)
    return [(n, mask) for n, mask in pairs if n >= 0]


def _stage(st: StateArrays, r: int) -> int:
    phase = st.replica_phase[r]
    if phase == ReplicaPhase.STARTING:
        return 1
    if phase == ReplicaPhase.STOPPING:
        return 2
    return 3 if st.replica_peer[r] >= 0 else 0
