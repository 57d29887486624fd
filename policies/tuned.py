"""Tuned settings of heuristics: found by ``rayfold tune``, shipped per scenario in ``tuned/``, checked when read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rayfold.envs.yaml_text import load_yaml
from rayfold.errors import InputError
from rayfold.policies.by_name import HEURISTICS, Heuristic
from rayfold.policies.settings import parse_settings

__all__ = ["NO_TUNING", "SHIPPED", "TunedFile", "TunedPolicy", "read_tuned", "shipped_tuned", "tuned_settings"]

SHIPPED, NO_TUNING = "shipped", "none"

_STRICT = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
_Count = Annotated[int, Field(ge=1)]


class TunedPolicy(BaseModel):
    """What was found for one heuristic, and how."""

    model_config = _STRICT

    settings: dict[str, bool | int | float | str]
    total_usd: float  # mean bill of an episode
    default_total_usd: float  # of the default settings, on the same episodes
    num_samples: _Count  # settings tried, the default ones among them
    num_seeds: _Count  # episodes each, of the training days
    horizon_s: float
    search_seed: int
    command: str
    git_commit: str
    date: str  # UTC


class TunedFile(BaseModel):
    """One scenario's file."""

    model_config = _STRICT

    scenario: str
    traffic: str
    policies: dict[str, TunedPolicy]


def shipped_tuned(scenario_name: str) -> Path:
    """Where tuned settings of a scenario lie if they come with rayfold."""
    return Path(__file__).parent / "tuned" / f"{scenario_name}.yaml"


def tuned_settings(
    scenario_name: str, source: str = SHIPPED, heuristics: Mapping[str, Heuristic] = HEURISTICS
) -> dict[str, dict[str, Any]]:
    """Settings by name of heuristic, for ``make_policy(tuned=...)``.

    Args:
        scenario_name: Name of the scenario.
        source: ``shipped``, none if there are none for the scenario; ``none``; or the path of a file.
        heuristics: That there are.

    Raises:
        InputError: The file is missing or malformed, is another scenario's, or holds settings that cannot be.
    """
    if source == NO_TUNING or (source == SHIPPED and not shipped_tuned(scenario_name).is_file()):
        return {}
    path = shipped_tuned(scenario_name) if source == SHIPPED else Path(source)
    file = read_tuned(path, heuristics)
    if file.scenario != scenario_name:
        raise InputError(f"{path}: scenario", scenario_name, file.scenario)
    return {name: dict(found.settings) for name, found in file.policies.items()}


def read_tuned(path: Path, heuristics: Mapping[str, Heuristic] = HEURISTICS) -> TunedFile:
    """Reads a file of ``rayfold tune``.

    Args:
        path: The file.
        heuristics: That there are.

    Raises:
        InputError: It is missing or malformed, or holds settings that cannot be.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        reason = getattr(err, "strerror", None) or "not UTF-8"
        raise InputError(str(path), "tuned settings, as written by `rayfold tune`", reason) from None
    try:
        file = TunedFile.model_validate(load_yaml(text, str(path)))
    except ValidationError as err:
        first = err.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the document"
        raise InputError(f"{path}: {place}", first["msg"], first["input"]) from None
    for name, found in file.policies.items():
        if name not in heuristics:
            raise InputError(f"{path}: policies", f"one of {', '.join(heuristics)}", name)
        parse_settings(heuristics[name].settings_type, found.settings, f"{path}: policies.{name}.settings")
    return file
