"""From a scenario file to the cluster of a ``Scenario``: finding files, converting, and checks across fields."""

from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import NamedTuple

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
from rayfold.envs.scenario_schema import (
    DeploymentModel,
    NamedDeployment,
    ScenarioModel,
    parse_scenario,
)
from rayfold.envs.yaml_text import MAX_CHARACTERS
from rayfold.errors import InputError

__all__ = ["ScenarioFile", "open_scenario", "read_shipped", "shipped_scenarios", "to_spec"]

_INTERVALS = {"boot_s", "stockout_s", "other_work_s"}  # of a node type
_MAX_NODES, _MAX_DEPLOYMENTS, _MAX_REPLICAS = 20_000, 2_000, 200_000
_MAX_RESOURCES, _MAX_BUNDLES = 32, 64


class ScenarioFile(NamedTuple):
    """A parsed file and where it came from."""

    name: str
    where: str  # for messages
    folder: Path | None  # of a user's own file, None for a shipped one
    model: ScenarioModel


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
        return ScenarioFile(
            name, f"{name}.yaml", None, parse_scenario(read_shipped(name), f"{name}.yaml", read_shipped)
        )
    path = Path(name_or_path)
    try:
        with path.open(encoding="utf-8") as f:
            text = f.read(MAX_CHARACTERS + 1)  # of a file without end
    except (OSError, UnicodeDecodeError, ValueError) as err:
        known = f"a readable YAML file or one of {', '.join(shipped_scenarios())}"
        reason = "no such file" if isinstance(err, FileNotFoundError) else f"{type(err).__name__}: {err}"
        raise InputError(f"scenario {name}", known, reason) from None
    return ScenarioFile(path.stem, name, path.parent, parse_scenario(text, name, read_shipped))


def read_shipped(name: str) -> str:
    """Text of a shipped scenario.

    Raises:
        InputError: There is none of this name.
    """
    if name not in shipped_scenarios():
        raise InputError("extends", f"one of {', '.join(shipped_scenarios())}", repr(name[:60]))
    return (resources.files("rayfold.envs.scenarios") / f"{name}.yaml").read_text("utf-8")


def to_spec(file: ScenarioFile) -> ClusterSpec:
    """The cluster of a scenario.

    Raises:
        InputError: A name is given twice, a replica fits on no node type, or settings contradict each other.
    """
    model, where = file.model, file.where
    _check_size(model, where)
    _check_unique([t.name for t in model.node_types], f"{where}: node_types", "name")
    each = list(model.each_deployment())
    _check_unique_deployments(each, where)
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
            replace(
                NodeType(**t.model_dump(exclude=_INTERVALS)),
                boot_s=Interval(*t.boot_s),
                stockout_s=Interval(*t.stockout_s),
                other_work_s=Interval(*t.other_work_s),
            )
            for t in model.node_types
        ),
        deployments=tuple(_to_deployment(d) for d in each),
        settings=ClusterSettings(
            **settings.model_dump(exclude={"prices"}), prices=Prices(**settings.prices.model_dump())
        ),
    )
    _check_fits(spec, [d.place for d in each], where)
    return replace(spec, bounds_packing=True)  # only now: it takes a moment


def _to_deployment(named: NamedDeployment) -> Deployment:
    model = named.model
    return Deployment(
        name=named.name,
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


def _check_unique_deployments(each: list[NamedDeployment], where: str) -> None:
    first: dict[str, str] = {}
    for place, name, d in each:
        key = f"{d.app}/{name}"
        if key in first:
            as_in = first[key].removeprefix("deployments.")
            raise InputError(f"{where}: {place}.name", "a unique app/name", f"{key!r} as in {as_in}")
        first[key] = place


def _check_size(model: ScenarioModel, where: str) -> None:
    """Refuses what no machine could hold."""
    num_nodes = sum(t.max_nodes for t in model.node_types)
    if num_nodes > _MAX_NODES:
        raise InputError(f"{where}: node_types", f"at most {_MAX_NODES} nodes in all (max_nodes)", num_nodes)
    each = [d for _, _, d in model.each_deployment()]
    if len(each) > _MAX_DEPLOYMENTS:
        raise InputError(f"{where}: deployments", f"at most {_MAX_DEPLOYMENTS} in all", len(each))
    num_replicas = sum(d.autoscaling.max_replicas for d in each)
    if num_replicas > _MAX_REPLICAS:
        raise InputError(
            f"{where}: deployments", f"at most {_MAX_REPLICAS} replicas in all (max_replicas)", num_replicas
        )
    names = {name for t in model.node_types for name in t.resources}
    names |= {name for d in each for bundle in d.shape.bundles for name in bundle}
    if len(names) > _MAX_RESOURCES:
        raise InputError(f"{where}: node_types", f"at most {_MAX_RESOURCES} resources in all", len(names))


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
    if len(shape.bundles) * model.gang_size > _MAX_BUNDLES:
        raise InputError(f"{where}.gang_size", f"at most {_MAX_BUNDLES} bundles in a gang", model.gang_size)
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


def _check_fits(spec: ClusterSpec, places: list[str], where: str) -> None:
    arrays = spec.arrays
    for i, fits in enumerate(arrays.fits_type | (arrays.can_span[:, None] & arrays.bundle_fits_type)):
        if fits.any():
            continue
        d = spec.deployments[i]
        matching = [t for t in spec.node_types if d.label_rank(t.labels) < NO_MATCH]
        if not matching:
            expected = f"labels that some node type has ({', '.join(t.name for t in spec.node_types)})"
            raise InputError(f"{where}: {places[i]}.label_selector", expected, dict(d.label_selector))
        demand = dict(zip(spec.resource_names, arrays.demand[i], strict=True))
        names = [n for n, amount in demand.items() if amount > 0]
        got = ", ".join(f"{n} {demand[n]:g}" for n in names)
        sizes = "; ".join(
            f"{t.name}: " + ", ".join(f"{n} {t.resources.get(n, 0.0):g}" for n in names) for t in matching
        )
        raise InputError(f"{where}: {places[i]}.shape", f"a replica that fits on an empty node ({sizes})", got)
