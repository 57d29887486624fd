"""What a live cluster does not say of itself: prices, start-up times, opt-outs, limits, brakes. From a YAML file.

Every default is safe; a file is optional. Node types are named as the autoscaler names them, deployments as
``app/name`` or, for a whole application, ``app``.
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, WithJsonSchema, create_model, with_config

from rayfold.envs.cluster import Interval, Prices
from rayfold.envs.safety import Limits
from rayfold.envs.yaml_text import load_yaml
from rayfold.errors import InputError
from rayfold.serving.freeze import parse_window, parse_zone

__all__ = [
    "Brakes",
    "DeploymentSettings",
    "LaunchSettings",
    "LiveSettings",
    "NodeTypeSettings",
    "load_live_settings",
    "merge_settings",
    "parse_live_settings",
    "settings_as_json",
]

_STRICT = ConfigDict(extra="forbid")
_Positive = Annotated[float, Field(gt=0.0, le=1e9, allow_inf_nan=False)]
_NotNegative = Annotated[float, Field(ge=0.0, le=1e9, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=0, le=10**9)]
_Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?$")]  # a value, no expression
_BOOT_S, _STARTUP_S, _DRAIN_S = Interval(120.0, 180.0), Interval(60.0, 120.0), Interval(2.0, 10.0)
_LIMITS, _PRICES = Limits(), Prices()
# A named tuple is read and told by its fields here, which its own JSON schema, that of an array, does not say.
_LIMIT_FIELDS: dict[str, Any] = {name: (kind, _LIMITS._asdict()[name]) for name, kind in get_type_hints(Limits).items()}
_LIMITS_SCHEMA = create_model("Limits", **_LIMIT_FIELDS).model_json_schema()


@with_config(_STRICT)
@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSettings:
    """What the autoscaler's configuration says of a node type, where a move may launch one."""

    labels: Annotated[Mapping[str, _Label], Field(min_length=1)]  # of its nodes; together no other type has them
    resources: Annotated[Mapping[str, _NotNegative], Field(min_length=1)]  # of a node: GPU, CPU, memory_gib, custom


@with_config(_STRICT)
@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTypeSettings:
    """What is known of one node type."""

    price_usd_per_h: _NotNegative | None = None  # None: usd_per_gpu_h times its GPUs
    min_nodes: _Count = 0
    max_nodes: _Count = 64
    boot_s: Interval = _BOOT_S
    is_releasable: bool = True  # False: nodes of this type are never emptied
    launch: LaunchSettings | None = None  # None: no move launches one; else limits.allow_new_nodes and a price decide


@with_config(_STRICT)
@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentSettings:
    """What is known of one deployment."""

    startup_s: Interval = _STARTUP_S
    drain_s: Interval = _DRAIN_S
    is_movable: bool = True  # False: opted out of compaction


@with_config(_STRICT)
@dataclass(frozen=True, slots=True, kw_only=True)
class Brakes:
    """What the decider may do to a live cluster, on top of the safety filter. Every intent counts, begun or not."""

    moves_per_h: _Count = 30  # in any 60 minutes
    moves_per_deployment_h: _Count = 10  # the same, of one deployment
    moving_frac: Annotated[float, Field(gt=0.0, le=1.0)] = 0.25  # of a deployment's replicas at once; one always may
    min_run_s: _NotNegative = 600.0  # a replica that was moved stays where it is for this long
    headroom_gpus: _NotNegative = 0.0  # free GPUs that must be left on nodes that are not being emptied
    freeze: tuple[str, ...] = ()  # windows without moves, as "mon-fri 08:00-18:00": see ``freeze.py``
    freeze_zone: str = "UTC"  # of the windows: a name of the time zone database
    undone_limit: _Count = 5  # more undone moves than this in the window, and the decider pauses itself
    undone_window_s: _Positive = 7200.0


_BRAKES = Brakes()


@with_config(_STRICT)
@dataclass(frozen=True, slots=True, kw_only=True)
class LiveSettings:
    """Everything the decider is told about a cluster."""

    usd_per_gpu_h: _NotNegative = 1.0  # price of node types that are not listed
    idle_timeout_s: _NotNegative = 300.0  # the autoscaler's
    decision_interval_s: _Positive = 60.0
    move_timeout_s: _Positive = 600.0  # a replacement must serve by then
    plan_deadline_s: _Positive = 5.0  # a policy that takes longer is replaced by the heuristic, for that tick
    lease_ttl_s: _Positive = (
        60.0  # another decider takes over when this one is silent for so long; never below three ticks
    )
    node_type_label: str = "ray.io/node-group"  # names the type where there is no Ray autoscaler to ask
    node_types: Mapping[str, NodeTypeSettings] = field(default_factory=dict)
    deployments: Mapping[str, DeploymentSettings] = field(default_factory=dict)
    opted_out_nodes: tuple[str, ...] = ()  # ids of nodes that no replica is moved off
    limits: Annotated[Limits, WithJsonSchema(_LIMITS_SCHEMA)] = _LIMITS
    prices: Prices = _PRICES
    brakes: Brakes = _BRAKES
    act_beside_ray_compaction: bool = False  # True: while acting, Ray's own compaction is kept from beginning anything
    token_for_reading: bool = False  # True: GET asks for the bearer token too

    def launchable(self) -> dict[str, LaunchSettings]:
        """The node types that a move may launch: those that say how, and what they cost."""
        if not self.limits.allow_new_nodes:
            return {}
        told = self.node_types.items()
        return {name: t.launch for name, t in told if t.launch is not None and t.price_usd_per_h is not None}

    def of_deployment(self, app: str, name: str) -> DeploymentSettings:
        """Settings of a deployment: its own, else those of its application, else the defaults."""
        found = self.deployments.get(f"{app}/{name}") or self.deployments.get(app)
        return found or DeploymentSettings()


def load_live_settings(path: Path) -> LiveSettings:
    """Reads a settings file.

    Raises:
        InputError: Missing, not YAML, or with an unknown or wrong field, which is named.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise InputError(str(path), "a settings file", getattr(err, "strerror", None) or "not UTF-8") from err
    return parse_live_settings(load_yaml(text, str(path)) or {}, str(path))


def parse_live_settings(content: Any, where: str, *, strict: bool = False) -> LiveSettings:
    """Settings from plain values.

    Args:
        content: A mapping of fields; what is left out keeps its default.
        where: For the message.
        strict: A number written as text is none; in a file it is one, since YAML takes ``1e3`` for text.

    Raises:
        InputError: With an unknown or wrong field, which is named.
    """
    reader = TypeAdapter(LiveSettings)
    try:
        settings = reader.validate_json(json.dumps(content), strict=True) if strict else reader.validate_python(content)
    except ValidationError as err:
        first = err.errors()[0]
        at = ".".join(str(part) for part in first["loc"]) or "settings"
        allowed = ", ".join(f.name for f in dataclasses.fields(LiveSettings))
        got = " ".join(repr(first["input"]).split())[:200]
        raise InputError(f"{where}: {at}", f"{first['msg']} (fields: {allowed})", got) from err
    for name, value in _numbers("", settings_as_json(settings)):
        if not math.isfinite(value) or value < 0.0:
            raise InputError(f"{where}: {name}", "a number that is finite and not negative", value)
    if settings.limits.allow_new_nodes and not settings.launchable():
        told = "false, or a node type with launch and price_usd_per_h"
        raise InputError(f"{where}: limits.allow_new_nodes", told, "true")
    for window in settings.brakes.freeze:
        parse_window(window, f"{where}: brakes.freeze")
    parse_zone(settings.brakes.freeze_zone, f"{where}: brakes.freeze_zone")
    return settings


def merge_settings(settings: LiveSettings, content: Mapping[str, Any], where: str) -> LiveSettings:
    """The settings with some fields replaced; of ``brakes``, ``limits`` and ``prices`` only the fields that are given.

    Args:
        settings: The present ones.
        content: JSON values.
        where: For the message.

    Raises:
        InputError: As ``parse_live_settings``, strictly read.
    """
    present = settings_as_json(settings)
    for name in ("brakes", "limits", "prices"):
        if name not in content:
            continue
        if not isinstance(content[name], Mapping):
            raise InputError(f"{where}: {name}", "a mapping of fields", content[name])
        content = {**content, name: {**present[name], **content[name]}}
    return parse_live_settings({**present, **content}, where, strict=True)


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _numbers(f"{name}.{key}" if name else str(key), item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(name, item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, float(value)


def settings_as_json(settings: LiveSettings) -> dict[str, Any]:
    """Plain values that ``parse_live_settings`` reads back as the same settings."""
    values: dict[str, Any] = TypeAdapter(LiveSettings).dump_python(settings, mode="python")
    return {**values, "limits": settings.limits._asdict()}
