"""``rayfold train-timing``: what is wrong is told before anything is run; what it makes is a bundle."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from rayfold.cli import app
from rayfold.errors import InputError
from rayfold.policies.bundle import load_bundle


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--horizon-h", "x"], "--horizon-h"),
        (["--horizon-h", "1,2"], "--horizon-h"),
        (["--scenario", "no_such"], "no_such"),
        (["--bundle", "no_such"], "no_such"),
    ],
)
def test_mistakes_are_told_at_once(tmp_path: Path, arguments: list[str], told: str) -> None:
    """No bundle is written then, and no generation."""
    extra = [] if "--scenario" in arguments else ["--scenario", "smoke"]
    command = ["train-timing", "--synthetic", "--out", str(tmp_path / "b"), "--run-dir", str(tmp_path / "run")]
    result = CliRunner().invoke(app, [*command, *extra, *arguments])
    assert isinstance(result.exception, InputError)
    assert told in str(result.exception)
    assert not (tmp_path / "b").exists()
    assert not list((tmp_path / "run").glob("*.json"))


def test_it_writes_a_bundle_with_a_timing(tmp_path: Path) -> None:
    """And says what it is worth."""
    out = tmp_path / "b"
    command = ["train-timing", "--synthetic", "--scenario", "smoke", "--generations", "1", "--population", "4"]
    result = CliRunner().invoke(
        app, [*command, "--out", str(out), "--run-dir", str(tmp_path / "run")], env={"COLUMNS": "200"}
    )
    assert result.exit_code == 0, result.output
    made = load_bundle(out).timing
    assert made is not None
    assert (made.card.scenarios, made.card.generations, made.card.episodes) == (("smoke",), 1, 4)
    assert "mean" in result.output
