"""``CompactionVectorEnv``: many episodes at once, natively vectorised for RLlib.

Autoreset is NEXT_STEP, which is what RLlib's ``SingleAgentEnvRunner`` (2.60) expects: the step after an episode's
last one ignores the action and returns the first observation of the next episode with reward 0.
"""

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from rayfold.envs.batch import encode_batch, step_batch
from rayfold.envs.compaction_env import action_space, flat_observation_space
from rayfold.envs.encoding import Parts, parts_of
from rayfold.envs.episode import Episode, scenario_layout
from rayfold.envs.layout import ObsLayout
from rayfold.envs.scenario import Scenario, Split
from rayfold.envs.views import Handle, address_of, row_of

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
        subtract_bound: Adds a lower bound on the node bill to the reward. It does not depend on the actions to
            first order, and without it the value function has to learn the size of the bill (RLLIB_NOTES Q3). It
            is the relaxed one, which an observation tells: the reported bound jumps by whole nodes, unforeseen by
            the value function, and a policy did not learn beside that noise (docs/learning.md, 8).
        vary: Draws another world like the scenario for each episode, which the layout holds; None = the scenario as it
            is.
        wait_intervals: Decision intervals that NOOP passes: what one action is worth, against waiting, grows with them.
        group_size: So many environments side by side play the same episodes: scenario, world, traffic and first
            placement are equal, and what becomes of them is the policy's doing. ``traffic_ids`` tells which.
        seed: Seeds the first reset where ``reset`` gives none.
        num_threads: Threads that step the clusters side by side; the results do not depend on it.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012  # an instance attribute of the base class
    _pool: ThreadPoolExecutor | None = None

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
        vary: Callable[[Scenario, np.random.Generator], Scenario] | None = None,
        wait_intervals: int = 1,
        group_size: int = 1,
        seed: int | None = None,
        num_threads: int = 1,
    ) -> None:
        self.scenarios = [s if horizon_s is None else s.with_horizon(min(horizon_s, s.horizon_s)) for s in scenarios]
        self.num_envs, self.split = num_envs, split
        self.reward_scale, self.normalize, self.subtract_bound = reward_scale, normalize, subtract_bound
        self._vary, self._group_size, self._wait_intervals = vary, group_size, wait_intervals
        self.layout = layout or scenario_layout(*scenarios)
        least = scenario_layout(*scenarios)
        if any(size < needed for size, needed in zip(self.layout, least, strict=True)):
            raise ValueError(f"layout must be at least {least}, got {self.layout}")
        self.single_observation_space = flat_observation_space(self.layout)
        self.single_action_space = action_space(self.layout)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._rngs = self._spawn(np.random.default_rng(seed))
        self.traffic_ids = np.zeros(num_envs, np.int64)  # (B,) equal where environments play the same episode
        self.episodes: list[Episode] = []
        self._scale = np.full(num_envs, reward_scale, np.float64)  # (B,) reward per US dollar
        self._ended = np.zeros(num_envs, np.bool_)
        self._num_threads = num_threads
        self._lay_out()

    def _lay_out(self) -> None:
        """Tables of addresses, which hold in this process only."""
        self._parts = parts_of(np.zeros(self.layout.size, np.float32), self.layout)  # a prototype
        address = self._parts[0].ctypes.data
        row = np.array(list(row_of(self._parts)), np.int64)
        self._address_columns = np.array(_address_columns(self._parts))
        self._offsets = row[self._address_columns] - address
        self._parts_table = np.tile(row, (self.num_envs, 1))
        first, width = self._parts_table.ctypes.data, self._parts_table.strides[0]
        self._parts_addresses = first + width * np.arange(self.num_envs)
        self._parts_handle: Any = Handle(self._parts)  # to a kernel it is the tuple
        self._lay_down_all()
        self._pool = ThreadPoolExecutor(self._num_threads) if self._num_threads > 1 else None

    def __getstate__(self) -> dict[str, Any]:
        """All but the addresses and the threads."""
        local = {
            "_parts",
            "_parts_handle",
            "_world_handle",
            "_address_columns",
            "_offsets",
            "_parts_table",
            "_parts_addresses",
            "_worlds",
            "_addresses",
            "_pool",
        }
        return {name: value for name, value in self.__dict__.items() if name not in local}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lay_out()

    def _spawn(self, rng: np.random.Generator) -> list[np.random.Generator]:
        """One generator per environment, equal within a group; they stay so, since only beginning an episode draws."""
        num_groups = -(-self.num_envs // self._group_size)
        equal = [copy.deepcopy(child) for child in rng.spawn(num_groups) for _ in range(self._group_size)]
        return equal[: self.num_envs]

    def _begin(self, b: int) -> Episode:
        rng = self._rngs[b]
        self.traffic_ids[b] = _id_of(rng)
        scenario = self.scenarios[int(rng.integers(len(self.scenarios)))]
        if self._vary is not None:
            scenario = self._vary(scenario, rng)
        episode = Episode(scenario, self.layout, self.split, rng, wait_intervals=self._wait_intervals)
        if self.normalize:
            self._scale[b] = self.reward_scale / episode.first_tick_usd
        return episode

    def _new_obs(self) -> NDArray[np.float32]:
        """Observations ``(B, size)`` that are not written yet, their addresses in the table of parts."""
        obs = np.empty((self.num_envs, self.layout.size), np.float32)
        rows = obs.ctypes.data + obs.strides[0] * np.arange(self.num_envs)
        self._parts_table[:, self._address_columns] = rows[:, None] + self._offsets
        return obs

    def _lay_down_all(self) -> None:
        self._worlds = [episode.world() for episode in self.episodes]
        self._addresses = np.array([address_of(world, self._worlds[0]) for world in self._worlds], np.int64)
        self._world_handle: Any = Handle(self._worlds[0]) if self._worlds else None

    def _lay_down(self, b: int) -> None:
        self._worlds[b] = self.episodes[b].world()
        self._addresses[b] = address_of(self._worlds[b], self._worlds[0])

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Starts all episodes."""
        if isinstance(seed, list):
            self._rngs = [np.random.default_rng(s) for s in seed]
        elif seed is not None:
            self._rngs = self._spawn(np.random.default_rng(seed))
        self.episodes = [self._begin(b) for b in range(self.num_envs)]
        self._lay_down_all()
        self._ended[:] = False
        obs = self._new_obs()
        encode_batch(self._world_handle, self._parts_handle, self._addresses, self._parts_addresses, self._ended)
        return obs, {}

    def step(self, actions: NDArray[np.int64]) -> _Arrays:
        """One action per episode; RLlib passes a list of them."""
        return self._step(actions, is_encoded=True)

    def step_blind(self, actions: NDArray[np.int64]) -> _Arrays:
        """``step`` without the observations, which stay zero: for policies that read the states instead."""
        return self._step(actions, is_encoded=False)

    def _step(self, actions: NDArray[np.int64], *, is_encoded: bool) -> _Arrays:
        actions = np.ascontiguousarray(actions, np.int64)
        obs = self._new_obs()
        if not is_encoded:
            obs[:] = 0.0
        reward = np.zeros(self.num_envs)
        truncated = np.zeros(self.num_envs, np.bool_)

        def run(first: int, end: int) -> None:
            step_batch(
                self._world_handle,
                self._parts_handle,
                self._addresses,
                self._parts_addresses,
                first,
                end,
                actions,
                self._ended,
                is_encoded,
                1.0 if self.subtract_bound else 0.0,
                self._scale,
                reward,
                truncated,
            )

        if self._pool is None:
            run(0, self.num_envs)
        else:
            cuts = np.linspace(0, self.num_envs, self._num_threads + 1).astype(int).tolist()
            list(self._pool.map(run, cuts[:-1], cuts[1:]))
        if self._ended.any():
            for b in map(int, np.flatnonzero(self._ended)):
                self.episodes[b] = self._begin(b)
                self._lay_down(b)
            encode_batch(self._world_handle, self._parts_handle, self._addresses, self._parts_addresses, ~self._ended)
        self._ended = truncated.copy()
        return obs, reward, np.zeros(self.num_envs, np.bool_), truncated, {}

    def close_extras(self, **kwargs: Any) -> None:
        """Ends the threads."""
        if self._pool is not None:
            self._pool.shutdown()


def _id_of(rng: np.random.Generator) -> int:
    """Equal for generators that will draw and spawn the same."""
    bits: Any = rng.bit_generator
    return hash((bits.state["state"]["state"], bits.seed_seq.n_children_spawned))


def _address_columns(parts: Parts) -> list[int]:
    """Where in the row of ``parts`` the addresses stand; shapes follow each of them."""
    widths = [1 + part.ndim for part in parts]
    return [sum(widths[:i]) for i in range(len(widths))]
