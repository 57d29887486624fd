"""What a live cluster does not say of itself: prices, start-up times, opt-outs, limits. From a YAML file.

Every default is safe; a file is optional. Node types are named as the autoscaler names them, deployments as
``app/name`` or, for a whole application, ``app``.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from rayfold.envs.cluster import Interval, Prices
from rayfold.envs.safety import Limits
from rayfold.errors import InputError

__all__ = ["DeploymentSettings", "LiveSettings", "NodeTypeSettings", "load_live_settings"]

_STRICT = ConfigDict(extra="forbid")
_BOOT_S, _STARTUP_S, _DRAIN_S = Interval(120.0, 180.0), Interval(60.0, 120.0), Interval(2.0, 10.0)
_LIMITS, _PRICES = Limits(), Prices()


@with_config(_STRICT)
@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTypeSettings:
    """What is known of one node type."""

    price_usd_per_h: float | None = None  # None: usd_per_gpu_h times its GPUs
    min_nodes: int = 0
    max_nodes: int = 64
    boot_s: Interval = _BOOT_S
    is_releasable: bool = True  # False: nodes of this type are never emptied


@with_config(_STRICT)
@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentSettings:
    """What is known of one deployment."""

    startup_s: Interval = _STARTUP_S
    drain_s: Interval = _DRAIN_S
    is_movable: bool = True  # False: opted out of compaction


@with_config(_STRICT)
@dataclass(frozen=True, slots=True, kw_only=True)
class LiveSettings:
    """Everything the decider is told about a cluster."""

    usd_per_gpu_h: float = 1.0  # price of node types that are not listed
    idle_timeout_s: float = 300.0  # the autoscaler's
    decision_interval_s: float = 60.0
    move_timeout_s: float = 600.0  # a replacement must serve by then
    plan_deadline_s: float = 5.0  # a policy that takes longer is replaced by the heuristic, for that tick
    node_type_label: str = "ray.io/node-group"  # names the type where there is no Ray autoscaler to ask
    node_types: Mapping[str, NodeTypeSettings] = field(default_factory=dict)
    deployments: Mapping[str, DeploymentSettings] = field(default_factory=dict)
    limits: Limits = _LIMITS
    prices: Prices = _PRICES

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
        content = yaml.safe_load(path.read_text())
    except OSError as err:
        raise InputError(str(path), "a settings file", err.strerror or err) from err
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        raise InputError(str(path), "YAML", " ".join(str(err).split())) from err
    try:
        settings = TypeAdapter(LiveSettings).validate_python(content or {})
    except ValidationError as err:
        first = err.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        allowed = ", ".join(f.name for f in dataclasses.fields(LiveSettings))
        raise InputError(f"{path}: {where}", f"{first['msg']} (fields: {allowed})", first["input"]) from err
    if settings.limits.allow_new_nodes:
        raise InputError(f"{path}: limits.allow_new_nodes", "false: a live cluster is not asked for nodes", "true")
    return settings
