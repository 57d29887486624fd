"""Azure LLM inference traces of 2023 (one hour) and 2024 (one week): a row per request.

Columns ``TIMESTAMP, ContextTokens, GeneratedTokens``. 2023: ``2023-11-16 18:17:03.9799600``, CRLF line ends, none after
the last row. 2024: ``2024-05-10 00:00:00.009930+00:00``, the fraction absent where it is zero. A time without offset
is taken as UTC. The series is the file's name, as each file is one service (``…_code``, ``…_conv``).

Source: https://github.com/Azure/AzurePublicDataset, AzureLLMInferenceDataset2023.md and …2024.md; CC-BY 4.0.
"""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from rayfold.envs.importers.counts import Count
from rayfold.envs.text_file import Row, amount, csv_rows, series_name
from rayfold.errors import InputError

__all__ = ["read_azure_llm"]

_HEADER = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_TIME = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)?", re.ASCII)


def read_azure_llm(path: Path) -> Iterator[Count]:
    """Requests of one file, at seconds since 1970.

    Raises:
        InputError: The file breaks the format; ``where`` is ``file:line``.
    """
    name = series_name(path)
    for row in csv_rows(path, _HEADER, is_end_needed=False):
        yield Count(
            series_id=name,
            start_s=_time_s(path, row),
            width_s=0.0,
            requests=1.0,
            input_tokens=amount(path, row, 1, "ContextTokens"),
            output_tokens=amount(path, row, 2, "GeneratedTokens"),
        )


def _time_s(path: Path, row: Row) -> float:
    text = row.cells[0]
    try:
        if _TIME.fullmatch(text):
            time = datetime.fromisoformat(text)
            return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        pass
    raise InputError(f"{path}:{row.line}", "TIMESTAMP like 2023-11-16 18:17:03.9799600", repr(text[:40]))
