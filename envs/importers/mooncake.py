"""Mooncake: a JSON object per request to Kimi, one hour.

``{"timestamp": 3000, "input_length": 13544, "output_length": 71, "hash_ids": [0, 219]}``, the timestamp in
milliseconds from the start. Other keys are refused, since other publishers' files of this kind count in seconds. The
series is the file's name.

Source: https://github.com/kvcache-ai/Mooncake, FAST25-release/traces; Apache-2.0.
"""

from collections.abc import Iterator
from pathlib import Path

from rayfold.envs.importers.counts import Count
from rayfold.envs.text_file import MAX_AMOUNT, parse_json, series_name, text_lines
from rayfold.errors import InputError

__all__ = ["read_mooncake"]

_KEYS = {"timestamp", "input_length", "output_length", "hash_ids"}


def read_mooncake(path: Path) -> Iterator[Count]:
    """Requests of one file, at seconds since its start.

    Raises:
        InputError: The file breaks the format; ``where`` is ``file:line`` and, in it, the key.
    """
    name = series_name(path)
    for i, text in enumerate(text_lines(path), start=1):
        where = f"{path}:{i}"
        request = parse_json(text, where)
        if not isinstance(request, dict) or request.keys() != _KEYS:
            raise InputError(where, f"an object with {', '.join(sorted(_KEYS))}", repr(request)[:80])
        if not isinstance(request["hash_ids"], list):
            raise InputError(f"{where}: hash_ids", "a list", repr(request["hash_ids"])[:40])
        yield Count(
            series_id=name,
            start_s=_number(request, "timestamp", where) / 1000.0,
            width_s=0.0,
            requests=1.0,
            input_tokens=_number(request, "input_length", where),
            output_tokens=_number(request, "output_length", where),
        )


def _number(request: dict[str, object], key: str, where: str) -> float:
    value = request[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_AMOUNT:
        raise InputError(f"{where}: {key}", "a number of 0 to 1e15", repr(value)[:40])
    return float(value)
