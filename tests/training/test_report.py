"""What is written is written whole, says what made it, and shows no interval where there is none."""

import io
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from rich.console import Console

from rayfold.envs.scenario import load_scenario
from rayfold.policies.none import NoMoves
from rayfold.policies.protocol import Policy
from rayfold.training.episode_result import EpisodeResult
from rayfold.training.evaluation import Evaluation, evaluate
from rayfold.training.report import COLUMNS, table, write_atomically, write_json, write_png
from tests.training.made_up import made_up, result


def evaluated(num_seeds: int) -> Evaluation:
    """Doing nothing, under two names: a paired difference of exactly 0."""
    scenario = load_scenario("smoke", synthetic=True).with_horizon(600.0)
    policies: dict[str, Policy] = {"none": NoMoves(), "other": NoMoves()}
    return evaluate(scenario, policies, range(num_seeds))


def shown(evaluation: Evaluation) -> dict[str, list[str]]:
    """The table's cells by the heading of their row."""
    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115  # closed with the test
    with console.file:
        console.print(table(evaluation))
        lines = console.export_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    found: dict[str, list[str]] = {}
    for heading, *cells in rows:
        if heading:
            last = found[heading] = cells
        else:  # the intervals stand below the means
            last[:] = [f"{above} {below}".strip() for above, below in zip(last, cells, strict=True)]
    return found


def test_interrupted_write_keeps_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither half a file nor a temporary one is left."""
    path = tmp_path / "deep" / "a.json"
    write_atomically(path, b"old")

    def fail(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


def test_json_says_what_made_it(tmp_path: Path) -> None:
    """Content first, then command, commit and versions; content is not replaced by them."""
    write_json(tmp_path / "a.json", {"scenario": "smoke"})
    content = json.loads((tmp_path / "a.json").read_text())
    assert list(content) == ["scenario", "command", "git_commit", "versions"]
    assert content["command"]
    assert content["versions"]["gymnasium"] == "1.2.2"


def test_picture_is_a_whole_png(tmp_path: Path) -> None:
    """Signature and end chunk, also for one seed, whose interval is not a number."""
    write_png(tmp_path / "a.png", evaluated(1))
    content = (tmp_path / "a.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert content.endswith(b"IEND\xaeB`\x82")
    assert list(tmp_path.iterdir()) == [tmp_path / "a.png"]


def test_table_rows_and_intervals() -> None:
    """Every column's metric has its row; intervals only from two seeds on; equal policies differ by nothing."""
    one, two = shown(evaluated(1)), shown(evaluated(2))
    assert {heading for _, heading, _, _ in COLUMNS} <= set(two)
    assert not any("…" in cell or "nan" in cell for cells in one.values() for cell in cells)
    assert all("…" in cell for cell in two["total USD"])
    assert one["moves"] == ["0.0", "0.0"]
    assert two["bill against none, paired %"] == ["0.0 0.0 … 0.0"] * 2


def test_many_policies_go_on_below() -> None:
    """Fourteen policies are three tables of at most six; each policy has its figure, in order."""
    many: dict[str, tuple[EpisodeResult, ...]] = {f"p{i}": (result(total_usd=float(100 + i)),) for i in range(14)}
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table(made_up(many)))
    lines = [line for line in console.export_text().splitlines() if "total USD" in line]
    shown_usd = [[cell.strip() for cell in line.strip("│").split("│")][1:] for line in lines]
    assert [len(cells) for cells in shown_usd] == [6, 6, 2]
    assert [float(cell) for cells in shown_usd for cell in cells] == [100.0 + i for i in range(14)]


def test_table_by_hand() -> None:
    """Of bills 10 and 14 a quarter of the resamples has 10, a quarter 14; shares are shown in percent."""
    none = (result(total_usd=10.0, excess_frac=0.25), result(total_usd=14.0, excess_frac=0.35))
    other = (result(total_usd=9.0, undone_moves=1.0, moves=3.0), result(total_usd=13.0, undone_moves=3.0, moves=7.0))
    cells = shown(made_up({"none": none, "other": other}))
    assert cells["total USD"] == ["12.00 10.00 … 14.00", "11.00 9.00 … 13.00"]
    assert cells["excess %"] == ["30.0 25.0 … 35.0", "0.0 0.0 … 0.0"]
    assert cells["moves"] == ["0.0 0.0 … 0.0", "5.0 3.0 … 7.0"]
    assert cells["undone"] == ["0.0 0.0 … 0.0", "2.0 1.0 … 3.0"]
    assert cells["bill against none, paired %"] == ["0.0 0.0 … 0.0", "-8.3 -10.0 … -7.1"]  # -1 of 12, of 10, of 14


def test_each_row_shows_its_own_metric() -> None:
    """With a different figure for every metric, no row shows another's."""
    metrics = {metric: float(i) for i, (metric, _, _, _) in enumerate(COLUMNS, start=1)}
    cells = shown(made_up({"a": (result(**metrics),)}))
    for i, (metric, heading, factor, digits) in enumerate(COLUMNS, start=1):
        if metric != "closed_frac":  # not of one policy alone
            assert cells[heading] == [f"{i * factor:,.{digits}f}"]
    named = {
        "nodes USD": "cost_usd",
        "moves USD": "disruption_usd",
        "unserved USD": "unserved_usd",
        "undone": "undone_moves",
        "moves": "moves",
        "decision ms p50": "decision_ms_p50",
        "p99": "decision_ms_p99",
    }
    assert {heading: metric for metric, heading, _, _ in COLUMNS if heading in named} == named


def test_without_the_baseline_there_is_no_row_of_differences() -> None:
    """Without ``none`` nothing is compared with it."""
    assert "bill against none, paired %" not in shown(made_up({"a": (result(),)}))


@pytest.fixture
def figure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Figure:
    """The picture of two policies on two seeds, before it becomes pixels."""
    drawn: list[Figure] = []
    print_png = FigureCanvasAgg.print_png

    def keep(canvas: FigureCanvasAgg, target: object) -> None:
        drawn.append(canvas.figure)
        print_png(canvas, target)  # type: ignore[no-untyped-call]  # matplotlib leaves it untyped

    monkeypatch.setattr(FigureCanvasAgg, "print_png", keep)
    bill = {"cost_usd": 5.0, "disruption_usd": 2.0, "unserved_usd": 1.0}
    first, second = (
        result(total_usd=8.0, **bill),
        result(total_usd=10.0, cost_usd=6.0, disruption_usd=3.0, unserved_usd=1.0),
    )
    second = replace(second, num_nodes=np.array([9, 9, 9]))
    write_png(tmp_path / "a.png", made_up({"a": (first, second), "b": (first, first)}))
    return drawn[0]


def test_picture_of_the_nodes(figure: Figure) -> None:
    """One line per policy: the nodes of the first seed over hours, from zero, named in the legend."""
    axes = figure.axes[0]
    assert [line.get_label() for line in axes.get_lines()] == ["a", "b"]
    for line in axes.get_lines():
        assert np.asarray(line.get_xdata()).tolist() == [0.0, 0.5, 1.0]
        assert np.asarray(line.get_ydata()).tolist() == [4, 3, 2]
    assert axes.get_ylim()[0] == 0.0
    assert "seed 0" in axes.get_title()


def test_picture_of_the_bills(figure: Figure) -> None:
    """Nodes, moves and unserved demand stand on each other up to the mean cost, which carries the interval."""
    bars = [[(bar.get_y(), bar.get_height()) for bar in group] for group in figure.axes[1].containers[:3]]
    assert bars == [[(0.0, 5.5), (0.0, 5.0)], [(5.5, 2.5), (5.0, 2.0)], [(8.0, 1.0), (7.0, 1.0)]]
    [interval] = [c for c in figure.axes[1].containers if isinstance(c, ErrorbarContainer)]
    ends = [segment[:, 1].tolist() for segment in interval.lines[2][0].get_segments()]
    np.testing.assert_allclose(ends, [[8.0, 10.0], [8.0, 8.0]])


def test_files_can_be_read_by_others(tmp_path: Path) -> None:
    """A temporary file is private to its owner; what is written must not stay so."""
    write_json(tmp_path / "a.json", {})
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o644
