"""``rayfold train-leader``: what is wrong is told before anything is played; what it makes is a bundle."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from rayfold.cli import app
from rayfold.errors import InputError
from rayfold.policies.bundle import load_bundle
from rayfold.policies.by_name import shipped_bundle
from rayfold.training.leader_training import CANDIDATES


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--episodes", "x"], "--episodes"),
        (["--episodes", "1,2,3"], "--episodes"),
        (["--episodes", "0"], "--episodes"),
        (["--episodes", "4"], "at least 5"),
        (["--price-episodes", "-1"], "--price-episodes"),
        (["--price-episodes", "1,2"], "--price-episodes"),
        (["--horizon-h", "-1"], "--horizon-h"),
        (["--scenario", "no_such"], "no_such"),
        (["--bundle", "no_such"], "no_such"),
    ],
)
def test_mistakes_are_told_at_once(tmp_path: Path, arguments: list[str], told: str) -> None:
    """No bundle is written then, and no episode."""
    extra = [] if "--scenario" in arguments else ["--scenario", "smoke"]
    command = ["train-leader", "--synthetic", "--out", str(tmp_path / "b"), "--run-dir", str(tmp_path / "run")]
    result = CliRunner().invoke(app, [*command, *extra, *arguments])
    assert isinstance(result.exception, InputError)
    assert told in str(result.exception)
    assert not (tmp_path / "b").exists()
    assert not list((tmp_path / "run").glob("episodes/*"))


def test_a_folder_that_is_no_bundle_is_kept(tmp_path: Path) -> None:
    """It is refused before the episodes are made, not after."""
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    result = CliRunner().invoke(app, ["train-leader", "--synthetic", "--out", str(tmp_path / "notes")])
    assert isinstance(result.exception, InputError)
    assert [p.name for p in (tmp_path / "notes").iterdir()] == ["a.txt"]


def test_it_writes_a_bundle_with_a_leader(tmp_path: Path) -> None:
    """The network stays what it was."""
    out = tmp_path / "b"
    command = ["train-leader", "--synthetic", "--scenario", "smoke", "--episodes", "5", "--horizon-h", "1"]
    result = CliRunner().invoke(
        app, [*command, "--out", str(out), "--run-dir", str(tmp_path / "run")], env={"COLUMNS": "200"}
    )
    assert result.exit_code == 0, result.output
    made, shipped = load_bundle(out), load_bundle(shipped_bundle())
    assert made.leader is not None
    assert made.leader.card.scenarios == ("smoke",)
    assert made.leader.card.reference in CANDIDATES
    assert f"5 episodes; bill against {made.leader.card.reference}" in result.output
    assert all(made.net.state_dict()[name].equal(tensor) for name, tensor in shipped.net.state_dict().items())
