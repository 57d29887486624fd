"""``Episode``: the decision process of DESIGN §5 over one simulator.

At a tick the agent makes zero or more moves (no time passes), then NOOP, which advances the clock to the next
tick: a semi-Markov process. The scalar environment is a thin shell over this class.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.batch import World
from rayfold.envs.encoding import encode_state
from rayfold.envs.initial_state import initial_state
from rayfold.envs.layout import ObsLayout
from rayfold.envs.ledger import Entry
from rayfold.envs.moves import Move
from rayfold.envs.process import cell_move
from rayfold.envs.scenario import Scenario, Split
from rayfold.envs.simulator import Simulator

__all__ = ["Episode", "Outcome", "scenario_layout", "to_action"]


class Outcome(NamedTuple):
    """What one action led to, in US dollars and decision intervals."""

    cost_usd: float
    disruption_usd: float
    unserved_usd: float
    bound_usd: float  # lower bound on cost_usd
    baseline_usd: float  # a lower one, which an observation tells; see ``CompactionVectorEnv``
    dt_intervals: float  # 0 after a move, 1 after NOOP, however many it passes
    num_moves: int
    truncated: bool

    @property
    def reward_usd(self) -> float:
        """Minus the bill."""
        return -(self.cost_usd + self.disruption_usd + self.unserved_usd)


def scenario_layout(*scenarios: Scenario) -> ObsLayout:
    """Smallest layout that holds every one of the scenarios."""
    return ObsLayout(
        max(s.spec.max_nodes for s in scenarios),
        max(s.spec.num_deployments for s in scenarios),
        max(len(s.spec.node_types) for s in scenarios),
    )


def to_action(view_nodes: int, n: int, d: int, move: Move, layout: ObsLayout) -> tuple[int, int]:
    """The action that stands for a move of a replica of ``d`` off node ``n``.

    Args:
        view_nodes: N of the state that the move belongs to.
        n: Node it leaves.
        d: Its deployment.
        move: The move.
        layout: Of the action.
    """
    is_new = move.node_idx >= view_nodes
    destination = layout.num_nodes + move.node_idx - view_nodes if is_new else move.node_idx
    return 1 + n * layout.num_deployments + d, destination


class Episode:
    """One episode.

    Args:
        scenario: What to simulate.
        layout: Padded size of observation and action.
        split: Which days the traffic is drawn from.
        rng: Seeds traffic, initial placement and simulator, each with a stream of its own, so that the traffic
            does not depend on what the policy does.
        wait_intervals: Decision intervals that NOOP passes.
    """

    def __init__(
        self,
        scenario: Scenario,
        layout: ObsLayout,
        split: Split,
        rng: np.random.Generator,
        *,
        wait_intervals: int = 1,
    ) -> None:
        traffic_rng, placement_rng, simulator_rng = rng.spawn(3)
        self.scenario, self.layout, self.limits = scenario, layout, scenario.limits
        traffic = scenario.sample(traffic_rng, split)
        state = initial_state(scenario.spec, traffic, placement_rng)
        self.simulator = Simulator(state, traffic, self.limits, simulator_rng)
        settings = scenario.spec.settings
        self.steps_per_tick = wait_intervals * round(settings.decision_interval_s / settings.substep_s)
        prices = scenario.spec.arrays.type_price_usd_per_h
        cheapest = float(prices[prices > 0].min(initial=np.inf)) if (prices > 0).any() else 0.0
        hourly = max(self.simulator.relaxed_bound_usd_per_h, cheapest, 1e-9)
        self.first_tick_usd = hourly * settings.decision_interval_s / 3600.0  # what the first tick costs at least

    def to_move(self, source: int, destination: int) -> Move | None:
        """The move of a single replica that an action stands for, None for what the filter refuses.

        Args:
            source: A cell of the first stage.
            destination: Second stage.
        """
        view = self.simulator.view
        r, n = cell_move(view.spec.arrays, view.arrays, view.now_s, self.limits, self.layout, source, destination)
        return Move(int(r), int(n)) if r >= 0 else None

    def to_action(self, move: Move) -> tuple[int, int]:
        """The action that stands for a move, up to equal replicas of a cell."""
        st = self.simulator.view.arrays
        n, d = int(st.replica_node[move.replica_idx]), int(st.replica_deployment[move.replica_idx])
        return to_action(len(st.node_type), n, d, move, self.layout)

    def act(self, source: int, destination: int) -> Outcome:
        """One action; an action that the filter refuses is NOOP."""
        sim = self.simulator
        before = sim.ledger().values
        num_moves = sim.act(self.layout, source, destination, self.steps_per_tick)
        spent = sim.ledger().values - before
        return Outcome(
            cost_usd=float(spent[Entry.COST_USD]),
            disruption_usd=float(spent[Entry.DISRUPTION_USD]),
            unserved_usd=float(spent[Entry.UNSERVED_USD]),
            bound_usd=float(spent[Entry.BOUND_USD]),
            baseline_usd=float(spent[Entry.RELAXED_BOUND_USD]),
            dt_intervals=0.0 if num_moves else 1.0,
            num_moves=num_moves,
            truncated=sim.num_steps_left < self.steps_per_tick,
        )

    def world(self) -> World:
        """For ``batch.step_batch``; valid as long as the episode is."""
        return self.simulator.world(self.layout, self.steps_per_tick)

    def encode(self, dt_intervals: float, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """The observation: ``(layout.size,)`` float32."""
        return encode_state(self.simulator.view, self.limits, self.layout, dt_intervals, out)
