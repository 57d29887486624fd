"""``descheduler``: evict from under-used nodes onto those that are not, however little is left on the way.

``HighNodeUtilization`` of the Kubernetes descheduler (sigs.k8s.io/descheduler, v0.32,
``pkg/framework/plugins/nodeutilization/highnodeutilization.go``), with the scheduler's ``MostAllocated`` scoring that
its documentation asks for. A node is under-used if on *all* resources looked at at most ``threshold_frac`` is held.
Under-used nodes are taken in ascending order of use, their replicas one by one; a replica that fits on no well used
node stays. Nothing is done while every node is under-used (its users' known complaint, issue 725), nor for at most
``number_of_nodes`` under-used nodes.

What differs: the safety filter stays, and a cycle that its limit on concurrent moves cuts short goes on at the next
ticks. An evicted pod may come back to the node it left (issue 994); here a node that is left is fenced.
"""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.moves import Candidate, Move, Plan
from rayfold.envs.safety import Limits, Reason
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase
from rayfold.envs.transition import with_move
from rayfold.policies.destinations import fullest_first, masks, why_it_stays
from rayfold.policies.evacuations import moves_price_usd
from rayfold.policies.settings import between, one_of

__all__ = ["Descheduler", "DeschedulerSettings", "used_frac"]

_NUM_BASIC = 3  # GPU, CPU, memory_gib are the first columns of every resource array


@dataclass(frozen=True, slots=True, kw_only=True)
class DeschedulerSettings:
    """As its policy file has them."""

    threshold_frac: float = between(0.5, 0.05, 0.95)  # of every resource looked at
    resources: str = one_of("all", "all", "gpu")  # GPU, CPU and memory, or GPU alone
    number_of_nodes: int = between(0, 0, 8)  # nothing is done for so few under-used nodes
    max_evictions: int = between(20, 1, 100)  # in one cycle
    interval_s: float = between(300.0, 30.0, 1800.0)  # from cycle to cycle


class Descheduler:
    """Cycles of evictions, each at most ``max_evictions`` long.

    Args:
        limits: What the safety filter allows.
        settings: Thresholds and pace.
    """

    name = "descheduler"

    def __init__(self, limits: Limits, settings: DeschedulerSettings | None = None) -> None:
        self._limits = limits
        self._settings = settings or DeschedulerSettings()
        self.reset()

    def reset(self) -> None:
        """The next tick begins a cycle."""
        self._next_cycle_s = -np.inf
        self._num_left = 0  # evictions of the cycle under way

    def plan(self, state: ClusterState, rng: np.random.Generator) -> Plan:
        """The evictions of this tick."""
        if state.now_s >= self._next_cycle_s:
            self._next_cycle_s = state.now_s + self._settings.interval_s
            self._num_left = self._settings.max_evictions
        if self._num_left == 0:
            return Plan(reason=f"next cycle in {self._next_cycle_s - state.now_s:.0f} s")
        is_node, use = _is_considered(state), used_frac(state, self._settings.resources)
        is_low = is_node & (use.max(axis=1) <= self._settings.threshold_frac)
        idle_reason = self._nothing_to_do(int(is_low.sum()), int(is_node.sum()))
        if idle_reason:
            self._num_left = 0
            return Plan(reason=idle_reason)
        sources = np.flatnonzero(is_low)
        order = sources[np.argsort(use[sources].sum(axis=1), kind="stable")]
        plan, is_cut = _evict(state, self._limits, order, is_node & ~is_low, self._num_left)
        self._num_left = self._num_left - len(plan.moves) if is_cut else 0
        return plan

    def _nothing_to_do(self, num_low: int, num_nodes: int) -> str:
        if num_low == 0:
            return "no node is under-used"
        if num_low <= self._settings.number_of_nodes:
            return f"{num_low} under-used nodes are no more than number_of_nodes"
        return "every node is under-used" if num_low == num_nodes else ""


def used_frac(state: ClusterState, resources: str = "all") -> NDArray[np.float64]:
    """``(N, 3)`` fraction of GPU, CPU and memory that is held; ``(N, 1)`` for ``gpu``; 0 of what a node has none of."""
    st = state.arrays
    columns = slice(0, 1 if resources == "gpu" else _NUM_BASIC)
    has = state.spec.arrays.type_capacity[np.maximum(st.node_type, 0), columns]
    held = np.maximum(has - st.node_free[:, columns], 0.0)
    used: NDArray[np.float64] = np.divide(held, has, out=np.zeros_like(held), where=has > 0)
    return used


def _is_considered(state: ClusterState) -> NDArray[np.bool_]:
    """Nodes that are ready, without the head."""
    st = state.arrays
    considered: NDArray[np.bool_] = (st.node_phase == NodePhase.ALIVE) & ~st.node_is_head
    return considered


def _evict(
    state: ClusterState, limits: Limits, sources: NDArray[np.int64], is_high: NDArray[np.bool_], max_evictions: int
) -> tuple[Plan, bool]:
    """Evictions node by node, and whether the limit on concurrent moves cut them short."""
    now, st = state, state.arrays
    by_node: dict[int, list[Move]] = defaultdict(list)
    why: dict[int, str] = {}
    moves: list[Move] = []
    is_cut = False
    for n in map(int, sources):
        for r in np.flatnonzero((st.replica_node == n) & (st.replica_phase == ReplicaPhase.RUNNING)):
            if len(moves) == max_evictions:
                why.setdefault(n, "max_evictions is reached")
                break
            move, reason = _eviction(now, limits, int(r), is_high)
            if reason is Reason.TOO_MANY_MOVES:
                is_cut = True
                why.setdefault(n, "too many moves at once")
                break
            if move is None:
                why.setdefault(n, f"a replica stays: {reason.name}")
                continue
            moves.append(move)
            by_node[n].append(move)
            now = with_move(now, move, limits)
        if is_cut:
            break
    candidates = tuple(_candidate(state, n, tuple(by_node[n]), why.get(n, ""), -i) for i, n in enumerate(sources))
    reason_text = f"evict {len(moves)} from under-used nodes" if moves else "nothing on an under-used node can leave"
    plan = Plan(moves=tuple(moves), scores=(0.0,) * len(moves), reason=reason_text, candidates=candidates)
    return plan, is_cut


def _eviction(state: ClusterState, limits: Limits, r: int, is_high: NDArray[np.bool_]) -> tuple[Move | None, Reason]:
    """One replica to the fullest well used node that takes it, or why it stays."""
    reason = why_it_stays(state, r, limits)
    if reason is not Reason.ALLOWED:
        return None, reason
    d = state.arrays.replica_deployment[r]
    takers = np.flatnonzero(masks(state, limits).destination[:, d] & is_high)
    if not len(takers):
        return None, Reason.NO_CAPACITY
    return Move(r, int(fullest_first(state.arrays.node_free, takers)[0])), Reason.ALLOWED


def _candidate(state: ClusterState, n: int, moves: tuple[Move, ...], why: str, score: float) -> Candidate:
    st = state.arrays
    is_emptied = 0 < st.node_num_held[n] == len(moves)
    return Candidate(
        moves=moves,
        score=float(score),
        price_usd=moves_price_usd(state, moves),
        saving_usd_per_h=float(state.spec.arrays.type_price_usd_per_h[st.node_type[n]]) if is_emptied else 0.0,
        reason="chosen" if moves and not why else why or "nothing is on it",
    )
