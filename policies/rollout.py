"""One policy on one simulator, tick by tick to the end of the traffic: the loop of evaluation and of the twin."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.ledger import Ledger
from rayfold.envs.safety import check_move
from rayfold.envs.simulator import Simulator
from rayfold.envs.state import NodePhase
from rayfold.policies.protocol import Policy

__all__ = ["Rearranger", "Recorder", "Rollout", "roll", "roll_out"]


class Recorder(Protocol):
    """Looks on; it must not change the simulator."""

    def decided(self, sim: Simulator) -> None:
        """The moves of a tick have begun; no time has passed."""
        ...

    def passed(self, sim: Simulator) -> None:
        """The time up to the next tick has passed."""
        ...


@runtime_checkable
class Rearranger(Protocol):
    """Stands where a policy does when a bound is rolled out: it changes the cluster by means that no policy has."""

    def reset(self) -> None:
        """Forgets everything, as at the start of an episode."""
        ...

    def rearrange(self, sim: Simulator) -> None:
        """Called at every tick in place of planning moves."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rollout:
    """What came of it."""

    ledger: Ledger
    time_s: NDArray[np.float64]  # (ticks,) clock of the simulator
    num_nodes: NDArray[np.int64]  # (ticks,) nodes paid for
    latency_s: NDArray[np.float64]  # (ticks,) time to plan
    num_refused: int  # moves asked for that the safety filter did not allow


class _Watch:
    """A clock that counts only while a policy plans."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.latency_s: list[float] = []

    def __enter__(self) -> None:
        self._begun = self._clock()

    def __exit__(self, *exception: object) -> None:
        self.latency_s.append(self._clock() - self._begun)


def roll_out(
    sim: Simulator,
    policy: Policy | Rearranger,
    rng: np.random.Generator,
    *,
    clock: Callable[[], float] = time.perf_counter,
    recorder: Recorder | None = None,
    max_ticks: int | None = None,
) -> Rollout:
    """Lets a policy decide at every tick for which there is traffic.

    Args:
        sim: Is advanced.
        policy: As it is: reset it first.
        rng: Of the policy.
        clock: Measures the time to plan.
        recorder: Looks on.
        max_ticks: Ends it earlier.

    Raises:
        ValueError: The simulator step does not divide the decision interval.
    """
    watch, refused = _Watch(clock), 0

    def decide(sim: Simulator) -> None:
        nonlocal refused
        if isinstance(policy, Rearranger):
            with watch:
                policy.rearrange(sim)
            return
        state = sim.state()
        with watch:
            plan = policy.plan(state, rng)
        for move in plan.moves:
            if check_move(sim.view, move, sim.limits).allowed:
                sim.start(state, move)
            else:
                refused += 1

    time_s, num_nodes = roll(sim, decide, recorder, max_ticks)
    return Rollout(
        ledger=sim.ledger(),
        time_s=time_s,
        num_nodes=num_nodes,
        latency_s=np.array(watch.latency_s),
        num_refused=refused,
    )


def roll(
    sim: Simulator,
    decide: Callable[[Simulator], None],
    recorder: Recorder | None = None,
    max_ticks: int | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The loop alone, for whoever decides by other means than plans.

    Args:
        sim: Is advanced to the last whole tick of its traffic.
        decide: Called at every tick.
        recorder: Looks on.
        max_ticks: Ends it earlier.

    Returns:
        Clock in seconds and nodes paid for, both ``(ticks,)`` and as each tick found them.

    Raises:
        ValueError: The simulator step does not divide the decision interval.
    """
    settings = sim.spec.settings
    steps = round(settings.decision_interval_s / settings.substep_s)
    if steps < 1 or abs(steps * settings.substep_s - settings.decision_interval_s) > 1e-6:
        raise ValueError(
            f"steps of {settings.substep_s:g} s do not divide a tick of {settings.decision_interval_s:g} s"
        )
    time_s: list[float] = []
    num_nodes: list[int] = []
    while sim.num_steps_left >= steps and (max_ticks is None or len(time_s) < max_ticks):
        time_s.append(sim.now_s)
        num_nodes.append(int((sim.view.arrays.node_phase != NodePhase.ABSENT).sum()))
        decide(sim)
        if recorder is not None:
            recorder.decided(sim)
        sim.advance(steps)
        if recorder is not None:
            recorder.passed(sim)
    return np.array(time_s), np.array(num_nodes, np.int64)
