"""A result says which command and which code made it."""

import os
import subprocess
from pathlib import Path

import pytest

from rayfold.training import provenance
from rayfold.training.provenance import PACKAGES, command_line, git_commit, package_versions, portable_command


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A git repository with one commit that holds ``a.py``."""
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    (tmp_path / "a.py").write_text("1\n")
    for arguments in (["init", "-q"], ["add", "a.py"], [*identity, "commit", "-q", "-m", "a"]):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True, env={"PATH": os.environ["PATH"]})
    return tmp_path


def test_commit_of_a_clean_and_of_a_changed_tree(checkout: Path) -> None:
    """Equal to ``rev-parse HEAD``; a changed tracked file shows."""
    head = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert len(head) == 40
    assert git_commit(checkout / "a.py") == head
    (checkout / "a.py").write_text("2\n")
    assert git_commit(checkout / "a.py") == f"{head}-dirty"


def test_untracked_file_has_no_commit(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A wheel installed inside somebody's repository must not take that repository's commit for its own."""
    installed = checkout / ".venv" / "site-packages" / "b.py"
    installed.parent.mkdir(parents=True)
    installed.write_text("")
    assert git_commit(installed) == ""
    outside = tmp_path_factory.mktemp("outside") / "c.py"
    outside.write_text("")
    assert git_commit(outside) == ""


def test_no_git(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without git installed there is no commit, and no error."""
    monkeypatch.setenv("PATH", str(checkout / "nowhere"))
    assert git_commit(checkout / "a.py") == ""


def test_command_line_can_be_typed_again() -> None:
    """The console script and ``python -m rayfold`` read alike; spaces are quoted."""
    for program in ("/x/bin/rayfold", "/x/rayfold/__main__.py"):
        assert command_line([program, "evaluate", "--scenario", "my file.yaml"]) == (
            "rayfold evaluate --scenario 'my file.yaml'"
        )
    assert command_line(["/x/bin/pytest", "-q"]) == "pytest -q"


def test_a_portable_command_tells_no_folder() -> None:
    """Of paths the last name, in lists and behind ``=`` too; settings and numbers stay."""
    arguments = ["--scenario", "/home/me/a.yaml,b/c.yaml", "--run-dir=/tmp/x/run", "--warm-start", "exact(quiet_s=75)"]
    assert portable_command(["/x/bin/rayfold", "train", *arguments, "--lr", "0.0001", "--bundle", "/my files/b"]) == (
        "rayfold train --scenario a.yaml,c.yaml --run-dir=run --warm-start 'exact(quiet_s=75)' --lr 0.0001 --bundle b"
    )


def test_versions() -> None:
    """Every package that decides a result is named, as installed."""
    versions = package_versions()
    assert set(versions) == set(PACKAGES) == set(provenance.PACKAGES)
    assert versions["torch"].startswith("2.13.0")
    assert versions["ray"].startswith("2.60.")
