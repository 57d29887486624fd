"""``rayfold trace``: import published traffic, look at it, draw it."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rayfold.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from rayfold.envs.trace_stats import SeriesStats

__all__ = ["app"]

app = typer.Typer(help="Traffic traces: import, inspect, plot.", no_args_is_help=True)

_FILE_WIDTH = 120  # characters
_FORMATS = "servegen, azure-llm, azure-functions, burstgpt, mooncake or prometheus"


@app.command("import")
def import_(
    paths: Annotated[list[Path], typer.Argument(help="Files as published; for ServeGen, a model's folder.")],
    fmt: Annotated[str, typer.Option("--format", help=f"One of {_FORMATS}.")],
    bin_s: Annotated[int, typer.Option(min=1, help="Bin width in seconds.")],
    out: Annotated[Path, typer.Option(help="Rates file; its name ends in _<bin>s.csv or _<bin>s.csv.gz.")],
    top: Annotated[int | None, typer.Option(min=1, help="Keep the busiest series only.")] = None,
) -> None:
    """Bring a published trace into the rates format of scenarios."""
    from rayfold.cli_checks import check_output
    from rayfold.envs.importers.importing import TraceFormat, import_trace
    from rayfold.envs.trace_writer import check_trace_name, write_trace

    if fmt not in list(TraceFormat):
        raise InputError("--format", _FORMATS, fmt)
    check_trace_name(out, bin_s, "--out")
    check_output("--out", out)
    trace = import_trace(TraceFormat(fmt), paths, bin_s=bin_s, out=out, num_series=top)
    write_trace(trace)
    total = trace.requests.sum()
    typer.echo(f"{out}: {len(trace.series_ids)} series, {trace.num_bins} bins of {bin_s} s, {total:.10g} requests")


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="Rates file.")],
    limit: Annotated[int, typer.Option(min=0, help="Series to list, busiest first.")] = 20,
) -> None:
    """Say what is in a rates file: requests, peaks, burstiness (variance over mean), tokens per request, gaps."""
    from rayfold.envs.trace_file import read_trace
    from rayfold.envs.trace_stats import trace_stats

    stats = trace_stats(read_trace(file))
    quiet_s = sum(gap.end_s - gap.begin_s for gap in stats.gaps)
    longest = max(stats.gaps, key=lambda gap: gap.end_s - gap.begin_s, default=None)
    console = _console()
    console.print(
        f"{file}: {len(stats.series)} series, 0 to {stats.duration_s:.12g} s ({stats.duration_s / 86400:.2f} days), "
        f"{stats.num_bins} bins of {stats.bin_s:g} s"
    )
    console.print(_table([stats.total, *stats.series[:limit]]))
    where = f", the longest from {longest.begin_s:.12g} to {longest.end_s:.12g} s" if longest else ""
    console.print(f"gaps, where no series has a request: {len(stats.gaps)}, {quiet_s:.12g} s in all{where}")


def _console() -> "Console":
    """Wide enough for the table when the output goes into a file."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else _FILE_WIDTH, soft_wrap=True, highlight=False, markup=False)


def _table(rows: Sequence["SeriesStats"]) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("series", overflow="fold")
    for head in ("requests", "mean /s", "peak /s", "peak/mean", "var/mean", "busy", "tokens in", "tokens out"):
        table.add_column(head, justify="right", no_wrap=True)
    for s in rows:
        figures = (f"{f:.4g}" for f in (s.requests, s.mean_rps, s.peak_rps, s.peak_to_mean, s.dispersion))
        known = ((s.input_tokens, s.input_known_frac), (s.output_tokens, s.output_known_frac))
        means = (f"{tokens / (s.requests * frac):.0f}" if frac > 0 else "unknown" for tokens, frac in known)
        table.add_row(Text(s.series_id), *figures, f"{s.busy_frac:.1%}", *means)
    return table


@app.command()
def plot(
    file: Annotated[Path, typer.Argument(help="Rates file.")],
    out: Annotated[Path, typer.Option(help="The picture, PNG.")],
    series: Annotated[str, typer.Option(help="Comma-separated series; default: the 12 busiest.")] = "",
) -> None:
    """Draw the request rates of a rates file."""
    from rayfold.cli_checks import check_output
    from rayfold.envs.trace_file import read_trace
    from rayfold.envs.trace_plot import plot_trace

    check_output("--out", out)
    plot_trace(read_trace(file), out, [name.strip() for name in series.split(",") if name.strip()])
