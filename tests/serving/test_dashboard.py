"""The Grafana dashboard asks for what the decider exports, all of it and nothing else."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import rayfold.serving
from rayfold.envs.moves import Move, MovePhase
from rayfold.serving.decider import Decider
from rayfold.serving.decision import Decision, Mode
from rayfold.serving.metrics import NAMES, Metrics, Sink
from rayfold.serving.ray_metrics import RayMetrics
from tests.serving.deciders import FakeCluster, make_decider, plan_of

_Read = Callable[[], dict[str, set[str]]]
DASHBOARD = Path(rayfold.serving.__file__).parent / "manifests" / "grafana_dashboard.json"
SUMMARY_ENDS = ("_count", "_sum")
_BY = re.compile(r"\bby \(([^)]*)\)")
_NAME = re.compile(r"\${prefix}_(\w+)")
_LEGEND = re.compile(r"{{(\w+)}}")


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    """As Grafana imports it."""
    loaded: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return loaded


def targets(dashboard: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Its queries."""
    for panel in dashboard["panels"]:
        yield from panel["targets"]


def decide(sink: Sink | None = None) -> Decider:
    """A decider that has made a decision whose move was done, and met with every trouble that is counted."""
    executor = FakeCluster()
    decider = make_decider(lambda: plan_of(Move(0, 1)), executor, metrics=Metrics(sink))
    decider.tick()
    executor.set_phase(executor.ids[0], MovePhase.DONE)
    decider.watch()
    decider.metrics.saw_error()
    decider.metrics.saw_undone(1)
    decider.metrics.saw_decision(Decision(time_s=1.0, mode=Mode.ACT, policy="", reason=""), is_fallback=True)
    decider.metrics.publish(decider.gauges(holds_lease=True))
    return decider


def page_samples() -> dict[str, set[str]]:
    """Labels by name of the sample on the decider's own page."""
    decider = decide()
    page = decider.metrics.text(decider.gauges(holds_lease=True))
    samples = [s for family in text_string_to_metric_families(page) for s in family.samples]
    return {sample.name: set(sample.labels) for sample in samples}


class RaySamples:
    """A sink that remembers what Ray's exporter would export: ``test_live_faults.py`` asks a real one."""

    def __init__(self) -> None:
        self.labels: dict[str, set[str]] = {}
        self.sink = RayMetrics()

    def add(self, name: str, labels: Mapping[str, str], amount: float) -> None:
        """Passed on."""
        self.sink.add(name, labels, amount)
        self.labels[f"ray_rayfold_{name}"] = set(labels)

    def observe(self, name: str, value: float) -> None:
        """Passed on."""
        self.sink.observe(name, value)
        self.labels |= {f"ray_rayfold_{name}{end}": set() for end in SUMMARY_ENDS}

    def set(self, name: str, labels: Mapping[str, str], value: float) -> None:
        """Passed on."""
        self.sink.set(name, labels, value)
        self.labels[f"ray_rayfold_{name}"] = set(labels)


def ray_samples() -> dict[str, set[str]]:
    """Labels by name of the sample through ``ray.util.metrics``."""
    samples = RaySamples()
    decide(samples)
    return samples.labels


SOURCES = [("rayfold", page_samples), ("ray_rayfold", ray_samples)]


def test_sources_are_the_user_s_choice(dashboard: Mapping[str, Any]) -> None:
    """The variable offers the prefixes of both, and begins with that of the page."""
    (variable,) = (v for v in dashboard["templating"]["list"] if v["name"] == "prefix")
    prefixes = [prefix for prefix, _ in SOURCES]
    assert variable["query"].split(",") == prefixes
    assert [option["value"] for option in variable["options"]] == prefixes
    assert variable["current"]["value"] == "rayfold"


@pytest.mark.parametrize(("prefix", "read"), SOURCES)
def test_every_name_is_asked_for_and_exported(dashboard: Mapping[str, Any], prefix: str, read: _Read) -> None:
    """Both ways; of a summary both its samples."""
    asked = {name for target in targets(dashboard) for name in _NAME.findall(target["expr"])}
    ends = {name: SUMMARY_ENDS if about.kind == "summary" else ("",) for name, about in NAMES.items()}
    assert asked == {f"{name}{end}" for name in NAMES for end in ends[name]}
    assert {f"{prefix}_{name}" for name in asked} == set(read())


@pytest.mark.parametrize(("prefix", "read"), SOURCES)
def test_labels_are_exported(dashboard: Mapping[str, Any], prefix: str, read: _Read) -> None:
    """What a query groups by or a legend shows is a label of that query's metric."""
    labels, seen = read(), set()
    for target in targets(dashboard):
        (known, *others) = (labels[f"{prefix}_{name}"] for name in _NAME.findall(target["expr"]))
        wanted = {name.strip() for by in _BY.findall(target["expr"]) for name in by.split(",")}
        shown = set(_LEGEND.findall(target["legendFormat"]))
        assert wanted | shown <= known.intersection(*others), target
        seen |= shown
    assert seen == {"mode", "reason", "phase"}
    assert {name for about in NAMES.values() for name in about.labels} == seen


def test_counters_are_asked_for_their_change(dashboard: Mapping[str, Any]) -> None:
    """A counter begins anew with each process: only its rate or increase means something."""
    for target in targets(dashboard):
        for name in _NAME.findall(target["expr"]):
            if name.endswith(("_total", "_sum", "_count")):
                assert re.search(rf"\b(rate|increase)\(\${{prefix}}_{name}\[", target["expr"]), target
            else:
                assert f"{name}[" not in target["expr"], target


def test_panels_stand_side_by_side(dashboard: Mapping[str, Any]) -> None:
    """Ids are unique, no two panels overlap on the grid of 24 columns, and the data source is the user's choice."""
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) == 23
    (variable,) = (v for v in dashboard["templating"]["list"] if v["type"] == "datasource")
    used = {target["datasource"]["uid"] for target in [*targets(dashboard), *panels]}
    assert used == {f"${{{variable['name']}}}"}
