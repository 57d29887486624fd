"""``TimedExact``: the exact planner, begun when a learned rule says that the time has come.

What ``exact`` plans is right for the state as it is. While new replicas and nodes are under way the state will soon be
another, and what is begun then is often undone: waiting until the cluster has been quiet for a while saves most where
cold starts are long, and costs where there is much to win and replicas come and go all the time. How long to wait is
learned, on training days, by evolution (``training/timing_training.py``): one rule for all clusters.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rayfold.envs.moves import Plan
from rayfold.envs.safety import Limits
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase
from rayfold.policies.exact import Exact, ExactSettings, is_busy

__all__ = ["FEATURES", "TimedExact", "Timing", "TimingFeatures"]

MEMORY_S = 3600.0  # of the share of time in which the cluster is busy
BASE_S, LEAST_S = 300.0, 45.0
_EXPONENTS = (-4.0, 2.5)


class TimingFeatures(NamedTuple):
    """What the wait depends on, scaled to about -2 to 2."""

    waste: float  # share of the node bill above its bound, 0.2 = 0, 0.3 = 1
    log_startup: float  # mean start-up of the replicas that there are, 120 s = 0, 326 s = 1
    busy: float  # share of the last hour with new replicas or nodes under way, fading; 0.4 = 0, 0.65 = 1


FEATURES = TimingFeatures._fields


@dataclass(frozen=True, slots=True)
class Timing:
    """A rule: the longer the wait, the larger the weighted sum of the features."""

    bias: float = 0.0
    weights: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def quiet_s(self, features: TimingFeatures) -> float:
        """Seconds without new replicas or nodes before anything is begun; 0, or ``LEAST_S`` to about an hour."""
        exponent = self.bias + sum(w * f for w, f in zip(self.weights, features, strict=True))
        wait_s = BASE_S * math.exp(min(_EXPONENTS[1], max(_EXPONENTS[0], exponent)))
        return wait_s if wait_s >= LEAST_S else 0.0


class TimedExact:
    """``Exact`` with a wait that follows the state.

    Args:
        timing: The rule.
        limits: What the safety filter allows.
        settings: Of ``Exact``; its ``quiet_s`` is what the rule says.
        name: Name in reports.
    """

    def __init__(
        self, timing: Timing, limits: Limits, settings: ExactSettings | None = None, *, name: str = "learned"
    ) -> None:
        self.timing, self.name = timing, name
        self._exact = Exact(limits, settings)
        self.reset()

    def reset(self) -> None:
        """Nothing has been seen or begun; a cluster that nobody knows is taken to be busy half of the time."""
        self._exact.reset()
        self._busy_frac, self._seen_s = 0.5, math.nan

    def plan(self, state: ClusterState, rng: np.random.Generator) -> Plan:
        """The plan of ``exact``, or none while the wait lasts."""
        self._look(state)
        wait_s = self.timing.quiet_s(self.features(state))
        self._exact.settings = dataclasses.replace(self._exact.settings, quiet_s=wait_s)
        return self._exact.plan(state, rng)

    def features(self, state: ClusterState) -> TimingFeatures:
        """Of a state that has been looked at."""
        st, spec = state.arrays, state.spec.arrays
        nodes = (st.node_phase != NodePhase.ABSENT) & ~st.node_is_head
        bill = float(spec.type_price_usd_per_h[st.node_type[nodes]].sum())
        is_new = (st.replica_phase == ReplicaPhase.PENDING) | (st.replica_phase == ReplicaPhase.STARTING)
        is_live = (st.replica_phase == ReplicaPhase.RUNNING) | is_new & (st.replica_peer < 0)
        counts = np.bincount(st.replica_deployment[is_live], minlength=len(spec.demand))
        bound = float((counts @ spec.bound_usd_per_h).max(initial=0.0))
        startup_s = float(counts @ spec.startup_s.mean(1)) / max(1, int(counts.sum()))
        waste = 1.0 - min(1.0, bound / bill) if bill > 0.0 else 0.0
        return TimingFeatures(
            waste=(waste - 0.2) / 0.1,
            log_startup=math.log(max(1.0, startup_s) / 120.0),
            busy=(self._busy_frac - 0.4) / 0.25,
        )

    def _look(self, state: ClusterState) -> None:
        passed_s = max(0.0, state.now_s - self._seen_s) if math.isfinite(self._seen_s) else 0.0
        self._busy_frac += (1.0 - math.exp(-passed_s / MEMORY_S)) * (is_busy(state.arrays) - self._busy_frac)
        self._seen_s = state.now_s
