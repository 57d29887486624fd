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

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save

from rayfold.envs.layout import (
    DEPLOYMENT_FEATURES,
    GLOBAL_FEATURES,
    NODE_FEATURES,
    NODE_TYPE_FEATURES,
    schema_hash,
)
from rayfold.errors import InputError
from rayfold.policies.network import CompactionNet, NetworkConfig

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
    warm_start: str = ""  # name of the imitated policy, empty = none
    created_utc: str = ""  # ISO 8601
    git_commit: str = ""  # empty = not a git checkout
    versions: dict[str, str] = field(default_factory=dict)  # package -> version
    metrics: dict[str, float] = field(default_factory=dict)  # ``group/name`` -> value


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyBundle:
    """A loaded bundle."""

    net: CompactionNet  # in eval mode, on the CPU
    card: TrainingCard


def _schema() -> dict[str, Any]:
    return {
        "hash": schema_hash(),
        "global": list(GLOBAL_FEATURES),
        "nodes": list(NODE_FEATURES),
        "deployments": list(DEPLOYMENT_FEATURES),
        "node_types": list(NODE_TYPE_FEATURES),
    }


def save_bundle(path: Path, net: CompactionNet, card: TrainingCard) -> None:
    """Writes a bundle, all of it or nothing; an older bundle at ``path`` is replaced.

    Args:
        path: The bundle's folder.
        net: Network with the weights to save.
        card: Where it comes from.

    Raises:
        InputError: ``path`` is something else than a bundle.
    """
    if path.exists() and not (path / HEADER).is_file():
        raise InputError(str(path), "a bundle to replace, or nothing", "another file or folder")
    weights = save({name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()})
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
    header_path, weights_path = path / HEADER, path / WEIGHTS
    header = _read_header(header_path)
    try:
        config = TypeAdapter(NetworkConfig).validate_python(header["network"])
        card = TypeAdapter(TrainingCard).validate_python(header["training"])
        checksum = str(header["weights_sha256"])
    except (KeyError, ValidationError) as err:
        raise InputError(str(header_path), "network, training and weights_sha256", _one_line(err)) from err
    if config.dim < 1 or config.heads < 1 or config.layers < 0 or config.dim % config.heads:
        raise InputError(f"{header_path}: network", "dim a multiple of heads", f"{config.dim}, {config.heads}")
    weights = _read(weights_path)
    try:
        tensors = load(weights)
    except SafetensorError as err:
        raise InputError(str(weights_path), "complete safetensors weights", _one_line(err)) from err
    net = CompactionNet(config)
    _check_shapes(weights_path, net, tensors)
    if hashlib.sha256(weights).hexdigest() != checksum:
        raise InputError(str(weights_path), f"SHA-256 {checksum[:12]}… as in {HEADER}", "other contents")
    net.load_state_dict(tensors)
    return PolicyBundle(net=net.eval(), card=card)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as err:
        raise InputError(str(path), "a file of a policy bundle", err.strerror or "unreadable") from None


def _read_header(path: Path) -> dict[str, Any]:
    try:
        header = json.loads(_read(path))
    except (ValueError, RecursionError) as err:
        raise InputError(str(path), "JSON", _one_line(err)) from err
    if not isinstance(header, dict):
        raise InputError(str(path), "a JSON object", type(header).__name__)
    if header.get("format") != FORMAT_VERSION:
        raise InputError(f"{path}: format", f"bundle format {FORMAT_VERSION}", header.get("format"))
    schema = header.get("schema")
    found = schema.get("hash") if isinstance(schema, dict) else None
    if found != schema_hash():
        where = f"{path}: schema.hash"
        raise InputError(where, f"{schema_hash()[:12]}… (train the policy again)", f"{str(found)[:12]}…")
    return header


def _check_shapes(path: Path, net: CompactionNet, tensors: dict[str, torch.Tensor]) -> None:
    own = net.state_dict()
    if own.keys() != tensors.keys():
        name = min(own.keys() ^ tensors.keys())
        raise InputError(f"{path}: {name}", *(("a tensor", "none") if name in own else ("none", "a tensor")))
    for name, tensor in own.items():
        want, got = (tuple(tensor.shape), tensor.dtype), (tuple(tensors[name].shape), tensors[name].dtype)
        if want != got:
            raise InputError(f"{path}: {name}", f"{want[0]} {want[1]}", f"{got[0]} {got[1]}")
        if not torch.isfinite(tensors[name]).all():
            raise InputError(f"{path}: {name}", "finite weights", "NaN or infinity")


def _one_line(err: Exception) -> str:
    if isinstance(err, ValidationError):
        first = err.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return f"{type(err).__name__}: {err}".replace("\n", " ")
