"""``fragmentation``: move the replica whose move lowers the cluster's stranded GPUs most.

Fragmentation gradient descent (Weng et al., ATC'23) places a task where it raises ``stranded_gpus`` least; here it
chooses what to evict as well. It descends for a given mix of deployments, so it does not go in circles; it sees
neither prices nor whole nodes, and where every deployment can use every free device it has nothing to do.

Dims: N nodes, D deployments, R replicas.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.moves import Candidate, Move, Plan
from rayfold.envs.placement import let_go
from rayfold.envs.safety import Limits, check_move, moves_in_flight
from rayfold.envs.state import ClusterState, ReplicaPhase, StateArrays
from rayfold.envs.transition import with_move
from rayfold.policies.destinations import masks
from rayfold.policies.evacuations import moves_price_usd
from rayfold.policies.settings import between
from rayfold.policies.stranded import mix, stranded_gpus, take_devices

__all__ = ["Fragmentation", "FragmentationSettings", "Gain", "gains"]

_NUM_CANDIDATES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class FragmentationSettings:
    """As its policy file has them."""

    min_gain_gpus: float = between(0.25, 0.01, 4.0, is_log=True)  # expected stranded GPUs that a move must win back


class Gain(NamedTuple):
    """The best move of one replica."""

    move: Move
    gpus: float  # by how much it lowers the cluster's expected stranded GPUs


class Fragmentation:
    """The steepest move, again and again, as long as it gains enough.

    Args:
        limits: What the safety filter allows.
        settings: What is enough.
    """

    name = "fragmentation"

    def __init__(self, limits: Limits, settings: FragmentationSettings | None = None) -> None:
        self._limits = limits
        self._settings = settings or FragmentationSettings()

    def reset(self) -> None:
        """Nothing to forget."""

    def plan(self, state: ClusterState, rng: np.random.Generator) -> Plan:
        """Moves in order of descent, each with its gain as score."""
        found, now = gains(state, self._limits), state
        candidates = found[:_NUM_CANDIDATES]
        chosen: list[Gain] = []
        while found and found[0].gpus >= self._settings.min_gain_gpus:
            if not check_move(now, found[0].move, self._limits).allowed:
                break
            chosen.append(found[0])
            now = with_move(now, found[0].move, self._limits)
            found = gains(now, self._limits)
        won_gpus = sum(gain.gpus for gain in chosen)
        reason = f"{won_gpus:.2f} stranded GPUs less" if chosen else "no move wins back enough stranded GPUs"
        if moves_in_flight(state.arrays) >= self._limits.max_concurrent_moves:
            reason = "too many moves at once"
        return Plan(
            moves=tuple(gain.move for gain in chosen),
            scores=tuple(gain.gpus for gain in chosen),
            reason=reason,
            candidates=tuple(self._candidate(state, gain, {g.move for g in chosen}) for gain in candidates),
        )

    def _candidate(self, state: ClusterState, gain: Gain, chosen: set[Move]) -> Candidate:
        is_enough = gain.gpus >= self._settings.min_gain_gpus
        short = "another move before it was better" if is_enough else f"gains less than {self._settings.min_gain_gpus}"
        return Candidate(
            moves=(gain.move,),
            score=gain.gpus,
            price_usd=moves_price_usd(state, (gain.move,)),
            reason="chosen" if gain.move in chosen else short,
        )


def gains(state: ClusterState, limits: Limits) -> list[Gain]:
    """The best move of every replica that may move, steepest first; of equal ones the first row.

    Replicas that are leaving already are held to be gone.
    """
    spec, st, settled = state.spec.arrays, state.arrays, _settled(state)
    allowed = masks(state, limits)
    shares = mix(st.deployment_target)
    now = stranded_gpus(spec, shares, np.maximum(settled.node_type, 0), settled.node_free, settled.gpu_free)
    found = []
    for d in map(int, np.flatnonzero(allowed.source.any(axis=0) & allowed.destination.any(axis=0))):
        taking = _taking(state, settled, shares, d, now)
        taking[~allowed.destination[:, d]] = np.inf
        rows = _movable(st, allowed.source[:, d], d)
        leaving = _leaving(state, settled, shares, rows, now)
        for r, change in zip(map(int, rows), leaving, strict=True):
            own, taking_own = st.replica_node[r], taking[st.replica_node[r]]
            taking[own] = np.inf
            to = int(taking.argmin())
            if np.isfinite(taking[to]):
                found.append(Gain(Move(r, to), float(-change - taking[to])))
            taking[own] = taking_own
    return sorted(found, key=lambda gain: (-round(gain.gpus, 9), gain.move))


def _settled(state: ClusterState) -> StateArrays:
    """As it will be when all that is leaving has left."""
    settled = state.arrays.copy()
    is_source = (settled.replica_phase == ReplicaPhase.RUNNING) & (settled.replica_peer >= 0)
    for r in np.flatnonzero(is_source | (settled.replica_phase == ReplicaPhase.STOPPING)):
        let_go(state.spec.arrays, settled, int(r), state.now_s)
    return settled


def _movable(st: StateArrays, may_leave: NDArray[np.bool_], d: int) -> NDArray[np.int64]:
    """Rows of ``d`` that may leave their nodes; ``may_leave`` is ``(N,)``."""
    is_one = (st.replica_phase == ReplicaPhase.RUNNING) & (st.replica_deployment == d)
    is_one &= (st.replica_peer < 0) & ~st.replica_spans
    rows = np.flatnonzero(is_one)
    return rows[may_leave[st.replica_node[rows]]]


def _taking(
    state: ClusterState, settled: StateArrays, shares: NDArray[np.float64], d: int, now: NDArray[np.float64]
) -> NDArray[np.float64]:
    """``(N,)`` GPUs stranded more once a node has taken a replica of ``d``; of no meaning where it does not fit."""
    spec = state.spec.arrays
    gpu_free = settled.gpu_free
    if spec.sums_gpus[d]:
        gpu_free = take_devices(gpu_free, spec.demand[d, 0])
    else:
        for j in range(spec.num_bundles[d]):
            gpu_free = take_devices(gpu_free, spec.bundle[d, j, 0])
    node_type = np.maximum(settled.node_type, 0)
    return stranded_gpus(spec, shares, node_type, settled.node_free - spec.demand[d], gpu_free) - now


def _leaving(
    state: ClusterState,
    settled: StateArrays,
    shares: NDArray[np.float64],
    rows: NDArray[np.int64],
    now: NDArray[np.float64],
) -> NDArray[np.float64]:
    """GPUs stranded more on its node once each of ``rows`` has left, one value each."""
    spec, nodes = state.spec.arrays, settled.replica_node[rows]
    gpu_free = settled.gpu_free[nodes]
    devices = np.arange(gpu_free.shape[1])
    for i, r in enumerate(rows):
        d = settled.replica_deployment[r]
        demands = spec.demand[d, :1] if spec.sums_gpus[d] else spec.bundle[d, : spec.num_bundles[d], 0]
        for mask, gpus in zip(settled.replica_gpus[r], demands, strict=False):
            gpu_free[i] += ((mask >> devices) & 1) * min(gpus, 1.0)
    free = settled.node_free[nodes] + spec.demand[settled.replica_deployment[rows]]
    return stranded_gpus(spec, shares, settled.node_type[nodes], free, gpu_free) - now[nodes]
