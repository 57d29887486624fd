"""``Count``: what every importer yields, and how counts become bins of a ``Trace``."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rayfold.envs.trace_file import MAX_CELLS, Trace
from rayfold.errors import InputError

__all__ = ["Count", "bin_counts", "busiest"]

_MAX_BUSY_CELLS = 5_000_000  # cells with requests, held as Python objects: about 1.5 GB
_MAX_BINS_OF_ONE = 100_000  # that one interval is spread over
_REQUESTS, _INPUT, _OUTPUT = range(3)


class Count(NamedTuple):
    """Requests of one series at one moment, or evenly spread over an interval."""

    series_id: str
    start_s: float
    width_s: float  # 0 = a moment
    requests: float
    input_tokens: float  # sum over the requests, nan = unknown
    output_tokens: float  # likewise


def bin_counts(counts: Iterable[Count], *, bin_s: int, path: Path, is_absolute: bool, where: str) -> Trace:
    """Sums counts per series and bin; one pass, memory grows with the bins that hold requests.

    An interval that spans several bins gives each its share by overlap. A bin's tokens are known if those of all its
    requests are. Series without requests are kept, and the trace ends with the last interval, quiet or not.

    Args:
        counts: In any order.
        bin_s: Bin width, a whole number of seconds.
        path: The trace's name.
        is_absolute: Times count from some epoch: bins are aligned to it, and the first one becomes ``t_s`` 0.
        where: For messages: where the counts come from.

    Raises:
        InputError: There are no counts, or their series and bins are too many.
    """
    cells: dict[str, dict[int, list[float]]] = {}
    first_bin, last_bin, num_busy = math.inf, -math.inf, 0
    for count in counts:
        series = cells.setdefault(count.series_id, {})
        first, last = _bins_of(count, bin_s)
        first_bin, last_bin = min(first_bin, first), max(last_bin, last)
        if count.requests == 0:
            continue
        _check_size(last - first, _MAX_BINS_OF_ONE, "bins for one interval", where)
        for b in range(first, last + 1):
            share = 1.0 if first == last else _overlap_s(count, b, bin_s) / count.width_s
            cell = series.get(b)
            if cell is None:
                cell = series[b] = [0.0, 0.0, 0.0]
                num_busy += 1
                _check_size(num_busy, _MAX_BUSY_CELLS, "bins with requests", where)
            cell[_REQUESTS] += share * count.requests
            cell[_INPUT] += share * count.input_tokens
            cell[_OUTPUT] += share * count.output_tokens
    if not cells:
        raise InputError(where, "at least one request", "none")
    offset = int(first_bin) if is_absolute else 0
    return _to_trace(cells, offset=offset, num_bins=int(last_bin) - offset + 1, bin_s=bin_s, path=path, where=where)


def busiest(counts: Iterable[Count], num_series: int) -> frozenset[str]:
    """Names of the series with most requests; the first in order of the names among equals.

    Args:
        counts: In any order.
        num_series: How many.
    """
    totals: dict[str, float] = {}
    for count in counts:
        totals[count.series_id] = totals.get(count.series_id, 0.0) + count.requests
    return frozenset(sorted(totals, key=lambda name: (-totals[name], name))[:num_series])


def _bins_of(count: Count, bin_s: int) -> tuple[int, int]:
    """First and last bin that a count touches."""
    first = math.floor(count.start_s / bin_s)
    last = math.ceil((count.start_s + count.width_s) / bin_s) - 1
    return first, max(first, last)


def _overlap_s(count: Count, b: int, bin_s: int) -> float:
    return min(count.start_s + count.width_s, (b + 1) * bin_s) - max(count.start_s, b * bin_s)


def _check_size(number: int, limit: int, what: str, where: str) -> None:
    if number > limit:
        raise InputError(where, f"at most {limit} {what}; take wider bins or fewer series", number)


def _to_trace(
    cells: dict[str, dict[int, list[float]]], *, offset: int, num_bins: int, bin_s: int, path: Path, where: str
) -> Trace:
    _check_size(len(cells) * num_bins, MAX_CELLS, f"series x bins ({len(cells)} series)", where)
    names = tuple(sorted(cells))
    dense = np.zeros((3, len(names), num_bins))
    for row, name in enumerate(names):
        bins = np.fromiter(cells[name], np.int64, len(cells[name])) - offset
        dense[:, row, bins] = np.array(list(cells[name].values()), np.float64).reshape(-1, 3).T
    return Trace(
        path=path,
        bin_s=float(bin_s),
        series_ids=names,
        requests=dense[_REQUESTS],
        input_tokens=dense[_INPUT],
        output_tokens=dense[_OUTPUT],
    )
