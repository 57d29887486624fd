"""BurstGPT: a row per request to ChatGPT and GPT-4 of a campus, 121 days.

Columns ``Timestamp`` (seconds from midnight of the first day)``, Model, Request tokens, Response tokens, Total tokens,
Log Type``; the third part has ``Session ID, Elapsed time`` after the first. A request that failed has 0 response
tokens and is kept; the published ``…_without_fails_…`` files leave these out. The series is the model with ``_api`` or
``_conversation``.

Source: https://github.com/HPMLL/BurstGPT (README, "Schema"); data CC-BY 4.0.
"""

from collections.abc import Iterator
from pathlib import Path

from rayfold.envs.importers.counts import Count
from rayfold.envs.text_file import Row, amount, csv_rows
from rayfold.errors import InputError

__all__ = ["read_burstgpt"]

_TAIL = ("Model", "Request tokens", "Response tokens", "Total tokens", "Log Type")
_HEADER = ("Timestamp", *_TAIL)
_SESSION_HEADER = ("Timestamp", "Session ID", "Elapsed time", *_TAIL)
_KINDS = {"API log": "api", "Conversation log": "conversation"}


def read_burstgpt(path: Path) -> Iterator[Count]:
    """Requests of one file, at seconds since the trace's first midnight.

    Raises:
        InputError: The file breaks the format; ``where`` is ``file:line``.
    """
    rows = csv_rows(path, None)
    header = next(rows, Row(1, []))
    if tuple(header.cells) not in (_HEADER, _SESSION_HEADER):
        raise InputError(f"{path}:1", f"columns {', '.join(_HEADER)}", repr(", ".join(header.cells)[:200]))
    model, first_tokens = len(header.cells) - 5, len(header.cells) - 4
    for row in rows:
        kind = _KINDS.get(row.cells[-1])
        if kind is None:
            raise InputError(f"{path}:{row.line}", f"Log Type {' or '.join(_KINDS)}", repr(row.cells[-1][:40]))
        if not row.cells[model].strip():
            raise InputError(f"{path}:{row.line}", "a Model", repr(row.cells[model]))
        yield Count(
            series_id=f"{row.cells[model]}_{kind}",
            start_s=amount(path, row, 0, "Timestamp"),
            width_s=0.0,
            requests=1.0,
            input_tokens=amount(path, row, first_tokens, "Request tokens"),
            output_tokens=amount(path, row, first_tokens + 1, "Response tokens"),
        )
