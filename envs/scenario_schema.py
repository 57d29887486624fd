"""Schema of a scenario file: pydantic models for untrusted text, and its mistakes as one line each.

Nothing outside ``scenario_file.py`` sees these models; it turns them into the dataclasses of ``cluster.py``.
"""

import math
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from rayfold.envs.arrivals import Arrivals
from rayfold.envs.cluster import PlacementGroupStrategy, SchedulingStrategy
from rayfold.envs.generator import TrafficKind
from rayfold.envs.yaml_text import load_yaml
from rayfold.errors import InputError

__all__ = ["DeploymentModel", "GeneratorModel", "NamedDeployment", "RequestsModel", "ScenarioModel", "parse_scenario"]

_MAX_HORIZON_S = 366 * 86400.0
_MAX_GPUS = 62  # devices of a node are bits of an int64


def _check_order(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError("[min, max] with min <= max")
    return value


def _check_gpus(value: dict[str, float]) -> dict[str, float]:
    gpus = value.get("GPU", 0.0)
    if gpus != int(gpus) or gpus > _MAX_GPUS:
        raise ValueError(f"a whole number of GPUs, at most {_MAX_GPUS}")
    return value


def _check_printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("one line of printable text")
    return value


Sentence = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=1000, strip_whitespace=True)]
Text = Annotated[Sentence, Field(max_length=200), AfterValidator(_check_printable)]
# Upper bounds are far above anything real: they keep sums and products finite.
Amount = Annotated[float, Field(ge=0, le=1e9, strict=True)]
Positive = Annotated[float, Field(gt=0, le=1e9, strict=True)]
Step = Annotated[float, Field(ge=0.01, le=86400, strict=True)]
Share = Annotated[float, Field(ge=0, le=1, strict=True)]
Count = Annotated[int, Field(ge=0, le=1_000_000, strict=True)]
Flag = Annotated[bool, Field(strict=True)]
Scale = Annotated[float, Field(gt=0, le=1e6, strict=True)]
Span = Annotated[tuple[Amount, Amount], AfterValidator(_check_order)]
Labels = dict[Text, Text]
Resources = dict[Text, Amount]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class NodeTypeModel(_Model):
    """A node type."""

    name: Text
    resources: Annotated[Resources, AfterValidator(_check_gpus)]
    price_usd_per_h: Amount
    accelerator: str = ""
    labels: Labels = {}
    min_nodes: Count = 0
    max_nodes: Annotated[int, Field(ge=1, le=10_000, strict=True)] = 8
    boot_s: Span = (120.0, 180.0)
    is_head: Flag = False
    is_opted_out: Flag = False
    is_spot: Flag = False
    interruptions_per_h: Amount = 0.0
    notice_s: Amount = 120.0
    stockout_prob: Share = 0.0
    stockout_s: Span = (600.0, 1800.0)
    other_work: Annotated[Resources, AfterValidator(_check_gpus)] = {}
    other_work_prob: Share = 0.0
    other_work_s: Span = (1800.0, 7200.0)


class ShapeModel(_Model):
    """What a replica asks for."""

    bundles: Annotated[tuple[Resources, ...], Field(min_length=1, max_length=64)]
    strategy: PlacementGroupStrategy = PlacementGroupStrategy.NONE


class AutoscalingModel(_Model):
    """Serve's autoscaling settings."""

    min_replicas: Count = 1
    max_replicas: Annotated[int, Field(ge=1, le=10_000, strict=True)] = 8
    initial_replicas: Count | None = None
    target_ongoing_requests: Positive = 2.0
    upscale_delay_s: Amount = 30.0
    downscale_delay_s: Amount = 600.0
    downscale_to_zero_delay_s: Amount | None = None
    upscaling_factor: Positive = 1.0
    downscaling_factor: Positive = 1.0
    look_back_period_s: Positive = 30.0


class GeneratorModel(_Model):
    """A generated series; the fields of ``GeneratorSettings``."""

    kind: TrafficKind
    mean_rps: Amount
    noise_frac: Annotated[float, Field(ge=0, le=2, strict=True)] = 0.1
    swing_frac: Share = 0.6
    peak_at_h: Annotated[float, Field(ge=0, le=24, strict=True)] = 14.0
    active_frac: Annotated[float, Field(ge=0.001, le=1, strict=True)] = 0.1
    active_s: Annotated[float, Field(ge=1, le=1e9, strict=True)] = 900.0
    burst_factor: Annotated[float, Field(ge=1, le=1000, strict=True)] = 5.0
    low_frac: Annotated[float, Field(ge=0, le=1000, strict=True)] = 0.1
    drop_at_s: Span = (0.0, 3600.0)
    low_for_s: Span | None = None  # None = for good


class PartModel(_Model):
    """One series of a mix."""

    series: Text
    scale: Scale = 1.0  # times the series' rate
    shift_h: Annotated[float, Field(ge=-8784, le=8784, strict=True)] = 0.0  # later by so much; round within a split


class RequestsModel(_Model):
    """Traffic of a deployment: which series, or the sum of which, and what its requests are like."""

    series: Text | None = None  # series_id in the scenario's traces
    scale: Scale = 1.0  # times the series' rate
    parts: Annotated[tuple[PartModel, ...], Field(min_length=1)] | None = None  # instead of series and scale
    generator: GeneratorModel | None = None
    ttft_s: Amount = 0.5  # time to first token
    tpot_s: Amount = 0.03  # time per output token
    output_tokens_per_request: Positive | None = None  # None = mean of the series on the training days
    burstiness_cv: Annotated[float, Field(ge=0, le=100, strict=True)] = 1.5  # CV of inter-arrival times
    arrivals: Arrivals = Arrivals.GAMMA  # their distribution

    @model_validator(mode="after")
    def _check_parts(self) -> "RequestsModel":
        if self.parts is not None and self.model_fields_set & {"series", "scale"}:
            raise ValueError("parts, or series and scale, but not both")
        return self


class DeploymentModel(_Model):
    """A deployment, or several of a kind."""

    name: Text
    count: Annotated[int, Field(ge=1, le=1000, strict=True)] | None = None  # makes name-0 .. name-{count - 1}
    app: Text = "default"
    shape: ShapeModel
    gang_size: Annotated[int, Field(ge=1, le=64, strict=True)] = 1
    gang_strategy: Literal[PlacementGroupStrategy.PACK, PlacementGroupStrategy.SPREAD] = PlacementGroupStrategy.PACK
    autoscaling: AutoscalingModel = AutoscalingModel()
    max_ongoing_requests: Positive = 5.0
    max_replicas_per_node: Count = 0
    label_selector: Labels = {}
    label_fallbacks: tuple[Labels, ...] = ()
    startup_s: Span = (60.0, 120.0)
    drain_s: Span = (2.0, 10.0)
    start_failure_prob: Annotated[float, Field(ge=0, le=0.9, strict=True)] = 0.0
    slow_start_prob: Share = 0.0
    slow_start_factor: Annotated[float, Field(ge=1, le=1000, strict=True)] = 3.0
    is_movable: Flag = True
    requests: RequestsModel


class NamedDeployment(NamedTuple):
    """One deployment of a scenario."""

    place: str  # in the file, for messages
    name: str
    model: DeploymentModel


class PricesModel(_Model):
    """Prices of DESIGN §5."""

    move_frac: Amount = 0.02
    unserved_factor: Amount = 3.0
    disruption_scale: Amount = 1.0


class SettingsModel(_Model):
    """Settings of the cluster and of the decision process."""

    scheduling: SchedulingStrategy = SchedulingStrategy.SPREAD
    idle_timeout_s: Amount = 300.0
    decision_interval_s: Step = 60.0
    substep_s: Step = 5.0
    prices: PricesModel = PricesModel()


class LimitsModel(_Model):
    """Limits of the safety filter."""

    max_concurrent_moves: Count = 4
    deployment_cooldown_s: Amount = 120.0
    fence_s: Amount = 600.0
    use_unreleasable_nodes: Flag = False
    allow_new_nodes: Flag = False


class TrafficModel(_Model):
    """Trace files and how their days are split; no traces = generated traffic."""

    traces: tuple[Text, ...] = ()
    train_days: Span = (0.0, 7.0)  # from day .. to day
    validation_days: Span = (7.0, 14.0)
    generator_bin_s: Step = 60.0


class ScenarioModel(_Model):
    """A scenario file."""

    description: Sentence
    horizon_s: Annotated[float, Field(gt=0, le=_MAX_HORIZON_S, strict=True)]
    settings: SettingsModel = SettingsModel()
    limits: LimitsModel = LimitsModel()
    traffic: TrafficModel = TrafficModel()
    node_types: Annotated[tuple[NodeTypeModel, ...], Field(min_length=1, max_length=100)]
    deployments: Annotated[tuple[DeploymentModel, ...], Field(min_length=1)]

    def each_deployment(self) -> Iterator[NamedDeployment]:
        """Every deployment, those of a ``count`` one by one."""
        for i, d in enumerate(self.deployments):
            names = [d.name] if d.count is None else [f"{d.name}-{k}" for k in range(d.count)]
            yield from (NamedDeployment(f"deployments.{i}", name, d) for name in names)


def parse_scenario(text: str, where: str, read_base: Callable[[str], str]) -> ScenarioModel:
    """Parses a scenario file.

    Args:
        text: Its content.
        where: Its name, for messages.
        read_base: The content of the shipped scenario that this one extends, by name.

    Raises:
        InputError: The first mistake, with its line or its dotted path.
    """
    data = _resolved(text, where, read_base)
    try:
        return ScenarioModel.model_validate(data)
    except ValidationError as err:
        raise _first_mistake(err, where) from None


def _resolved(text: str, where: str, read_base: Callable[[str], str]) -> Any:
    """The content of a file over that of the one it extends, which may extend another one."""
    data = load_yaml(text, where)
    if not (isinstance(data, dict) and "extends" in data):
        return data
    base = data.pop("extends")
    if not isinstance(base, str):
        raise InputError(f"{where}: extends", "the name of a shipped scenario", _short(base))
    return _extend(_resolved(read_base(base), f"{base}.yaml", read_base), data, where)


def _extend(base: dict[str, Any], data: dict[str, Any], where: str) -> dict[str, Any]:
    """``data`` over ``base``: mappings are merged, anything else is replaced.

    ``every_deployment`` and ``every_node_type`` are merged into each one of the base.
    """
    merged = dict(base)
    for key, items in (("every_deployment", "deployments"), ("every_node_type", "node_types")):
        common = data.pop(key, {})
        if not isinstance(common, dict):
            raise InputError(f"{where}: {key}", f"what all {items} have in common", _short(common))
        if common:
            merged[items] = [_merged(item, common) for item in merged[items]]
    extended: dict[str, Any] = _merged(merged, data)
    return extended


def _merged(base: Any, over: Any) -> Any:
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    return {**base, **{key: _merged(base.get(key), value) for key, value in over.items()}}


def _first_mistake(err: ValidationError, where: str) -> InputError:
    first = err.errors()[0]
    loc = [str(part) for part in first["loc"] if part != "[key]"]
    where = f"{where}: {'.'.join(map(_shown, loc))}" if loc else where
    got = _short(first["input"])
    match first["type"]:
        case "extra_forbidden":
            return InputError(where, f"one of the keys {', '.join(_keys_at(loc[:-1]))}", repr(loc[-1]))
        case "missing":
            return InputError(where, "a value", "nothing")
        case "model_type" | "model_attributes_type":
            return InputError(where, f"a mapping with keys {', '.join(_keys_at(loc))}", got)
        case "value_error":
            return InputError(where, str(first["ctx"]["error"]), got)
    message = first["msg"][:1].lower() + first["msg"][1:]
    return InputError(where, message.removeprefix("input should be "), got)


def _keys_at(loc: list[str]) -> list[str]:
    """The keys that the schema knows at a dotted path."""
    model: type[BaseModel] = ScenarioModel
    for part in loc:
        if part in model.model_fields:
            model = next(iter(_models_in(model.model_fields[part].annotation)), model)
    return list(model.model_fields)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _shown(part: str) -> str:
    """A key as it is, or in short if it would spoil the line."""
    return part if part.isprintable() and 0 < len(part) <= 60 else _short(part)


def _short(value: object) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."
