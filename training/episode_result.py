"""One policy on one episode, and what is kept of it.

An episode is fixed by its seed: traffic, initial placement and simulator draw from streams of their own, so that all
policies face the same arrivals. ``episode_digest`` says so: results are only ever compared where it is equal.
"""

import hashlib
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.cluster import SchedulingStrategy
from rayfold.envs.initial_state import initial_state
from rayfold.envs.ledger import DeploymentEntry, Entry
from rayfold.envs.scenario import Scenario, Split
from rayfold.envs.simulator import Simulator
from rayfold.policies.protocol import Policy
from rayfold.policies.rollout import Rearranger, Recorder, Rollout, roll_out
from rayfold.training.replay_record import ReplayRecorder
from rayfold.training.tick_record import Part, TickRecord, TickRecorder, check_books
from rayfold.training.worlds import PRICE_SCALES

__all__ = ["METRICS", "EpisodeResult", "begin_episode", "run_episode"]

# What every report holds, of every policy; closed_frac is known only once all policies have run.
METRICS = (
    "total_usd",
    "cost_usd",
    "disruption_usd",
    "unserved_usd",
    "excess_frac",
    "closed_frac",
    "node_hours",
    "tokens_per_gpu_s",
    "moves",
    "undone_moves",
    "cold_start_gpu_h",
    "unserved_request_s",
    "decision_ms_p50",
    "decision_ms_p99",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeResult:
    """One policy on one episode."""

    metrics: dict[str, float]  # by name; see README, "What is reported"
    parts_usd: dict[str, float]  # by Part: where the bill went
    deployments: dict[str, dict[str, float]]  # ``app/name`` -> figure
    time_h: NDArray[np.float64]  # (ticks,)
    num_nodes: NDArray[np.int64]  # (ticks,) nodes paid for
    bound_nodes: NDArray[np.int64]  # (ticks,) fewest that could hold the replicas
    episode_digest: str  # of the traffic and the state it began with
    recording: dict[str, Any] | None = None  # every tick, for the report; None = not asked for

    def to_json(self) -> dict[str, Any]:
        """The same as JSON."""
        return {
            "metrics": self.metrics,
            "parts_usd": self.parts_usd,
            "deployments": self.deployments,
            "time_h": self.time_h.tolist(),
            "num_nodes": self.num_nodes.tolist(),
            "bound_nodes": self.bound_nodes.tolist(),
            "episode_digest": self.episode_digest,
            "recording": self.recording,
        }

    @staticmethod
    def from_json(content: dict[str, Any]) -> "EpisodeResult":
        """What ``to_json`` gave.

        Raises:
            KeyError, TypeError, ValueError: It did not.
        """
        return EpisodeResult(
            metrics={str(name): float(value) for name, value in content["metrics"].items()},
            parts_usd={str(name): float(value) for name, value in content["parts_usd"].items()},
            deployments=dict(content["deployments"]),
            time_h=np.array(content["time_h"], np.float64),
            num_nodes=np.array(content["num_nodes"], np.int64),
            bound_nodes=np.array(content["bound_nodes"], np.int64),
            episode_digest=str(content["episode_digest"]),
            recording=content["recording"],
        )


class _Both:
    """Several recorders as one."""

    def __init__(self, *recorders: Recorder) -> None:
        self._recorders = recorders

    def decided(self, sim: Simulator) -> None:
        for recorder in self._recorders:
            recorder.decided(sim)

    def passed(self, sim: Simulator) -> None:
        for recorder in self._recorders:
            recorder.passed(sim)


def run_episode(
    scenario: Scenario,
    policy: Policy | Rearranger,
    seed: int,
    split: Split,
    *,
    scheduling: SchedulingStrategy | None = None,
    is_recorded: bool = False,
) -> EpisodeResult:
    """One policy on one episode.

    Args:
        scenario: What to simulate.
        policy: Is reset first.
        seed: Fixes traffic, initial placement and simulator, and, on a stream of its own, the policy.
        split: Which days the traffic is drawn from.
        scheduling: How Serve places replicas under this policy; None = as the scenario says. The first state is the
            scenario's in any case.
        is_recorded: Keep every tick.
    """
    policy.reset()
    episode_rng, policy_rng = np.random.default_rng(seed).spawn(2)
    sim, digest = begin_episode(scenario, split, episode_rng, scheduling)
    ticks, replay = TickRecorder(), ReplayRecorder()
    recorder = _Both(ticks, replay) if is_recorded else ticks
    done = roll_out(sim, policy, policy_rng, clock=time.perf_counter, recorder=recorder)
    record = ticks.record()
    check_books(done.ledger, record, len(done.time_s), scenario.spec.settings.decision_interval_s)
    return EpisodeResult(
        metrics={**_metrics(done), "offered_request_s": _offered_request_s(sim)},
        parts_usd={part.value: float(usd.sum()) for part, usd in zip(Part, record.usd, strict=True)},
        deployments=_deployments(sim),
        time_h=done.time_s / 3600.0,
        num_nodes=done.num_nodes,
        bound_nodes=record.bound_nodes,
        episode_digest=digest,
        recording={**_series(record), **replay.record()} if is_recorded else None,
    )


def begin_episode(
    scenario: Scenario, split: Split, rng: np.random.Generator, scheduling: SchedulingStrategy | None = None
) -> tuple[Simulator, str]:
    """The simulator at the start of the episode, with the streams of ``Episode``, and the digest of both.

    Args:
        scenario: What to simulate.
        split: Which days the traffic is drawn from.
        rng: Fixes the episode.
        scheduling: How Serve places replicas from now on; None = as the scenario says.
    """
    traffic_rng, placement_rng, simulator_rng = rng.spawn(3)
    traffic = scenario.sample(traffic_rng, split)
    state = initial_state(scenario.spec, traffic, placement_rng)
    digest = hashlib.sha256(state.digest().encode())
    digest.update(np.ascontiguousarray(traffic.ongoing).tobytes())
    if scheduling is not None:
        settings = replace(scenario.spec.settings, scheduling=scheduling)
        state = replace(state, spec=replace(scenario.spec, settings=settings))
    return Simulator(state, traffic, scenario.limits, simulator_rng), digest.hexdigest()


def _metrics(done: Rollout) -> dict[str, float]:
    metrics, ledger = done.ledger.metrics(), done.ledger
    others_usd = ledger[Entry.DISRUPTION_USD] + ledger[Entry.UNSERVED_USD]
    for scale in PRICE_SCALES:
        metrics[f"total_usd_at_{scale:g}x"] = ledger[Entry.COST_USD] + scale * others_usd
    metrics["node_hours"] = metrics.pop("node_h")
    metrics["refused_moves"] = float(done.num_refused)
    metrics["decision_ms_p50"] = 1e3 * float(np.median(done.latency_s))
    metrics["decision_ms_p99"] = 1e3 * float(np.quantile(done.latency_s, 0.99))
    return metrics


def _offered_request_s(sim: Simulator) -> float:
    """Traffic of the episode: ongoing requests times seconds, had all been served."""
    traffic = sim.traffic
    end = len(traffic.ongoing) - sim.num_steps_left
    return float(traffic.ongoing[traffic.num_before : end].sum(dtype=np.float64)) * sim.spec.settings.substep_s


def _deployments(sim: Simulator) -> dict[str, dict[str, float]]:
    counted = sim.deployment_ledger()
    replica_days = counted[DeploymentEntry.REPLICA_H] / 24.0
    moves = counted[DeploymentEntry.MOVES]
    per_day = np.divide(moves, replica_days, out=np.zeros_like(moves), where=replica_days > 0)
    return {
        deployment.key: {
            "unserved_request_s": float(counted[DeploymentEntry.UNSERVED_REQUEST_S, d]),
            "moves": float(moves[d]),
            "moves_per_replica_day": float(per_day[d]),
        }
        for d, deployment in enumerate(sim.spec.deployments)
    }


def _series(record: TickRecord) -> dict[str, Any]:
    """Per tick, rounded for the report."""

    def rounded(values: NDArray[np.float64]) -> list[float]:
        return [float(f"{value:.5g}") for value in values]

    return {
        "cost_usd_per_h": rounded(record.cost_usd_per_h),
        "bound_usd_per_h": rounded(record.bound_usd_per_h),
    }
