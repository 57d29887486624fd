"""``rayfold/Compaction-v1``: the Gymnasium environment, one cluster at a time."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from rayfold.envs.episode import Episode, Outcome, scenario_layout
from rayfold.envs.layout import ObsLayout
from rayfold.envs.render import render_ansi, render_rgb
from rayfold.envs.scenario import Scenario, Split, load_scenario

__all__ = ["CompactionEnv", "action_space", "flat_observation_space"]

_LOW, _HIGH = -1.0, 4096.0


def flat_observation_space(layout: ObsLayout) -> spaces.Box:
    """The one flat vector of ``layout.py``."""
    return spaces.Box(_LOW, _HIGH, (layout.size,), np.float32)


def action_space(layout: ObsLayout) -> spaces.MultiDiscrete:
    """Both stages: NOOP, a cell or a node to evacuate; then the destination. See ``layout.py``."""
    return spaces.MultiDiscrete([layout.num_sources, layout.num_destinations])


class CompactionEnv(gym.Env[dict[str, NDArray[np.float32]], NDArray[Any]]):
    """Replica compaction on a simulated Ray Serve cluster.

    ## Description
    At a decision tick the agent makes zero or more moves: of a single replica to another node or to a new one, or of
    all replicas of a node at once. Then NOOP lets one decision interval pass: Serve scales replicas, the node
    autoscaler launches and releases nodes, migrations go on, nodes are interrupted. N is the largest number of nodes
    of the scenario, D its number of deployments, T its number of node types.

    ## Action Space
    ``MultiDiscrete([1 + N * D + N, N + T])``. First: 0 = NOOP, ``1 + n * D + d`` = take one replica of deployment d
    from node n, ``1 + N * D + n`` = evacuate node n by best fit, as many moves at once as are allowed. Second, for
    single replicas: n = to node n, ``N + t`` = to a new node of type t. An action that the safety filter refuses is
    NOOP.

    ## Observation Space
    ``Dict`` of float32 Boxes; features are listed in ``rayfold.envs.layout``.

    | key | shape | content |
    |---|---|---|
    | ``global`` | (G,) | cluster-wide features; the first is the time since the previous obs in decision intervals |
    | ``nodes`` | (N, FN) | per node; all zero where there is no node |
    | ``deployments`` | (D, FD) | per deployment |
    | ``occupancy`` | (N, D) | running replicas |
    | ``node_types`` | (T, FT) | per node type that can be launched |
    | ``source_mask`` | (N, D) | 1 = a replica may be taken from this cell |
    | ``destination_mask`` | (N, D) | 1 = this node may take a replica of d (the source node itself never does) |
    | ``new_node_mask`` | (T, D) | 1 = a new node of this type may take a replica of d |
    | ``evacuate_mask`` | (N,) | 1 = this node may be evacuated |

    ## Rewards
    US dollars: minus the node bill of the time passed, minus the price of the move (cold-start seconds times the
    replica's share of the node price, plus a fixed share of its hourly price), minus unserved demand. ``info`` holds
    ``cost_usd``, ``disruption_usd``, ``unserved_usd``, ``bound_usd`` of this step, ``dt_s``, ``num_moves``, ``now_s``.
    Discount by ``gamma ** dt``: a move takes no time.

    ## Starting State
    Traffic of a random start within the split, every replica it asks for placed by Serve's strategy and running.

    ## Episode End
    Never terminates; truncated at the scenario's horizon.

    ## Arguments
    ``scenario``: shipped name, YAML path or ``Scenario``; ``split``: ``"train"`` or ``"validation"``; ``traces_dir``;
    ``synthetic``: generated traffic instead of traces; ``horizon_s``: shorter episodes; ``render_mode``: ``"ansi"``
    or ``"rgb_array"``.

    ## Version History
    v1: evacuations, moves to new nodes, interruptions, failures. v0: first version.
    """

    metadata = {  # noqa: RUF012  # an instance attribute of the base class
        "render_modes": ["ansi", "rgb_array"],
        "render_fps": 4,
    }

    def __init__(
        self,
        scenario: str | Path | Scenario = "smoke",
        *,
        split: str = Split.TRAIN,
        traces_dir: str | Path | None = None,
        synthetic: bool = False,
        horizon_s: float | None = None,
        render_mode: str | None = None,
    ) -> None:
        if not isinstance(scenario, Scenario):
            folder = Path(traces_dir) if traces_dir is not None else None
            scenario = load_scenario(scenario, folder, synthetic=synthetic)
        self.scenario = scenario if horizon_s is None else scenario.with_horizon(horizon_s)
        self.split, self.render_mode = Split(split), render_mode
        self.layout = scenario_layout(self.scenario)
        self.observation_space = spaces.Dict(
            {name: spaces.Box(_LOW, _HIGH, shape, np.float32) for name, shape in self.layout.shapes.items()}
        )
        self.action_space = action_space(self.layout)
        self.episode: Episode | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[np.float32]], dict[str, Any]]:
        """Starts an episode."""
        super().reset(seed=seed)
        self.episode = Episode(self.scenario, self.layout, self.split, self.np_random)
        return self.layout.split(self.episode.encode(0.0)), {"now_s": 0.0}

    def step(
        self, action: NDArray[np.int64]
    ) -> tuple[dict[str, NDArray[np.float32]], float, bool, bool, dict[str, Any]]:
        """One move, or NOOP."""
        if self.episode is None:
            raise gym.error.ResetNeeded("reset() must be called before step()")
        outcome = self.episode.act(int(action[0]), int(action[1]))
        obs = self.layout.split(self.episode.encode(outcome.dt_intervals))
        return obs, outcome.reward_usd, False, outcome.truncated, self._info(outcome)

    def _info(self, outcome: Outcome) -> dict[str, Any]:
        assert self.episode is not None
        return {
            "cost_usd": outcome.cost_usd,
            "disruption_usd": outcome.disruption_usd,
            "unserved_usd": outcome.unserved_usd,
            "bound_usd": outcome.bound_usd,
            "dt_s": outcome.dt_intervals * self.scenario.spec.settings.decision_interval_s,
            "num_moves": outcome.num_moves,
            "now_s": self.episode.simulator.now_s,
        }

    def render(self) -> str | NDArray[np.uint8] | None:  # type: ignore[override]  # the base class says RenderFrame
        """Nodes as boxes, GPUs as cells coloured by deployment: text or ``(H, W, 3)`` uint8."""
        if self.episode is None:
            raise gym.error.ResetNeeded("reset() must be called before render()")
        view = self.episode.simulator.view
        if self.render_mode == "ansi":
            return render_ansi(view)
        if self.render_mode == "rgb_array":
            return render_rgb(view)
        return None
