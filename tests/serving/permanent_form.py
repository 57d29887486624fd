"""The callback that the live cluster's controller calls when it starts: the permanent form, where a test wishes it."""

import os
from pathlib import Path

from rayfold.serving.permanent import attach_at_start

__all__ = ["WISH", "attach_if_wished"]

WISH = "RAYFOLD_TEST_WISH"  # names a file; while it is there, a starting controller is attached


def attach_if_wished() -> None:
    """See above."""
    if Path(os.environ[WISH]).exists():
        attach_at_start()
