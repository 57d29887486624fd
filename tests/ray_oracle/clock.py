"""A clock that Ray reads instead of ``time``."""

import contextlib
import logging
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

__all__ = ["Clock"]


class Clock:
    """Stands in for the module ``time``."""

    def __init__(self, now_s: float = 10_000.0) -> None:
        self.now_s = now_s

    def time(self) -> float:
        """Present time."""
        return self.now_s

    monotonic = time

    @contextlib.contextmanager
    def read_by(self, *modules: ModuleType, **settings: Any) -> Iterator[None]:
        """While it lasts, these modules of Ray read this clock, have these module-level settings, and log nothing."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(logging.getLogger("ray.serve"), "disabled", True)
            for module in modules:
                patch.setattr(module, "time", self)
                for name, value in settings.items():
                    patch.setattr(module, name, value, raising=False)
            yield
