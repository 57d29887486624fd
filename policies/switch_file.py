"""The switch of a bundle: ``switch.json`` and ``switch.safetensors`` beside the network's own files. No pickle.

``switch.json`` holds the members, the features with their order, the configuration, a checksum of the weights and the
*card*: what the switch has learned from, and what switching was worth on episodes that were left out.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from rayfold.errors import InputError
from rayfold.policies.portfolio import MEMBERS
from rayfold.policies.switch_features import FEATURES
from rayfold.policies.switch_net import SwitchConfig, SwitchNet
from rayfold.policies.weights import one_line, packed, read_header, restore

__all__ = ["Switch", "SwitchCard", "read_switch", "write_switch"]

FORMAT_VERSION = 1
HEADER, WEIGHTS = "switch.json", "switch.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchCard:
    """Where a switch comes from."""

    scenarios: tuple[str, ...]
    episodes: int  # of the training days
    choices: int  # states in which every member was tried
    seed: int
    command: str = ""
    created_utc: str = ""  # ISO 8601
    git_commit: str = ""  # empty = not a git checkout
    metrics: dict[str, float] = field(default_factory=dict)  # see ``training.switch_fit``


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """A network that chooses members, and its card."""

    net: SwitchNet  # in eval mode
    card: SwitchCard


def write_switch(folder: Path, switch: Switch) -> None:
    """Writes both files into a folder that nobody reads yet."""
    weights = packed(switch.net)
    header = {
        "format": FORMAT_VERSION,
        "members": list(MEMBERS),
        "features": list(FEATURES),
        "config": dataclasses.asdict(switch.net.config),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "training": dataclasses.asdict(switch.card),
    }
    (folder / WEIGHTS).write_bytes(weights)
    (folder / HEADER).write_text(json.dumps(header, indent=2) + "\n")


def read_switch(folder: Path) -> Switch | None:
    """The switch of a bundle; None where it has none.

    Raises:
        InputError: A file is missing, truncated or of another format, or its members or features are not those of
            this version of rayfold.
    """
    path = folder / HEADER
    if not path.exists() and not (folder / WEIGHTS).exists():
        return None
    header = read_header(path, "switch", FORMAT_VERSION)
    for name, own in (("members", MEMBERS), ("features", FEATURES)):
        if header.get(name) != list(own):
            raise InputError(
                f"{path}: {name}", f"the {len(own)} {name} of this version (train the switch again)", "others"
            )
    try:
        config = TypeAdapter(SwitchConfig).validate_python(header["config"])
        card = TypeAdapter(SwitchCard).validate_python(header["training"])
        checksum = str(header["weights_sha256"])
    except (KeyError, ValidationError) as err:
        raise InputError(str(path), "config, training and weights_sha256", one_line(err)) from err
    if not (1 <= config.dim <= 4096 and 1 <= config.ensemble <= 256 and config.dwell_s > 0.0):
        raise InputError(f"{path}: config", "dim, ensemble and dwell_s above 0", f"{config.dim}, {config.ensemble}")
    net = SwitchNet(config)
    restore(net, folder / WEIGHTS, checksum)
    return Switch(net=net.eval(), card=card)
