"""Prometheus range queries: increases, restarts and rates computed by hand."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from rayfold.envs.importers.counts import Count
from rayfold.envs.importers.importing import TraceFormat, import_trace
from rayfold.envs.importers.prometheus import read_prometheus
from rayfold.envs.trace_file import Trace
from rayfold.errors import InputError
from tests.envs.importers.samples import prometheus

T0 = 1_700_000_040  # a multiple of 60
COUNTER = "ray_serve_deployment_request_counter_total"
# As Ray 2.60 exports it: the labels of serve/metrics.py, those of the agent, and those of the scrape.
LABELS = {
    "__name__": COUNTER,
    "application": "chat",
    "deployment": "Llama8B",
    "replica": "q3x9",
    "route": "/chat",
    "Component": "core_worker",
    "NodeAddress": "10.0.0.7",
    "SessionName": "session_2026-11-01_00-00-00_000000_1",
    "Version": "2.60.0",
    "WorkerId": "0a",
    "instance": "10.0.0.7:8080",
    "job": "ray",
}
RATE = {"application": "chat", "deployment": "Llama8B"}


def _import(tmp_path: Path, text: str, bin_s: int = 60) -> Trace:
    path = tmp_path / "answer.json"
    path.write_text(text)
    return import_trace(TraceFormat.PROMETHEUS, [path], bin_s=bin_s, out=tmp_path / f"x_{bin_s}s.csv")


def _every(step_s: float, *values: object) -> list[tuple[float, str]]:
    return [(T0 + i * step_s, str(v)) for i, v in enumerate(values) if v is not None]


def test_counter_increases_are_added_over_replicas_and_routes(tmp_path: Path) -> None:
    """Steps of 30 s: replica 1 grows by 4, 6, 0, 2; replica 2 by 1 each; bins of 60 s hold 12 and 4."""
    second = LABELS | {"replica": "zz", "route": "/other"}
    text = prometheus([(LABELS, _every(30, 100, 104, 110, 110, 112)), (second, _every(30, 7, 8, 9, 10, 11))])
    trace = _import(tmp_path, text)
    assert trace.series_ids == ("chat/Llama8B",)
    assert trace.requests.tolist() == [[12, 4]]
    assert np.isnan(trace.input_tokens).all()


def test_counter_restart(tmp_path: Path) -> None:
    """A fall from 110 to 3 is a restart: 3 requests since then."""
    trace = _import(tmp_path, prometheus([(LABELS, _every(60, 100, 110, 3, 5))]))
    assert trace.requests.tolist() == [[10, 3, 2]]


def test_counter_that_appears_later_began_at_zero(tmp_path: Path) -> None:
    """A replica of a scale-up shows up with 5: all came within the step before. One there from the start adds none."""
    late = LABELS | {"replica": "new"}
    trace = _import(tmp_path, prometheus([(LABELS, _every(60, 100, 101, 102)), (late, _every(60, None, None, 5))]))
    assert trace.requests.tolist() == [[1, 1 + 5]]


def test_counter_over_a_gap_in_scraping(tmp_path: Path) -> None:
    """An increase of 9 over three missing minutes is 3 in each."""
    steady = LABELS | {"deployment": "other"}
    metrics = [(LABELS, _every(60, 0, None, None, 9)), (steady, _every(60, 0, 0, 0, 6))]
    trace = _import(tmp_path, prometheus(metrics))
    assert trace.series_ids == ("chat/Llama8B", "chat/other")
    np.testing.assert_allclose(trace.requests, [[3, 3, 3], [0, 0, 6]])


def test_increase_is_shared_by_overlap(tmp_path: Path) -> None:
    """Samples 15 s after the minute: of 8 requests in 60 s the first bin gets 45 s, the next 15 s."""
    samples: list[tuple[float, str]] = [(T0 + 15, "0"), (T0 + 75, "8"), (T0 + 135, "8")]
    trace = _import(tmp_path, prometheus([(LABELS, samples)]))
    np.testing.assert_allclose(trace.requests, [[6, 2, 0]])


def test_rate_counts_for_the_step_before(tmp_path: Path) -> None:
    """0.5 requests/s at the end of a step of 60 s are 30 requests in it; two sums of one deployment are added."""
    text = prometheus([(RATE, _every(60, 0.5, 0, 2)), (RATE | {"route": "/b"}, _every(60, 0.25, None, 1))])
    trace = _import(tmp_path, text)
    assert trace.requests.tolist() == [[45, 0, 180]]
    assert trace.input_tokens[0, 1] == 0


def test_counter_and_its_rate_agree(tmp_path: Path) -> None:
    """Two routes: a random counter's increases, and the rates Prometheus would make of it on the same grid."""
    rng = np.random.default_rng(3)
    grown = np.cumsum(rng.integers(0, 50, 40))
    rates = np.diff(grown) / 15.0
    by_counter = _import(tmp_path, prometheus([(LABELS, _every(15, *grown))]))
    samples = [(T0 + 15.0 * (i + 1), repr(float(r))) for i, r in enumerate(rates)]
    by_rate = _import(tmp_path, prometheus([(RATE, samples)]))
    np.testing.assert_allclose(by_counter.requests, by_rate.requests)
    assert by_counter.requests.sum() == pytest.approx(grown[-1] - grown[0])


def test_answers_that_follow_each_other(tmp_path: Path) -> None:
    """The second query begins where the first ends: nothing is lost at the seam."""
    paths = [tmp_path / "1.json", tmp_path / "2.json"]
    paths[0].write_text(prometheus([(LABELS, _every(60, 0, 4))]))
    paths[1].write_text(prometheus([(LABELS, [(T0 + 60, "4"), (T0 + 120, "9")])]))
    trace = import_trace(TraceFormat.PROMETHEUS, paths, bin_s=60, out=tmp_path / "x_60s.csv")
    assert trace.requests.tolist() == [[4, 5]]


def test_millisecond_times(tmp_path: Path) -> None:
    """Prometheus gives times to the millisecond; steps of a third of a second are on the grid."""
    samples = [(T0 + 0.333, "0"), (T0 + 0.667, "1"), (T0 + 1.0, "2")]
    path = tmp_path / "answer.json"
    path.write_text(prometheus([(LABELS, samples)]))
    assert [c.requests for c in read_prometheus(path)] == [1, 1]


def test_one_sample_keeps_its_series(tmp_path: Path) -> None:
    """A counter seen once, at the start, tells nothing but that the deployment is there."""
    path = tmp_path / "answer.json"
    path.write_text(prometheus([(LABELS | {"deployment": "x"}, [(T0, "5")]), (LABELS, _every(60, 0, 1))]))
    assert next(iter(read_prometheus(path))) == Count("chat/x", T0, 0.0, 0.0, 0.0, 0.0)


def _edited(**changes: object) -> str:
    answer = json.loads(prometheus([(LABELS, _every(60, 1, 2, 3))]))
    for key, value in changes.items():
        if key in ("status", "warnings", "data"):
            answer[key] = value
        elif key in ("resultType", "result"):
            answer["data"][key] = value
        else:
            answer["data"]["result"][0][key] = value
    return json.dumps(answer)


@pytest.mark.parametrize(
    ("text", "where", "expected"),
    [
        ("", "", "JSON"),
        ("[]", ": status", "'success'"),
        (_edited(status="error"), ": status", "'success'"),
        (_edited(warnings=["PromQL: results truncated"]), ": warnings", "none, as the answer may be partial"),
        (_edited(data=3), ": data.resultType", "'matrix'"),
        (_edited(resultType="vector"), ": data.resultType", "'matrix'"),
        (_edited(result=[]), ": data.result", "a list of metrics"),
        (_edited(result=[3]), ": data.result.0", "an object with metric and values"),
        (_edited(values=[]), ": data.result.0", "an object with metric and values"),
        (_edited(metric={"__name__": COUNTER, "deployment": "d"}), ": data.result.0.metric", "the label application"),
        (
            _edited(metric=RATE | {"__name__": "ray_serve_replica_processing_queries"}),
            ": data.result.0.metric.__name__",
            "a counter, …_total, or no name",
        ),
        (_edited(values=[[T0, 1], [T0 + 60, 2]]), ": data.result.0.values.0", "[seconds, text of a number"),
        (_edited(values=[[T0, "1"], [T0 + 60, "NaN"]]), ": data.result.0.values.1", "[seconds, text of a number"),
        (_edited(values=[[T0, "1"], [T0 + 60, "+Inf"]]), ": data.result.0.values.1", "[seconds, text of a number"),
        (_edited(values=[[T0, "1"], [1e300, "2"]]), ": data.result.0.values.1", "[seconds, text of a number"),
        (_edited(values=[[T0, "1"], [T0, "2"]]), ": data.result.0.values.1", "a time after"),
        (_edited(values=[[T0, "1"]]), ": data.result", "a metric with two samples"),
        (
            _edited(values=[[T0, "1"], [T0 + 60, "2"], [T0 + 150, "2"]]),
            ": data.result.0.values.2",
            "a whole number of steps of 60 s",
        ),
    ],
)
def test_what_breaks_the_format_is_named(tmp_path: Path, text: str, where: str, expected: str) -> None:
    """The message has the JSON path."""
    path = tmp_path / "answer.json"
    path.write_text(text)
    with pytest.raises(InputError) as err:
        list(read_prometheus(path))
    assert err.value.where == f"{path}{where}"
    assert expected in err.value.expected


@pytest.mark.parametrize("name", [COUNTER, "ray_serve_num_router_requests_total"])
def test_ray_still_has_the_metric(name: str) -> None:
    """The names in the module's docstring are those in the installed Ray, which adds ``ray_`` and ``_total``."""
    ray = find_spec("ray")  # importing it takes seconds
    assert ray is not None
    assert ray.origin is not None
    sources = (Path(ray.origin).parent / "serve" / "_private" / f for f in ("replica.py", "router.py"))
    wanted = f'"{name.removeprefix("ray_").removesuffix("_total")}"'
    assert any(wanted in source.read_text() for source in sources)
