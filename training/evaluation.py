"""Evaluation: every policy on the same episodes, with confidence intervals.

An episode is fixed by its seed: traffic, initial placement and simulator draw from streams of their own, so that
all policies face the same arrivals, and differences between policies are taken pair by pair.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.episode import Episode, scenario_layout
from rayfold.envs.ledger import Entry
from rayfold.envs.scenario import Scenario, Split
from rayfold.policies.interval import Interval95, interval95
from rayfold.policies.protocol import Policy
from rayfold.policies.rollout import roll_out

__all__ = ["EpisodeResult", "Evaluation", "Interval95", "evaluate", "interval95", "run_episode"]

PRICE_SCALES = (0.25, 4.0)  # DESIGN §5: results are also shown at other prices of disruption and unserved demand


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeResult:
    """One policy on one episode."""

    metrics: dict[str, float]  # by name; see README, "What is reported"
    time_h: NDArray[np.float64]  # (ticks,)
    num_nodes: NDArray[np.int64]  # (ticks,) nodes paid for


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
        reference = np.array([episode.metrics["total_usd"] for episode in self.results[baseline]])
        return {
            name: interval95(
                (np.array([episode.metrics["total_usd"] for episode in episodes]) - reference) / reference.mean()
            )
            for name, episodes in self.results.items()
        }

    def to_json(self) -> dict[str, Any]:
        """The content of ``rayfold evaluate --json``."""

        def plain(values: Mapping[str, Interval95]) -> dict[str, dict[str, float | None]]:
            return {key: value.as_json() for key, value in values.items()}

        return {
            "scenario": self.scenario.name,
            "split": str(self.split),
            "traffic": self.scenario.traffic_name,
            "horizon_s": self.scenario.horizon_s,
            "seeds": list(self.seeds),
            "policies": {name: plain(metrics) for name, metrics in self.summary().items()},
            "total_against_frac": {baseline: plain(self.paired(baseline)) for baseline in self.results},
        }


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
    done = roll_out(episode.simulator, policy, policy_rng, clock=time.perf_counter)
    ledger, latency_s = done.ledger, done.latency_s
    metrics = ledger.metrics()
    others_usd = ledger[Entry.DISRUPTION_USD] + ledger[Entry.UNSERVED_USD]
    for scale in PRICE_SCALES:
        metrics[f"total_usd_at_{scale:g}x"] = ledger[Entry.COST_USD] + scale * others_usd
    metrics["refused_moves"] = float(done.num_refused)
    metrics["decision_p50_ms"] = 1e3 * float(np.median(latency_s))
    metrics["decision_p99_ms"] = 1e3 * float(np.quantile(latency_s, 0.99))
    return EpisodeResult(metrics=metrics, time_h=done.time_s / 3600.0, num_nodes=done.num_nodes)


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
