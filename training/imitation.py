"""Warm start: a network learns to do what a heuristic does, and what that is worth.

The heuristic's plans are taken apart into the actions of the decision process, one by one, and played in real
episodes. The value head learns the semi-MDP returns that followed, so that PPO starts with a baseline.

A network that errs comes into states that the heuristic never shows. DAgger (Ross, Gordon and Bagnell, AISTATS 2011):
after a first round the network plays, the heuristic is asked in every state what it would do there, and a network
learns from all rounds together.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from rayfold.envs.episode import Episode
from rayfold.envs.layout import NOOP, ObsLayout
from rayfold.envs.safety import Limits
from rayfold.envs.scenario import Scenario, Split
from rayfold.policies.learned import MIN_P
from rayfold.policies.network import CompactionNet, action_logp
from rayfold.policies.protocol import Policy
from rayfold.training.workers import HERE, Workers, run_all

__all__ = ["TEACHER_FRAC", "Demonstrations", "ImitationConfig", "demonstrate", "discounted_returns", "imitate"]

TEACHER_FRAC = 0.25  # of the episodes where a student plays: these its teacher plays all the same

MakePolicy = Callable[[Limits], Policy]
Vary = Callable[[Scenario, np.random.Generator], Scenario]
Act = Callable[[NDArray[np.float32]], tuple[int, int]]  # an observation, and the action taken


@dataclass(frozen=True, slots=True, kw_only=True)
class ImitationConfig:
    """How long and how to imitate."""

    num_steps: int = 16_000  # actions to demonstrate, at least one episode
    epochs: int = 6
    minibatch: int = 256
    lr: float = 2e-3  # peak of a one-cycle schedule
    value_coeff: float = 0.5
    gamma: float = 0.99  # per decision interval
    reward_scale: float = 1.0  # of the normalised reward, as in the environment
    max_s: float = float("inf")  # wall time of demonstration and learning together


class Demonstrations(NamedTuple):
    """What was seen and what the heuristic did or would have done, M steps of several episodes."""

    obs: NDArray[np.float32]  # (M, size)
    actions: NDArray[np.int64]  # (M, 2)
    returns: NDArray[np.float32]  # (M,) discounted reward to go, NaN where the horizon cuts too much of it off

    @staticmethod
    def joined(parts: Sequence["Demonstrations"]) -> "Demonstrations":
        """All of them, one after the other; at least one."""
        return Demonstrations(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def discounted_returns(
    rewards: NDArray[np.float64], dt: NDArray[np.float64], gamma: float, min_left: float
) -> NDArray[np.float64]:
    """Semi-MDP returns of one episode.

    Args:
        rewards: ``(T,)``.
        dt: ``(T,)`` decision intervals that each step took.
        gamma: Discount per decision interval.
        min_left: Returns with fewer decision intervals than this left are NaN.
    """
    returns, following = np.empty(len(rewards)), 0.0
    for t in range(len(rewards) - 1, -1, -1):
        following = rewards[t] + gamma ** dt[t] * following
        returns[t] = following
    left = dt[::-1].cumsum()[::-1]
    returns[left < min_left] = np.nan
    return returns


class _Course(NamedTuple):
    """What all episodes have in common."""

    scenarios: Sequence[Scenario]
    layout: ObsLayout
    make_policy: MakePolicy
    config: ImitationConfig
    vary: Vary | None
    student: CompactionNet | None


def _demonstrate_episode(course: _Course, work: tuple[int, np.random.Generator]) -> Demonstrations:
    """One episode; the heuristic's own actions are played if there is no student, and else most often only told."""
    number, rng = work
    episode_rng, policy_rng, world_rng = rng.spawn(3)
    scenario = course.scenarios[number % len(course.scenarios)]
    if course.vary is not None:
        scenario = course.vary(scenario, world_rng)
    episode, config = Episode(scenario, course.layout, Split.TRAIN, episode_rng), course.config
    policy, act = course.make_policy(scenario.limits), None
    if course.student is not None and policy_rng.random() >= TEACHER_FRAC:
        act = _play(course.student, course.layout, policy_rng)
    obs: list[NDArray[np.float32]] = []
    actions: list[tuple[int, int]] = []
    rewards: list[float] = []
    dt: list[float] = []
    policy.reset()
    pending: list[tuple[int, int]] = []
    elapsed, truncated, is_asked = 0.0, False, True
    while not truncated:
        if is_asked:
            plan = policy.plan(episode.simulator.state(), policy_rng)
            pending = [episode.to_action(move) for move in plan.moves]
        told = pending.pop(0) if pending else (NOOP, 0)
        obs.append(episode.encode(elapsed))
        outcome = episode.act(*(told if act is None else act(obs[-1])))
        actions.append(told if act is not None or outcome.num_moves else (NOOP, 0))
        rewards.append((outcome.reward_usd + outcome.baseline_usd) * config.reward_scale / episode.first_tick_usd)
        elapsed, truncated = outcome.dt_intervals, outcome.truncated
        is_asked = act is not None or outcome.num_moves == 0
        dt.append(elapsed)
    # Beyond this many intervals less than a tenth of the return is missing.
    min_left = np.log(0.1) / np.log(config.gamma) if 0.0 < config.gamma < 1.0 else 0.0
    min_left = min(min_left, 0.5 * sum(dt))
    returns = discounted_returns(np.array(rewards), np.array(dt), config.gamma, min_left)
    return Demonstrations(np.stack(obs), np.array(actions, np.int64), returns.astype(np.float32))


def demonstrate(
    scenarios: Sequence[Scenario],
    layout: ObsLayout,
    make_policy: MakePolicy,
    rng: np.random.Generator,
    config: ImitationConfig,
    should_stop: Callable[[], bool] = lambda: False,
    *,
    vary: Vary | None = None,
    student: CompactionNet | None = None,
    workers: Workers = HERE,
) -> Demonstrations:
    """Plays episodes of the train split, one of each scenario after the other, until there are enough steps.

    Args:
        scenarios: With the horizon to play.
        layout: Holds all of them.
        make_policy: The heuristic, for a scenario's limits.
        rng: Draws episodes and policy; what is shown depends on nothing else.
        config: How many steps; half of ``max_s`` is for this.
        should_stop: Ends it after the present episode.
        vary: Draws another world like the scenario for each episode.
        student: The network, in eval mode, that plays most episodes, while the heuristic tells what it would do.
        workers: Where episodes are played.
    """
    course = _Course(scenarios, layout, make_policy, config, vary, student)
    shown = dict[int, Demonstrations]()
    begun, is_over = time.monotonic(), False
    while not is_over and sum(len(part.actions) for part in shown.values()) < config.num_steps:
        turn = list(enumerate(rng.spawn(len(scenarios)), start=len(shown)))
        for (number, _), part in run_all(_demonstrate_episode, course, turn, workers):
            shown[number] = part
            is_over = should_stop() or time.monotonic() - begun > 0.5 * config.max_s
            if is_over:
                break
    return Demonstrations.joined([shown[number] for number in sorted(shown)])


def _play(net: CompactionNet, layout: ObsLayout, rng: np.random.Generator) -> Act:
    """The network's play, sampled as ``LearnedPolicy`` does."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**63 - 1)))

    def act(obs: NDArray[np.float32]) -> tuple[int, int]:
        with torch.inference_mode():
            choice = net.act(layout.split(torch.from_numpy(obs).unsqueeze(0)), min_p=MIN_P, generator=generator)
        source, destination = choice.actions[0].tolist()
        return source, destination

    return act


def imitate(
    net: CompactionNet,
    layout: ObsLayout,
    shown: Demonstrations,
    config: ImitationConfig,
    *,
    seed: int = 0,
    on_progress: Callable[[float, dict[str, float]], None] = lambda frac, metrics: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Trains ``net`` in place.

    Args:
        net: The network.
        layout: Of the demonstrated observations.
        shown: What to imitate.
        config: How; half of ``max_s`` is for this.
        seed: Of the order of the minibatches.
        on_progress: Called now and then with the share that is done and the present metrics.
        should_stop: Ends it after the present minibatch.

    Returns:
        ``nll`` and ``value_loss`` over the last 50 minibatches, ``noop_frac`` and ``num_steps`` of the data.
    """
    obs, actions, returns = (torch.from_numpy(array) for array in shown)
    size = min(config.minibatch, len(actions))
    total = config.epochs * (len(actions) // size)
    optimizer = torch.optim.Adam(net.parameters(), lr=config.lr / 25)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=max(2, total))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        last = net.value_out[-1]
        assert isinstance(last, torch.nn.Linear)
        last.bias.fill_(returns.nanmean().nan_to_num())
    begun, losses = time.monotonic(), []
    metrics = {"noop_frac": float((actions[:, 0] == NOOP).float().mean()), "num_steps": float(len(actions))}
    order = torch.empty(0, dtype=torch.long)
    for step in range(total):
        if len(order) < size:
            order = torch.randperm(len(actions), generator=generator)
        rows, order = order[:size], order[size:]
        nll, value_loss = _losses(net, layout, obs[rows], actions[rows], returns[rows])
        optimizer.zero_grad()
        (nll + config.value_coeff * value_loss).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append((nll.item(), value_loss.item()))
        metrics["nll"], metrics["value_loss"] = (float(x) for x in np.mean(losses[-50:], 0))
        if step % 10 == 0:
            on_progress((step + 1) / total, metrics)
        if should_stop() or time.monotonic() - begun > 0.5 * config.max_s:
            break
    return metrics


def _losses(
    net: CompactionNet, layout: ObsLayout, flat: torch.Tensor, actions: torch.Tensor, returns: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean negative log-likelihood, and mean squared error of the value where the return is known."""
    obs = layout.split(flat)
    encoding = net.encode(obs)
    source_logits = net.source_logits(obs, encoding)
    destination_logits = net.destination_logits(obs, encoding, actions[:, 0])
    known = ~returns.isnan()
    error = torch.where(known, net.value(encoding.pooled) - returns.nan_to_num(), torch.zeros(()))
    nll = -action_logp(source_logits, destination_logits, actions).mean()
    return nll, error.square().sum() / known.sum().clamp(min=1)
