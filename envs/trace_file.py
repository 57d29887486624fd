"""Reader of the rates format: requests and tokens per series and time bin.

A file has the columns ``t_s, series_id, requests, input_tokens, output_tokens``, in any order, as ``.csv`` or
``.csv.gz``; the bin width is in its name (``…_600s.csv.gz``). An absent row means no requests, a blank token cell
means unknown. Dims: S series, B bins.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.text_file import MAX_AMOUNT, Row, csv_rows
from rayfold.errors import InputError

__all__ = ["GAP_FILE", "MAX_CELLS", "Trace", "read_trace"]

GAP_FILE = "servegen_gap_windows.csv"
_COLUMNS = ("t_s", "series_id", "requests", "input_tokens", "output_tokens")
_BIN_IN_NAME = re.compile(r"_(\d+)s\.csv(\.gz)?$")
MAX_CELLS = 50_000_000  # S * B; three float64 arrays of this size are 1.2 GB


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trace:
    """One rates file as dense arrays."""

    path: Path
    bin_s: float
    series_ids: tuple[str, ...]  # (S,) in order of first appearance
    requests: NDArray[np.float64]  # (S, B) count in the bin that starts at b * bin_s
    input_tokens: NDArray[np.float64]  # (S, B) sum over the bin's requests, nan = unknown
    output_tokens: NDArray[np.float64]  # (S, B) likewise

    @property
    def num_bins(self) -> int:
        """B."""
        return int(self.requests.shape[1])

    def output_tokens_per_request(self, series_idx: int, bins: slice) -> float:
        """Mean output tokens of the requests whose tokens are known, nan if there are none.

        Args:
            series_idx: Row.
            bins: Bins to look at.
        """
        tokens, requests = self.output_tokens[series_idx, bins], self.requests[series_idx, bins]
        known = ~np.isnan(tokens)
        total = float(requests[known].sum())
        return float(tokens[known].sum()) / total if total > 0 else math.nan


class _Table(NamedTuple):
    """Cells as text, by column, with the line each row ends on."""

    columns: dict[str, Sequence[str]]
    lines: list[int]


def read_trace(path: Path) -> Trace:
    """Reads and checks a rates file.

    For ``servegen_<model>_…`` files, collection gaps listed in ``servegen_gap_windows.csv`` in the same folder are
    bridged: in these bins requests and tokens of every series are interpolated linearly between the bin before the
    gap and the bin after it.

    Raises:
        InputError: The file is missing, unreadable or breaks the format; ``where`` is ``file:line``.
    """
    match = _BIN_IN_NAME.search(path.name)
    if match is None or int(match[1]) == 0:
        raise InputError(str(path), "a file name that ends in the bin width, like traffic_600s.csv.gz", path.name)
    bin_s = float(match[1])
    table = _read_table(path, _COLUMNS)
    if not table.lines:
        raise InputError(str(path), "at least one row", "none")
    bins = _bin_numbers(path, table, "t_s", bin_s)
    names = table.columns["series_id"]
    series_ids = tuple(dict.fromkeys(names))
    if "" in series_ids:
        _fail(path, table, names.index(""), "a series_id", "''")
    row_of = {name: i for i, name in enumerate(series_ids)}
    series = np.array([row_of[name] for name in names], np.int64)
    shape = (len(series_ids), int(bins.max()) + 1)
    if shape[0] * shape[1] > MAX_CELLS:
        last = int(bins.argmax())
        _fail(path, table, last, f"at most {MAX_CELLS} series x bins", f"{shape[0]} x {shape[1]}")
    _check_unique(path, table, series * shape[1] + bins)
    dense = []
    for name in ("requests", "input_tokens", "output_tokens"):
        cells = np.zeros(shape)
        cells[series, bins] = _amounts(path, table, name, is_blank_allowed=name != "requests", at_most=MAX_AMOUNT)
        dense.append(cells)
    trace = Trace(
        path=path,
        bin_s=bin_s,
        series_ids=series_ids,
        requests=dense[0],
        input_tokens=dense[1],
        output_tokens=dense[2],
    )
    return _bridge_gaps(trace)


def _fail(path: Path, table: _Table, row: int, expected: str, got: object) -> NoReturn:
    raise InputError(f"{path}:{table.lines[row]}", expected, got)


def _read_table(path: Path, columns: tuple[str, ...]) -> _Table:
    rows = csv_rows(path, None)
    header = next(rows, Row(1, [])).cells
    if sorted(header) != sorted(columns):
        raise InputError(f"{path}:1", f"columns {', '.join(columns)}", ", ".join(header)[:200] or "nothing")
    cells, lines = [], []
    for row in rows:
        cells.append(row.cells)
        lines.append(row.line)
    by_column = list(zip(*cells, strict=True)) if cells else [()] * len(header)
    return _Table(dict(zip(header, by_column, strict=True)), lines)


def _is_number(cell: str) -> bool:
    try:
        float(cell or "nan")
    except ValueError:
        return False
    return "_" not in cell  # Python reads 1_000 as a number


def _amounts(
    path: Path, table: _Table, column: str, *, is_blank_allowed: bool, at_most: float = math.inf
) -> NDArray[np.float64]:
    """A column of finite numbers >= 0, blank = nan."""
    cells = table.columns[column]
    bad = next((i for i, cell in enumerate(cells) if not _is_number(cell)), None)
    if bad is not None:
        _fail(path, table, bad, f"a number as {column}", repr(cells[bad][:40]))
    values = np.array([float(cell or "nan") for cell in cells], np.float64)
    is_ok = np.isfinite(values) & (values >= 0) & (values <= at_most)
    if is_blank_allowed:
        is_ok |= np.array([cell == "" for cell in cells])
    if not is_ok.all():
        i = int(np.flatnonzero(~is_ok)[0])
        limit = f" and <= {at_most:g}" if at_most < values[i] < math.inf else ""
        _fail(path, table, i, f"{column} >= 0{limit}" + (" or blank" if is_blank_allowed else ""), repr(cells[i][:40]))
    return values


def _bin_numbers(path: Path, table: _Table, column: str, bin_s: float) -> NDArray[np.int64]:
    """A column of times as bin numbers."""
    times_s = _amounts(path, table, column, is_blank_allowed=False)
    off = np.flatnonzero((times_s % bin_s != 0) | (times_s / bin_s >= MAX_CELLS))
    if off.size:
        expected = f"{column} as a multiple of the bin width {bin_s:g} s"
        if times_s[off[0]] % bin_s == 0:
            expected = f"{column} below {MAX_CELLS * bin_s:g}"
        _fail(path, table, int(off[0]), expected, table.columns[column][off[0]])
    return (times_s / bin_s).astype(np.int64)


def _check_unique(path: Path, table: _Table, keys: NDArray[np.int64]) -> None:
    order = np.argsort(keys, kind="stable")
    again = np.flatnonzero(np.diff(keys[order]) == 0)
    if again.size:
        first, second = (int(order[again[0] + i]) for i in (0, 1))
        got = f"t_s {table.columns['t_s'][second]} of {table.columns['series_id'][second]} again"
        _fail(path, table, second, f"one row per t_s and series_id (first in line {table.lines[first]})", got)


def _bridge_gaps(trace: Trace) -> Trace:
    gap_path = trace.path.parent / GAP_FILE
    if not trace.path.name.startswith("servegen_") or not gap_path.is_file():
        return trace
    table = _read_table(gap_path, ("model", "t_s"))
    if not table.lines:
        return trace
    bins = _bin_numbers(gap_path, table, "t_s", trace.bin_s)
    is_ours = np.array([trace.path.name.startswith(f"servegen_{m}_") for m in table.columns["model"]])
    is_gap = np.zeros(trace.num_bins, np.bool_)
    is_gap[[b for b in bins[is_ours] if b < trace.num_bins]] = True
    if is_gap.all() or not is_gap.any():
        return trace
    gap, rest = np.flatnonzero(is_gap), np.flatnonzero(~is_gap)

    def bridge(values: NDArray[np.float64]) -> NDArray[np.float64]:
        out = values.copy()
        for row in out:
            row[gap] = np.interp(gap, rest, row[rest])
        return out

    return replace(
        trace,
        requests=bridge(trace.requests),
        input_tokens=bridge(trace.input_tokens),
        output_tokens=bridge(trace.output_tokens),
    )
