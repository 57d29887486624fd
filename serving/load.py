"""Closed-loop HTTP load with keep-alive: many clients, each sending its next request when the last is answered.

A request fails if it is not answered whole, or not with status 200. Nothing is retried, so that a request lost while a
replica moves is seen.
"""

import asyncio
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import httpx
import numpy as np

__all__ = ["HttpLoad", "PhaseStats"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseStats:
    """What one phase of the load has seen."""

    requests: int
    failed: int
    p50_ms: float  # nan without a request
    p99_ms: float
    errors: tuple[str, ...]  # the first few, each once


@dataclass(frozen=True, slots=True)
class _Sample:
    phase: str
    latency_s: float
    error: str


class HttpLoad:
    """Context manager that keeps ``num_clients`` clients busy in a thread of its own.

    Args:
        urls: Client ``i`` asks ``urls[i % len(urls)]`` again and again.
        num_clients: How many.
        think_s: Pause of a client between two requests.
        timeout_s: An answer that takes longer is a failure.
        bodies: By URL the answer that is the right one; one that is not listed may answer anything.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        num_clients: int = 8,
        think_s: float = 0.02,
        timeout_s: float = 30.0,
        bodies: Mapping[str, str] | None = None,
    ) -> None:
        self._urls, self._num_clients = tuple(urls), num_clients
        self._think_s, self._timeout_s = think_s, timeout_s
        self._bodies = dict(bodies or {})
        self._phase = "start"
        self._samples: list[_Sample] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="http-load", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(self._timeout_s + 5.0)

    def begin(self, phase: str) -> None:
        """Requests sent from now on count towards ``phase``."""
        self._phase = phase

    def stats(self, phase: str) -> PhaseStats:
        """What ``phase`` has seen so far."""
        samples = [s for s in list(self._samples) if s.phase == phase]
        errors = [s.error for s in samples if s.error]
        latencies_ms = np.array([1e3 * s.latency_s for s in samples if not s.error])
        p50, p99 = np.quantile(latencies_ms, [0.5, 0.99]) if len(latencies_ms) else (np.nan, np.nan)
        return PhaseStats(
            requests=len(samples),
            failed=len(errors),
            p50_ms=float(p50),
            p99_ms=float(p99),
            errors=tuple(dict.fromkeys(errors))[:5],
        )

    async def _run(self) -> None:
        # One connection per client, kept open: a proxy that drops it on a migration is seen as a failure.
        limits = httpx.Limits(max_connections=self._num_clients, max_keepalive_connections=self._num_clients)
        async with httpx.AsyncClient(limits=limits, timeout=self._timeout_s, trust_env=False) as client:
            await asyncio.gather(*(self._client(client, i) for i in range(self._num_clients)))

    async def _client(self, client: httpx.AsyncClient, i: int) -> None:
        url = self._urls[i % len(self._urls)]
        while not self._stop.is_set():
            phase, begun = self._phase, time.perf_counter()
            error = ""
            try:
                response = await client.get(url)
                if response.status_code != 200:
                    error = f"{url}: status {response.status_code}"
                elif response.text != self._bodies.get(url, response.text):
                    error = f"{url}: another answer, of {len(response.text)} characters"
            except httpx.HTTPError as err:
                error = f"{url}: {type(err).__name__}: {err}"
            self._samples.append(_Sample(phase, time.perf_counter() - begun, error))
            await asyncio.sleep(self._think_s)
