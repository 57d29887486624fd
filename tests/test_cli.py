"""What the user gives wrong gets one line and exit code 2; what is right gives what is documented."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rayfold.policies.by_name import shipped_bundle

SCENARIO = """\
description: one sentence
horizon_s: 600
node_types:
  - {name: n, resources: {GPU: 2, CPU: 8}, price_usd_per_h: 2.0}
deployments:
  - name: d
    shape: {bundles: [{GPU: 1, CPU: 1}]}
    requests: {ttft_s: 0.5, tpot_s: 0.0, output_tokens_per_request: 1, generator: {kind: steady, mean_rps: 2}}
"""


def rayfold(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a process of its own."""
    environment = {key: value for key, value in os.environ.items() if key != "RAYFOLD_TRACES"}
    return subprocess.run(
        [sys.executable, "-m", "rayfold", *arguments],
        cwd=cwd,
        env={**environment, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def check_refused(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    """One line on stderr that holds all parts, exit code 2, no traceback."""
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    for part in (*parts, "expected", "got"):
        assert part in lines[0]


EVALUATE = ("evaluate", "--policies", "none", "--seeds", "1", "--scenario")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ((*EVALUATE, "no_such"), ("no_such",)),
        ((*EVALUATE, "llm_api"), ("servegen_m-large_600s.csv.gz", "--synthetic", "--traces")),
        ((*EVALUATE, "smoke", "--split", "test"), ("--split",)),
        ((*EVALUATE, "smoke", "--policies", "worst_fit"), ("--policies", "worst_fit")),
        ((*EVALUATE, "smoke", "--policies", "learned", "--bundle", "nowhere"), ("nowhere",)),
        ((*EVALUATE, "smoke", "--horizon-h", "0.0001"), ("horizon_s",)),
        (("train", "--scenario", "smoke", "--resume", "--run-dir", "nowhere"), ("nowhere",)),
        (("train", "--scenario", "smoke", "--stop-minutes", "-1"), ("--stop-minutes",)),
        (("train", "--scenario", "smoke", "--tracker", "comet"), ("--tracker", "wandb or mlflow", "comet")),
        (("train", "--scenario", "smoke", "--tune", "2"), ("--stop-steps",)),
        (("train", "--scenario", "smoke", "--tune", "2", "--resume"), ("--tune", "--resume")),
        (("train", "--scenario", "smoke", "--tune", "2", "--address", "auto"), ("--tune", "--address")),
        (("train", "--scenario", "smoke", "--address", "here"), ("--address", "HOST:PORT", "here")),
        (("train", "--scenario", "smoke", "--address", "ray://127.0.0.1:1"), ("--address", "ray://127.0.0.1:1")),
        (("train-leader", "--out", "b", "--jobs", "2", "--address", "auto"), ("--jobs",)),
        (("train", "--scenario", "smoke", "--num-nodes", "many"), ("--num-nodes", "4-256", "many")),
        (("train", "--scenario", "smoke", "--num-nodes", "8-4"), ("--num-nodes", "8-4")),
        (("train", "--scenario", "smoke", "--horizon-h", "0"), ("--horizon-h",)),
        (("train", "--scenario", "smoke", "--warm-start", "worst_fit"), ("--warm-start", "worst_fit")),
        (("serve", "--address", "127.0.0.1:1", "--policy", "best_fit"), ("--address", "127.0.0.1:1")),
        (("serve", "--address", "here", "--policy", "best_fit"), ("--address", "here")),
        (("serve", "--address", "127.0.0.1:1", "--policy", "worst_fit"), ("--policy", "worst_fit")),
        (("serve", "--address", "127.0.0.1:1", "--settings", "nowhere.yaml"), ("nowhere.yaml",)),
        (("serve", "--address", "127.0.0.1:1", "--policy", "best_fit", "--mode", "nap"), ("--mode", "nap")),
        (("serve", "--address", "127.0.0.1:1", "--policy", ""), ("--policy",)),
        ((*EVALUATE, "smoke", "--policies", " , "), ("--policies",)),
        ((*EVALUATE, "smoke", "--json", "."), ("--json",)),
        ((*EVALUATE, "smoke", "--bundle", "nowhere"), ("--bundle", "learned")),
    ],
)
def test_bad_arguments(arguments: tuple[str, ...], parts: tuple[str, ...], tmp_path: Path) -> None:
    """Flag or file, expected, got."""
    check_refused(rayfold(*arguments, cwd=tmp_path), *parts)


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("price_usd_per_h: 2.0", "price_usd_per_h: -2.0", "price_usd_per_h"),
        ("price_usd_per_h: 2.0", "price_usd_per_h: .nan", "price_usd_per_h"),
        ("horizon_s: 600", "horizon: 600", "horizon"),
        ("{GPU: 1, CPU: 1}", "{GPU: 4, CPU: 1}", "deployments.0"),
        ("description: one sentence", "description: [", "my.yaml"),
    ],
)
def test_bad_scenario_file(old: str, new: str, part: str, tmp_path: Path) -> None:
    """File and field are named."""
    assert old in SCENARIO
    (tmp_path / "my.yaml").write_text(SCENARIO.replace(old, new))
    check_refused(rayfold(*EVALUATE, "my.yaml", cwd=tmp_path), "my.yaml", part)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ((*EVALUATE, "smoke", "--seeds", "0"), "--seeds"),
        ((*EVALUATE, "smoke", "--seeds", "many"), "--seeds"),
        ((*EVALUATE, "smoke", "--colour", "red"), "--colour"),
        (("serve", "--policy", "best_fit"), "--address"),
        (("deploy",), "deploy"),
    ],
)
def test_usage_errors(arguments: tuple[str, ...], part: str, tmp_path: Path) -> None:
    """A flag that does not exist, is missing or is no number: usage on stderr, exit code 2, nothing on stdout."""
    done = rayfold(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert part in done.stderr
    assert "Usage: " in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_bad_bundle_is_refused(tmp_path: Path) -> None:
    """A file missing, a header cut short, and weights cut short or of another content, each named."""
    evaluate = (*EVALUATE, "smoke", "--policies", "learned", "--bundle", "copy")
    shutil.copytree(shipped_bundle(), tmp_path / "whole")
    damages = {
        "weights.safetensors": (None, lambda whole: whole[:-100], lambda whole: whole[:-1] + bytes([whole[-1] ^ 1])),
        "bundle.json": (None, lambda whole: whole[: len(whole) // 2]),
    }
    for name, ways in damages.items():
        for way in ways:
            shutil.rmtree(tmp_path / "copy", ignore_errors=True)
            shutil.copytree(tmp_path / "whole", tmp_path / "copy")
            file = tmp_path / "copy" / name
            if way is None:
                file.unlink()
            else:
                file.write_bytes(way(file.read_bytes()))
            check_refused(rayfold(*evaluate, cwd=tmp_path), name)


def test_interrupt_ends_without_a_traceback(tmp_path: Path) -> None:
    """A real SIGINT in the middle of a verb: exit code 130, as a shell expects."""
    code = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has it ignored
import rayfold.envs.scenario as scenario
scenario.load_scenario = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGINT)
from rayfold.cli import main
sys.argv = ["rayfold", "scenarios"]
main()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr


def test_what_the_issue_asks_of_evaluate(tmp_path: Path) -> None:
    """Paired seeds, a horizon, JSON with what made it; the shipped bundle without ``--bundle``; its own picture."""
    arguments = (
        "evaluate", "--scenario", "smoke", "--policies", "none,best_fit,learned", "--seeds", "2", "--first-seed", "3",
        "--horizon-h", "0.5", "--json", "a.json", "--png", "pictures/b.png",
    )  # fmt: skip
    done = rayfold(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["command"] == "rayfold " + " ".join(arguments)
    assert (content["seeds"], content["horizon_s"], content["split"]) == ([3, 4], 1800.0, "validation")
    assert list(content["policies"]) == ["none", "best_fit", "learned"]
    total_usd = {name: metrics["total_usd"]["mean"] for name, metrics in content["policies"].items()}
    for name, paired in content["versus"]["none"].items():
        assert paired["total_usd"]["mean"] == pytest.approx((total_usd[name] - total_usd["none"]) / total_usd["none"])
    assert (tmp_path / "pictures" / "b.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "a.png").exists()


def test_own_scenario_file_and_json(tmp_path: Path) -> None:
    """A user's scenario is evaluated; JSON as documented, and a picture beside it."""
    (tmp_path / "my.yaml").write_text(SCENARIO)
    done = rayfold(
        "evaluate", "--scenario", "my.yaml", "--policies", "none,best_fit", "--seeds", "2", "--json", "out/my.json",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "best_fit" in done.stdout
    content = json.loads((tmp_path / "out" / "my.json").read_text())
    assert content["scenario"] == "my"
    assert set(content["policies"]) == {"none", "best_fit"}
    for metric in ("total_usd", "excess_frac", "moves", "undone_moves", "unserved_request_s", "node_hours"):
        assert set(content["policies"]["none"][metric]) == {"mean", "ci95"}
    assert content["policies"]["none"]["moves"]["mean"] == 0.0
    assert (tmp_path / "out" / "my.png").read_bytes().startswith(b"\x89PNG")


def test_version_and_scenarios() -> None:
    """The small verbs."""
    assert rayfold("--version").stdout.startswith("rayfold 0.")
    listing = rayfold("scenarios").stdout
    assert all(name in listing for name in ("llm_api", "low_scale", "smoke", "two_node", "local_demo"))


@pytest.mark.cluster
def test_train_then_evaluate(tmp_path: Path) -> None:
    """A short training writes a bundle that ``evaluate`` takes, and a truncated one is refused."""
    done = rayfold(
        "train", "--scenario", "smoke", "--stop-steps", "1000", "--batch-steps", "512", "--num-envs", "8",
        "--evaluation-episodes", "1", "--horizon-h", "0.75", "--run-dir", "run", "--bundle", "copy", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "train.json").read_text())["horizon_s"] == 2700.0
    assert list((tmp_path / "run").glob("events.out.tfevents.*"))
    for name in ("bundle.json", "weights.safetensors"):
        assert (tmp_path / "copy" / name).read_bytes() == (tmp_path / "run" / "bundle" / name).read_bytes()
    evaluate = (*EVALUATE, "smoke", "--policies", "none,learned", "--horizon-h", "0.5", "--bundle", "run/bundle")
    assert rayfold(*evaluate, cwd=tmp_path).returncode == 0
    weights = tmp_path / "run" / "bundle" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    check_refused(rayfold(*evaluate, cwd=tmp_path), "weights.safetensors")
