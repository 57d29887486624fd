"""Weights of a network as a safetensors file: read only if they are complete, finite, and belong to the network."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from rayfold.errors import InputError

__all__ = ["one_line", "packed", "read_bytes", "read_header", "restore"]


def packed(net: nn.Module) -> bytes:
    """The weights as the content of a safetensors file."""
    content: bytes = save({name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()})
    return content


def restore(net: nn.Module, path: Path, sha256: str | None = None) -> None:
    """Loads weights into a network.

    Args:
        net: Is changed.
        path: The file.
        sha256: Hex digest that its content must have; None = any.

    Raises:
        InputError: It is missing, truncated or changed, or the weights do not belong to the network.
    """
    content = read_bytes(path)
    try:
        tensors = load(content)
    except SafetensorError as err:
        raise InputError(str(path), "complete safetensors weights", one_line(err)) from err
    _check_shapes(path, net, tensors)
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise InputError(str(path), f"SHA-256 {sha256[:12]}… as in its header", "other contents")
    net.load_state_dict(tensors)


def read_bytes(path: Path) -> bytes:
    """A file of a bundle.

    Raises:
        InputError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as err:
        raise InputError(str(path), "a file of a policy bundle", err.strerror or "unreadable") from None


def read_header(path: Path, kind: str, version: int) -> dict[str, Any]:
    """The JSON object that describes a part of a bundle.

    Args:
        path: The file.
        kind: What the part is called in the message.
        version: Format that it must have.

    Raises:
        InputError: It cannot be read, is no JSON object, or is of another format.
    """
    try:
        header: Any = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as err:
        raise InputError(str(path), "JSON", one_line(err)) from err
    if not isinstance(header, dict) or header.get("format") != version:
        got = header.get("format") if isinstance(header, dict) else type(header).__name__
        raise InputError(f"{path}: format", f"{kind} format {version}", got)
    return header


def one_line(err: Exception) -> str:
    """What an exception of a reader says, in one line."""
    if isinstance(err, ValidationError):
        first = err.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return f"{type(err).__name__}: {err}".replace("\n", " ")


def _check_shapes(path: Path, net: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
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
