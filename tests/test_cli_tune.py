"""``rayfold tune``: what is wrong is told before a search begins."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from rayfold.cli import app
from rayfold.errors import InputError


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--policies", "none"], "heuristics with settings"),
        (["--policies", ""], "heuristics with settings"),
        (["--policies", "patient,learned"], "learned"),
        (["--policies", "patient", "--horizon-h", "-1"], "--horizon-h"),
        (["--policies", "patient", "--prices", "2000"], "--prices"),
        (["--policies", "patient", "--scenario", "no_such"], "no_such"),
    ],
)
def test_mistakes_are_told_at_once(tmp_path: Path, arguments: list[str], told: str) -> None:
    """Nothing is written then."""
    out = tmp_path / "out.yaml"
    extra = [] if "--scenario" in arguments else ["--scenario", "smoke"]
    result = CliRunner().invoke(
        app, ["tune", "--synthetic", "--out", str(out), "--run-dir", str(tmp_path / "run"), *extra, *arguments]
    )
    assert isinstance(result.exception, InputError)
    assert told in str(result.exception)
    assert not out.exists()
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_something_else_is_kept(tmp_path: Path) -> None:
    """It is refused before the search, not after."""
    out = tmp_path / "notes.yaml"
    out.write_text("- my notes\n")
    arguments = ["tune", "--synthetic", "--scenario", "smoke", "--policies", "patient", "--out", str(out)]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, InputError)
    assert out.read_text() == "- my notes\n"
