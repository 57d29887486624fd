"""The decider's metrics through ``ray.util.metrics``: the head node's own exporter serves them as ``ray_rayfold_…``.

Every node of a Ray cluster has such an exporter, and whoever scrapes the cluster's nodes already needs nothing more.
"""

from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge, Histogram

from rayfold.serving.metrics import NAMES

__all__ = ["RayMetrics"]

_BOUNDARIES_S = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]


class RayMetrics:
    """A ``Sink``. Ray has no summaries: a histogram's count and sum have the same names."""

    def __init__(self) -> None:
        def of(kind: str) -> dict[str, tuple[str, tuple[str, ...]]]:
            return {name: (about.meaning, about.labels) for name, about in NAMES.items() if about.kind == kind}

        self._counters = {name: Counter(f"rayfold_{name}", *about) for name, about in of("counter").items()}
        self._gauges = {name: Gauge(f"rayfold_{name}", *about) for name, about in of("gauge").items()}
        self._histograms = {
            name: Histogram(f"rayfold_{name}", meaning, _BOUNDARIES_S) for name, (meaning, _) in of("summary").items()
        }

    def add(self, name: str, labels: Mapping[str, str], amount: float) -> None:
        """See ``Sink``."""
        self._counters[name].inc(amount, dict(labels))

    def observe(self, name: str, value: float) -> None:
        """See ``Sink``."""
        self._histograms[name].observe(value)

    def set(self, name: str, labels: Mapping[str, str], value: float) -> None:
        """See ``Sink``."""
        self._gauges[name].set(value, dict(labels))
