"""Evaluation: every policy on the same episodes, with confidence intervals.

An episode is fixed by its seed: traffic, initial placement and simulator draw from streams of their own, so that
all policies face the same arrivals, and differences between policies are taken pair by pair.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from rayfold.envs.episode import Episode, scenario_layout
from rayfold.envs.ledger import Entry
from rayfold.envs.safety import check_move
from rayfold.envs.scenario import Scenario, Split
from rayfold.envs.state import NodePhase
from rayfold.policies.protocol import Policy

__all__ = ["EpisodeResult", "Evaluation", "Interval95", "evaluate", "interval95", "run_episode"]

PRICE_SCALES = (0.25, 4.0)  # DESIGN §5: results are also shown at other prices of disruption and unserved demand


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeResult:
    """One policy on one episode."""

    metrics: dict[str, float]  # by name; see README, "What is reported"
    time_h: NDArray[np.float64]  # (ticks,)
    num_nodes: NDArray[np.int64]  # (ticks,) nodes paid for


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval95:
    """Mean over the seeds and half-width of its 95 % confidence interval (Student's t); NaN from a single seed."""

    mean: float
    ci95: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """All policies on all seeds."""

    scenario: Scenario
    split: Split
    seeds: tuple[int, ...]
    results: dict[str, tuple[EpisodeResult, ...]]  # by policy name, in the order of seeds

    def summary(self) -> dict[str, dict[str, Interval95]]:
        """``{policy: {metric: mean and interval}}``."""
        return {
            name: {
                metric: interval95([episode.metrics[metric] for episode in episodes]) for metric in episodes[0].metrics
            }
            for name, episodes in self.results.items()
        }

    def paired(self, baseline: str) -> dict[str, Interval95]:
        """Cost minus the cost of ``baseline`` on the same seeds, as a share of the baseline's mean cost."""
        reference = np.array([episode.metrics["cost_usd"] for episode in self.results[baseline]])
        return {
            name: interval95(
                (np.array([episode.metrics["cost_usd"] for episode in episodes]) - reference) / reference.mean()
            )
            for name, episodes in self.results.items()
        }

    def to_json(self) -> dict[str, Any]:
        """The content of ``rayfold evaluate --json``."""

        def plain(values: Mapping[str, Interval95]) -> dict[str, dict[str, float | None]]:
            return {
                key: {"mean": value.mean, "ci95": None if math.isnan(value.ci95) else value.ci95}
                for key, value in values.items()
            }

        return {
            "scenario": self.scenario.name,
            "split": str(self.split),
            "traffic": self.scenario.traffic_name,
            "horizon_s": self.scenario.horizon_s,
            "seeds": list(self.seeds),
            "policies": {name: plain(metrics) for name, metrics in self.summary().items()},
            "cost_against_frac": {baseline: plain(self.paired(baseline)) for baseline in self.results},
        }


def interval95(values: Sequence[float] | NDArray[np.float64]) -> Interval95:
    """Mean and half-width of the 95 % confidence interval; one value tells nothing of the half-width: NaN."""
    array = np.asarray(values, np.float64)
    if len(array) < 2:
        return Interval95(mean=float(array.mean()), ci95=math.nan)
    half = stats.t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / np.sqrt(len(array))
    return Interval95(mean=float(array.mean()), ci95=float(half))


def run_episode(scenario: Scenario, policy: Policy, seed: int, split: Split) -> EpisodeResult:
    """One policy on one episode.

    Args:
        scenario: What to simulate.
        policy: Is reset first.
        seed: Fixes traffic, initial placement and simulator, and, on a stream of its own, the policy.
        split: Which days the traffic is drawn from.
    """
    policy.reset()
    episode_rng, policy_rng = np.random.default_rng(seed).spawn(2)
    episode = Episode(scenario, scenario_layout(scenario), split, episode_rng)
    sim, settings = episode.simulator, scenario.spec.settings
    steps = round(settings.decision_interval_s / settings.substep_s)
    times_h, nodes, latency_s, refused = [], [], [], 0
    while sim.num_steps_left >= steps:
        state = sim.state()
        begun = time.perf_counter()
        plan = policy.plan(state, policy_rng)
        latency_s.append(time.perf_counter() - begun)
        for move in plan.moves:
            if check_move(sim.view, move, scenario.limits).allowed:
                sim.start(state, move)
            else:
                refused += 1
        times_h.append(sim.now_s / 3600.0)
        nodes.append(int((state.arrays.node_phase != NodePhase.ABSENT).sum()))
        sim.advance(steps)
    ledger = sim.ledger()
    metrics = ledger.metrics()
    others_usd = ledger[Entry.DISRUPTION_USD] + ledger[Entry.UNSERVED_USD]
    for scale in PRICE_SCALES:
        metrics[f"cost_usd_at_{scale:g}x"] = ledger[Entry.NODE_USD] + scale * others_usd
    metrics["refused_moves"] = float(refused)
    metrics["decision_p50_ms"] = 1e3 * float(np.median(latency_s))
    metrics["decision_p99_ms"] = 1e3 * float(np.quantile(latency_s, 0.99))
    return EpisodeResult(metrics=metrics, time_h=np.array(times_h), num_nodes=np.array(nodes))


def evaluate(
    scenario: Scenario,
    policies: Mapping[str, Policy],
    seeds: Sequence[int],
    split: Split = Split.VALIDATION,
    on_episode: Callable[[str, int], None] = lambda name, seed: None,
) -> Evaluation:
    """Runs every policy on every seed.

    Args:
        scenario: What to simulate.
        policies: By name.
        seeds: One episode each.
        split: Which days the traffic is drawn from.
        on_episode: Called after each episode, for progress.
    """
    results: dict[str, list[EpisodeResult]] = {name: [] for name in policies}
    for seed in seeds:
        for name, policy in policies.items():
            results[name].append(run_episode(scenario, policy, seed, split))
            on_episode(name, seed)
    return Evaluation(
        scenario=scenario,
        split=split,
        seeds=tuple(seeds),
        results={name: tuple(episodes) for name, episodes in results.items()},
    )
