"""What the switch learns from: states of training days, and what each member of the portfolio then really cost.

At every choice of an episode the simulator is forked once per member; each fork is led by that member alone for the
horizon, on the traffic that really came. The members meet the same future, so that their differences are known far
better than their bills. Dims: M choices, F features, K members.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.cluster import Interval
from rayfold.envs.scenario import Scenario, Split
from rayfold.envs.simulator import Simulator
from rayfold.policies.network import CompactionNet
from rayfold.policies.portfolio import MEMBERS, make_member
from rayfold.policies.protocol import Policy
from rayfold.policies.rollout import roll_out
from rayfold.policies.switch_features import FEATURES, Memory
from rayfold.policies.switch_net import SwitchConfig
from rayfold.training.episode_result import begin_episode

__all__ = ["Labels", "join_labels", "label_episode", "scaled", "some_labels", "vary"]

KEEP_PROB = 0.5  # that the leader of the episode itself stays


class Labels(NamedTuple):
    """Choices of one or more episodes."""

    features: NDArray[np.float32]  # (M, F)
    bill_usd: NDArray[np.float64]  # (M, K) of the horizon under each member
    episode: NDArray[np.int64]  # (M,) the same number for choices of one episode


def scaled(scenario: Scenario, *, startup: float = 1.0, prices: float = 1.0) -> Scenario:
    """Another world.

    Args:
        scenario: Stays as it is.
        startup: Times as long start-ups take.
        prices: Times as much disruption and unserved demand cost.
    """
    spec, old = scenario.spec, scenario.spec.settings.prices
    deployments = tuple(
        dataclasses.replace(d, startup_s=Interval(d.startup_s.min_s * startup, d.startup_s.max_s * startup))
        for d in spec.deployments
    )
    new = dataclasses.replace(
        old, disruption_scale=old.disruption_scale * prices, unserved_factor=old.unserved_factor * prices
    )
    settings = dataclasses.replace(spec.settings, prices=new)
    return dataclasses.replace(scenario, spec=dataclasses.replace(spec, deployments=deployments, settings=settings))


def vary(scenario: Scenario, rng: np.random.Generator) -> Scenario:
    """A world drawn at random.

    In half of them start-ups take a half to three times as long; in half of them, drawn apart from that, disruption
    and unserved demand have a quarter of their price or four times it.
    """
    startup = float(np.exp(rng.uniform(np.log(0.5), np.log(3.0)))) if rng.random() < 0.5 else 1.0
    prices = float(rng.choice([0.25, 4.0])) if rng.random() < 0.5 else 1.0
    return scaled(scenario, startup=startup, prices=prices)


class _Looking:
    """A recorder that keeps a memory up to date."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def decided(self, sim: Simulator) -> None:
        """Nothing new: no time has passed."""

    def passed(self, sim: Simulator) -> None:
        """A tick has passed."""
        self._memory.look(sim.view)


def label_episode(scenario: Scenario, net: CompactionNet, config: SwitchConfig, seed: int) -> Labels:
    """One episode of the training days, led by members drawn at random, with every member tried at every choice.

    Args:
        scenario: Is varied, see ``vary``, but for every third seed.
        net: The network of the portfolio.
        config: Gives dwell and horizon.
        seed: Fixes everything.
    """
    episode_rng, policy_rng, world_rng, lead_rng = np.random.default_rng(seed).spawn(4)
    scenario = vary(scenario, world_rng) if seed % 3 else scenario
    sim, _ = begin_episode(scenario, Split.TRAIN, episode_rng)
    settings, limits = scenario.spec.settings, scenario.limits
    dwell = round(config.dwell_s / settings.decision_interval_s)
    horizon = round(config.horizon_s / settings.decision_interval_s)
    least_steps = horizon // 2 * round(settings.decision_interval_s / settings.substep_s)
    memory, member = Memory(limits), make_member(int(lead_rng.integers(len(MEMBERS))), limits, net)
    memory.look(sim.view)
    features, bills = [], []
    while sim.num_steps_left >= least_steps:
        features.append(memory.features(sim.view))
        policy_seed = int(policy_rng.integers(2**63))
        bills.append([_bill_usd(sim, make_member(k, limits, net), horizon, policy_seed) for k in range(len(MEMBERS))])
        if lead_rng.random() >= KEEP_PROB:
            member = make_member(int(lead_rng.integers(len(MEMBERS))), limits, net)
        roll_out(sim, member, policy_rng, recorder=_Looking(memory), max_ticks=dwell)
    return Labels(
        np.array(features, np.float32).reshape(-1, len(FEATURES)),
        np.array(bills, np.float64).reshape(-1, len(MEMBERS)),
        np.full(len(features), seed, np.int64),
    )


def _bill_usd(sim: Simulator, member: Policy, num_ticks: int, seed: int) -> float:
    """What the coming ticks cost under a member; the simulator stays as it is."""
    fork = sim.fork()
    before_usd = fork.ledger().total_usd
    return roll_out(fork, member, np.random.default_rng(seed), max_ticks=num_ticks).ledger.total_usd - before_usd


def some_labels(labels: Labels, rows: NDArray[np.bool_]) -> Labels:
    """Those choices for which ``rows`` ``(M,)`` is true."""
    return Labels(labels.features[rows], labels.bill_usd[rows], labels.episode[rows])


def join_labels(parts: Sequence[Labels]) -> Labels:
    """All choices of several episodes, which are numbered anew."""
    episode = [np.full(len(part.features), i, np.int64) for i, part in enumerate(parts)]
    features, bills = [part.features for part in parts], [part.bill_usd for part in parts]
    return Labels(np.concatenate(features), np.concatenate(bills), np.concatenate(episode))
