"""A wrong flag is refused before the work starts, and what is right passes without a trace."""

from pathlib import Path

import pytest

from rayfold import cli_checks
from rayfold.cli_checks import (
    MAX_HORIZON_H,
    check_bundle_flag,
    check_bundle_target,
    check_horizon,
    check_output,
)
from rayfold.errors import InputError


def test_output_that_can_be_written_passes_and_leaves_nothing(tmp_path: Path) -> None:
    """The folder is made, the file is not, and an older file keeps its content."""
    check_output("--json", None)
    check_output("--json", tmp_path / "new" / "deep" / "a.json")
    assert list((tmp_path / "new" / "deep").iterdir()) == []
    (tmp_path / "old.json").write_text("kept")
    check_output("--json", tmp_path / "old.json")
    assert (tmp_path / "old.json").read_text() == "kept"


def test_output_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """A folder, a file in the place of a folder, and a file system that takes no files (root may write elsewhere)."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "a.json", Path("/proc/rayfold/a.json"), Path("/proc/a.json")):
        with pytest.raises(InputError, match="--png"):
            check_output("--png", path)


def test_learned_without_a_bundle_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only where none is shipped and none is given."""
    monkeypatch.setattr(cli_checks, "shipped_bundle", lambda: tmp_path / "absent")
    with pytest.raises(InputError, match="rayfold train"):
        check_bundle_flag(["none", "learned"], None)
    check_bundle_flag(["none", "learned"], tmp_path)
    check_bundle_flag(["none", "best_of_plans(num_plans=2)"], tmp_path)
    check_bundle_flag(["none"], None)
    monkeypatch.setattr(cli_checks, "shipped_bundle", lambda: tmp_path)
    check_bundle_flag(["none", "learned"], None)


def test_bundle_that_no_policy_uses_is_refused(tmp_path: Path) -> None:
    """A flag is never ignored in silence."""
    with pytest.raises(InputError, match="--bundle"):
        check_bundle_flag(["none", "best_fit"], tmp_path)


def test_bundle_target(tmp_path: Path) -> None:
    """Nothing and an older bundle may be replaced, anything else not."""
    check_bundle_target(None)
    check_bundle_target(tmp_path / "fresh")
    assert not (tmp_path / "fresh").exists()
    old = tmp_path / "old"
    old.mkdir()
    with pytest.raises(InputError, match="another file or folder"):
        check_bundle_target(old)
    (old / "bundle.json").write_text("{}")
    check_bundle_target(old)


@pytest.mark.parametrize("hours", [0.0, -1.0, float("nan"), float("inf"), MAX_HORIZON_H + 1.0])
def test_horizon_out_of_range(hours: float) -> None:
    """NaN and infinity too."""
    with pytest.raises(InputError, match="--horizon-h"):
        check_horizon(hours)


@pytest.mark.parametrize("hours", [None, 0.1, MAX_HORIZON_H])
def test_horizon_in_range(hours: float | None) -> None:
    """The limits themselves included."""
    check_horizon(hours)
