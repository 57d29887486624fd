"""Episodes already run, one file each, so that an interrupted evaluation goes on where it was.

A file's name is the digest of everything its content depends on: the scenario with its traffic, the policy with its
settings or weights, the seed, and the code of the rooms that decide. What differs in any of them is another file, so
nothing stale is ever read.
"""

import hashlib
import importlib.metadata
import json
from functools import cache
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

import rayfold
from rayfold.envs.cluster import ClusterSpec
from rayfold.envs.scenario import Scenario, Split
from rayfold.envs.traffic_source import TraceSource
from rayfold.training.episode_result import EpisodeResult
from rayfold.training.policy_choice import PolicyChoice
from rayfold.training.report import write_atomically

__all__ = ["UnitStore", "code_digest", "scenario_digest", "unit_key"]

_CODE = (
    "envs/**/*.py",
    "policies/**/*.py",
    "training/episode_result.py",
    "training/t*_record.py",
    "training/r*_record.py",
    "training/worlds.py",
)
_PACKAGES = ("numpy", "numba", "torch")


class UnitStore:
    """A folder of finished episodes.

    Args:
        folder: Made when the first one is kept; None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def load(self, key: str) -> EpisodeResult | None:
        """What was kept under a key; None if nothing, or if the file is damaged."""
        if self.folder is None:
            return None
        try:
            content = json.loads((self.folder / f"{key}.json").read_bytes())
            return EpisodeResult.from_json(content["result"]) if content["key"] == key else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def save(self, key: str, result: EpisodeResult) -> None:
        """Keeps a result, whole or not at all."""
        if self.folder is not None:
            content = json.dumps({"key": key, "result": result.to_json()}, separators=(",", ":"))
            write_atomically(self.folder / f"{key}.json", content.encode())


def unit_key(scenario: str, split: Split, policy: PolicyChoice, seed: int, *, is_recorded: bool) -> str:
    """The digest an episode is kept under.

    Args:
        scenario: ``scenario_digest`` of it.
        split: Of the traffic.
        policy: Who decides.
        seed: Of the episode.
        is_recorded: Whether every tick is kept.
    """
    parts = [code_digest(), scenario, str(split), policy.digest(), seed, is_recorded]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:40]


@cache
def code_digest() -> str:
    """Of the sources that decide a result, and of the packages below them; git is not needed."""
    root = Path(rayfold.__file__).parent
    digest = hashlib.sha256(",".join(importlib.metadata.version(name) for name in _PACKAGES).encode())
    for path in sorted(path for pattern in _CODE for path in root.glob(pattern)):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def scenario_digest(scenario: Scenario) -> str:
    """Of the cluster, the limits, the traffic and the length; not of the words that describe it."""
    digest = hashlib.sha256(TypeAdapter(ClusterSpec).dump_json(scenario.spec))
    source = scenario.source
    if isinstance(source, TraceSource):
        digest.update(np.ascontiguousarray(source.rates_rps).tobytes())
        splits = {str(split): tuple(bins) for split, bins in source.splits.items()}
        told = repr((source.bin_s, sorted(splits.items())))
    else:
        told = repr(source)
    for array in scenario.requests:
        digest.update(np.ascontiguousarray(array).tobytes())
    digest.update(repr((scenario.name, tuple(scenario.limits), scenario.horizon_s, told)).encode())
    return digest.hexdigest()
