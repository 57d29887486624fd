"""ServeGen: request rates per client and 10 minutes of production LLMs, 14 days.

A model's folder (``data/language/m-small``) holds ``chunk-<client>-trace.csv`` with rows ``start, rate, cv, pattern,
argument, argument`` without header (a window without requests has an empty pattern), and
``chunk-<client>-dataset.json`` with the distribution of tokens per request by the second from which it holds,
``{"0": {"input_tokens": "{39: 0.25, 40: 0.75}", "output_tokens": …}}``. Tokens are requests times the distribution's
mean; unknown where the JSON file is absent, says nothing, or counts text and media apart. The series is
``<model>_c<client>``. The coefficient of variation of the inter-arrival times, which the rates format has no column
for, is checked and left out.

Source: https://github.com/alibaba/ServeGen (README, "Data Structure"); Apache-2.0.
"""

import bisect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rayfold.envs.importers.counts import Count
from rayfold.envs.text_file import amount, csv_rows, parse_json, text_lines, to_amount
from rayfold.errors import InputError

__all__ = ["WINDOW_S", "read_servegen"]

WINDOW_S = 600.0
_TRACE_NAME = re.compile(r"chunk-(\d+)-trace\.csv(\.gz)?", re.ASCII)
_PATTERNS = ("", "Gamma", "Weibull")
_START, _RATE, _CV, _PATTERN = range(4)
_NUM_FIELDS = 6
_UNKNOWN = float("nan")


class _Tokens(NamedTuple):
    """Mean tokens per request from ``start_s`` on."""

    start_s: int
    input_mean: float
    output_mean: float


def read_servegen(path: Path) -> Iterator[Count]:
    """Requests of one model's folder, or of one client's trace file, per 10 minutes.

    Raises:
        InputError: There is no trace file, or one breaks the format; ``where`` is ``file:line`` or the JSON path.
    """
    files = sorted(p for p in path.iterdir() if _TRACE_NAME.fullmatch(p.name)) if path.is_dir() else [path]
    if not files:
        raise InputError(str(path), "a folder with chunk-<client>-trace.csv files", "none")
    for file in files:
        yield from _client(file)


def _client(path: Path) -> Iterator[Count]:
    match = _TRACE_NAME.fullmatch(path.name)
    if match is None:
        raise InputError(str(path), "a folder, or a file named chunk-<client>-trace.csv", path.name)
    name = f"{path.absolute().parent.name}_c{int(match[1]):03d}"
    dataset = path.with_name(f"chunk-{match[1]}-dataset.json")
    tokens = _read_tokens(dataset) if dataset.is_file() else []
    starts, last_s = [t.start_s for t in tokens], -WINDOW_S
    for row in csv_rows(path, None):
        where = f"{path}:{row.line}"
        if len(row.cells) != _NUM_FIELDS:
            raise InputError(where, f"{_NUM_FIELDS} fields", len(row.cells))
        start_s, rate = amount(path, row, _START, "the window's start"), amount(path, row, _RATE, "the rate")
        if start_s % WINDOW_S or start_s <= last_s:
            expected = f"a window's start, a multiple of {WINDOW_S:g} above {max(last_s, -1):g}"
            raise InputError(where, expected, row.cells[_START])
        last_s = start_s
        amount(path, row, _CV, "the coefficient of variation")
        if row.cells[_PATTERN] not in _PATTERNS or (rate > 0) != bool(row.cells[_PATTERN]):
            expected = "Gamma or Weibull where there are requests, else nothing"
            raise InputError(where, expected, repr(row.cells[_PATTERN][:40]))
        for column in (4, 5):
            amount(path, row, column, "the pattern's argument")
        requests = round(rate * WINDOW_S, 6)  # the published rate is a count over 600 s
        i = bisect.bisect_right(starts, start_s) - 1
        means = tokens[i] if i >= 0 else _Tokens(0, _UNKNOWN, _UNKNOWN)
        yield Count(name, start_s, WINDOW_S, requests, requests * means.input_mean, requests * means.output_mean)


def _read_tokens(path: Path) -> list[_Tokens]:
    content = parse_json("".join(text_lines(path, is_end_needed=False)), str(path))
    if not isinstance(content, dict):
        raise InputError(str(path), "an object by start in seconds", repr(content)[:80])
    tokens = []
    for start, fields in content.items():
        where = f"{path}: {start[:20]}"
        if not (start.isascii() and start.isdecimal() and len(start) < 12):
            raise InputError(where, "a start in seconds", repr(start[:20]))
        if not isinstance(fields, dict) or "output_tokens" not in fields:
            raise InputError(where, "an object with output_tokens", repr(fields)[:80])
        input_mean = _mean(fields["input_tokens"], f"{where}.input_tokens") if "input_tokens" in fields else _UNKNOWN
        tokens.append(_Tokens(int(start), input_mean, _mean(fields["output_tokens"], f"{where}.output_tokens")))
    return sorted(tokens)


def _mean(distribution: object, where: str) -> float:
    """Mean of ``{value: probability, …}``, which the files hold as text; nan if it is empty."""
    expected = "a text like {39: 0.25, 40: 0.75} whose probabilities sum to 1"
    if not isinstance(distribution, str) or distribution[:1] != "{" or distribution[-1:] != "}":
        raise InputError(where, expected, repr(distribution)[:80])
    if distribution == "{}":
        return _UNKNOWN
    total, mean = 0.0, 0.0
    for pair in distribution[1:-1].split(", "):
        value, colon, probability = pair.partition(": ")
        if not colon or (number := to_amount(value)) != number or (p := to_amount(probability)) != p:
            raise InputError(where, expected, repr(pair[:80]))
        total, mean = total + p, mean + number * p
    if abs(total - 1.0) > 1e-3:
        raise InputError(where, expected, f"a sum of {total:g}")
    return mean / total
