"""``patient``: evacuate a node once it could have been evacuated for a while, and leave some room for what comes.

The strongest simple rule seen on ServeGen traffic with Serve's own scaling: a node that can be emptied only between
two ramps is left alone, and a node that is being emptied is fenced (the fence is the simulator's and the executor's,
see ``Limits.fence_s``). Ray 2.60 waits too (300 s without any change in the whole cluster), Karpenter as well
(``consolidateAfter``, per node); this rule waits for each node by itself.
"""

from dataclasses import dataclass

import numpy as np

from rayfold.envs.moves import Plan
from rayfold.envs.safety import Limits
from rayfold.envs.state import ClusterState, NodePhase
from rayfold.policies.evacuations import Evacuation, candidates, evacuations, moves_in_order
from rayfold.policies.settings import between, one_of

__all__ = ["Patient", "PatientSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PatientSettings:
    """Of ``patient``."""

    wait_s: float = between(300.0, 0.0, 1800.0)  # a node must have been evacuable for so long
    spare_gpus: float = between(0.0, 0.0, 16.0)  # that stay free on the other occupied nodes
    max_nodes: int = between(1, 1, 4)  # being emptied at once
    first: str = one_of("cheapest", "cheapest", "dearest")  # node: by price of its moves, or by its own price


class Patient:
    """Empties nodes that have waited long enough, a few at a time; what has been begun is finished first.

    Args:
        limits: What the safety filter allows.
        settings: Patience, room and number of nodes.
    """

    name = "patient"

    def __init__(self, limits: Limits, settings: PatientSettings | None = None) -> None:
        self._limits, self.settings = limits, settings or PatientSettings()
        self.reset()

    def reset(self) -> None:
        """No node has been evacuable before."""
        self._since_s: dict[object, float] = {}  # by node: evacuable at every tick since then

    def plan(self, state: ClusterState, rng: np.random.Generator) -> Plan:
        """Moves of the evacuations under way and of those that may begin."""
        # A cooldown ends by itself: it delays the moves of a node that has waited, and does not make it wait anew.
        found = evacuations(state, self._limits._replace(deployment_cooldown_s=0.0))
        known = self._since_s
        self._since_s = {_key(state, e): known.get(_key(state, e), state.now_s) for e in found}
        begun = [e for e in found if e.is_underway]
        room = self.settings.max_nodes - _num_underway(state)
        reasons = {e.node_idx: self._reason(state, e) for e in found}
        ready = sorted((e for e in found if not reasons[e.node_idx] and not e.is_underway), key=self._order)
        chosen = sorted(begun, key=self._order) + ready[: max(0, room)]
        moves = moves_in_order(state, chosen, self._limits)
        taken = {e.node_idx for e in chosen}
        weighed = candidates(
            found,
            lambda e: -e.price_usd if self.settings.first == "cheapest" else e.node_usd_per_h,
            lambda e: "chosen" if e.node_idx in taken else reasons[e.node_idx] or "others are being emptied",
        )
        if moves:
            nodes = ", ".join(str(e.node_idx) for e in chosen)
            return Plan(moves=moves, scores=(0.0,) * len(moves), reason=f"empty nodes {nodes}", candidates=weighed)
        reason = weighed[0].reason if weighed else "no node can be emptied"
        return Plan(reason=reason, candidates=weighed)

    def _order(self, e: Evacuation) -> tuple[float, float, int]:
        if self.settings.first == "cheapest":
            return e.price_usd, -e.node_usd_per_h, e.node_idx
        return -e.node_usd_per_h, e.price_usd, e.node_idx

    def _reason(self, state: ClusterState, e: Evacuation) -> str:
        """What speaks against beginning with a node now; empty if nothing does."""
        waited_s = state.now_s - self._since_s[_key(state, e)]
        if waited_s < self.settings.wait_s:
            return f"evacuable for {waited_s:.0f} of {self.settings.wait_s:.0f} s"
        spare = _spare_gpus(state, e)
        if spare < self.settings.spare_gpus - 1e-9:
            return f"would leave {spare:g} of {self.settings.spare_gpus:g} GPUs free"
        return ""


def _key(state: ClusterState, e: Evacuation) -> object:
    """A node over time: its live id, or its row, which the memory has lost before it is used again."""
    return state.node_ids[e.node_idx] if state.node_ids else e.node_idx


def _num_underway(state: ClusterState) -> int:
    """Fenced nodes that still hold something."""
    st = state.arrays
    return int(((st.node_fenced_until_s > state.now_s) & (st.node_num_held > 0)).sum())


def _spare_gpus(state: ClusterState, e: Evacuation) -> float:
    """GPUs left free on the other occupied nodes that take replicas, once a node's are there."""
    st = state.arrays
    takes = (st.node_phase == NodePhase.ALIVE) & (st.node_num_held > 0) & (st.node_fenced_until_s <= state.now_s)
    takes[e.node_idx] = False
    moved = st.replica_deployment[[move.replica_idx for move in e.moves]]
    return float(st.node_free[takes, 0].sum() - state.spec.arrays.demand[moved, 0].sum())
