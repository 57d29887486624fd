"""Record of decisions: the last ones in memory, all of them in an append-only file of JSON lines."""

import json
from collections import deque
from pathlib import Path
from typing import Any

__all__ = ["Journal"]

_KEPT = 1000


class Journal:
    """Bounded memory, unbounded file.

    Args:
        path: File to append to, made if missing; None keeps nothing on disk.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._last: deque[dict[str, Any]] = deque(maxlen=_KEPT)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, entry: dict[str, Any]) -> None:
        """Appends one entry: JSON values only."""
        self._last.append(entry)
        if self._path is not None:
            with self._path.open("a") as f:
                f.write(json.dumps(entry) + "\n")

    def last(self, count: int) -> list[dict[str, Any]]:
        """The newest entries, oldest first."""
        return list(self._last)[-count:] if count > 0 else []
