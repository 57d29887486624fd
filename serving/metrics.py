"""What the decider tells Prometheus: as a page in its text format (version 0.0.4), and to a ``Sink`` as it happens.

Counters begin with the process.

Names follow Karpenter's (``karpenter_voluntary_disruption_decisions_total``, ``_decision_evaluation_duration_seconds``,
``_eligible_nodes``) where one means the same.
"""

import threading
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple, Protocol

from rayfold.serving.decision import CheckedMove, Decision, Mode
from rayfold.serving.live_moves import RecordedPhase

__all__ = ["CONTENT_TYPE", "NAMES", "Gauges", "Metrics", "Name", "Sink"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Name(NamedTuple):
    """What is exported under a name."""

    kind: str  # counter, gauge, or summary: the count and the sum of what was observed
    meaning: str
    labels: tuple[str, ...] = ()


# By name without prefix. The Grafana page of a user is built on these: add, never rename.
NAMES: Mapping[str, Name] = {
    "decisions_total": Name("counter", "Ticks that came to a decision, by what came of it.", ("mode", "reason")),
    "fallback_total": Name("counter", "Ticks at which the policy failed or was late."),
    "tick_errors_total": Name("counter", "Ticks that failed; the cluster stayed as it was."),
    "verdicts_total": Name("counter", "Moves of plans, by verdict.", ("reason",)),
    "moves_total": Name("counter", "Moves that entered a phase, by phase.", ("phase",)),
    "moves_undone_total": Name("counter", "Moves whose node was released and launched again within 30 minutes."),
    "decision_evaluation_duration_seconds": Name("summary", "Time the plan took."),
    "move_duration_seconds": Name("summary", "From the intent of a move until its old replica was gone."),
    "cold_start_seconds": Name("summary", "From the intent of a move until its replacement served."),
    "nodes": Name("gauge", "Nodes of the last snapshot."),
    "eligible_nodes": Name("gauge", "Nodes that the last decision would move replicas off."),
    "cluster_usd_per_hour": Name("gauge", "Price of the nodes of the last snapshot."),
    "cluster_bound_usd_per_hour": Name("gauge", "Least price of nodes that could hold its replicas."),
    "expected_saving_usd": Name("gauge", "What the last plan expects to save, by the policy's own estimate."),
    "moves_open": Name("gauge", "Moves under way."),
    "last_decision_timestamp_seconds": Name("gauge", "Unix time of the last decision."),
    "paused": Name("gauge", "1 while paused."),
    "lease_held": Name("gauge", "1 while this decider holds the lease."),
    "mode": Name("gauge", "1 for the present mode.", ("mode",)),
}


_Labels = tuple[tuple[str, str], ...]  # names and values


class Gauges(NamedTuple):
    """What is asked at the time of the scrape."""

    mode: Mode
    is_paused: bool
    holds_lease: bool
    moves_open: int


class Sink(Protocol):
    """Another place that is told the same, under the names of ``NAMES``; called from several threads."""

    def add(self, name: str, labels: Mapping[str, str], amount: float) -> None:
        """A counter has grown; the amount is positive."""
        ...

    def observe(self, name: str, value: float) -> None:
        """A summary has one value more."""
        ...

    def set(self, name: str, labels: Mapping[str, str], value: float) -> None:
        """A gauge stands so now."""
        ...


class Metrics:
    """Counts; safe to use from several threads.

    Args:
        sink: Told everything too.
    """

    def __init__(self, sink: Sink | None = None) -> None:
        self._counts: Counter[tuple[str, _Labels]] = Counter()
        self._sums: dict[str, tuple[int, float]] = {}
        self._last: Decision | None = None
        self._lock = threading.Lock()
        self._sink = sink

    def saw_decision(self, decision: Decision, *, is_fallback: bool) -> None:
        """A tick came to a decision."""
        with self._lock:
            self._add("decisions_total", mode=str(decision.mode), reason=_outcome(decision))
            self._add("fallback_total", int(is_fallback))
            for move in decision.moves:
                self._add("verdicts_total", reason=_verdict(move))
            self._observe("decision_evaluation_duration_seconds", decision.latency_s)
            self._last = decision

    def saw_error(self) -> None:
        """A tick failed."""
        with self._lock:
            self._add("tick_errors_total")

    def saw_phase(self, phase: RecordedPhase, took_s: float) -> None:
        """A move entered a phase, so long after its intent."""
        with self._lock:
            self._add("moves_total", phase=str(phase))
            if phase == RecordedPhase.DONE:
                self._observe("move_duration_seconds", took_s)

    def saw_cold_start(self, took_s: float) -> None:
        """A replacement served, so long after the intent of its move."""
        with self._lock:
            self._observe("cold_start_seconds", took_s)

    def saw_undone(self, count: int) -> None:
        """So many moves were undone."""
        with self._lock:
            self._add("moves_undone_total", count)

    def _add(self, name: str, amount: int = 1, **labels: str) -> None:
        self._counts[name, tuple(labels.items())] += amount
        if self._sink is not None and amount > 0:
            self._sink.add(name, labels, float(amount))

    def _observe(self, name: str, value: float) -> None:
        count, total = self._sums.get(name, (0, 0.0))
        self._sums[name] = (count + 1, total + value)
        if self._sink is not None:
            self._sink.observe(name, value)

    def publish(self, gauges: Gauges) -> None:
        """Tells the sink how the gauges stand."""
        if self._sink is None:
            return
        with self._lock:
            last = self._last
        for name, values in _gauge_values(last, gauges).items():
            for labels, value in values.items():
                self._sink.set(name, dict(labels), value)

    def text(self, gauges: Gauges) -> str:
        """The page that Prometheus reads."""
        with self._lock:
            samples: dict[str, dict[_Labels, float]] = {}
            for (name, labels), n in sorted(self._counts.items()):
                samples.setdefault(name, {})[labels] = float(n)
            sums, last = dict(self._sums), self._last
        for name, (kind, _, keys) in NAMES.items():
            if kind == "counter" and not keys:
                samples.setdefault(name, {(): 0.0})
        samples |= _gauge_values(last, gauges)
        lines = []
        for name, (kind, meaning, _) in NAMES.items():
            lines += [f"# HELP rayfold_{name} {meaning}", f"# TYPE rayfold_{name} {kind}"]
            if kind == "summary":
                count, total = sums.get(name, (0, 0.0))
                lines += [f"rayfold_{name}_count {count}", f"rayfold_{name}_sum {total!r}"]
            lines += [f"rayfold_{name}{_text(labels)} {value!r}" for labels, value in samples.get(name, {}).items()]
        return "\n".join(lines) + "\n"


def _text(labels: _Labels) -> str:
    told = ",".join(f'{key}="{value}"' for key, value in labels)
    return f"{{{told}}}" if told else ""


def _verdict(move: CheckedMove) -> str:
    # Text of the executor holds ids: one time series for all of it.
    return "started" if move.move_id else move.reason if move.reason.isidentifier() else "other"


def _outcome(decision: Decision) -> str:
    """What came of a decision, in one word: the best verdict on any of its moves, or why there were none."""
    if not decision.moves:
        return "no_moves" if decision.policy else "no_policy"
    verdicts = [_verdict(move) for move in decision.moves]
    return next((good for good in ("started", "allowed") if good in verdicts), verdicts[0])


def _gauge_values(last: Decision | None, gauges: Gauges) -> dict[str, dict[_Labels, float]]:
    single = {
        "moves_open": float(gauges.moves_open),
        "paused": float(gauges.is_paused),
        "lease_held": float(gauges.holds_lease),
    }
    if last is not None:
        single |= {
            "nodes": float(last.num_nodes),
            "eligible_nodes": float(len({move.from_node for move in last.moves})),
            "cluster_usd_per_hour": last.usd_per_h,
            "cluster_bound_usd_per_hour": last.bound_usd_per_h,
            "expected_saving_usd": float(last.expected_saving_usd),
            "last_decision_timestamp_seconds": last.time_s,
        }
    modes: dict[_Labels, float] = {(("mode", str(mode)),): float(mode == gauges.mode) for mode in Mode}
    return {**{name: {(): value} for name, value in single.items()}, "mode": modes}
