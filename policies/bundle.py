"""The policy bundle: a folder with ``weights.safetensors`` and ``bundle.json``. No pickle.

``bundle.json`` holds the format version, the observation schema with its hash, the network's configuration, a
checksum of the weights and the *training card* (what the policy was trained on, for how long, with what). A bundle
that does not fit this version of rayfold is refused with one line that says why.
"""

import dataclasses
import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from rayfold.envs.layout import (
    DEPLOYMENT_FEATURES,
    GLOBAL_FEATURES,
    NODE_FEATURES,
    NODE_TYPE_FEATURES,
    schema_hash,
)
from rayfold.errors import InputError
from rayfold.policies.leader_file import TrainedLeader, read_leader, write_leader
from rayfold.policies.network import CompactionNet, NetworkConfig
from rayfold.policies.weights import one_line, packed, read_header, restore

__all__ = ["FORMAT_VERSION", "PolicyBundle", "TrainingCard", "load_bundle", "save_bundle"]

FORMAT_VERSION = 1
WEIGHTS, HEADER = "weights.safetensors", "bundle.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingCard:
    """Where a policy comes from."""

    scenarios: tuple[str, ...]
    seed: int
    steps: int  # environment steps, the warm start's excluded
    minutes: float  # wall time, the warm start's included
    traffic: dict[str, str] = field(default_factory=dict)  # scenario -> trace files and days, or "generated"
    command: str = ""  # that made it; paths without their folders
    warm_start: str = ""  # name of the imitated policy, or the bundle gone on from and its origin; empty = none
    created_utc: str = ""  # ISO 8601
    git_commit: str = ""  # empty = not a git checkout
    versions: dict[str, str] = field(default_factory=dict)  # package -> version
    metrics: dict[str, float] = field(default_factory=dict)  # ``group/name`` -> value


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyBundle:
    """A loaded bundle."""

    net: CompactionNet  # in eval mode, on the CPU
    card: TrainingCard
    leader: TrainedLeader | None = None  # who leads where; None = the network does


def _schema() -> dict[str, Any]:
    return {
        "hash": schema_hash(),
        "global": list(GLOBAL_FEATURES),
        "nodes": list(NODE_FEATURES),
        "deployments": list(DEPLOYMENT_FEATURES),
        "node_types": list(NODE_TYPE_FEATURES),
    }


def save_bundle(
    path: Path,
    net: CompactionNet,
    card: TrainingCard,
    leader: TrainedLeader | None = None,
) -> None:
    """Writes a bundle, all of it or nothing; an older bundle at ``path`` is replaced.

    Args:
        path: The bundle's folder.
        net: Network with the weights to save.
        card: Where it comes from.
        leader: Who leads where; None = the network does.

    Raises:
        InputError: ``path`` is something else than a bundle.
    """
    if path.exists() and not (path / HEADER).is_file():
        raise InputError(str(path), "a bundle to replace, or nothing", "another file or folder")
    weights = packed(net)
    header = {
        "format": FORMAT_VERSION,
        "schema": _schema(),
        "network": dataclasses.asdict(net.config),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "training": dataclasses.asdict(card),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as scratch:
        fresh = Path(scratch) / "new"
        fresh.mkdir()
        (fresh / WEIGHTS).write_bytes(weights)
        (fresh / HEADER).write_text(json.dumps(header, indent=2) + "\n")
        if leader is not None:
            write_leader(fresh, leader)
        if path.exists():
            path.rename(Path(scratch) / "old")
        fresh.rename(path)
        shutil.rmtree(Path(scratch) / "old", ignore_errors=True)


def load_bundle(path: Path) -> PolicyBundle:
    """Reads what ``save_bundle`` wrote.

    Raises:
        InputError: A file is missing, truncated or of another format, the observation schema differs, or the
            weights do not belong to the network.
    """
    header_path = path / HEADER
    header = _read_header(header_path)
    try:
        config = TypeAdapter(NetworkConfig).validate_python(header["network"])
        card = TypeAdapter(TrainingCard).validate_python(header["training"])
        checksum = str(header["weights_sha256"])
    except (KeyError, ValidationError) as err:
        raise InputError(str(header_path), "network, training and weights_sha256", one_line(err)) from err
    if config.dim < 1 or config.heads < 1 or config.layers < 0 or config.dim % config.heads:
        raise InputError(f"{header_path}: network", "dim a multiple of heads", f"{config.dim}, {config.heads}")
    weights_path, least_bytes = path / WEIGHTS, 4 * config.dim**2 * max(1, config.layers)
    size_bytes = weights_path.stat().st_size if weights_path.is_file() else 0
    if 0 < size_bytes < least_bytes:  # a network that memory may not hold; what is wrong with no weights, restore tells
        told = f"dim {config.dim}, {config.layers} layers"
        raise InputError(f"{header_path}: network", "the network of the weights beside it", told)
    net = CompactionNet(config)
    restore(net, weights_path, checksum)
    return PolicyBundle(net=net.eval(), card=card, leader=read_leader(path))


def _read_header(path: Path) -> dict[str, Any]:
    header = read_header(path, "bundle", FORMAT_VERSION)
    schema = header.get("schema")
    found = schema.get("hash") if isinstance(schema, dict) else None
    if found != schema_hash():
        where = f"{path}: schema.hash"
        raise InputError(where, f"{schema_hash()[:12]}… (train the policy again)", f"{str(found)[:12]}…")
    return header
