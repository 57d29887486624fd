"""The timing of a bundle: ``timing.json`` beside the network's own files: a rule, and its *card*."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from rayfold.errors import InputError
from rayfold.policies.timing import FEATURES, Timing
from rayfold.policies.weights import one_line, read_header

__all__ = ["TimingCard", "TrainedTiming", "read_timing", "write_timing"]

FORMAT_VERSION = 1
HEADER = "timing.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class TimingCard:
    """Where a timing comes from."""

    scenarios: tuple[str, ...]
    generations: int
    episodes: int  # of the training days, every candidate's counted
    seed: int
    command: str = ""
    created_utc: str = ""  # ISO 8601
    git_commit: str = ""  # empty = not a git checkout
    metrics: dict[str, float] = field(default_factory=dict)  # see ``training.timing_training``


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedTiming:
    """A rule and its card."""

    timing: Timing
    card: TimingCard


def write_timing(folder: Path, trained: TrainedTiming) -> None:
    """Writes the file into a folder that nobody reads yet."""
    header = {
        "format": FORMAT_VERSION,
        "features": list(FEATURES),
        "rule": dataclasses.asdict(trained.timing),
        "training": dataclasses.asdict(trained.card),
    }
    (folder / HEADER).write_text(json.dumps(header, indent=2) + "\n")


def read_timing(folder: Path) -> TrainedTiming | None:
    """The timing of a bundle; None where it has none.

    Raises:
        InputError: The file is no JSON, of another format or damaged, or its features are not those of this version.
    """
    path = folder / HEADER
    if not path.exists():
        return None
    header = read_header(path, "timing", FORMAT_VERSION)
    if header.get("features") != list(FEATURES):
        told = f"the {len(FEATURES)} features of this version (train the timing again)"
        raise InputError(f"{path}: features", told, "others")
    try:
        timing = TypeAdapter(Timing).validate_python(header["rule"])
        card = TypeAdapter(TimingCard).validate_python(header["training"])
    except (KeyError, ValidationError) as err:
        raise InputError(str(path), "rule and training", one_line(err)) from err
    if not all(map(math.isfinite, (timing.bias, *timing.weights))):
        raise InputError(f"{path}: rule", "finite numbers", "NaN or infinity")
    return TrainedTiming(timing=timing, card=card)
