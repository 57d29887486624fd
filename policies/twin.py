"""The digital twin: a cluster's state rolled forward under a policy and several traffic futures.

Every policy meets the same futures with the same draws of the simulator (common random numbers), so that differences
between policies are taken future by future and are known far better than the bills themselves.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rayfold.envs.futures import TrafficModel, sample_futures
from rayfold.envs.ledger import Ledger
from rayfold.envs.safety import Limits
from rayfold.envs.simulator import Simulator
from rayfold.envs.state import ClusterState, ReplicaPhase
from rayfold.envs.traffic import Traffic
from rayfold.policies.interval import Interval95, interval95
from rayfold.policies.protocol import Policy
from rayfold.policies.rollout import Rollout, roll_out

__all__ = ["TwinResult", "cheapest", "compare", "roll_forward", "simulate", "startable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TwinResult:
    """One policy on every future."""

    ledgers: tuple[Ledger, ...]  # one per future
    num_refused: tuple[int, ...]  # moves that the safety filter did not allow, per future

    @property
    def total_usd(self) -> Interval95:
        """The whole bill."""
        return interval95([ledger.total_usd for ledger in self.ledgers])

    def summary(self) -> dict[str, Interval95]:
        """Every figure of the ledger by name: ``total_usd, node_h, moves, undone_moves, unserved_replica_h, ...``."""
        metrics = [ledger.metrics() for ledger in self.ledgers]
        return {name: interval95([m[name] for m in metrics]) for name in metrics[0]}

    def cost_above(self, other: "TwinResult") -> Interval95:
        """Bill minus the bill of ``other`` on the same futures, in US dollars."""
        pairs = zip(self.ledgers, other.ledgers, strict=True)
        return interval95([mine.total_usd - theirs.total_usd for mine, theirs in pairs])


def startable(state: ClusterState) -> ClusterState:
    """A live state as the simulator can take it; a simulated one comes back equal.

    A live move whose replacement does not exist yet links a replica to itself: the simulator begins without it, and
    without replicas whose node has just gone. Its step is shortened where it does not divide the decision interval.
    """
    st, settings = state.arrays, state.spec.settings
    holds = np.isin(st.replica_phase, (ReplicaPhase.STARTING, ReplicaPhase.RUNNING, ReplicaPhase.STOPPING))
    gone = holds & (st.replica_node < 0)
    peer = st.replica_peer
    is_linked = (peer >= 0) & (peer != np.arange(len(peer))) & ~gone & ~gone[peer]
    step_s = settings.decision_interval_s / math.ceil(settings.decision_interval_s / settings.substep_s - 1e-9)
    return replace(
        state,
        spec=replace(state.spec, settings=replace(settings, substep_s=step_s)),
        arrays=st._replace(
            replica_phase=np.where(gone, int(ReplicaPhase.EMPTY), st.replica_phase),
            replica_deployment=np.where(gone, -1, st.replica_deployment),
            replica_peer=np.where(is_linked, peer, -1),
        ),
    )


def compare(
    state: ClusterState,
    policies: Mapping[str, Policy],
    traffics: Iterable[Traffic],
    limits: Limits,
    rng: np.random.Generator,
) -> dict[str, TwinResult]:
    """Rolls every policy forward on every future.

    Args:
        state: Where to start, not changed; a live one as ``startable`` gives it.
        policies: By name; each is reset before each future.
        traffics: The futures, from ``state.now_s`` on; used one by one.
        limits: Of the safety filter.
        rng: One number is taken from it per future.

    Raises:
        ValueError: There are no futures, or the simulator step does not divide the decision interval.
    """
    done: dict[str, list[Rollout]] = {name: [] for name in policies}
    for traffic in traffics:
        seed = int(rng.integers(2**63))
        for name, policy in policies.items():
            simulator_rng, policy_rng = np.random.default_rng(seed).spawn(2)
            policy.reset()
            done[name].append(roll_out(Simulator(state, traffic, limits, simulator_rng), policy, policy_rng))
    if not all(done.values()):
        raise ValueError("at least one future is needed")
    return {
        name: TwinResult(ledgers=tuple(r.ledger for r in runs), num_refused=tuple(r.num_refused for r in runs))
        for name, runs in done.items()
    }


def cheapest(results: Sequence[TwinResult], reference: int, confidence: float) -> int:
    """Row of the least mean bill of those that are cheaper than the reference, or the reference.

    Args:
        results: On the same futures.
        reference: Row of what is done if nothing is known to be better.
        confidence: Standard errors of the paired difference by which another one must be cheaper.
    """
    bills = np.array([[ledger.total_usd for ledger in result.ledgers] for result in results])
    above = bills - bills[reference]
    mean, futures = above.mean(1), above.shape[1]
    error = above.std(1, ddof=1) / np.sqrt(futures) if futures > 1 else np.zeros(len(mean))
    is_better = mean + confidence * error < 0.0
    return int(np.where(is_better, mean, np.inf).argmin()) if is_better.any() else reference


def simulate(
    state: ClusterState,
    policies: Mapping[str, Policy],
    model: TrafficModel,
    limits: Limits,
    *,
    horizon_s: float,
    num_futures: int,
    seed: int,
    clock_s: float | None = None,
    on_future: Callable[[], None] = lambda: None,
) -> dict[str, TwinResult]:
    """Draws futures and rolls every policy forward on each of them.

    Args:
        state: Where to start; a live one as ``startable`` gives it.
        policies: By name.
        model: Of the traffic of the state's deployments.
        limits: Of the safety filter.
        horizon_s: Length of a future, a whole number of decision intervals.
        num_futures: At least 1.
        seed: Fixes futures and simulator.
        clock_s: See ``sample_futures``.
        on_future: Called after each future, for progress.
    """
    traffic_rng, simulator_rng = np.random.default_rng(seed).spawn(2)

    def futures() -> Iterator[Traffic]:
        for traffic in sample_futures(
            model, state, horizon_s=horizon_s, num_futures=num_futures, rng=traffic_rng, clock_s=clock_s
        ):
            yield traffic
            on_future()

    return compare(state, policies, futures(), limits, simulator_rng)


def roll_forward(
    state: ClusterState, policy: Policy, traffics: Iterable[Traffic], limits: Limits, rng: np.random.Generator
) -> TwinResult:
    """One policy on every future; see ``compare``. Equal futures and generators give equal draws to any policy."""
    return compare(state, {policy.name: policy}, traffics, limits, rng)[policy.name]
