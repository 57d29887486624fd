"""A search with Ray Tune that is kept in a folder and goes on from there when it was interrupted.

The first settings tried are the given ones, so that the best is never worse on what was tried; the rest is drawn at
random.
"""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ray import tune
from ray.tune.search import BasicVariantGenerator

from rayfold.errors import InputError
from rayfold.training.report import write_atomically

__all__ = ["Tried", "search"]


class Tried(NamedTuple):
    """One trial that has ended."""

    settings: dict[str, Any]
    metrics: dict[str, Any]  # as it reported them last


def search(
    trial: Any,
    space: Mapping[str, Any],
    first: Mapping[str, Any],
    *,
    metric: str,
    num_samples: int,
    search_seed: int,
    jobs: int,
    folder: Path,
    what: Mapping[str, Any],
    callbacks: Sequence[tune.Callback] = (),
    on_trial: Callable[[], None] = lambda: None,
) -> list[Tried]:
    """Searches, or goes on with a search.

    Args:
        trial: Tune's trainable: settings to metrics, of which the least ``metric`` is the best.
        space: Tune's domain of each setting.
        first: Settings that are tried first.
        metric: What is minimised; a report in which it is NaN is one on the way.
        num_samples: Settings to try, the first ones among them.
        search_seed: Draws them.
        jobs: Trials at once.
        folder: Keeps the search; a note of ``what`` is kept beside it.
        what: Describes the search; a folder that holds another one is refused.
        callbacks: Tune's, beside the progress.
        on_trial: Called after each trial that this call has run.

    Returns:
        All trials, also those of earlier calls.

    Raises:
        InputError: The folder holds the search of something else.
        KeyboardInterrupt: It was interrupted; what is done is kept.
        RuntimeError: A trial failed.
    """
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # Tune's own tables beside ours
    folder = folder.resolve()
    _check_same(folder, what)
    if tune.Tuner.can_restore(str(folder)):
        tuner = tune.Tuner.restore(str(folder), trainable=trial, restart_errored=True)
    else:
        generator = BasicVariantGenerator(
            points_to_evaluate=[dict(first)], random_state=search_seed, max_concurrent=jobs
        )
        tuner = tune.Tuner(
            trial,
            param_space=dict(space),
            tune_config=tune.TuneConfig(
                metric=metric, mode="min", num_samples=num_samples, search_alg=generator, reuse_actors=True
            ),
            run_config=tune.RunConfig(
                name=folder.name,
                storage_path=str(folder.parent),
                verbose=0,
                callbacks=[_Progress(on_trial), *callbacks],
            ),
        )
    results = tuner.fit()
    if results.errors:
        raise RuntimeError(f"a trial of {folder.name} failed; see {folder}") from results.errors[0]
    done = [(r.metrics, r.config) for r in map(results.__getitem__, range(len(results)))]
    tried = [Tried(dict(config or {}), dict(m)) for m, config in done if m is not None and _is_known(m.get(metric))]
    if len(tried) < num_samples:
        raise KeyboardInterrupt  # Tune keeps what is done and returns
    return tried


def _is_known(value: Any) -> bool:
    return value is not None and not math.isnan(value)


class _Progress(tune.Callback):
    """Tells of every trial that ends."""

    def __init__(self, on_trial: Callable[[], None]) -> None:
        self._on_trial = on_trial

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._on_trial()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Progress, (_ignore,)  # a search that is restored has no display of the earlier one


def _ignore() -> None: ...


def _check_same(folder: Path, what: Mapping[str, Any]) -> None:
    """Notes what is searched; refuses to go on with a search of something else."""
    note, text = folder.parent / f"{folder.name}.json", json.dumps(what, indent=1, default=str, sort_keys=True)
    if note.is_file() and note.read_text() != text:
        raise InputError("--run-dir", "a new folder, or the same search to go on with", f"another search in {folder}")
    write_atomically(note, text.encode())
