"""Reading text strictly and line by line: one precise error, never a part of a file taken for the whole."""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rayfold.errors import InputError

__all__ = ["MAX_AMOUNT", "Row", "amount", "csv_rows", "parse_json", "series_name", "text_lines", "to_amount"]

MAX_AMOUNT = 1e15  # of requests or tokens in one field; sums stay exact to a thousandth
_MAX_LINE = 1 << 20  # characters
_ENDINGS = (".gz", ".csv", ".jsonl", ".json")


class Row(NamedTuple):
    """Cells of a CSV file's line."""

    line: int
    cells: list[str]


def text_lines(path: Path, *, is_end_needed: bool = True) -> Iterator[str]:
    """Lines of a UTF-8 file, plain or ``.gz``, each with its end.

    Args:
        path: The file.
        is_end_needed: The format's last line has an end too, so that a file without is one that was cut.

    Raises:
        InputError: The file is missing, unreadable, cut, or has a line of more than 1 MiB.
    """
    number, line = 0, "\n"
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8", newline="") as f:
            while text := f.readline(_MAX_LINE):
                number, line = number + 1, text
                if len(line) == _MAX_LINE:
                    raise InputError(f"{path}:{number}", f"lines of less than {_MAX_LINE} characters", "a longer one")
                yield line
    except FileNotFoundError:
        raise InputError(str(path), "a file", "no such file") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as err:
        raise InputError(f"{path}:{number + 1}", "a readable text file", f"{type(err).__name__}: {err}") from err
    if is_end_needed and not line.endswith(("\n", "\r")):
        raise InputError(f"{path}:{number}", "an end of the last line (is the file whole?)", repr(line[-20:]))


def csv_rows(path: Path, header: tuple[str, ...] | None, *, is_end_needed: bool = True) -> Iterator[Row]:
    """Rows of a CSV file, the header left out; a row is one line.

    Args:
        path: The file.
        header: First line and number of fields; None = the first line is data too, and as long as it is every row.
        is_end_needed: See ``text_lines``.

    Raises:
        InputError: As ``text_lines``, or the header or a row is not as expected.
    """
    reader = csv.reader(text_lines(path, is_end_needed=is_end_needed), strict=True)
    width, last_line = len(header) if header else 0, 0
    try:
        for cells in reader:
            line = last_line + 1
            if reader.line_num != line:
                raise InputError(f"{path}:{line}", "one row per line", "a quoted line break")
            last_line = line
            if line == 1 and header is not None:
                _check_header(path, header, cells)
                continue
            width = width or len(cells)
            if len(cells) != width:
                raise InputError(f"{path}:{line}", f"{width} fields", len(cells))
            yield Row(line, cells)
    except csv.Error as err:
        raise InputError(f"{path}:{last_line + 1}", "a row of comma-separated values", str(err)) from None
    if last_line == 0 and header is not None:
        _check_header(path, header, [])


def _check_header(path: Path, header: tuple[str, ...], got: list[str]) -> None:
    if tuple(got) != header:
        expected, found = (", ".join(h if len(h) < 12 else [*h[:8], "...", h[-1]]) for h in (header, got))
        raise InputError(f"{path}:1", f"columns {expected}", repr(found[:200]) if got else "nothing")


def to_amount(text: str) -> float:
    """A number between 0 and 1e15 as it stands in a file, nan if the text is anything else."""
    try:
        value = float(text)
    except ValueError:
        return float("nan")
    is_good = 0.0 <= value <= MAX_AMOUNT and "_" not in text  # Python reads 1_000 as a number
    return value if is_good else float("nan")


def amount(path: Path, row: Row, column: int, name: str) -> float:
    """A cell as a number.

    Raises:
        InputError: It is not a number between 0 and 1e15.
    """
    value = to_amount(row.cells[column])
    if value != value:
        raise InputError(f"{path}:{row.line}", f"{name} as a number of 0 to 1e15", repr(row.cells[column][:40]))
    return value


def parse_json(text: str, where: str) -> object:
    """JSON, with everything that can go wrong as one error.

    Raises:
        InputError: It does not parse, is nested too deeply, or holds a number too long.
    """
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError) as err:
        raise InputError(where, "JSON", f"{type(err).__name__}: {err}") from None
    return value


def series_name(path: Path) -> str:
    """A file's name without its endings: the series of a format that names none."""
    name = path.name
    for ending in _ENDINGS:
        name = name.removesuffix(ending)
    return name
