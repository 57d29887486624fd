"""What an evaluation looks like: a table for the terminal, JSON, and a picture."""

import io
import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group
from rich.markup import escape
from rich.table import Column, Table

from rayfold.training.bootstrap import Estimate
from rayfold.training.evaluation import NONE, Evaluation
from rayfold.training.provenance import command_line, git_commit, package_versions

__all__ = ["COLUMNS", "table", "write_atomically", "write_json", "write_png"]

# Column: metric, heading, factor, digits. Never a saving without moves, undone moves and unserved demand beside it.
COLUMNS = (
    ("total_usd", "total USD", 1.0, 2),
    ("excess_frac", "excess %", 100.0, 1),
    ("cost_usd", "nodes USD", 1.0, 2),
    ("disruption_usd", "moves USD", 1.0, 2),
    ("unserved_usd", "unserved USD", 1.0, 2),
    ("closed_frac", "closed %", 100.0, 1),
    ("node_hours", "node-h", 1.0, 2),
    ("tokens_per_gpu_s", "tokens/GPU-s", 1.0, 1),
    ("moves", "moves", 1.0, 1),
    ("undone_moves", "undone", 1.0, 1),
    ("cold_start_gpu_h", "cold start GPU-h", 1.0, 2),
    ("unserved_request_s", "unserved request-s", 1.0, 0),
    ("decision_ms_p50", "decision ms p50", 1.0, 2),
    ("decision_ms_p99", "p99", 1.0, 2),
)

PER_TABLE = 6  # policies side by side in the terminal


def _cell(figure: Estimate, factor: float, digits: int) -> str:
    """``mean [low, high]``, the interval on a line of its own."""
    if math.isnan(figure.mean):
        return "-"
    mean, interval = f"{figure.mean * factor:,.{digits}f}", figure.ci95
    if interval is None:
        return mean
    low, high = (f"{end * factor:,.{digits}f}" for end in interval)
    return f"{mean}\n[dim]{low} … {high}[/dim]"


def table(evaluation: Evaluation) -> Group:
    """One column per policy, one row per metric; beyond ``PER_TABLE`` policies the columns go on below."""
    summary, names = evaluation.summary(), list(evaluation.results)
    against = evaluation.versus(NONE) if NONE in summary else {}
    title = (
        f"{evaluation.scenario.name}: mean and 95 % interval over {len(evaluation.seeds)} episodes of "
        f"{evaluation.scenario.horizon_s / 3600:g} h "
        f"({evaluation.days or evaluation.split}, {evaluation.scenario.traffic_name})"
    )
    parts = [names[i : i + PER_TABLE] for i in range(0, len(names), PER_TABLE)]
    return Group(*(_part({n: summary[n] for n in part}, against, title) for part in parts))


def _part(
    summary: Mapping[str, Mapping[str, Estimate]], against: Mapping[str, Mapping[str, Estimate]], title: str
) -> Table:
    out = Table("", *(Column(escape(name), justify="right") for name in summary), title=title)
    for metric, heading, factor, digits in COLUMNS:
        out.add_row(heading, *(_cell(values[metric], factor, digits) for values in summary.values()))
    if against:
        out.add_row("bill against none, paired %", *(_cell(against[n]["total_usd"], 100.0, 1) for n in summary))
    if any(values["refused_moves"].mean > 0 for values in summary.values()):
        cells = [f"{values['refused_moves'].mean:,.1f}" for values in summary.values()]
        out.add_row("REFUSED MOVES", *cells, style="bold red")
    return out


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as f:
            f.write(content)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON, whole or not at all, with what made it: ``command``, ``git_commit`` and ``versions``."""
    made_by = {"command": command_line(), "git_commit": git_commit(), "versions": package_versions()}
    write_atomically(path, (json.dumps({**content, **made_by}, indent=2) + "\n").encode())


def write_png(path: Path, evaluation: Evaluation) -> None:
    """Nodes over time on the first seed, and the mean bill per policy with its interval; whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), dpi=110, layout="constrained")
    over_time, bills = figure.subplots(1, 2, width_ratios=(2, 1))
    for name, episodes in evaluation.results.items():
        over_time.step(episodes[0].time_h, episodes[0].num_nodes, where="post", label=name, lw=1.2)
    over_time.set(
        xlabel="hours", ylabel="nodes paid for", title=f"{evaluation.scenario.name}, seed {evaluation.seeds[0]}"
    )
    over_time.set_ylim(bottom=0)
    over_time.legend(fontsize=8)
    summary = evaluation.summary()
    bottom = np.zeros(len(summary))
    for metric, label in (("cost_usd", "nodes"), ("disruption_usd", "moves"), ("unserved_usd", "unserved")):
        height = np.array([values[metric].mean for values in summary.values()])
        bills.bar(list(summary), height, bottom=bottom, label=label)
        bottom += height
    ends = [figures["total_usd"].ci95 for figures in summary.values()]
    if all(ends):
        below, above = np.abs(np.array(ends, np.float64) - bottom[:, None]).T
        bills.errorbar(list(summary), bottom, [below, above], fmt="none", ecolor="k", capsize=3)
    bills.set(ylabel="USD per episode", title=f"bill, {len(evaluation.seeds)} seeds")
    bills.tick_params(axis="x", labelrotation=20)
    bills.legend(fontsize=8)
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content)  # type: ignore[no-untyped-call]  # matplotlib leaves it untyped
    write_atomically(path, content.getvalue())
