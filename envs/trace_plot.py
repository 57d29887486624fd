"""Picture of a trace: request rates over time."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rayfold.envs.trace_file import Trace
from rayfold.errors import InputError

__all__ = ["plot_trace"]

_MAX_LINES = 12
_HOUR_S, _DAY_S = 3600.0, 86400.0


def plot_trace(trace: Trace, png: Path, series: Sequence[str] = ()) -> None:
    """Draws the sum of all series above, and some series below; the file appears whole or not at all.

    Args:
        trace: What to draw.
        png: Where to.
        series: Which series; none named = the 12 busiest.

    Raises:
        InputError: There is no such series, or nothing can be written there.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = _rows(trace, series)
    is_long = trace.num_bins * trace.bin_s > 2 * _DAY_S
    time = np.arange(trace.num_bins + 1) * trace.bin_s / (_DAY_S if is_long else _HOUR_S)
    figure = Figure(figsize=(10, 6), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    above.stairs(trace.requests.sum(axis=0) / trace.bin_s, time, color="black")
    above.set_title(f"{trace.path.name}: {len(trace.series_ids)} series, bins of {trace.bin_s:g} s", fontsize=10)
    for i in rows:
        below.stairs(trace.requests[i] / trace.bin_s, time, label=_label(trace.series_ids[i]))
    for axes, what in ((above, "all series"), (below, "each series")):
        axes.set_ylabel(f"requests/s, {what}")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    below.set_xlabel("days" if is_long else "hours")
    below.set_xlim(time[0], time[-1])
    below.legend(fontsize=7, loc="upper right")
    temporary = png.with_name(f".{png.name}.{os.getpid()}")
    try:
        figure.savefig(temporary, format="png")
        temporary.replace(png)
    except OSError as err:
        raise InputError(str(png), "a path that can be written", err.strerror or "an error") from None
    finally:
        temporary.unlink(missing_ok=True)


def _rows(trace: Trace, series: Sequence[str]) -> list[int]:
    for name in series:
        if name not in trace.series_ids:
            known = ", ".join(trace.series_ids[:5]) + (", ..." if len(trace.series_ids) > 5 else "")
            raise InputError(str(trace.path), f"a series of {known}", repr(name))
    if series:
        return [trace.series_ids.index(name) for name in series]
    order = np.argsort(-trace.requests.sum(axis=1), kind="stable")
    return [int(i) for i in order[:_MAX_LINES]]


def _label(name: str) -> str:
    """Matplotlib leaves out labels that begin with ``_`` and reads ``$`` as mathematics."""
    return " " + name.replace("$", r"\$")
