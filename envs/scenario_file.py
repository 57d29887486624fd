"""From a scenario file to the parts of a ``Scenario``: finding files, converting, and checks across fields."""

from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rayfold.envs.cluster import (
    GPU,
    NO_MATCH,
    AutoscalingConfig,
    ClusterSettings,
    ClusterSpec,
    Deployment,
    Interval,
    NodeType,
    Prices,
    ReplicaShape,
)
from rayfold.envs.generator import GeneratorSettings
from rayfold.envs.scenario_schema import DeploymentModel, GeneratorModel, ScenarioModel, parse_scenario
from rayfold.envs.trace_file import Trace, read_trace
from rayfold.envs.traffic import service_time_s
from rayfold.envs.traffic_source import BinRange, GeneratorSource, RequestModel, Split, TraceSource, TrafficSource
from rayfold.errors import InputError

__all__ = ["ScenarioFile", "open_scenario", "shipped_scenarios", "to_spec", "to_traffic"]

_DAY_S = 86400.0
_INTERVALS = {"boot_s", "stockout_s", "other_work_s"}  # of a node type
_LOW_FOR_GOOD = Interval(float("inf"), float("inf"))


class ScenarioFile(NamedTuple):
    """A parsed file and where it came from."""

    name: str
    where: str  # for messages
    folder: Path | None  # of a user's own file, None for a shipped one
    model: ScenarioModel


class TrafficParts(NamedTuple):
    """Traffic of a scenario."""

    source: TrafficSource
    requests: RequestModel


def shipped_scenarios() -> tuple[str, ...]:
    """Names of the scenarios that come with the package, sorted."""
    files = resources.files("rayfold.envs.scenarios").iterdir()
    return tuple(sorted(f.name.removesuffix(".yaml") for f in files if f.name.endswith(".yaml")))


def open_scenario(name_or_path: str | Path) -> ScenarioFile:
    """Finds and parses a scenario file.

    Args:
        name_or_path: Shipped name, or path of a YAML file.

    Raises:
        InputError: There is no such scenario, or it breaks the schema.
    """
    name = str(name_or_path)
    if name in shipped_scenarios():
        text = (resources.files("rayfold.envs.scenarios") / f"{name}.yaml").read_text("utf-8")
        return ScenarioFile(name, f"{name}.yaml", None, parse_scenario(text, f"{name}.yaml"))
    path = Path(name_or_path)
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as err:
        known = f"a readable YAML file or one of {', '.join(shipped_scenarios())}"
        reason = "no such file" if isinstance(err, FileNotFoundError) else f"{type(err).__name__}: {err}"
        raise InputError(f"scenario {name}", known, reason) from None
    return ScenarioFile(path.stem, name, path.parent, parse_scenario(text, name))


def to_spec(file: ScenarioFile) -> ClusterSpec:
    """The cluster of a scenario.

    Raises:
        InputError: A name is given twice, a replica fits on no node type, or settings contradict each other.
    """
    model, where = file.model, file.where
    _check_unique([t.name for t in model.node_types], f"{where}: node_types", "name")
    _check_unique([f"{d.app}/{d.name}" for d in model.deployments], f"{where}: deployments", "app/name")
    for i, t in enumerate(model.node_types):
        if t.min_nodes > t.max_nodes:
            raise InputError(f"{where}: node_types.{i}.min_nodes", f"at most max_nodes {t.max_nodes}", t.min_nodes)
        if t.is_head and (t.min_nodes, t.max_nodes) != (1, 1):
            raise InputError(
                f"{where}: node_types.{i}.is_head", "min_nodes 1 and max_nodes 1", [t.min_nodes, t.max_nodes]
            )
        for name, amount in t.other_work.items():
            if amount > t.resources.get(name, 0.0):
                most = f"at most {t.resources.get(name, 0.0):g}, what the node has"
                raise InputError(f"{where}: node_types.{i}.other_work.{name}", most, f"{amount:g}")
    for i, d in enumerate(model.deployments):
        _check_deployment(d, f"{where}: deployments.{i}")
    settings = model.settings
    _check_divides(settings.substep_s, settings.decision_interval_s, f"{where}: settings.substep_s")
    spec = ClusterSpec(
        node_types=tuple(
            NodeType(**t.model_dump(exclude=_INTERVALS), **{name: Interval(*getattr(t, name)) for name in _INTERVALS})
            for t in model.node_types
        ),
        deployments=tuple(_to_deployment(d) for d in model.deployments),
        settings=ClusterSettings(
            **settings.model_dump(exclude={"prices"}), prices=Prices(**settings.prices.model_dump())
        ),
    )
    _check_fits(spec, where)
    return spec


def _to_deployment(model: DeploymentModel) -> Deployment:
    return Deployment(
        name=model.name,
        app=model.app,
        shape=ReplicaShape(bundles=tuple(dict(b) for b in model.shape.bundles), strategy=model.shape.strategy),
        gang_size=model.gang_size,
        gang_strategy=model.gang_strategy,
        autoscaling=AutoscalingConfig(**model.autoscaling.model_dump()),
        max_ongoing_requests=model.max_ongoing_requests,
        max_replicas_per_node=model.max_replicas_per_node,
        label_selector=dict(model.label_selector),
        label_fallbacks=tuple(dict(labels) for labels in model.label_fallbacks),
        startup_s=Interval(*model.startup_s),
        drain_s=Interval(*model.drain_s),
        start_failure_prob=model.start_failure_prob,
        slow_start_prob=model.slow_start_prob,
        slow_start_factor=model.slow_start_factor,
        is_movable=model.is_movable,
    )


def _check_unique(names: list[str], where: str, field: str) -> None:
    for i, name in enumerate(names):
        if name in names[:i]:
            raise InputError(f"{where}.{i}.name", f"a unique {field}", f"{name!r} as in {names.index(name)}")


def _check_divides(part_s: float, whole_s: float, where: str) -> None:
    times = whole_s / part_s
    if times < 1 - 1e-9 or abs(times - round(times)) > 1e-6:
        raise InputError(where, f"a divisor of decision_interval_s {whole_s:g}", f"{part_s:g}")


def _check_deployment(model: DeploymentModel, where: str) -> None:
    shape, scaling = model.shape, model.autoscaling
    for j, bundle in enumerate(shape.bundles):
        gpus = bundle.get(GPU, 0.0)
        if gpus > 1 and gpus != int(gpus):
            raise InputError(f"{where}.shape.bundles.{j}.{GPU}", "at most 1, or a whole number", f"{gpus:g}")
        if not any(bundle.values()):
            raise InputError(f"{where}.shape.bundles.{j}", "some resource above 0", "none")
    if shape.strategy == "NONE" and len(shape.bundles) > 1:
        raise InputError(f"{where}.shape.strategy", "PACK or STRICT_PACK for several bundles", "NONE")
    for name in ("min_replicas", "max_replicas"):
        if getattr(scaling, name) % model.gang_size:
            raise InputError(
                f"{where}.autoscaling.{name}", f"a multiple of gang_size {model.gang_size}", getattr(scaling, name)
            )
    if scaling.min_replicas > scaling.max_replicas:
        at_most = f"at most max_replicas {scaling.max_replicas}"
        raise InputError(f"{where}.autoscaling.min_replicas", at_most, scaling.min_replicas)
    initial = scaling.initial_replicas
    if initial is not None and not scaling.min_replicas <= initial <= scaling.max_replicas:
        between = f"{scaling.min_replicas}..{scaling.max_replicas} (min_replicas..max_replicas)"
        raise InputError(f"{where}.autoscaling.initial_replicas", between, initial)
    if model.max_ongoing_requests < scaling.target_ongoing_requests:
        at_least = f"at least target_ongoing_requests {scaling.target_ongoing_requests:g}"
        raise InputError(f"{where}.max_ongoing_requests", at_least, f"{model.max_ongoing_requests:g}")


def _check_fits(spec: ClusterSpec, where: str) -> None:
    arrays = spec.arrays
    for i, fits in enumerate(arrays.fits_type | (arrays.can_span[:, None] & arrays.bundle_fits_type)):
        if fits.any():
            continue
        d = spec.deployments[i]
        matching = [t for t in spec.node_types if d.label_rank(t.labels) < NO_MATCH]
        if not matching:
            expected = f"labels that some node type has ({', '.join(t.name for t in spec.node_types)})"
            raise InputError(f"{where}: deployments.{i}.label_selector", expected, dict(d.label_selector))
        demand = dict(zip(spec.resource_names, arrays.demand[i], strict=True))
        names = [n for n, amount in demand.items() if amount > 0]
        got = ", ".join(f"{n} {demand[n]:g}" for n in names)
        sizes = "; ".join(
            f"{t.name}: " + ", ".join(f"{n} {t.resources.get(n, 0.0):g}" for n in names) for t in matching
        )
        raise InputError(f"{where}: deployments.{i}.shape", f"a replica that fits on an empty node ({sizes})", got)


def to_traffic(file: ScenarioFile, traces_dir: Path | None, *, synthetic: bool) -> TrafficParts:
    """The traffic of a scenario.

    Args:
        file: The scenario.
        traces_dir: Where trace files are that do not lie beside the scenario file.
        synthetic: Use the generator even where the scenario names traces.

    Raises:
        InputError: A trace is missing or malformed, or a deployment lacks what its traffic needs.
    """
    model = file.model
    is_generated = synthetic or not model.traffic.traces
    if is_generated:
        source: TrafficSource = _generator_source(file)
        tokens = [d.requests.output_tokens_per_request for d in model.deployments]
    else:
        source, tokens = _trace_source(file, _read_traces(file, traces_dir))
    for i, count in enumerate(tokens):
        if count is None:
            needs = "a number, as the traffic does not tell it"
            raise InputError(f"{file.where}: deployments.{i}.requests.output_tokens_per_request", needs, "nothing")
    tokens_per_request = np.array(tokens, np.float64)
    requests = [d.requests for d in model.deployments]
    service_s = [service_time_s(r.ttft_s, r.tpot_s, n) for r, n in zip(requests, tokens_per_request, strict=True)]
    for i, seconds in enumerate(service_s):
        if seconds <= 0:
            raise InputError(f"{file.where}: deployments.{i}.requests", "ttft_s or tpot_s above 0", "0 and 0")
    cv = np.array([r.burstiness_cv for r in requests], np.float64)
    return TrafficParts(source, RequestModel(np.array(service_s, np.float64), tokens_per_request, cv))


def _generator_source(file: ScenarioFile) -> GeneratorSource:
    settings = []
    for i, d in enumerate(file.model.deployments):
        if d.requests.generator is None:
            raise InputError(f"{file.where}: deployments.{i}.requests.generator", "a generator", "nothing")
        settings.append(_to_generator(d.requests.generator))
    return GeneratorSource(settings=tuple(settings), bin_s=file.model.traffic.generator_bin_s)


def _to_generator(model: GeneratorModel) -> GeneratorSettings:
    return GeneratorSettings(
        **model.model_dump(exclude={"drop_at_s", "low_for_s"}),
        drop_at_s=Interval(*model.drop_at_s),
        low_for_s=_LOW_FOR_GOOD if model.low_for_s is None else Interval(*model.low_for_s),
    )


def _read_traces(file: ScenarioFile, traces_dir: Path | None) -> list[Trace]:
    traces: list[Trace] = []
    for i, name in enumerate(file.model.traffic.traces):
        folders = [f for f in (file.folder, traces_dir) if f is not None]
        found = next((f / name for f in folders if (f / name).is_file()), None)
        where = f"{file.where}: traffic.traces.{i}"
        if found is None:
            looked = ", ".join(str(f) for f in folders) or "no folder given"
            how = "give its folder with --traces DIR (its README says where to get it), or use --synthetic"
            raise InputError(where, f"trace file {name}; {how}", f"no such file ({looked})")
        trace = read_trace(found)
        if traces and trace.bin_s != traces[0].bin_s:
            raise InputError(where, f"bins of {traces[0].bin_s:g} s, as in the first file", f"{trace.bin_s:g} s")
        traces.append(trace)
    return traces


def _trace_source(file: ScenarioFile, traces: list[Trace]) -> tuple[TraceSource, list[float | None]]:
    """Rates of every deployment, and mean output tokens per request where they are known."""
    model, bin_s = file.model.traffic, traces[0].bin_s
    num_bins = max(t.num_bins for t in traces)
    splits = {
        split: BinRange(round(first * _DAY_S / bin_s), min(num_bins, round(end * _DAY_S / bin_s)))
        for split, (first, end) in ((Split.TRAIN, model.train_days), (Split.VALIDATION, model.validation_days))
    }
    rates = np.zeros((num_bins, len(file.model.deployments)))
    tokens: list[float | None] = []
    for i, d in enumerate(file.model.deployments):
        where, series = f"{file.where}: deployments.{i}.requests.series", d.requests.series
        trace = next((t for t in traces if series in t.series_ids), None)
        if trace is None or series is None:
            expected = f"a series_id of {', '.join(t.path.name for t in traces)}"
            raise InputError(where, expected, "nothing" if series is None else repr(series))
        row = trace.series_ids.index(series)
        rates[: trace.num_bins, i] = trace.requests[row] / bin_s * d.requests.scale
        known = trace.output_tokens_per_request(row, slice(*splits[Split.TRAIN]))
        tokens.append(d.requests.output_tokens_per_request or (None if np.isnan(known) else known))
    name = ", ".join(t.path.name for t in traces)
    return TraceSource(name=name, rates_rps=rates, bin_s=bin_s, splits=splits), tokens
