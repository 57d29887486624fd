"""``Episode``: the decision process of DESIGN §5 over one simulator.

At a tick the agent makes zero or more moves (no time passes), then NOOP, which advances the clock to the next
tick: a semi-Markov process. The scalar and the vector environment are thin shells over this class.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.encoding import encode_state
from rayfold.envs.layout import NOOP, ObsLayout
from rayfold.envs.ledger import Entry
from rayfold.envs.moves import Move
from rayfold.envs.safety import check_move, movable_replica
from rayfold.envs.scenario import Scenario, Split
from rayfold.envs.simulator import Simulator, initial_state

__all__ = ["Episode", "Outcome", "scenario_layout"]


class Outcome(NamedTuple):
    """What one action led to, in US dollars and decision intervals."""

    node_usd: float
    disruption_usd: float
    unserved_usd: float
    bound_usd: float  # lower bound on node_usd
    dt_intervals: float  # 0 after a move, 1 after NOOP
    moved: bool
    truncated: bool

    @property
    def reward_usd(self) -> float:
        """Minus the bill."""
        return -(self.node_usd + self.disruption_usd + self.unserved_usd)


def scenario_layout(*scenarios: Scenario) -> ObsLayout:
    """Smallest layout that holds every one of the scenarios."""
    return ObsLayout(max(s.spec.max_nodes for s in scenarios), max(s.spec.num_deployments for s in scenarios))


class Episode:
    """One episode.

    Args:
        scenario: What to simulate.
        layout: Padded size of the observation.
        split: Which days the traffic is drawn from.
        rng: Seeds traffic, initial placement and simulator, each with a stream of its own, so that the traffic
            does not depend on what the policy does.
    """

    def __init__(self, scenario: Scenario, layout: ObsLayout, split: Split, rng: np.random.Generator) -> None:
        traffic_rng, placement_rng, simulator_rng = rng.spawn(3)
        self.scenario, self.layout, self.limits = scenario, layout, scenario.limits
        traffic = scenario.sample(traffic_rng, split)
        state = initial_state(scenario.spec, traffic, placement_rng)
        self.simulator = Simulator(state, traffic, self.limits, simulator_rng)
        settings = scenario.spec.settings
        self._steps_per_tick = round(settings.decision_interval_s / settings.substep_s)
        cheapest = float(scenario.spec.arrays.type_price_usd_per_h.min())
        hourly = max(self.simulator.bound_usd_per_h, cheapest, 1e-9)
        self.first_tick_usd = hourly * settings.decision_interval_s / 3600.0  # what the first tick costs at least

    def to_move(self, source: int, destination: int) -> Move | None:
        """The move that an action stands for, None for NOOP and for what the filter refuses.

        Args:
            source: First stage: ``NOOP`` or ``1 + n * D + d``.
            destination: Second stage: node row.
        """
        if source == NOOP:
            return None
        n, d = divmod(source - 1, self.layout.num_deployments)
        spec, view = self.scenario.spec, self.simulator.view
        if n >= len(view.arrays.node_type) or d >= spec.num_deployments:
            return None
        r = movable_replica(spec.arrays, view.arrays, view.now_s, self.limits, n, d)
        move = Move(r, destination)
        return move if r >= 0 and check_move(view, move, self.limits).allowed else None

    def to_action(self, move: Move) -> tuple[int, int]:
        """The action that stands for a move: the inverse of ``to_move`` up to equal replicas of a cell."""
        st = self.simulator.view.arrays
        n, d = int(st.replica_node[move.replica_idx]), int(st.replica_deployment[move.replica_idx])
        return 1 + n * self.layout.num_deployments + d, move.node_idx

    def act(self, source: int, destination: int) -> Outcome:
        """One action; an action that the filter refuses is NOOP."""
        sim = self.simulator
        before = sim.ledger().values
        move = self.to_move(source, destination)
        if move is None:
            sim.advance(self._steps_per_tick)
        else:
            sim.start(sim.view, move)
        spent = sim.ledger().values - before
        return Outcome(
            node_usd=float(spent[Entry.NODE_USD]),
            disruption_usd=float(spent[Entry.DISRUPTION_USD]),
            unserved_usd=float(spent[Entry.UNSERVED_USD]),
            bound_usd=float(spent[Entry.BOUND_USD]),
            dt_intervals=0.0 if move else 1.0,
            moved=move is not None,
            truncated=sim.num_steps_left < self._steps_per_tick,
        )

    def encode(self, dt_intervals: float, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """The observation: ``(layout.size,)`` float32."""
        return encode_state(self.simulator.view, self.limits, self.layout, dt_intervals, out)
