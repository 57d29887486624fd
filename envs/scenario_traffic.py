"""The traffic of a scenario file: series of traces, scaled, shifted and added, or the generator."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from rayfold.envs.arrivals import Arrivals
from rayfold.envs.cluster import Interval
from rayfold.envs.generator import GeneratorSettings
from rayfold.envs.scenario_file import ScenarioFile
from rayfold.envs.scenario_schema import GeneratorModel, RequestsModel
from rayfold.envs.trace_file import Trace, read_trace
from rayfold.envs.trace_mix import TracePart, mix_parts
from rayfold.envs.traffic import service_time_s
from rayfold.envs.traffic_source import BinRange, GeneratorSource, RequestModel, Split, TraceSource, TrafficSource
from rayfold.errors import InputError

__all__ = ["TrafficParts", "to_traffic"]

_DAY_S = 86400.0
_MAX_RPS = 1e6  # of a deployment
_LOW_FOR_GOOD = Interval(float("inf"), float("inf"))


class TrafficParts(NamedTuple):
    """Traffic of a scenario."""

    source: TrafficSource
    requests: RequestModel


def to_traffic(file: ScenarioFile, traces_dir: Path | None, *, synthetic: bool) -> TrafficParts:
    """The traffic of a scenario.

    Args:
        file: The scenario.
        traces_dir: Where trace files are that do not lie beside the scenario file.
        synthetic: Use the generator even where the scenario names traces.

    Raises:
        InputError: A trace is missing or malformed, or a deployment lacks what its traffic needs.
    """
    each = list(file.model.each_deployment())
    requests = [d.model.requests for d in each]
    if synthetic or not file.model.traffic.traces:
        source: TrafficSource = _generator_source(file)
        tokens = [r.output_tokens_per_request for r in requests]
    else:
        source, tokens = _trace_source(file, _read_traces(file, traces_dir))
    service_s = []
    for (place, _, _), r, count in zip(each, requests, tokens, strict=True):
        if count is None:
            needs = "a number, as the traffic does not tell it"
            raise InputError(f"{file.where}: {place}.requests.output_tokens_per_request", needs, "nothing")
        service_s.append(service_time_s(r.ttft_s, r.tpot_s, count))
        if not 0 < service_s[-1] <= _DAY_S:
            what = "ttft_s or tpot_s above 0, and a request of at most a day"
            raise InputError(f"{file.where}: {place}.requests", what, f"one of {service_s[-1]:g} s")
    model = RequestModel(
        service_s=np.array(service_s),
        tokens_per_request=np.array(tokens, np.float64),
        burstiness_cv=np.array([r.burstiness_cv for r in requests], np.float64),
        has_weibull_arrivals=np.array([r.arrivals is Arrivals.WEIBULL for r in requests], np.bool_),
    )
    return TrafficParts(source, model)


def _generator_source(file: ScenarioFile) -> GeneratorSource:
    settings = []
    for place, _, d in file.model.each_deployment():
        if d.requests.generator is None:
            raise InputError(f"{file.where}: {place}.requests.generator", "a generator", "nothing")
        if d.requests.generator.mean_rps > _MAX_RPS:
            where = f"{file.where}: {place}.requests.generator.mean_rps"
            raise InputError(where, f"at most {_MAX_RPS:g}", f"{d.requests.generator.mean_rps:g}")
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
    if model.train_days[0] < model.validation_days[1] and model.validation_days[0] < model.train_days[1]:
        where = f"{file.where}: traffic.validation_days"
        raise InputError(where, f"days outside train_days {list(model.train_days)}", list(model.validation_days))
    num_bins = max(t.num_bins for t in traces)
    splits = {
        split: BinRange(round(first * _DAY_S / bin_s), min(num_bins, round(end * _DAY_S / bin_s)))
        for split, (first, end) in ((Split.TRAIN, model.train_days), (Split.VALIDATION, model.validation_days))
    }
    columns, tokens = [], []
    for place, _, d in file.model.each_deployment():
        where = f"{file.where}: {place}.requests"
        mixed = mix_parts(traces, _to_parts(d.requests, traces, where), splits, f"{where}.parts")
        columns.append(mixed.rates_rps)
        known = None if np.isnan(mixed.tokens_per_request) else mixed.tokens_per_request
        tokens.append(d.requests.output_tokens_per_request or known)
    name = ", ".join(t.path.name for t in traces)
    return TraceSource(name=name, rates_rps=np.stack(columns, axis=1), bin_s=bin_s, splits=splits), tokens


def _to_parts(model: RequestsModel, traces: list[Trace], where: str) -> list[TracePart]:
    """The series of a deployment; a single one is a mix of one part."""
    bin_s, known = traces[0].bin_s, [s for t in traces for s in t.series_ids]
    if model.parts is None:
        asked = [(f"{where}.series", model.series, model.scale, 0.0)]
    else:
        asked = [(f"{where}.parts.{i}.series", p.series, p.scale, p.shift_h) for i, p in enumerate(model.parts)]
    parts = []
    for place, series, scale, shift_h in asked:
        if series is None or series not in known:
            expected = f"a series_id of {', '.join(t.path.name for t in traces)}"
            raise InputError(place, expected, "nothing" if series is None else repr(series))
        num_bins = shift_h * 3600.0 / bin_s
        if abs(num_bins - round(num_bins)) > 1e-6:
            where = place.removesuffix("series") + "shift_h"
            raise InputError(where, f"a whole number of bins of {bin_s:g} s", f"{shift_h:g}")
        parts.append(TracePart(series_id=series, scale=scale, shift_s=round(num_bins) * bin_s))
    return parts
