"""Evaluation: equal arrivals for all, intervals by hand, reports that hide nothing."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from rayfold.envs.episode import Episode, scenario_layout
from rayfold.envs.layout import NOOP
from rayfold.envs.moves import Plan
from rayfold.envs.safety import Limits
from rayfold.envs.scenario import Split, load_scenario
from rayfold.envs.state import ClusterState
from rayfold.policies.best_fit import BestFit
from rayfold.policies.none import NoMoves
from rayfold.training.evaluation import evaluate, interval95, run_episode
from rayfold.training.report import COLUMNS, table, write_json, write_png


def test_interval_by_hand() -> None:
    """1, 2, 3: mean 2, sd 1, t(0.975, 2) = 4.302653: half-width 4.302653 / sqrt(3). One value has none."""
    interval = interval95([1.0, 2.0, 3.0])
    assert interval.mean == 2.0
    assert interval.ci95 == pytest.approx(4.302653 / math.sqrt(3.0), rel=1e-6)
    assert math.isnan(interval95([5.0]).ci95)


class Recording(BestFit):
    """Best fit that writes down the load it sees; with ``acts`` False it only looks."""

    def __init__(self, limits: Limits, *, acts: bool) -> None:
        super().__init__(limits)
        self.acts = acts
        self.seen: list[list[float]] = []

    def plan(self, state: ClusterState, rng: np.random.Generator) -> Plan:
        """Best fit's plan, or none."""
        self.seen.append(state.arrays.deployment_ongoing.tolist())
        return super().plan(state, rng) if self.acts else Plan()


def test_equal_traffic_whatever_the_policy_does() -> None:
    """All policies meet the same load tick by tick, and the same seed gives the same figures but for the clock."""
    scenario = load_scenario("smoke")
    looks, acts = Recording(scenario.limits, acts=False), Recording(scenario.limits, acts=True)
    evaluation = evaluate(scenario, {"looks": looks, "best_fit": acts}, [3, 4])
    assert looks.seen == acts.seen
    assert looks.seen[0] != looks.seen[len(looks.seen) // 2]
    again = run_episode(scenario, BestFit(scenario.limits), 4, Split.VALIDATION)
    timed = {"decision_p50_ms", "decision_p99_ms"}
    first = evaluation.results["best_fit"][1].metrics
    assert {k: v for k, v in again.metrics.items() if k not in timed} == {
        k: v for k, v in first.items() if k not in timed
    }
    assert first["moves"] > 0


def test_evaluation_and_environment_agree() -> None:
    """A policy's plans carried out as environment actions end in the bill that ``run_episode`` reports."""
    scenario = load_scenario("smoke")
    policy = BestFit(scenario.limits)
    reported = run_episode(scenario, policy, 5, Split.VALIDATION).metrics
    episode_rng, policy_rng = np.random.default_rng(5).spawn(2)
    episode = Episode(scenario, scenario_layout(scenario), Split.VALIDATION, episode_rng)
    total, truncated = 0.0, False
    while not truncated:
        for move in policy.plan(episode.simulator.state(), policy_rng).moves:
            outcome = episode.act(*episode.to_action(move))
            assert outcome.moved
            total -= outcome.reward_usd
        outcome = episode.act(NOOP, 0)
        total -= outcome.reward_usd
        truncated = outcome.truncated
    assert total == pytest.approx(reported["cost_usd"])


def test_paired_difference_by_hand() -> None:
    """Cost against the baseline is taken seed by seed; the baseline's own is 0."""
    scenario = load_scenario("two_node")
    evaluation = evaluate(scenario, {"none": NoMoves(), "best_fit": BestFit(scenario.limits)}, range(8))
    cost = {n: np.array([e.metrics["cost_usd"] for e in episodes]) for n, episodes in evaluation.results.items()}
    by_hand = interval95((cost["best_fit"] - cost["none"]) / cost["none"].mean())
    paired = evaluation.paired("none")
    assert paired["best_fit"] == by_hand
    assert paired["none"].mean == paired["none"].ci95 == 0.0
    assert by_hand.mean + by_hand.ci95 < 0.0
    assert evaluation.to_json()["cost_against_frac"]["none"]["best_fit"]["mean"] == by_hand.mean


def test_report_shows_what_a_saving_costs(tmp_path: Path) -> None:
    """Table and JSON hold moves, undone moves and unserved demand beside the cost; one seed has no interval."""
    scenario = load_scenario("smoke").with_horizon(600.0)
    evaluation = evaluate(scenario, {"none": NoMoves(), "best_fit": BestFit(scenario.limits)}, [0])
    console = Console(width=200, record=True)
    console.print(table(evaluation))
    text = console.export_text()
    assert all(heading in text for _, heading, _, _ in COLUMNS)
    assert text.count("±") == 1  # in the title
    write_json(tmp_path / "a" / "out.json", evaluation.to_json())
    content = json.loads((tmp_path / "a" / "out.json").read_text())
    cost = content["policies"]["best_fit"]["cost_usd"]
    assert cost["ci95"] is None
    assert cost["mean"] == pytest.approx(evaluation.results["best_fit"][0].metrics["cost_usd"])
    assert {"moves", "undone_moves", "unserved_replica_h"} <= set(content["policies"]["none"])
    write_png(tmp_path / "out.png", evaluation)
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
