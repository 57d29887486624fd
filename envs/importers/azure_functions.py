"""Azure Functions 2019: invocations per function and minute, a file per day for 14 days.

Columns ``HashOwner, HashApp, HashFunction, Trigger, 1 … 1440`` in ``invocations_per_function_md.anon.d01.csv``. The
day is in the name; the first one given begins at 0 s. The series is the first 12 digits of application and function.
Tokens are unknown.

Source: https://github.com/Azure/AzurePublicDataset, AzureFunctionsDataset2019.md; CC-BY 4.0.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from rayfold.envs.importers.counts import Count
from rayfold.envs.text_file import Row, amount, csv_rows
from rayfold.errors import InputError

__all__ = ["read_azure_functions"]

_MINUTES = 1440
_HEADER = ("HashOwner", "HashApp", "HashFunction", "Trigger", *(str(m) for m in range(1, _MINUTES + 1)))
_HASH = re.compile(r"[0-9a-f]{64}")
_TRIGGERS = ("http", "timer", "event", "queue", "storage", "orchestration", "others")
_DAY_IN_NAME = re.compile(r"\.d(\d\d)\.csv(\.gz)?$", re.ASCII)
_DAY_S = 86400.0


def read_azure_functions(paths: Sequence[Path]) -> Iterator[Count]:
    """Invocations of one or several days, per minute.

    Raises:
        InputError: A name tells no day, a day is given twice, or a file breaks the format.
    """
    day_of = {path: _day(path) for path in paths}
    for i, path in enumerate(paths):
        if day_of[path] in [day_of[p] for p in paths[:i]]:
            raise InputError(str(path), "each day once", f"day {day_of[path]} again")
    first_day = min(day_of.values(), default=0)
    for path, day in day_of.items():
        for row in csv_rows(path, _HEADER):
            yield from _counts(path, row, (day - first_day) * _DAY_S)


def _day(path: Path) -> int:
    match = _DAY_IN_NAME.search(path.name)
    if match is None:
        raise InputError(str(path), "a name with the day, like invocations_per_function_md.anon.d01.csv", path.name)
    return int(match[1])


def _counts(path: Path, row: Row, day_start_s: float) -> Iterator[Count]:
    _check_function(path, row)
    name = f"{row.cells[1][:12]}_{row.cells[2][:12]}"
    for minute in range(_MINUTES):
        column = 4 + minute
        if row.cells[column] == "0" and 0 < minute < _MINUTES - 1:
            continue  # most are; the ends are kept for the series and the length of the day
        requests = amount(path, row, column, f"invocations in minute {minute + 1}")
        unknown = float("nan") if requests else 0.0
        yield Count(name, day_start_s + 60.0 * minute, 60.0, requests, unknown, unknown)


def _check_function(path: Path, row: Row) -> None:
    for i in range(3):
        if not _HASH.fullmatch(row.cells[i]):
            raise InputError(f"{path}:{row.line}", f"{_HEADER[i]} of 64 hexadecimal digits", repr(row.cells[i][:70]))
    if row.cells[3] not in _TRIGGERS:
        raise InputError(f"{path}:{row.line}", f"a Trigger of {', '.join(_TRIGGERS)}", repr(row.cells[3][:40]))
