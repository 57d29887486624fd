"""The leader of a bundle: ``leader.json`` beside the network's own files: what it has seen, and its *card*."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError

from rayfold.errors import InputError
from rayfold.policies.leader import Experience, Kernel, Leader
from rayfold.policies.weights import one_line, read_header
from rayfold.policies.world_features import WORLD_FEATURES

__all__ = ["LeaderCard", "TrainedLeader", "read_leader", "write_leader"]

FORMAT_VERSION = 1
HEADER = "leader.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderCard:
    """Where a leader comes from."""

    scenarios: tuple[str, ...]
    episodes: int  # of the training days, each led by every member in turn
    seed: int  # of the folds that the metrics come from
    reference: str  # the policy that bills are compared with, and that leads in doubt
    command: str = ""
    created_utc: str = ""  # ISO 8601
    git_commit: str = ""  # empty = not a git checkout
    metrics: dict[str, float] = field(default_factory=dict)  # see ``training.leader_training``


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedLeader:
    """A leader and its card."""

    leader: Leader
    card: LeaderCard


def write_leader(folder: Path, trained: TrainedLeader) -> None:
    """Writes the file into a folder that nobody reads yet."""
    seen = trained.leader.experience
    header = {
        "format": FORMAT_VERSION,
        "features": list(WORLD_FEATURES),
        "members": list(seen.members),
        "doubt": trained.leader.doubt,
        "kernels": [kernel._asdict() for kernel in seen.kernels],
        "training": dataclasses.asdict(trained.card),
        "worlds": np.round(seen.worlds, 6).tolist(),
        "worth": np.round(seen.worth, 6).tolist(),
    }
    (folder / HEADER).write_text(json.dumps(header) + "\n")


def read_leader(folder: Path) -> TrainedLeader | None:
    """The leader of a bundle; None where it has none.

    Raises:
        InputError: The file is no JSON, of another format or damaged, or its features are not those of this version.
    """
    path = folder / HEADER
    if not path.exists():
        return None
    header = read_header(path, "leader", FORMAT_VERSION)
    if header.get("features") != list(WORLD_FEATURES):
        told = f"the {len(WORLD_FEATURES)} features of this version (train the leader again)"
        raise InputError(f"{path}: features", told, "others")
    try:
        card = TypeAdapter(LeaderCard).validate_python(header["training"])
        members = TypeAdapter(tuple[str, ...]).validate_python(header["members"])
        kernels = tuple(Kernel(**TypeAdapter(dict[str, float]).validate_python(k)) for k in header["kernels"])
        rows = TypeAdapter(list[list[float]])
        worlds, worth = (np.array(rows.validate_python(header[name]), np.float64) for name in ("worlds", "worth"))
        doubt = TypeAdapter(float).validate_python(header["doubt"])
    except (KeyError, TypeError, ValueError, ValidationError) as err:
        raise InputError(str(path), "members, kernels, worlds, worth, doubt and training", one_line(err)) from err
    expected = f"{len(WORLD_FEATURES)} features and {len(members)} members per episode, and as many kernels"
    shape = (worlds.shape[:1], worlds.shape[1:], worth.shape[1:], len(kernels))
    if shape != (worth.shape[:1], (len(WORLD_FEATURES),), (len(members),), len(members)) or not len(worlds):
        raise InputError(str(path), expected, f"worlds {worlds.shape}, worth {worth.shape}, {len(kernels)} kernels")
    numbers = [*worlds.ravel(), *worth.ravel(), *(x for kernel in kernels for x in kernel), doubt]
    if not np.isfinite(numbers).all() or any(min(kernel) <= 0.0 for kernel in kernels):
        raise InputError(str(path), "finite numbers, kernels above 0", "others")
    seen = Experience(members=members, worlds=worlds, worth=worth, kernels=kernels)
    return TrainedLeader(leader=Leader(seen, doubt), card=card)
