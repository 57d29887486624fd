"""Trackers: services that a run's figures go to beside TensorBoard, through Ray's integrations.

Ray 2.60, ``ray.air.integrations``: ``setup_wandb`` and ``setup_mlflow`` for a run of its own, ``WandbLoggerCallback``
and ``MLflowLoggerCallback`` for the trials of Tune. Where and as whom is said by the services' own environment
variables (``WANDB_API_KEY``, ``WANDB_MODE``, ``MLFLOW_TRACKING_URI``, ``MLFLOW_TRACKING_TOKEN``): no flag has secrets.
"""

import contextlib
import enum
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rayfold.errors import InputError

__all__ = ["Log", "Tracker", "tracked", "trackers_of", "tune_callbacks"]

log = logging.getLogger(__name__)

Log = Callable[[Mapping[str, float], int], None]  # figures by name, and environment steps


class Tracker(enum.StrEnum):
    """Which services there are; the value is also the package's name."""

    WANDB = "wandb"
    MLFLOW = "mlflow"


def trackers_of(names: Sequence[str]) -> tuple[Tracker, ...]:
    """Trackers by name, each once.

    Raises:
        InputError: An unknown one, or its package is not installed.
    """
    for name in names:
        if name not in list(Tracker):
            raise InputError("--tracker", " or ".join(Tracker), name)
        if importlib.util.find_spec(name) is None:
            raise InputError(f"--tracker {name}", f"its package: pip install {name}", "no such package")
    return tuple(dict.fromkeys(Tracker(name) for name in names))


@contextlib.contextmanager
def tracked(
    trackers: Sequence[Tracker], project: str, folder: Path, settings: Mapping[str, Any]
) -> Iterator[Sequence[Log]]:
    """Opens a run at each tracker, and ends it.

    Args:
        trackers: Any number of them.
        project: Of W&B, or experiment of MLflow.
        folder: Of the run; its name is the run's, and W&B keeps its files in it.
        settings: Told with the run.

    Yields:
        One function per tracker that takes figures. One that fails is reported once and is asked no more: a run of
        hours does not end because a service has.

    Raises:
        InputError: A tracker cannot be reached at all, or knows nobody.
    """
    with contextlib.ExitStack() as stack:
        logs = []
        for tracker in trackers:
            try:
                write, end = _OPEN[tracker](project, folder, settings)
            except Exception as err:  # whatever the service's client raises
                raise InputError(f"--tracker {tracker}", "a service that takes the run", _first_line(err)) from err
            stack.callback(_quietly, tracker, end)
            logs.append(_once_failed_silent(tracker, write))
        yield logs


def tune_callbacks(trackers: Sequence[Tracker], project: str) -> list[Any]:
    """Ray's callbacks, for the trials of Tune."""
    from ray.air.integrations.mlflow import MLflowLoggerCallback
    from ray.air.integrations.wandb import WandbLoggerCallback

    made: dict[Tracker, Callable[[], Any]] = {
        Tracker.WANDB: partial(WandbLoggerCallback, project=project),
        Tracker.MLFLOW: partial(MLflowLoggerCallback, os.environ.get("MLFLOW_TRACKING_URI"), experiment_name=project),
    }
    return [made[tracker]() for tracker in trackers]


def _open_wandb(project: str, folder: Path, settings: Mapping[str, Any]) -> tuple[Log, Callable[[], None]]:
    from ray.air.integrations.wandb import setup_wandb

    run = setup_wandb(dict(settings), project=project, name=folder.name, dir=str(folder), rank_zero_only=False)
    return lambda figures, steps: run.log(dict(figures), step=steps), run.finish


def _open_mlflow(project: str, folder: Path, settings: Mapping[str, Any]) -> tuple[Log, Callable[[], None]]:
    from ray.air.integrations.mlflow import setup_mlflow

    mlflow: Any = setup_mlflow(
        dict(settings),
        tracking_uri=os.environ.get("MLFLOW_TRACKING_URI"),
        experiment_name=project,
        run_name=folder.name,
        create_experiment_if_not_exists=True,
        rank_zero_only=False,
    )
    return lambda figures, steps: mlflow.log_metrics(dict(figures), step=steps), mlflow.end_run


_OPEN = {Tracker.WANDB: _open_wandb, Tracker.MLFLOW: _open_mlflow}


def _once_failed_silent(tracker: Tracker, write: Log) -> Log:
    has_failed = False

    def take(figures: Mapping[str, float], steps: int) -> None:
        nonlocal has_failed
        if has_failed:
            return
        try:
            write(figures, steps)
        except Exception as err:
            has_failed = True
            log.warning("%s takes no more figures: %s", tracker, _first_line(err))

    return take


def _quietly(tracker: Tracker, end: Callable[[], None]) -> None:
    try:
        end()
    except Exception as err:
        log.warning("%s did not end its run: %s", tracker, _first_line(err))


def _first_line(err: Exception) -> str:
    return f"{type(err).__name__}: {err}".splitlines()[0]
