"""One policy on one simulator, tick by tick to the end of the traffic: the loop of evaluation and of the twin."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.ledger import Ledger
from rayfold.envs.safety import check_move
from rayfold.envs.simulator import Simulator
from rayfold.envs.state import NodePhase
from rayfold.policies.protocol import Policy

__all__ = ["Rollout", "roll_out"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rollout:
    """What came of it."""

    ledger: Ledger
    time_s: NDArray[np.float64]  # (ticks,) clock of the simulator
    num_nodes: NDArray[np.int64]  # (ticks,) nodes paid for
    latency_s: NDArray[np.float64]  # (ticks,) time to plan
    num_refused: int  # moves asked for that the safety filter did not allow


def roll_out(
    sim: Simulator,
    policy: Policy,
    rng: np.random.Generator,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> Rollout:
    """Lets a policy decide at every tick for which there is traffic.

    Args:
        sim: Is advanced.
        policy: As it is: reset it first.
        rng: Of the policy.
        clock: Measures the time to plan.

    Raises:
        ValueError: The simulator step does not divide the decision interval.
    """
    settings = sim.spec.settings
    steps = round(settings.decision_interval_s / settings.substep_s)
    if steps < 1 or abs(steps * settings.substep_s - settings.decision_interval_s) > 1e-6:
        raise ValueError(
            f"steps of {settings.substep_s:g} s do not divide a tick of {settings.decision_interval_s:g} s"
        )
    time_s, nodes, latency_s, refused = [], [], [], 0
    while sim.num_steps_left >= steps:
        state = sim.state()
        begun = clock()
        plan = policy.plan(state, rng)
        latency_s.append(clock() - begun)
        for move in plan.moves:
            if check_move(sim.view, move, sim.limits).allowed:
                sim.start(state, move)
            else:
                refused += 1
        time_s.append(sim.now_s)
        nodes.append(int((state.arrays.node_phase != NodePhase.ABSENT).sum()))
        sim.advance(steps)
    return Rollout(
        ledger=sim.ledger(),
        time_s=np.array(time_s),
        num_nodes=np.array(nodes, np.int64),
        latency_s=np.array(latency_s),
        num_refused=refused,
    )
