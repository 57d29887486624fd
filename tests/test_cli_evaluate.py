"""``evaluate`` on the command line: files, resumption, and what is refused."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rayfold.cli import app
from rayfold.errors import InputError
from rayfold.training.evaluation import METRICS

SMOKE = ("evaluate", "--scenario", "smoke", "--horizon-h", "0.25", "--seeds", "2")


def run(*arguments: str) -> str:
    """In this process; what it printed."""
    done = CliRunner().invoke(app, list(arguments), catch_exceptions=False, env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    return done.output


def test_json_page_picture_and_units(tmp_path: Path) -> None:
    """One command writes all of them; the same again runs nothing and writes the same figures."""
    out = tmp_path / "f.json"
    arguments = (*SMOKE, "--policies", "none,patient(wait_s=60),none@spread", "--json", str(out), "--html",
                 str(tmp_path / "d"), "--sweep", "1", "--audit", "--jobs", "1")  # fmt: skip
    run(*arguments)
    content = json.loads(out.read_text())
    assert list(content["policies"]) == ["none", "patient(wait_s=60)", "none@spread"]
    for figures in content["policies"].values():
        assert list(figures)[: len(METRICS)] == list(METRICS)
    assert list(content["versus"]) == list(content["policies"])
    assert (content["days"], content["seeds"]) == ("validation", [0, 1])
    assert len(content["published"]) == 4
    assert set(content["audit"]) == set(content["policies"])
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "d" / "index.html").read_text().startswith("<!doctype html>")
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "f.json.units").iterdir()}
    run(*arguments)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "f.json.units").iterdir()} == kept
    again = json.loads(out.read_text())
    assert {k: v for k, v in again.items() if k != "audit"} == {k: v for k, v in content.items() if k != "audit"}


def test_several_scenarios_have_files_of_their_own(tmp_path: Path) -> None:
    """``f.json`` becomes one file per scenario, each in the form of one."""
    run("evaluate", "--scenario", "smoke,two_node", "--horizon-h", "0.25", "--seeds", "1", "--policies", "none",
        "--json", str(tmp_path / "f.json"), "--html", str(tmp_path / "d"))  # fmt: skip
    for name in ("smoke", "two_node"):
        assert json.loads((tmp_path / f"f_{name}.json").read_text())["scenario"] == name
        assert (tmp_path / "d" / name / "index.html").is_file()
    assert not (tmp_path / "f.json").exists()


def test_tuned_settings_are_used_and_told(tmp_path: Path) -> None:
    """A file's settings go to the heuristic named without any, and to no other; they make another unit."""
    found = {
        "settings": {"wait_s": 120.0}, "total_usd": 1.0, "default_total_usd": 2.0, "num_samples": 1, "num_seeds": 1,
        "horizon_s": 900.0, "search_seed": 0, "command": "by hand", "git_commit": "", "date": "2026-01-01",
    }  # fmt: skip
    tuned = tmp_path / "tuned.yaml"
    tuned.write_text(json.dumps({"scenario": "smoke", "traffic": "generated", "policies": {"patient": found}}))
    arguments = ("evaluate", "--scenario", "smoke", "--horizon-h", "0.25", "--seeds", "1", "--policies", "patient,none",
                 "--json", str(tmp_path / "f.json"))  # fmt: skip
    for source, told, num_units in (("none", {}, 2), (str(tuned), {"patient": {"wait_s": 120.0}}, 3)):
        run(*arguments, "--tuned", source)
        assert json.loads((tmp_path / "f.json").read_text())["tuned"] == told
        assert len(list((tmp_path / "f.json.units").iterdir())) == num_units


@pytest.mark.parametrize(("prices", "quiet_s"), [("1", 73.75), ("4", 1313.0)])
def test_what_was_not_tuned_for_a_price_has_the_settings_of_the_scenarios_own(
    tmp_path: Path, prices: str, quiet_s: float
) -> None:
    """The planner ships tuned for both prices of ``slow_start``, ``patient`` for its own alone."""
    run("evaluate", "--scenario", "slow_start", "--synthetic", "--horizon-h", "0.1", "--seeds", "1",
        "--policies", "exact,patient", "--prices", prices, "--json", str(tmp_path / "f.json"))  # fmt: skip
    told = json.loads((tmp_path / "f.json").read_text())["tuned"]
    assert (told["exact"]["quiet_s"], told["patient"]["wait_s"]) == (quiet_s, 1108.0)


def test_prices_change_what_is_asked_for_and_nothing_else(tmp_path: Path) -> None:
    """A rule that looks at no price does the same for four times the money, in a scenario of another name."""
    arguments = (*SMOKE, "--policies", "none,best_fit", "--json", str(tmp_path / "f.json"))
    contents = []
    for prices in ("1", "4"):
        run(*arguments, "--prices", prices)
        contents.append(json.loads((tmp_path / "f.json").read_text()))
    plain, dear = contents
    assert (plain["scenario"], dear["scenario"]) == ("smoke", "smoke_prices_x4")
    for name, metrics in plain["policies"].items():
        for metric, factor in (("cost_usd", 1.0), ("moves", 1.0), ("disruption_usd", 4.0), ("unserved_usd", 4.0)):
            assert dear["policies"][name][metric]["mean"] == pytest.approx(factor * metrics[metric]["mean"])
    assert plain["policies"]["best_fit"]["disruption_usd"]["mean"] > 0.0
    assert plain["policies"]["none"]["unserved_usd"]["mean"] > 0.0


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (("--days", "7-9"), "--days"),
        (("--prices", "-1"), "--prices"),
        (("--prices", "nan"), "--prices"),
        (("--jobs", "2", "--address", "auto"), "--jobs"),
        (("--policies", "patient(wait_s=never)"), "--policies patient"),
        (("--policies", "none@somewhere"), "--policies"),
        (("--html", os.devnull), "--html"),
        (("--scenario", ","), "--scenario"),
        (("--tuned", "nowhere.yaml"), "nowhere.yaml"),
    ],
)
def test_what_is_refused(arguments: tuple[str, ...], where: str) -> None:
    """Before any work."""
    with pytest.raises(InputError, match=where):
        run(*SMOKE, "--policies", "none", *arguments)


def test_interrupt_keeps_what_is_done(tmp_path: Path) -> None:
    """A real SIGINT after the first episode: exit code 130, one unit kept, and the way to go on is said."""
    code = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has it ignored
from rayfold.training import units
run = units._run
def interrupted(shared, unit):
    if unit.seed == 1:
        os.kill(os.getpid(), signal.SIGINT)
    return run(shared, unit)
units._run = interrupted
from rayfold.cli import main
sys.argv = ["rayfold", *sys.argv[1:]]
main()
"""
    arguments = (*SMOKE, "--policies", "none", "--json", "f.json")
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 128 + signal.SIGINT, done.stderr
    assert "1 of 2 episodes kept in" in " ".join(done.stdout.split())
    assert "Traceback" not in done.stderr
    assert len(list((tmp_path / "f.json.units").iterdir())) == 1
