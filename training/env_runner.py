"""``BatchedEnvRunner``: samples a native vector environment without per-step connectors or episode objects.

A drop-in for RLlib's ``SingleAgentEnvRunner`` where observations are flat and the module returns final actions: it
collects whole arrays and cuts them into episode chunks once per ``sample()``. With the same seed it yields the same
training as the stock runner, which is its test.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.env.utils.infinite_lookback_buffer import InfiniteLookbackBuffer

from rayfold.envs.layout import DT_INDEX
from rayfold.training.input_baseline import TRAFFIC_TICK

__all__ = ["EPISODE_METRICS", "BatchedEnvRunner"]

EPISODE_METRICS = ("total_usd", "excess_frac", "moves", "undone_moves", "node_h")  # of the ledger, per finished episode

_OUTPUTS = (Columns.ACTIONS, Columns.ACTION_LOGP, Columns.ACTION_DIST_INPUTS)


class BatchedEnvRunner(SingleAgentEnvRunner):
    """For ``CompactionVectorEnv`` (NEXT_STEP autoreset). T steps, B environments."""

    env: Any  # RLlib's wrapper around CompactionVectorEnv
    module: Any
    _obs: NDArray[np.float32] | None = None  # (B, size) last observation

    def _restart(self) -> NDArray[np.float32]:
        seed = self._seed if self._obs is None else None
        obs: NDArray[np.float32] = self.env.reset(seed=seed)[0]
        self._was_done = np.zeros(self.num_envs, np.bool_)
        self._returns, self._lengths = np.zeros(self.num_envs), np.zeros(self.num_envs, np.int64)
        self._ticks = np.zeros(self.num_envs, np.int64)  # decision intervals that the episode is old
        self._needs_initial_reset = False
        return obs

    def _sample(
        self,
        *,
        num_timesteps: int | None = None,
        num_episodes: int | None = None,
        explore: bool,
        random_actions: bool = False,
        force_reset: bool = False,
    ) -> list[Any]:
        if random_actions:
            raise NotImplementedError("random actions are not masked; use the module")
        if self._obs is None or self._needs_initial_reset or force_reset or num_episodes is not None:
            self._obs = self._restart()
        forward = self.module.forward_exploration if explore else self.module.forward_inference
        all_obs: list[NDArray[Any]] = [self._obs]
        rows: list[tuple[NDArray[Any], ...]] = []  # per step: what ``_cut`` takes
        steps = episodes = 0
        while steps < num_timesteps if num_timesteps is not None else episodes < (num_episodes or 0):
            with torch.inference_mode():
                out = forward({Columns.OBS: torch.from_numpy(self._obs).to(self._device)})
            actions, logp, inputs = (out[key].cpu().numpy() for key in _OUTPUTS)
            traffic_tick = np.stack([self.env.unwrapped.traffic_ids, self._ticks], -1)
            obs, rewards, terminated, truncated, _ = self.env.step(actions)
            all_obs.append(obs)
            rows.append((actions, logp, inputs, rewards, terminated, truncated, self._was_done, traffic_tick))
            steps += self.num_envs - int(self._was_done.sum())
            done = terminated | truncated
            episodes += self._count(rewards, done)
            self._ticks = np.where(self._was_done, 0, self._ticks + (obs[:, DT_INDEX] > 0))
            self._obs, self._was_done = obs, done
        if num_episodes is not None:
            self._needs_initial_reset = True
        self._log_env_steps(metric=self._metrics_num_env_steps_sampled, num_steps=steps)
        self._increase_sampled_metrics(steps, episodes)  # type: ignore[no-untyped-call]
        return self._cut(np.stack(all_obs), *(np.stack(column) for column in zip(*rows, strict=True)))

    def _count(self, rewards: NDArray[Any], done: NDArray[np.bool_]) -> int:
        """Adds up returns and logs the episodes that end; returns their number."""
        self._returns += rewards * ~self._was_done
        self._lengths += ~self._was_done
        for b in np.flatnonzero(done):
            length, total = int(self._lengths[b]), float(self._returns[b])
            self._log_episode_metrics(length, total, 0.0)  # type: ignore[no-untyped-call]
            self._returns[b], self._lengths[b] = 0.0, 0
            # NEXT_STEP autoreset: the ended episode is still there.
            ledger = self.env.unwrapped.episodes[b].simulator.ledger().metrics()
            for name in EPISODE_METRICS:
                self.metrics.log_value(name, ledger[name], window=self.config.metrics_num_episodes_for_smoothing)
        return int(done.sum())

    def _cut(
        self,
        obs: NDArray[Any],  # (T + 1, B, size)
        actions: NDArray[Any],  # (T, B, 2)
        logp: NDArray[Any],  # (T, B)
        inputs: NDArray[Any],  # (T, B, 1) of the module's distribution
        rewards: NDArray[Any],  # (T, B), as are all that follow
        terminated: NDArray[Any],
        truncated: NDArray[Any],
        skipped: NDArray[Any],
        traffic_tick: NDArray[Any],  # (T, B, 2)
    ) -> list[Any]:
        """Episode chunks, in the stock runner's order: ended ones as they ended, then the unfinished ones."""
        ended: list[tuple[int, int, Any]] = []
        unfinished: list[Any] = []
        for b in range(self.num_envs):
            ends = [*(np.flatnonzero(terminated[:, b] | truncated[:, b]) + 1), len(actions)]
            begin = 0
            for end in ends:
                first = begin + int(begin < len(actions) and skipped[begin, b])  # the autoreset step is none
                begin = end
                if first >= end:
                    continue
                steps = slice(first, end)
                is_terminated, is_truncated = bool(terminated[end - 1, b]), bool(truncated[end - 1, b])
                chunk = SingleAgentEpisode(
                    observations=InfiniteLookbackBuffer(obs[first : end + 1, b]),
                    actions=InfiniteLookbackBuffer(actions[steps, b]),
                    rewards=InfiniteLookbackBuffer(rewards[steps, b]),
                    infos=InfiniteLookbackBuffer([{}] * (end - first + 1)),
                    terminated=is_terminated,
                    truncated=is_truncated,
                    extra_model_outputs={
                        Columns.ACTION_LOGP: InfiniteLookbackBuffer(logp[steps, b]),
                        Columns.ACTION_DIST_INPUTS: InfiniteLookbackBuffer(inputs[steps, b]),
                        TRAFFIC_TICK: InfiniteLookbackBuffer(traffic_tick[steps, b]),
                    },
                    len_lookback_buffer=0,
                )
                if is_terminated or is_truncated:
                    ended.append((end, b, chunk))
                else:
                    unfinished.append(chunk)
        return [chunk for _, _, chunk in sorted(ended, key=lambda entry: entry[:2])] + unfinished

    def get_metrics(self) -> Any:
        """Reduced metrics; finished episodes are logged while sampling."""
        return self.metrics.reduce()
