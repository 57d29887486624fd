"""What several verbs of the command line share: options, and what their values mean."""

import os
import re
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["AddressOption", "PricesOption", "SyntheticOption", "TracesOption", "names", "traces_dir"]

TracesOption = Annotated[
    Path | None, typer.Option("--traces", help="Folder with the trace files; default $RAYFOLD_TRACES or ./traces.")
]
AddressOption = Annotated[
    str, typer.Option("--address", help="Ray cluster to run on: auto, HOST:PORT or ray://HOST:PORT.")
]
PricesOption = Annotated[
    float, typer.Option(help="Times as much disruption and unserved demand cost; F other than 1 is NAME_prices_xF.")
]
SyntheticOption = Annotated[bool, typer.Option("--synthetic", help="Generated traffic instead of the trace files.")]


def traces_dir(given: Path | None) -> Path:
    """The folder to look for trace files in."""
    return given or Path(os.environ.get("RAYFOLD_TRACES") or "traces")


def names(text: str) -> tuple[str, ...]:
    """A comma-separated list; commas in brackets belong to the name, as in ``patient(wait_s=60,spare_gpus=1)``."""
    return tuple(name.strip() for name in re.split(r",(?![^()]*\))", text) if name.strip())
