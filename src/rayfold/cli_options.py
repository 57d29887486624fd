"""What several verbs of the command line share: options, and what their values mean."""

import os
import re
from pathlib import Path
from typing import Annotated

import typer

from rayfold.errors import InputError

__all__ = ["SyntheticOption", "TracesOption", "names", "one_each", "traces_dir"]

TracesOption = Annotated[
    Path | None, typer.Option("--traces", help="Folder with the trace files; default $RAYFOLD_TRACES or ./traces.")
]
SyntheticOption = Annotated[bool, typer.Option("--synthetic", help="Generated traffic instead of the trace files.")]


def traces_dir(given: Path | None) -> Path:
    """The folder to look for trace files in."""
    return given or Path(os.environ.get("RAYFOLD_TRACES") or "traces")


def names(text: str) -> tuple[str, ...]:
    """A comma-separated list; commas in brackets belong to the name, as in ``patient(wait_s=60,spare_gpus=1)``."""
    return tuple(name.strip() for name in re.split(r",(?![^()]*\))", text) if name.strip())


def one_each(flag: str, text: str, count: int) -> list[float]:
    """``count`` numbers of at least 1, or one number for all.

    Raises:
        InputError: Anything else.
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(flag, "numbers separated by commas", text) from None
    if len(values) not in (1, count) or not all(value >= 1.0 for value in values):
        raise InputError(flag, f"one number of at least 1, or {count}", text)
    return values * count if len(values) == 1 else values
