"""Training of the switch: labels episode by episode, kept in a folder, then the fit.

What is labelled already is not labelled again: a file's name is the digest of all that its content depends on.
"""

import datetime
import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rayfold.envs.scenario import Scenario
from rayfold.errors import InputError
from rayfold.policies.bundle import PolicyBundle
from rayfold.policies.network import CompactionNet
from rayfold.policies.portfolio import MEMBERS
from rayfold.policies.switch_features import FEATURES
from rayfold.policies.switch_file import Switch, SwitchCard
from rayfold.policies.switch_net import SwitchConfig
from rayfold.policies.weights import packed
from rayfold.training.provenance import command_line, git_commit
from rayfold.training.report import write_atomically
from rayfold.training.switch_fit import FOLDS, fit_switch
from rayfold.training.switch_labels import Labels, join_labels, label_episode
from rayfold.training.unit_store import code_digest, scenario_digest
from rayfold.training.workers import HERE, Workers, run_all

__all__ = ["Lesson", "train_switch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """Episodes of one scenario."""

    scenario: Scenario  # with the horizon to use
    seeds: tuple[int, ...]


class _Unit(NamedTuple):
    scenario: Scenario
    seed: int


def train_switch(
    lessons: Sequence[Lesson],
    bundle: PolicyBundle,
    config: SwitchConfig,
    run_dir: Path,
    *,
    seed: int,
    workers: Workers = HERE,
    on_episode: Callable[[str, int], None] = lambda name, seed: None,
) -> Switch:
    """Labels what is not labelled yet, and fits.

    Args:
        lessons: What to learn from, on the training days.
        bundle: Whose network is in the portfolio.
        config: Of the switch.
        run_dir: Its folder ``labels`` holds what is done.
        seed: Of the fit.
        workers: Where episodes are labelled.
        on_episode: Called with scenario and seed after each episode, those found in the folder too.

    Raises:
        InputError: Too few episodes for what is held out, or one without a choice.
    """
    _check(lessons, config)
    net_digest = hashlib.sha256(packed(bundle.net)).hexdigest()
    # Scenario by scenario in turns, so that an interrupted run has learned of all of them.
    units = [
        _Unit(lesson.scenario, lesson.seeds[i])
        for i in range(max(len(lesson.seeds) for lesson in lessons))
        for lesson in lessons
        if i < len(lesson.seeds)
    ]
    digests = {id(lesson.scenario): scenario_digest(lesson.scenario) for lesson in lessons}
    files = [run_dir / "labels" / f"{_key(digests[id(u.scenario)], net_digest, config, u.seed)}.npz" for u in units]
    done = {i: found for i, file in enumerate(files) if (found := _load(file)) is not None}
    for i in done:
        on_episode(units[i].scenario.name, units[i].seed)
    left = [i for i in range(len(units)) if i not in done]
    work = [(i, units[i]) for i in left]
    for (i, unit), labels in run_all(_label, (bundle.net, config), work, workers):
        content = io.BytesIO()
        np.savez_compressed(content, **labels._asdict())
        write_atomically(files[i], content.getvalue())
        done[i] = labels
        on_episode(unit.scenario.name, unit.seed)
    labels = join_labels([done[i] for i in range(len(units))])
    fit = fit_switch(labels, config, seed)
    card = SwitchCard(
        scenarios=tuple(lesson.scenario.name for lesson in lessons),
        episodes=len(units),
        choices=len(labels.features),
        seed=seed,
        command=command_line(),
        created_utc=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        git_commit=git_commit(),
        metrics=fit.metrics,
    )
    return Switch(net=fit.net, card=card)


def _check(lessons: Sequence[Lesson], config: SwitchConfig) -> None:
    count = sum(len(lesson.seeds) for lesson in lessons)
    if count < FOLDS:
        raise InputError("--episodes", f"at least {FOLDS} together: a part is held out", count)
    for lesson in lessons:
        horizon_s = lesson.scenario.horizon_s
        if horizon_s < 0.5 * config.horizon_s:
            told = f"at least {0.5 * config.horizon_s / 3600:g} hours"
            raise InputError(f"--horizon-h of {lesson.scenario.name}", told, f"{horizon_s / 3600:g}")


def _label(shared: tuple[CompactionNet, SwitchConfig], work: tuple[int, _Unit]) -> Labels:
    net, config = shared
    _, unit = work
    return label_episode(unit.scenario, net, config, unit.seed)


def _key(scenario: str, net: str, config: SwitchConfig, seed: int) -> str:
    parts = [code_digest(), scenario, net, config.dwell_s, config.horizon_s, MEMBERS, FEATURES, seed]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:40]


def _load(path: Path) -> Labels | None:
    """Kept labels; None if there are none, or the file is damaged."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as data:
            return Labels(**{name: data[name] for name in Labels._fields})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
