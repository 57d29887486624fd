"""What the decider tells Prometheus, in its text format (version 0.0.4). Counters begin with the process.

Names follow Karpenter's (``karpenter_voluntary_disruption_decisions_total``, ``_decision_evaluation_duration_seconds``,
``_eligible_nodes``) where one means the same.
"""

import threading
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from rayfold.serving.decision import CheckedMove, Decision, Mode
from rayfold.serving.live_moves import RecordedPhase

__all__ = ["CONTENT_TYPE", "NAMES", "Gauges", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Name without prefix: kind and meaning. The Grafana page of a user is built on these: add, never rename.
NAMES: Mapping[str, tuple[str, str]] = {
    "decisions_total": ("counter", "Ticks that came to a decision, by mode and by what came of it."),
    "fallback_total": ("counter", "Ticks at which the policy failed or was late."),
    "tick_errors_total": ("counter", "Ticks that failed; the cluster stayed as it was."),
    "verdicts_total": ("counter", "Moves of plans, by verdict."),
    "moves_total": ("counter", "Moves that entered a phase, by phase."),
    "moves_undone_total": ("counter", "Moves whose node was released and launched again within 30 minutes."),
    "decision_evaluation_duration_seconds": ("summary", "Time the plan took."),
    "move_duration_seconds": ("summary", "From the intent of a move until its old replica was gone, of those done."),
    "cold_start_seconds": ("summary", "From the intent of a move until its replacement served."),
    "nodes": ("gauge", "Nodes of the last snapshot."),
    "eligible_nodes": ("gauge", "Nodes that the last decision would move replicas off."),
    "cluster_usd_per_hour": ("gauge", "Price of the nodes of the last snapshot."),
    "cluster_bound_usd_per_hour": ("gauge", "Least price of nodes that could hold the replicas of the last snapshot."),
    "expected_saving_usd": ("gauge", "What the last plan expects to save, by the policy's own estimate."),
    "moves_open": ("gauge", "Moves under way."),
    "last_decision_timestamp_seconds": ("gauge", "Unix time of the last decision."),
    "paused": ("gauge", "1 while paused."),
    "lease_held": ("gauge", "1 while this decider holds the lease."),
    "mode": ("gauge", "1 for the present mode."),
}


class Gauges(NamedTuple):
    """What is asked at the time of the scrape."""

    mode: Mode
    is_paused: bool
    holds_lease: bool
    moves_open: int


class Metrics:
    """Counts; safe to use from several threads."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()  # by name and labels
        self._sums: dict[str, tuple[int, float]] = {}
        self._last: Decision | None = None
        self._lock = threading.Lock()

    def saw_decision(self, decision: Decision, *, is_fallback: bool) -> None:
        """A tick came to a decision."""
        with self._lock:
            self._counts["decisions_total", f'{{mode="{decision.mode}",reason="{_outcome(decision)}"}}'] += 1
            self._counts["fallback_total", ""] += is_fallback
            for move in decision.moves:
                self._counts["verdicts_total", f'{{reason="{_verdict(move)}"}}'] += 1
            self._observe("decision_evaluation_duration_seconds", decision.latency_s)
            self._last = decision

    def saw_error(self) -> None:
        """A tick failed."""
        with self._lock:
            self._counts["tick_errors_total", ""] += 1

    def saw_phase(self, phase: RecordedPhase, took_s: float) -> None:
        """A move entered a phase, so long after its intent."""
        with self._lock:
            self._counts["moves_total", f'{{phase="{phase}"}}'] += 1
            if phase == RecordedPhase.DONE:
                self._observe("move_duration_seconds", took_s)

    def saw_cold_start(self, took_s: float) -> None:
        """A replacement served, so long after the intent of its move."""
        with self._lock:
            self._observe("cold_start_seconds", took_s)

    def saw_undone(self, count: int) -> None:
        """So many moves were undone."""
        with self._lock:
            self._counts["moves_undone_total", ""] += count

    def _observe(self, name: str, value: float) -> None:
        count, total = self._sums.get(name, (0, 0.0))
        self._sums[name] = (count + 1, total + value)

    def text(self, gauges: Gauges) -> str:
        """The page that Prometheus reads."""
        with self._lock:
            samples: dict[str, dict[str, float]] = {}
            for (name, labels), n in sorted(self._counts.items()):
                samples.setdefault(name, {})[labels] = float(n)
            sums, last = dict(self._sums), self._last
        for name in ("fallback_total", "tick_errors_total", "moves_undone_total"):
            samples.setdefault(name, {"": 0.0})
        samples |= {name: {"": value} for name, value in _of_decision(last).items()}
        samples |= {
            "moves_open": {"": float(gauges.moves_open)},
            "paused": {"": float(gauges.is_paused)},
            "lease_held": {"": float(gauges.holds_lease)},
            "mode": {f'{{mode="{mode}"}}': float(mode == gauges.mode) for mode in Mode},
        }
        lines = []
        for name, (kind, meaning) in NAMES.items():
            lines += [f"# HELP rayfold_{name} {meaning}", f"# TYPE rayfold_{name} {kind}"]
            if kind == "summary":
                count, total = sums.get(name, (0, 0.0))
                lines += [f"rayfold_{name}_count {count}", f"rayfold_{name}_sum {total!r}"]
            lines += [f"rayfold_{name}{labels} {value!r}" for labels, value in samples.get(name, {}).items()]
        return "\n".join(lines) + "\n"


def _verdict(move: CheckedMove) -> str:
    # Text of the executor holds ids: one time series for all of it.
    return "started" if move.move_id else move.reason if move.reason.isidentifier() else "other"


def _outcome(decision: Decision) -> str:
    """What came of a decision, in one word: the best verdict on any of its moves, or why there were none."""
    if not decision.moves:
        return "no_moves" if decision.policy else "no_policy"
    verdicts = [_verdict(move) for move in decision.moves]
    return next((good for good in ("started", "allowed") if good in verdicts), verdicts[0])


def _of_decision(last: Decision | None) -> dict[str, float]:
    if last is None:
        return {}
    return {
        "nodes": float(last.num_nodes),
        "eligible_nodes": float(len({move.from_node for move in last.moves})),
        "cluster_usd_per_hour": last.usd_per_h,
        "cluster_bound_usd_per_hour": last.bound_usd_per_h,
        "expected_saving_usd": float(last.expected_saving_usd),
        "last_decision_timestamp_seconds": last.time_s,
    }
