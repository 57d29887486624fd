"""Writer of the rates format that ``trace_file.py`` reads."""

import csv
import gzip
import io
import os
import re
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import numpy as np

from rayfold.envs.trace_file import Trace
from rayfold.errors import InputError

__all__ = ["check_trace_name", "write_trace"]


def check_trace_name(path: Path, bin_s: int, where: str) -> None:
    """Refuses a name that does not tell the bin width.

    Raises:
        InputError: Says which ending it should have.
    """
    if not re.search(rf"_{bin_s}s\.csv(\.gz)?$", path.name):
        raise InputError(where, f"a name that ends in _{bin_s}s.csv or _{bin_s}s.csv.gz", path.name)


class _Cell(NamedTuple):
    series_idx: int
    bin_idx: int


def write_trace(trace: Trace) -> None:
    """Writes a trace to ``trace.path``, whole or not at all; equal traces give equal bytes.

    Bins without requests are left out, but each series has a row, and the last bin has one, so that series and length
    are the same when read back.

    Raises:
        InputError: The name does not tell the bin width, or nothing can be written there.
    """
    path = trace.path
    check_trace_name(path, int(trace.bin_s), str(path))
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as raw:
                if path.suffix == ".gz":
                    with gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed:
                        _write_rows(trace, cast(BinaryIO, packed))
                else:
                    _write_rows(trace, raw)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as err:
        raise InputError(str(path), "a path that can be written", err.strerror or "an error") from None


def _write_rows(trace: Trace, out: BinaryIO) -> None:
    text = io.TextIOWrapper(out, encoding="utf-8", newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("t_s", "series_id", "requests", "input_tokens", "output_tokens"))
    bin_s = int(trace.bin_s)
    for series, b in _cells(trace):
        amounts = (float(a[series, b]) for a in (trace.requests, trace.input_tokens, trace.output_tokens))
        rows.writerow((b * bin_s, trace.series_ids[series], *(_number(a) for a in amounts)))
    text.detach()  # flushes and leaves the file open


def _cells(trace: Trace) -> list[_Cell]:
    """Cells to write: the busy ones; the series' first rows keep the order of the series."""
    is_written = trace.requests > 0
    is_written[:, 0] |= ~is_written.any(axis=1)
    is_written[0, -1] |= not is_written[:, -1].any()
    return [_Cell(int(s), int(b)) for s, b in np.argwhere(is_written)]


def _number(value: float) -> str:
    """The shortest text that reads back as the same number; '' = unknown."""
    if value != value:
        return ""
    return str(int(value)) if value.is_integer() else repr(value)
