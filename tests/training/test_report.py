"""What is written is written whole, says what made it, and shows no interval where there is none."""

import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from rayfold.envs.scenario import load_scenario
from rayfold.policies.none import NoMoves
from rayfold.policies.protocol import Policy
from rayfold.training.evaluation import Evaluation, evaluate
from rayfold.training.report import COLUMNS, table, write_atomically, write_json, write_png


def evaluated(num_seeds: int) -> Evaluation:
    """Doing nothing, under two names: a paired difference of exactly 0."""
    scenario = load_scenario("smoke", synthetic=True).with_horizon(600.0)
    policies: dict[str, Policy] = {"none": NoMoves(), "other": NoMoves()}
    return evaluate(scenario, policies, range(num_seeds))


def shown(evaluation: Evaluation) -> dict[str, list[str]]:
    """The table's cells by the heading of their row."""
    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115  # closed with the test
    with console.file:
        console.print(table(evaluation))
        lines = console.export_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    return {heading: cells for heading, *cells in rows}


def test_interrupted_write_keeps_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither half a file nor a temporary one is left."""
    path = tmp_path / "deep" / "a.json"
    write_atomically(path, b"old")

    def fail(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


def test_json_says_what_made_it(tmp_path: Path) -> None:
    """Content first, then command, commit and versions; content is not replaced by them."""
    write_json(tmp_path / "a.json", {"scenario": "smoke"})
    content = json.loads((tmp_path / "a.json").read_text())
    assert list(content) == ["scenario", "command", "git_commit", "versions"]
    assert content["command"]
    assert content["versions"]["gymnasium"] == "1.2.2"


def test_picture_is_a_whole_png(tmp_path: Path) -> None:
    """Signature and end chunk, also for one seed, whose interval is not a number."""
    write_png(tmp_path / "a.png", evaluated(1))
    content = (tmp_path / "a.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert content.endswith(b"IEND\xaeB`\x82")
    assert list(tmp_path.iterdir()) == [tmp_path / "a.png"]


def test_table_rows_and_intervals() -> None:
    """Every column's metric has its row; ± only from two seeds on; equal policies differ by nothing."""
    one, two = shown(evaluated(1)), shown(evaluated(2))
    assert {heading for _, heading, _, _ in COLUMNS} <= set(two)
    assert not any("±" in cell or "nan" in cell for cells in one.values() for cell in cells)
    assert all("±" in cell for cell in two["cost USD"])
    assert one["moves"] == ["0.0", "0.0"]
    assert two["cost against none, paired %"] == ["0.0 ± 0.0"] * 2
