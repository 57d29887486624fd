"""``CompactionVectorEnv``: many episodes at once, natively vectorised for RLlib.

Autoreset is NEXT_STEP, which is what RLlib's ``SingleAgentEnvRunner`` (2.60) expects: the step after an episode's
last one ignores the action and returns the first observation of the next episode with reward 0.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from rayfold.envs.compaction_env import action_space, flat_observation_space
from rayfold.envs.episode import Episode, scenario_layout
from rayfold.envs.layout import ObsLayout
from rayfold.envs.scenario import Scenario, Split

__all__ = ["CompactionVectorEnv"]

_Arrays = tuple[NDArray[np.float32], NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]


class CompactionVectorEnv(VectorEnv[NDArray[np.float32], NDArray[np.int64], NDArray[Any]]):
    """The process of ``CompactionEnv`` for ``num_envs`` clusters, with the flat observation of ``layout.py``.

    Args:
        scenarios: Each episode draws one of them.
        num_envs: B.
        layout: Padded size; the smallest that holds all scenarios if None.
        split: Which days the traffic is drawn from.
        horizon_s: Longest episode; a scenario's own horizon where it is shorter.
        reward_scale: Factor on the reward.
        normalize: Reward in units of what the episode's first tick had to cost at least (the lower bound, or the
            cheapest node), instead of US dollars: observations carry no absolute dollars either, and clusters of
            all sizes weigh the same.
        subtract_bound: Adds the lower bound on the node bill to the reward. It does not depend on the actions to
            first order, and without it the value function has to learn the size of the bill (RLLIB_NOTES Q3).
        seed: Seeds the first reset where ``reset`` gives none.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012  # an instance attribute of the base class

    def __init__(
        self,
        scenarios: Sequence[Scenario],
        num_envs: int = 1,
        *,
        layout: ObsLayout | None = None,
        split: Split = Split.TRAIN,
        horizon_s: float | None = None,
        reward_scale: float = 1.0,
        normalize: bool = False,
        subtract_bound: bool = False,
        seed: int | None = None,
    ) -> None:
        self.scenarios = [s if horizon_s is None else s.with_horizon(min(horizon_s, s.horizon_s)) for s in scenarios]
        self.num_envs, self.split = num_envs, split
        self.reward_scale, self.normalize, self.subtract_bound = reward_scale, normalize, subtract_bound
        self.layout = layout or scenario_layout(*scenarios)
        self.single_observation_space = flat_observation_space(self.layout)
        self.single_action_space = action_space(self.layout)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._rngs = np.random.default_rng(seed).spawn(num_envs)
        self.episodes: list[Episode] = []
        self._scale = np.full(num_envs, reward_scale)  # (B,) reward per US dollar
        self._ended = np.zeros(num_envs, np.bool_)

    def _begin(self, b: int) -> Episode:
        rng = self._rngs[b]
        scenario = self.scenarios[int(rng.integers(len(self.scenarios)))]
        episode = Episode(scenario, self.layout, self.split, rng)
        if self.normalize:
            self._scale[b] = self.reward_scale / episode.first_tick_usd
        return episode

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Starts all episodes."""
        if isinstance(seed, list):
            self._rngs = [np.random.default_rng(s) for s in seed]
        elif seed is not None:
            self._rngs = np.random.default_rng(seed).spawn(self.num_envs)
        self.episodes = [self._begin(b) for b in range(self.num_envs)]
        self._ended[:] = False
        return np.stack([episode.encode(0.0) for episode in self.episodes]), {}

    def step(self, actions: NDArray[np.int64]) -> _Arrays:
        """One action per episode; RLlib passes a list of them."""
        actions = np.asarray(actions, np.int64)
        obs = np.zeros((self.num_envs, self.layout.size), np.float32)
        reward = np.zeros(self.num_envs)
        truncated = np.zeros(self.num_envs, np.bool_)
        for b in range(self.num_envs):
            if self._ended[b]:
                self.episodes[b] = self._begin(b)
                self.episodes[b].encode(0.0, obs[b])
                continue
            outcome = self.episodes[b].act(int(actions[b, 0]), int(actions[b, 1]))
            baseline = outcome.bound_usd if self.subtract_bound else 0.0
            reward[b] = (outcome.reward_usd + baseline) * self._scale[b]
            truncated[b] = outcome.truncated
            self.episodes[b].encode(outcome.dt_intervals, obs[b])
        self._ended = truncated.copy()
        return obs, reward, np.zeros(self.num_envs, np.bool_), truncated, {}
