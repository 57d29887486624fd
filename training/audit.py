"""Checks on a policy that no figure shows: it must decide by what it is given, and by nothing of the future."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from rayfold.envs.initial_state import initial_state
from rayfold.envs.moves import Move
from rayfold.envs.safety import check_move
from rayfold.envs.scenario import Scenario, Split
from rayfold.envs.simulator import Simulator
from rayfold.envs.traffic import Traffic
from rayfold.errors import RayfoldError
from rayfold.policies.protocol import Policy

__all__ = ["AuditError", "Decision", "check_causal"]

Decision = tuple[float, tuple[Move, ...]]  # clock, moves


class AuditError(RayfoldError):
    """A policy does what no policy may."""


def check_causal(
    make: Callable[[Simulator], Policy],
    scenario: Scenario,
    seed: int,
    *,
    split: Split = Split.TRAIN,
    at_frac: float = 0.5,
) -> int:
    """Two episodes that are equal up to a moment and differ after it: the decisions up to it must be equal.

    After that moment the second one has the traffic of the first backwards. A policy whose planning depends on the
    wall clock can fail without fault.

    Args:
        make: The policy, made for a simulator; one that is honest ignores it.
        scenario: What to simulate.
        seed: Fixes both episodes.
        split: Which days.
        at_frac: Where the moment lies, as a share of the episode.

    Returns:
        Moves that were compared; where it is 0 nothing has been shown.

    Raises:
        AuditError: They differ.
    """
    first, second = (_decisions(make, scenario, seed, split, at_frac, is_changed=changed) for changed in (False, True))
    for (now_s, moves), (_, others) in zip(first, second, strict=True):
        if moves != others:
            raise AuditError(
                f"at {now_s:g} s the policy decides {moves} or {others}, depending on traffic that is yet to come"
            )
    return sum(len(moves) for _, moves in first)


def _decisions(
    make: Callable[[Simulator], Policy],
    scenario: Scenario,
    seed: int,
    split: Split,
    at_frac: float,
    *,
    is_changed: bool,
) -> list[Decision]:
    """What the policy decides at every tick up to the moment."""
    episode_rng, policy_rng = np.random.default_rng(seed).spawn(2)
    traffic_rng, placement_rng, simulator_rng = episode_rng.spawn(3)
    traffic = scenario.sample(traffic_rng, split)
    state = initial_state(scenario.spec, traffic, placement_rng)
    settings = scenario.spec.settings
    steps = round(settings.decision_interval_s / settings.substep_s)
    num_ticks = max(1, int(at_frac * traffic.num_steps / steps))
    if is_changed:
        traffic = _reversed_after(traffic, num_ticks * steps)
    sim = Simulator(state, traffic, scenario.limits, simulator_rng)
    policy = make(sim)
    policy.reset()
    decisions: list[Decision] = []
    for _ in range(num_ticks):
        now = sim.state()
        plan = policy.plan(now, policy_rng)
        decisions.append((now.now_s, plan.moves))
        for move in plan.moves:
            if check_move(sim.view, move, sim.limits).allowed:
                sim.start(now, move)
        sim.advance(steps)
    return decisions


def _reversed_after(traffic: Traffic, num_steps: int) -> Traffic:
    """The same traffic up to a step, and backwards from there on."""
    ongoing = traffic.ongoing.copy()
    begin = traffic.num_before + num_steps
    ongoing[begin:] = ongoing[begin:][::-1]
    return replace(traffic, ongoing=ongoing)
