"""Prometheus: the answer of a range query (``/api/v1/query_range``) for a request metric of Ray Serve, saved as JSON.

Two kinds of query are understood, told apart by the metric's name, which PromQL functions drop:

- A raw counter, ``ray_serve_deployment_request_counter_total`` (processed by replicas) or
  ``ray_serve_num_router_requests_total`` (received by routers). Requests are the increases between samples, spread
  evenly over the time between; a fall is a restart from 0. A counter that appears after the first step has counted
  from 0 in the step before, as Serve makes a counter with its first request.
- ``rate()``, or a sum of it, in requests per second: ``sum by (application, deployment)
  (rate(ray_serve_deployment_request_counter_total[1m]))`` with a step as long as the window. A sample stands for the
  step before it.

The series is ``application/deployment``; all metrics with the same labels (replicas, routes) are added. Tokens are
unknown. For a longer time than one answer holds (11,000 steps), let each query begin where the last one ends.

Source: https://prometheus.io/docs/prometheus/latest/querying/api/ ("Range queries"; documentation Apache-2.0); metric
names and labels: Ray 2.60, ``serve/_private/replica.py``, ``serve/_private/router.py``, ``serve/metrics.py``.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rayfold.envs.importers.counts import Count
from rayfold.envs.text_file import MAX_AMOUNT, parse_json, text_lines, to_amount
from rayfold.errors import InputError

__all__ = ["read_prometheus"]

_LABELS = ("application", "deployment")
_COUNTER_ENDING = "_total"
_MAX_TIME_S = 1e11
_UNKNOWN = float("nan")


class _Sample(NamedTuple):
    time_s: float  # since 1970, to the millisecond
    value: float


class _Metric(NamedTuple):
    """One element of ``data.result``."""

    series_id: str
    is_counter: bool
    samples: list[_Sample]


def read_prometheus(path: Path) -> Iterator[Count]:
    """Requests per step, at seconds since 1970.

    Raises:
        InputError: The file breaks the format, or the metric is neither a counter nor a rate; ``where`` has the JSON
            path.
    """
    content = parse_json("".join(text_lines(path, is_end_needed=False)), str(path))
    metrics = [_metric(item, f"{path}: data.result.{i}") for i, item in enumerate(_result(content, path))]
    begin_s = min((m.samples[0].time_s for m in metrics), default=0.0)
    step_s = _step_s(metrics, path)
    for i, metric in enumerate(metrics):
        _check_grid(metric, begin_s, step_s, f"{path}: data.result.{i}.values")
        yield from _increases(metric, begin_s, step_s) if metric.is_counter else _rates(metric, step_s)


def _result(content: object, path: Path) -> list[object]:
    if not isinstance(content, dict) or content.get("status") != "success":
        got = repr(
            {k: content[k] for k in ("status", "error") if k in content} if isinstance(content, dict) else content
        )
        raise InputError(f"{path}: status", "'success'", got[:80])
    if content.get("warnings"):
        raise InputError(f"{path}: warnings", "none, as the answer may be partial", repr(content["warnings"])[:80])
    data = content.get("data")
    kind = data.get("resultType") if isinstance(data, dict) else None
    if not isinstance(data, dict) or kind != "matrix":
        raise InputError(f"{path}: data.resultType", "'matrix', as query_range gives it", repr(kind)[:40])
    result = data.get("result")
    if not isinstance(result, list) or not result:
        raise InputError(f"{path}: data.result", "a list of metrics", repr(result)[:40])
    return result


def _metric(item: object, where: str) -> _Metric:
    labels = item.get("metric") if isinstance(item, dict) else None
    values = item.get("values") if isinstance(item, dict) else None
    if not isinstance(labels, dict) or not isinstance(values, list) or not values:
        raise InputError(where, "an object with metric and values", repr(item)[:80])
    for label in _LABELS:
        if not isinstance(labels.get(label), str) or not labels[label]:
            raise InputError(f"{where}.metric", f"the label {label}", repr(labels)[:80])
    name = labels.get("__name__", "")
    if name and not str(name).endswith(_COUNTER_ENDING):
        expected = f"a counter, …{_COUNTER_ENDING}, or no name, as after rate()"
        raise InputError(f"{where}.metric.__name__", expected, repr(name)[:60])
    samples = [_sample(value, f"{where}.values.{i}") for i, value in enumerate(values)]
    for i in range(1, len(samples)):
        if samples[i].time_s <= samples[i - 1].time_s:
            raise InputError(f"{where}.values.{i}", f"a time after {samples[i - 1].time_s:.3f}", samples[i].time_s)
    return _Metric("/".join(labels[label] for label in _LABELS), bool(name), samples)


def _sample(value: object, where: str) -> _Sample:
    if isinstance(value, list) and len(value) == 2 and isinstance(value[1], str):
        time_s, number = value[0], to_amount(value[1])
        is_time = isinstance(time_s, int | float) and not isinstance(time_s, bool) and 0 <= time_s <= _MAX_TIME_S
        if is_time and number <= MAX_AMOUNT:
            return _Sample(round(float(time_s), 3), number)
    raise InputError(where, "[seconds, text of a number of 0 to 1e15]", repr(value)[:80])


def _step_s(metrics: list[_Metric], path: Path) -> float:
    """Step of the query: the shortest time between two samples of a metric."""
    steps = [round(b.time_s - a.time_s, 3) for m in metrics for a, b in zip(m.samples, m.samples[1:], strict=False)]
    if not steps:
        raise InputError(f"{path}: data.result", "a metric with two samples, to know the step", "none")
    return min(steps)


def _check_grid(metric: _Metric, begin_s: float, step_s: float, where: str) -> None:
    for i, sample in enumerate(metric.samples):
        steps = (sample.time_s - begin_s) / step_s
        if abs(steps - round(steps)) * step_s > 0.002:  # times are rounded to a millisecond
            expected = f"a whole number of steps of {step_s:g} s after {begin_s:.3f}"
            raise InputError(f"{where}.{i}", expected, f"{sample.time_s:.3f}")


def _count(metric: _Metric, begin_s: float, end_s: float, requests: float) -> Count:
    unknown = _UNKNOWN if requests else 0.0
    return Count(metric.series_id, begin_s, round(end_s - begin_s, 3), requests, unknown, unknown)


def _rates(metric: _Metric, step_s: float) -> Iterator[Count]:
    for time_s, rate in metric.samples:
        yield _count(metric, round(time_s - step_s, 3), time_s, rate * step_s)


def _increases(metric: _Metric, begin_s: float, step_s: float) -> Iterator[Count]:
    last = metric.samples[0]
    if last.time_s > begin_s:
        yield _count(metric, round(last.time_s - step_s, 3), last.time_s, last.value)
    elif len(metric.samples) == 1:
        yield _count(metric, last.time_s, last.time_s, 0.0)
    for sample in metric.samples[1:]:
        increase = sample.value - last.value if sample.value >= last.value else sample.value
        yield _count(metric, last.time_s, sample.time_s, increase)
        last = sample
