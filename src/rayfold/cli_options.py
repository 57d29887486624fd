"""What several verbs of the command line share: options, and what their values mean."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rayfold.errors import InputError

if TYPE_CHECKING:
    from rayfold.envs.scenario import Scenario

__all__ = ["SyntheticOption", "TracesOption", "names", "one_each", "shortened_scenarios", "traces_dir"]

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


def shortened_scenarios(
    chosen: Sequence[str], hours: Sequence[float], traces: Path | None, *, synthetic: bool
) -> "list[Scenario]":
    """Scenarios to train on, each no longer than its number of hours.

    Raises:
        InputError: One cannot be loaded, or a number of hours cannot be.
    """
    from rayfold.cli_checks import check_horizon
    from rayfold.envs.scenario import load_scenario

    loaded = []
    for name, hour in zip(chosen, hours, strict=True):
        check_horizon(hour)
        scenario = load_scenario(name, traces_dir(traces), synthetic=synthetic)
        loaded.append(scenario.with_horizon(min(scenario.horizon_s, hour * 3600.0)))
    return loaded
