"""Evaluation: every policy on the same episodes, with confidence intervals.

Differences between policies are taken pair by pair: the bootstrap draws seeds, and every policy has the same ones in a
resample. Results of episodes that were not the same are refused.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rayfold.envs.scenario import Scenario, Split
from rayfold.errors import InputError
from rayfold.policies.free_repacking import FreeRepacking
from rayfold.policies.protocol import Policy
from rayfold.policies.rollout import Rearranger
from rayfold.training.bootstrap import Estimate, mean_of, ratio, relative
from rayfold.training.episode_result import METRICS, EpisodeResult, run_episode
from rayfold.training.tick_record import Part

__all__ = ["FREE_REPACKING", "METRICS", "NONE", "EpisodeResult", "Evaluation", "evaluate", "run_episode"]

NONE, FREE_REPACKING = "none", FreeRepacking.name  # the two ends of closed_frac


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """All policies on all seeds.

    Raises:
        InputError: Results of one seed come from different episodes.
    """

    scenario: Scenario
    split: Split
    days: str = ""  # as asked for; empty = the split
    seeds: tuple[int, ...]
    results: dict[str, tuple[EpisodeResult, ...]]  # by policy name, in the order of seeds

    def __post_init__(self) -> None:
        for i, seed in enumerate(self.seeds):
            digests = {name: episodes[i].episode_digest for name, episodes in self.results.items()}
            if len(set(digests.values())) > 1:
                got = ", ".join(f"{name}: {digest[:12]}" for name, digest in digests.items())
                raise InputError(f"results of seed {seed}", "the same episode for every policy", got)

    def summary(self) -> dict[str, dict[str, Estimate]]:
        """``{policy: {metric: mean over seeds}}``, ``METRICS`` first."""
        return {name: self._metrics(name) for name in self.results}

    def _metrics(self, name: str) -> dict[str, Estimate]:
        episodes = self.results[name]
        means = {metric: mean_of([e.metrics[metric] for e in episodes]) for metric in episodes[0].metrics}
        means["closed_frac"] = self._closed_frac(means["total_usd"])
        others = [metric for metric in means if metric not in METRICS]
        return {metric: means[metric] for metric in (*METRICS, *others)}

    def _closed_frac(self, total_usd: Estimate) -> Estimate:
        """How far from ``none`` (0) to free repacking (1): a ratio of means."""
        if not {NONE, FREE_REPACKING} <= self.results.keys():
            return Estimate(math.nan, total_usd.resampled)
        none, free = (mean_of([e.metrics["total_usd"] for e in self.results[n]]) for n in (NONE, FREE_REPACKING))
        saved = Estimate(none.mean - total_usd.mean, none.resampled - total_usd.resampled)
        return ratio(saved, Estimate(none.mean - free.mean, none.resampled - free.resampled))

    def versus(self, reference: str) -> dict[str, dict[str, Estimate]]:
        """Paired difference of every metric to that of a reference, as a share of the reference's mean.

        Not defined where the reference's mean is 0: moves of ``none``.
        """
        summary = self.summary()
        against = summary[reference]
        return {
            name: {metric: relative(figure, against[metric]) for metric, figure in figures.items()}
            for name, figures in summary.items()
        }

    def parts_usd(self) -> dict[str, dict[str, float]]:
        """``{policy: {part: mean USD}}``: where each bill went."""
        return {
            name: {part.value: _mean([e.parts_usd[part.value] for e in episodes]) for part in Part}
            for name, episodes in self.results.items()
        }

    def deployments(self) -> dict[str, dict[str, dict[str, float]]]:
        """``{policy: {app/name: {figure: mean}}}``."""
        return {
            name: {
                key: {figure: _mean([e.deployments[key][figure] for e in episodes]) for figure in figures}
                for key, figures in episodes[0].deployments.items()
            }
            for name, episodes in self.results.items()
        }

    def to_json(self) -> dict[str, Any]:
        """The content of ``rayfold evaluate --json``."""
        return {
            "scenario": self.scenario.name,
            "days": self.days or str(self.split),
            "split": str(self.split),
            "traffic": self.scenario.traffic_name,
            "horizon_s": self.scenario.horizon_s,
            "seeds": list(self.seeds),
            "policies": {name: _plain(metrics) for name, metrics in self.summary().items()},
            "versus": {
                reference: {name: _plain(metrics) for name, metrics in self.versus(reference).items()}
                for reference in self.results
            },
            "parts_usd": self.parts_usd(),
            "deployments": self.deployments(),
        }


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _plain(metrics: Mapping[str, Estimate]) -> dict[str, Any]:
    return {metric: figure.as_json() for metric, figure in metrics.items()}


def evaluate(
    scenario: Scenario,
    policies: Mapping[str, Policy | Rearranger],
    seeds: Sequence[int],
    split: Split = Split.VALIDATION,
    on_episode: Callable[[str, int], None] = lambda name, seed: None,
) -> Evaluation:
    """Runs every policy on every seed, in this process; every tick of the first seed is kept for the report.

    Args:
        scenario: What to simulate.
        policies: By name.
        seeds: One episode each.
        split: Which days the traffic is drawn from.
        on_episode: Called after each episode, for progress.
    """
    results: dict[str, list[EpisodeResult]] = {name: [] for name in policies}
    for i, seed in enumerate(seeds):
        for name, policy in policies.items():
            results[name].append(run_episode(scenario, policy, seed, split, is_recorded=i == 0))
            on_episode(name, seed)
    return Evaluation(
        scenario=scenario,
        split=split,
        seeds=tuple(seeds),
        results={name: tuple(episodes) for name, episodes in results.items()},
    )
