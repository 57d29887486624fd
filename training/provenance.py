"""Where a result comes from: command, package versions, and the commit of the source tree."""

import importlib.metadata
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["PACKAGES", "command_line", "git_commit", "package_versions", "portable_command"]

PACKAGES = ("rayfold", "ray", "torch", "numpy", "gymnasium")


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide a result."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def command_line(argv: Sequence[str] | None = None) -> str:
    """The command as one would type it again.

    Args:
        argv: Program and arguments; this process's if None.
    """
    program, *arguments = sys.argv if argv is None else argv
    name = "rayfold" if Path(program).name in ("rayfold", "__main__.py") else Path(program).name
    return shlex.join([name, *arguments])


def portable_command(argv: Sequence[str] | None = None) -> str:
    """``command_line`` with the last names of paths only: what goes to others says nothing of this machine."""
    program, *arguments = sys.argv if argv is None else argv
    return command_line([program, *(re.sub("[^=,]*/", "", argument) for argument in arguments)])


def git_commit(source: Path = Path(__file__)) -> str:
    """Commit of the checkout that a source file belongs to, with ``-dirty`` if tracked files differ from it.

    Args:
        source: The file. One that git does not track (an installed wheel, even inside somebody's checkout) has none.

    Returns:
        Full hash, empty if there is none or no git.
    """
    source = source.resolve()
    tracked = _git(source.parent, "ls-files", "--error-unmatch", source.name)
    described = _git(source.parent, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    return described if tracked else ""


def _git(folder: Path, *arguments: str) -> str:
    """Output of a git command, empty on any error."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=30.0, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
