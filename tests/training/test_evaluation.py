"""Evaluation: equal arrivals for all, intervals by hand, reports that hide nothing."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from rayfold.envs.cluster import SchedulingStrategy
from rayfold.envs.episode import Episode, scenario_layout
from rayfold.envs.layout import NOOP
from rayfold.envs.moves import Move, Plan
from rayfold.envs.safety import Limits
from rayfold.envs.scenario import Scenario, Split, load_scenario
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase
from rayfold.envs.traffic import Traffic
from rayfold.errors import InputError
from rayfold.policies.best_fit import BestFit
from rayfold.policies.interval import interval95
from rayfold.policies.none import NoMoves
from rayfold.policies.protocol import Policy
from rayfold.training import episode_result
from rayfold.training.evaluation import METRICS, Evaluation, evaluate, run_episode
from rayfold.training.report import COLUMNS, table, write_json, write_png
from tests.training.made_up import made_up, result


@pytest.fixture
def toy() -> Evaluation:
    """Bills of two seeds, made up."""
    bills = {"none": (10.0, 14.0), "some": (8.0, 10.0), "free_repacking": (7.0, 9.0)}
    return made_up(
        {
            name: tuple(result(total_usd=usd, moves=0.0 if name == "none" else 2.0) for usd in pair)
            for name, pair in bills.items()
        }
    )


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
    timed = {"decision_ms_p50", "decision_ms_p99"}
    first = evaluation.results["best_fit"][1].metrics
    assert {k: v for k, v in again.metrics.items() if k not in timed} == {
        k: v for k, v in first.items() if k not in timed
    }
    assert first["moves"] > 0


def test_evaluation_and_environment_agree() -> None:
    """A policy's plans carried out as environment actions end in the bill that ``run_episode`` reports."""
    scenario = load_scenario("smoke")
    policy = BestFit(scenario.limits)
    reported = run_episode(scenario, policy, 4, Split.VALIDATION).metrics
    assert reported["moves"] == 3.0  # on seed 5 there would be nothing to compare
    episode_rng, policy_rng = np.random.default_rng(4).spawn(2)
    episode = Episode(scenario, scenario_layout(scenario), Split.VALIDATION, episode_rng)
    total, truncated = 0.0, False
    while not truncated:
        for move in policy.plan(episode.simulator.state(), policy_rng).moves:
            outcome = episode.act(*episode.to_action(move))
            assert outcome.num_moves
            total -= outcome.reward_usd
        outcome = episode.act(NOOP, 0)
        total -= outcome.reward_usd
        truncated = outcome.truncated
    assert total == pytest.approx(reported["total_usd"])


def test_paired_difference_by_hand() -> None:
    """Cost against the baseline is taken seed by seed; the baseline's own is 0."""
    scenario = load_scenario("two_node")
    evaluation = evaluate(scenario, {"none": NoMoves(), "best_fit": BestFit(scenario.limits)}, range(8))
    cost = {n: np.array([e.metrics["total_usd"] for e in episodes]) for n, episodes in evaluation.results.items()}
    by_hand = (cost["best_fit"].mean() - cost["none"].mean()) / cost["none"].mean()
    paired = evaluation.versus("none")
    assert paired["best_fit"]["total_usd"].mean == pytest.approx(by_hand)
    assert paired["none"]["total_usd"].ci95 == (0.0, 0.0)
    interval = paired["best_fit"]["total_usd"].ci95
    assert interval is not None
    assert interval[0] < by_hand < interval[1] < 0.0
    assert evaluation.to_json()["versus"]["none"]["best_fit"]["total_usd"]["mean"] == pytest.approx(by_hand)


def test_closed_frac_by_hand(toy: Evaluation) -> None:
    """Bills 12, 9 and 8 on average: 9 has closed 3 of 4; without free repacking it is not known."""
    closed = toy.summary()
    assert closed["some"]["closed_frac"].mean == pytest.approx(0.75)
    assert (closed["none"]["closed_frac"].mean, closed["free_repacking"]["closed_frac"].mean) == (0.0, 1.0)
    without = replace(toy, results={name: toy.results[name] for name in ("none", "some")})
    assert without.to_json()["policies"]["some"]["closed_frac"] == {"mean": None, "ci95": None}


def test_every_metric_is_always_there(toy: Evaluation) -> None:
    """The metrics of the report, in their order, of every policy and every difference; what is undefined is null."""
    content = toy.to_json()
    for figures in (content["policies"]["some"], content["versus"]["none"]["some"]):
        assert list(figures)[: len(METRICS)] == list(METRICS)
        assert all(set(figure) == {"mean", "ci95"} for figure in figures.values())
    assert content["versus"]["none"]["some"]["moves"] == {"mean": None, "ci95": None}  # none has no moves
    assert content["versus"]["some"]["none"]["moves"]["mean"] == -1.0
    json.dumps(content, allow_nan=False)


def test_unpaired_results_are_refused(toy: Evaluation) -> None:
    """A planted fault: one policy's episode of a seed was another one."""
    first, second = toy.results["some"]
    strayed = (first, replace(second, episode_digest="another"))
    with pytest.raises(InputError, match="results of seed 1: expected the same episode"):
        replace(toy, results={**toy.results, "some": strayed})


def test_another_placement_meets_the_same_episode() -> None:
    """Under another placement of Serve's a policy begins in the same state with the same traffic, and may differ."""
    scenario = load_scenario("low_scale").with_horizon(3600.0)
    spread, pack = (
        run_episode(scenario, NoMoves(), 1, Split.VALIDATION, scheduling=scheduling)
        for scheduling in SchedulingStrategy
    )
    assert spread.episode_digest == pack.episode_digest
    assert spread.metrics["offered_request_s"] == pack.metrics["offered_request_s"] > 0.0
    other = run_episode(scenario, NoMoves(), 2, Split.VALIDATION)
    assert other.episode_digest != pack.episode_digest


def test_deployments_add_up() -> None:
    """A second route: what is counted per deployment is what the ledger counts."""
    scenario = load_scenario("smoke")
    episode = run_episode(scenario, BestFit(scenario.limits), 3, Split.VALIDATION)
    for figure in ("unserved_request_s", "moves"):
        summed = sum(figures[figure] for figures in episode.deployments.values())
        assert summed == pytest.approx(episode.metrics[figure])
    assert episode.metrics["moves"] > 0.0


class MovesWhatLoads(NoMoves):
    """A planted fault: it asks to move replicas that are still loading."""

    asked = 0

    def plan(self, state: ClusterState, rng: np.random.Generator) -> Plan:
        """Every replica that starts, to every other node in turn."""
        st = state.arrays
        rows = np.flatnonzero(st.replica_phase == ReplicaPhase.STARTING)
        alive = np.flatnonzero(st.node_phase == NodePhase.ALIVE)
        moves = tuple(Move(int(r), int(n)) for r in rows for n in alive if n != st.replica_node[r])
        self.asked += len(moves)
        return Plan(moves=moves)


def test_moves_of_loading_replicas_are_refused_and_told_loudly() -> None:
    """Each is counted, none is made, and the table has a row that no other evaluation has."""
    scenario = load_scenario("smoke")
    policy = MovesWhatLoads()
    evaluation = evaluate(scenario, {"none": NoMoves(), "planted": policy}, [3])
    metrics = evaluation.results["planted"][0].metrics
    assert metrics["refused_moves"] == policy.asked > 0
    assert metrics["moves"] == 0.0
    console = Console(width=200, record=True)
    console.print(table(evaluation))
    assert "REFUSED MOVES" in console.export_text()
    console.print(table(evaluate(scenario, {"none": NoMoves()}, [3])))
    assert "REFUSED" not in console.export_text()


def test_report_shows_what_a_saving_costs(tmp_path: Path) -> None:
    """Table and JSON hold moves, undone moves and unserved demand beside the cost; one seed has no interval."""
    scenario = load_scenario("smoke").with_horizon(600.0)
    evaluation = evaluate(scenario, {"none": NoMoves(), "best_fit": BestFit(scenario.limits)}, [0])
    console = Console(width=200, record=True)
    console.print(table(evaluation))
    text = console.export_text()
    assert all(heading in text for _, heading, _, _ in COLUMNS)
    assert "…" not in text
    write_json(tmp_path / "a" / "out.json", evaluation.to_json())
    content = json.loads((tmp_path / "a" / "out.json").read_text())
    cost = content["policies"]["best_fit"]["total_usd"]
    assert cost["ci95"] is None
    assert cost["mean"] == pytest.approx(evaluation.results["best_fit"][0].metrics["total_usd"])
    assert {"moves", "undone_moves", "unserved_request_s"} <= set(content["policies"]["none"])
    write_png(tmp_path / "out.png", evaluation)
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("num_values", [2, 3, 8, 40])
def test_interval_is_scipys(num_values: int) -> None:
    """A second route: Student's t around the mean with the standard error, both ends."""
    values = np.random.default_rng(num_values).normal(100.0, 7.0, num_values)
    low, high = stats.t.interval(0.95, num_values - 1, loc=values.mean(), scale=stats.sem(values))
    interval = interval95(values)
    assert interval.mean - interval.ci95 == pytest.approx(low)
    assert interval.mean + interval.ci95 == pytest.approx(high)


def test_interval_holds_the_truth_in_95_percent_of_cases() -> None:
    """Of 4000 samples of five values: 3800 on average, and four standard errors are 55."""
    samples = np.random.default_rng(0).normal(3.0, 2.0, (4000, 5))
    held = sum(abs(interval.mean - 3.0) <= interval.ci95 for interval in map(interval95, samples))
    assert abs(held - 3800) < 55


class Watching(NoMoves):
    """Moves nothing, and writes down what it is asked with; draws numbers as a policy may."""

    def __init__(self) -> None:
        self.num_resets = 0
        self.num_nodes: list[int] = []
        self.num_booting = 0
        self.clocks_s: list[float] = []
        self.drawn: list[float] = []

    def reset(self) -> None:
        """Counted; keeps the notes."""
        self.num_resets += 1

    def plan(self, state: ClusterState, rng: np.random.Generator) -> Plan:
        """No moves."""
        present = state.arrays.node_phase != NodePhase.ABSENT
        self.num_nodes.append(int(present.sum()))
        self.num_booting += int((state.arrays.node_phase == NodePhase.BOOTING).sum())
        self.clocks_s.append(state.now_s)
        self.drawn.append(float(rng.random(7)[0]))
        return super().plan(state, rng)


def test_every_tick_of_the_horizon_is_decided_and_recorded() -> None:
    """60 ticks of 60 s, nodes that boot are paid for too, and the policy was reset before each of two episodes."""
    scenario, policy = load_scenario("smoke"), Watching()
    episodes = [run_episode(scenario, policy, seed, Split.VALIDATION) for seed in (5, 6)]
    assert [len(episode.time_h) for episode in episodes] == [60, 60]
    for i, episode in enumerate(episodes):
        seen = slice(60 * i, 60 * (i + 1))
        assert episode.num_nodes.tolist() == policy.num_nodes[seen]
        np.testing.assert_allclose(episode.time_h * 3600.0, policy.clocks_s[seen])
        np.testing.assert_allclose(np.diff(episode.time_h), 60.0 / 3600.0)
        assert episode.metrics["elapsed_s"] == 3600.0
    assert policy.num_booting > 0
    assert policy.num_resets == 2


def test_a_seed_is_an_episode() -> None:
    """Another seed is another episode and other draws of the policy; the same seed gives the same draws."""
    scenario, policies = load_scenario("smoke"), [Watching() for _ in range(3)]
    first, again, other = (
        run_episode(scenario, policy, seed, Split.VALIDATION) for policy, seed in zip(policies, (3, 3, 4), strict=True)
    )
    assert policies[0].drawn == policies[1].drawn != policies[2].drawn
    assert first.metrics["tokens"] == again.metrics["tokens"] != other.metrics["tokens"]


def test_what_a_policy_draws_changes_nothing_for_the_cluster() -> None:
    """One that draws and one that does not end in the same bill: the policy's stream is its own."""
    scenario = load_scenario("smoke")
    draws, does_not = (run_episode(scenario, p, 3, Split.VALIDATION).metrics for p in (Watching(), NoMoves()))
    timed = {"decision_ms_p50", "decision_ms_p99"}
    assert {k: v for k, v in draws.items() if k not in timed} == {k: v for k, v in does_not.items() if k not in timed}


class Stammering(BestFit):
    """Asks for every move twice: the second time it is under way already."""

    asked = 0

    def plan(self, state: ClusterState, rng: np.random.Generator) -> Plan:
        """Best fit's plan, then the same once more."""
        moves = super().plan(state, rng).moves
        self.asked += len(moves)
        return Plan(moves=moves + moves)


def test_refused_moves_are_counted_and_not_made() -> None:
    """The filter is asked about the cluster as the moves before have left it, not as the policy saw it."""
    scenario = load_scenario("smoke")
    policy = Stammering(scenario.limits)
    metrics = run_episode(scenario, policy, 3, Split.VALIDATION).metrics
    plain = run_episode(scenario, BestFit(scenario.limits), 3, Split.VALIDATION).metrics
    assert metrics["refused_moves"] == metrics["moves"] == policy.asked == plain["moves"] > 0
    assert plain["refused_moves"] == 0.0
    assert metrics["total_usd"] == plain["total_usd"]


def test_bill_at_other_prices_by_hand() -> None:
    """A quarter and four times the price of moves and unserved demand, the nodes' price unchanged."""
    scenario = load_scenario("smoke")
    metrics = run_episode(scenario, BestFit(scenario.limits), 3, Split.VALIDATION).metrics
    cost_usd, disruption_usd, unserved_usd = (metrics[f"{part}_usd"] for part in ("cost", "disruption", "unserved"))
    assert min(cost_usd, disruption_usd, unserved_usd) > 0.0
    assert metrics["total_usd"] == pytest.approx(cost_usd + disruption_usd + unserved_usd)
    assert metrics["total_usd_at_0.25x"] == pytest.approx(cost_usd + (disruption_usd + unserved_usd) / 4.0)
    assert metrics["total_usd_at_4x"] == pytest.approx(cost_usd + 4.0 * (disruption_usd + unserved_usd))


def test_latency_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """60 decisions of 1, 2, ..., 60 ms: the median is 30.5 ms, the 99th percentile 59.41 ms."""
    readings_s = itertools.chain.from_iterable((float(n), n + n / 1000.0) for n in range(1, 61))
    monkeypatch.setattr(episode_result, "time", SimpleNamespace(perf_counter=lambda: next(readings_s)))
    metrics = run_episode(load_scenario("smoke"), NoMoves(), 3, Split.VALIDATION).metrics
    assert metrics["decision_ms_p50"] == pytest.approx(30.5)
    assert metrics["decision_ms_p99"] == pytest.approx(59.41)


def test_split_and_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traffic is drawn from the split that was asked for; each finished episode is told, policies side by side."""
    asked: list[Split] = []
    sample = Scenario.sample

    def note(scenario: Scenario, rng: np.random.Generator, split: Split) -> Traffic:
        asked.append(split)
        return sample(scenario, rng, split)

    monkeypatch.setattr(Scenario, "sample", note)
    scenario, told = load_scenario("smoke").with_horizon(600.0), list[tuple[str, int]]()
    policies: dict[str, Policy] = {"none": NoMoves(), "best_fit": BestFit(scenario.limits)}
    for split in Split:
        evaluation = evaluate(scenario, policies, [7, 9], split, lambda name, seed: told.append((name, seed)))
        assert evaluation.to_json()["split"] == split.value
        assert evaluation.to_json()["seeds"] == [7, 9]
        assert asked == [split] * 4
        assert told == [("none", 7), ("best_fit", 7), ("none", 9), ("best_fit", 9)]
        asked.clear()
        told.clear()
