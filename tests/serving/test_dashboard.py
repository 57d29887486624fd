"""The Grafana dashboard asks for what the decider exports, all of it and nothing else."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import rayfold.serving
from rayfold.envs.moves import Move, MovePhase
from rayfold.serving.decision import Mode
from rayfold.serving.metrics import NAMES, Gauges
from tests.serving.deciders import FakeCluster, make_decider, plan_of

DASHBOARD = Path(rayfold.serving.__file__).parent / "manifests" / "grafana_dashboard.json"
_BY = re.compile(r"\bby \(([^)]*)\)")
_NAME = re.compile(r"\brayfold_\w+")
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


def exported() -> dict[str, set[str]]:
    """Labels by name of the sample, after a decision whose move was done."""
    executor = FakeCluster()
    decider = make_decider(lambda: plan_of(Move(0, 1)), executor)
    decider.tick()
    executor.set_phase(executor.ids[0], MovePhase.DONE)
    decider.watch()
    page = decider.metrics.text(Gauges(Mode.ACT, False, True, 0))
    samples = [s for family in text_string_to_metric_families(page) for s in family.samples]
    return {sample.name: set(sample.labels) for sample in samples}


def test_every_name_is_asked_for_and_exported(dashboard: Mapping[str, Any]) -> None:
    """Both ways; of a summary both its samples."""
    asked = {name for target in targets(dashboard) for name in _NAME.findall(target["expr"])}
    summaries = {name for name, (kind, _) in NAMES.items() if kind == "summary"}
    ends = {name: ("_count", "_sum") if name in summaries else ("",) for name in NAMES}
    assert asked == {f"rayfold_{name}{end}" for name in NAMES for end in ends[name]}
    assert asked == set(exported())


def test_labels_are_exported(dashboard: Mapping[str, Any]) -> None:
    """What a query groups by or a legend shows is a label of that query's metric."""
    labels, seen = exported(), set()
    for target in targets(dashboard):
        (known, *others) = (labels[name] for name in _NAME.findall(target["expr"]))
        wanted = {name.strip() for by in _BY.findall(target["expr"]) for name in by.split(",")}
        shown = set(_LEGEND.findall(target["legendFormat"]))
        assert wanted | shown <= known.intersection(*others), target
        seen |= shown
    assert seen == {"mode", "reason", "phase"}


def test_counters_are_asked_for_their_change(dashboard: Mapping[str, Any]) -> None:
    """A counter begins anew with each process: only its rate or increase means something."""
    for target in targets(dashboard):
        for name in _NAME.findall(target["expr"]):
            if name.endswith(("_total", "_sum", "_count")):
                assert re.search(rf"\b(rate|increase)\({name}\[", target["expr"]), target
            else:
                assert f"({name}[" not in target["expr"], target


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
    (variable,) = dashboard["templating"]["list"]
    used = {target["datasource"]["uid"] for target in [*targets(dashboard), *panels]}
    assert used == {f"${{{variable['name']}}}"}
