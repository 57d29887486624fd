"""What tests on a real Ray share: their marks, and how they wait."""

import time
from collections.abc import Callable

import pytest

LIVE_MARKS = [
    pytest.mark.cluster,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray leaves sockets to the collector
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray.*"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def wait_until(what: str, is_done: Callable[[], bool], timeout_s: float = 90.0, poll_s: float = 0.2) -> None:
    """Polls a condition; fails the test when it does not come true in time."""
    deadline_s = time.monotonic() + timeout_s
    while not is_done():
        assert time.monotonic() < deadline_s, f"waited {timeout_s:.0f} s in vain: {what}"
        time.sleep(poll_s)
