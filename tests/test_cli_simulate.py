"""``simulate`` and ``snapshot``: bills as the twin gives them, and one line for what the user gives wrong."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rayfold.cli import main
from rayfold.envs.futures import fit_traffic, sample_futures
from rayfold.envs.initial_state import initial_state
from rayfold.envs.scenario import Split, load_scenario
from rayfold.envs.state import ClusterState
from rayfold.policies.best_fit import BestFit
from rayfold.policies.none import NoMoves
from rayfold.policies.protocol import Policy
from rayfold.policies.twin import compare
from tests.test_cli import check_refused, rayfold

SIMULATE = ("simulate", "--from-state", "state.npz", "--scenario", "smoke", "--futures", "3", "--hours", "0.25")


Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line in this process, which has everything imported, from within the test's folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("RAYFOLD_TRACES", raising=False)

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        monkeypatch.setattr(sys, "argv", ["rayfold", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, int(ended.value.code or 0), out, err)

    return run


def smoke_state() -> ClusterState:
    """A cluster that serves the first moment of an episode of ``smoke``."""
    scenario = load_scenario("smoke")
    traffic_rng, placement_rng = np.random.default_rng(0).spawn(2)
    return initial_state(scenario.spec, scenario.sample(traffic_rng, Split.VALIDATION), placement_rng)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Holds ``state.npz``."""
    smoke_state().save(tmp_path / "state.npz")
    return tmp_path


def test_bill_and_difference_are_the_twins(folder: Path) -> None:
    """Table and JSON hold, for each policy, what ``compare`` says for the same seed, with an interval."""
    done = rayfold(*SIMULATE, "--policy", "none,best_fit", "--seed", "5", "--json", "out/o.json", cwd=folder)
    assert done.returncode == 0, done.stderr
    scenario, state = load_scenario("smoke"), smoke_state()
    traffic_rng, simulator_rng = np.random.default_rng(5).spawn(2)
    futures = sample_futures(fit_traffic(scenario, state.spec), state, horizon_s=900.0, num_futures=3, rng=traffic_rng)
    policies: dict[str, Policy] = {"none": NoMoves(), "best_fit": BestFit(scenario.limits)}
    expected = compare(state, policies, futures, scenario.limits, simulator_rng)
    content = json.loads((folder / "out" / "o.json").read_text())
    for name, result in expected.items():
        assert content["policies"][name]["total_usd"] == result.total_usd.as_json()
        assert content["total_usd_by_future"][name] == [ledger.total_usd for ledger in result.ledgers]
        assert f"{result.total_usd.mean:,.2f} ± {result.total_usd.ci95:,.2f}" in done.stdout
    above = expected["best_fit"].cost_above(expected["none"])
    assert content["cost_above_usd"]["none"]["best_fit"] == above.as_json()
    assert "cost above none, USD" in done.stdout
    assert content["horizon_s"] == 900.0
    assert {"command", "git_commit", "versions", "seed", "state_digest"} <= set(content)


def test_one_policy_and_one_future_have_no_interval(folder: Path, run: Run) -> None:
    """No difference row, no ±, null in the JSON; hours are rounded to whole ticks."""
    done = run(*SIMULATE, "--futures", "1", "--hours", "0.26", "--time-of-day", "9:30", "--json", "o.json")
    assert done.returncode == 0, done.stderr
    assert "cost above" not in done.stdout
    assert done.stdout.count("±") == 1  # in the title
    content = json.loads((folder / "o.json").read_text())
    assert content["policies"]["none"]["total_usd"]["ci95"] is None
    assert content["horizon_s"] == 960.0


def test_time_of_day_matters(tmp_path: Path, run: Run) -> None:
    """A deployment that sleeps at night and works by day costs more from 09:00 on than from 21:00 on."""
    rates = [3600 * (90 if 9 <= t % 24 < 21 else 1) for t in range(96)]
    rows = "\n".join(f"{t * 3600},s,{count},," for t, count in enumerate(rates))
    (tmp_path / "x_3600s.csv").write_text(f"t_s,series_id,requests,input_tokens,output_tokens\n{rows}\n")
    (tmp_path / "one.yaml").write_text(
        "description: one\n"
        "horizon_s: 3600\n"
        "traffic: {traces: [x_3600s.csv], train_days: [0, 3], validation_days: [3, 4]}\n"
        "node_types: [{name: n, resources: {GPU: 2, CPU: 8}, price_usd_per_h: 2.0, boot_s: [10, 10]}]\n"
        "deployments:\n"
        "  - name: d\n"
        "    shape: {bundles: [{GPU: 1, CPU: 1}]}\n"
        "    startup_s: [5, 5]\n"
        "    autoscaling: {min_replicas: 1, max_replicas: 6, target_ongoing_requests: 10}\n"
        "    max_ongoing_requests: 20\n"
        "    requests: {ttft_s: 0.5, tpot_s: 0.0, output_tokens_per_request: 1, series: s}\n"
    )
    scenario = load_scenario(tmp_path / "one.yaml")
    state = initial_state(
        scenario.spec, scenario.sample(np.random.default_rng(0), Split.TRAIN), np.random.default_rng(0)
    )
    slow = np.array([0.5])  # one request a second: it is night
    replace(state, arrays=state.arrays._replace(deployment_ongoing_slow=slow)).save(tmp_path / "state.npz")
    bills = []
    for clock in ("09:00", "21:00"):
        done = run(
            "simulate", "--from-state", "state.npz", "--scenario", "one.yaml", "--futures", "2", "--hours", "2",
            "--time-of-day", clock, "--json", "o.json",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        bills.append(json.loads((tmp_path / "o.json").read_text())["policies"]["none"]["total_usd"]["mean"])
    assert bills[0] > 1.3 * bills[1]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--from-state", "nowhere.npz"), ("nowhere.npz", "no such file")),
        (("--from-state", "text.npz"), ("text.npz", "a saved ClusterState")),
        (("--from-state", "half.npz"), ("half.npz", "a saved ClusterState")),
        (("--from-state", "wild.npz"), ("wild.npz: replica_node[0]", "10000")),
        (("--from-state", "."), (".: expected a saved ClusterState",)),
        (("--scenario", "no_such"), ("no_such",)),
        (("--scenario", "two_node"), ("two_node", "default/chat", "default/wide")),
        (("--policy", "worst_fit"), ("--policy", "worst_fit")),
        (("--policy", " , "), ("--policy", "at least one policy")),
        (("--hours", "0"), ("--hours",)),
        (("--hours", "nan"), ("--hours",)),
        (("--hours", "9999"), ("--hours", "744")),
        (("--time-of-day", "25:00"), ("--time-of-day", "HH:MM")),
        (("--json", "."), ("--json", "a folder")),
    ],
)
def test_bad_arguments(arguments: tuple[str, str], parts: tuple[str, ...], folder: Path, run: Run) -> None:
    """Flag or file, expected, got; exit code 2."""
    whole, state = (folder / "state.npz").read_bytes(), smoke_state()
    (folder / "half.npz").write_bytes(whole[: len(whole) // 2])
    (folder / "text.npz").write_text("not a state")
    wild = state.arrays.replica_node.copy()
    wild[0] = 10_000
    replace(state, arrays=state.arrays._replace(replica_node=wild)).save(folder / "wild.npz")
    check_refused(run(*SIMULATE, *arguments), *parts)
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--address", "here", "--out", "s.npz"), ("--address", "here")),
        (("--address", "127.0.0.1:1", "--out", "s.npz"), ("--address", "127.0.0.1:1")),
        (("--address", "127.0.0.1:1", "--out", "."), ("--out", "a folder")),
        (("--address", "127.0.0.1:1", "--out", "s.npz", "--settings", "nowhere.yaml"), ("nowhere.yaml",)),
    ],
)
def test_snapshot_refuses_in_one_line(
    arguments: tuple[str, ...], parts: tuple[str, ...], tmp_path: Path, run: Run
) -> None:
    """And leaves no file behind."""
    check_refused(run("snapshot", *arguments), *parts)
    assert list(tmp_path.iterdir()) == []
