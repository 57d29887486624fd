"""Checkpoints of a run: ``checkpoints/<steps>/``, written whole or not at all; the last two are kept."""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rayfold.errors import InputError
from rayfold.training.averaging import WeightAverage

__all__ = ["RunPosition", "has_checkpoint", "newest_checkpoint", "restore_newest", "save_checkpoint"]

FOLDER, POSITION, AVERAGE = "checkpoints", "position.json", "average.safetensors"
NUM_KEPT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPosition:
    """How far a run has come."""

    steps: int = 0  # environment steps of PPO
    minutes: float = 0.0  # wall time of all calls
    iterations: int = 0


def save_checkpoint(algorithm: Any, run_dir: Path, position: RunPosition, average: WeightAverage) -> Path:
    """Saves an RLlib algorithm.

    Args:
        algorithm: The ``Algorithm``.
        run_dir: The run's folder.
        position: Saved beside it.
        average: Too.
    """
    folder = run_dir.resolve() / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    final, scratch = folder / f"{position.steps:012d}", folder / ".partial"
    shutil.rmtree(scratch, ignore_errors=True)
    algorithm.save_to_path(str(scratch / "algorithm"))
    average.save(scratch / AVERAGE)
    (scratch / POSITION).write_text(json.dumps(asdict(position)) + "\n")
    if final.exists():
        shutil.rmtree(final)
    scratch.rename(final)
    for old in _complete(folder)[:-NUM_KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def has_checkpoint(run_dir: Path) -> bool:
    """Whether a run has come far enough to be gone on with."""
    return bool(_complete(run_dir.resolve() / FOLDER))


def newest_checkpoint(run_dir: Path) -> Path:
    """Folder of the newest checkpoint.

    Raises:
        InputError: There is none.
    """
    found = _complete(run_dir.resolve() / FOLDER)
    if not found:
        raise InputError(str(run_dir / FOLDER), "a checkpoint to resume from", "none")
    return found[-1]


def restore_newest(algorithm: Any, run_dir: Path, average: WeightAverage) -> RunPosition:
    """Loads the newest checkpoint into a freshly built algorithm, and its average.

    Raises:
        InputError: There is none, or it is broken.
    """
    path = newest_checkpoint(run_dir)
    try:
        position = RunPosition(**json.loads((path / POSITION).read_text()))
        algorithm.restore_from_path(str(path / "algorithm"))
        average.load(path / AVERAGE, position.iterations)
    except Exception as err:  # RLlib raises whatever its pickles and files raise
        raise InputError(str(path), "a complete checkpoint", f"{type(err).__name__}: {err}".split("\n")[0]) from err
    return position


def _complete(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob(f"[0-9]*/{POSITION}"))
