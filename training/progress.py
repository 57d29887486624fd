"""Progress of a training run: one record, shown live in a terminal, or as plain lines elsewhere."""

import enum
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

__all__ = ["Phase", "Progress", "ProgressDisplay", "eta_s"]


class Phase(enum.StrEnum):
    """What a run is doing."""

    DEMONSTRATE = "demonstrate"  # the heuristic plays
    IMITATE = "imitate"
    PPO = "ppo"
    EVALUATE = "evaluate"
    DONE = "done"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One reading. Figures are of the last finished episodes; NaN before the first one."""

    phase: Phase
    elapsed_s: float  # since the call began
    done_frac: float  # of the whole call, 0 to 1
    steps: int = 0  # environment steps of PPO so far
    steps_per_s: float = float("nan")
    episode_return: float = float("nan")  # in reward units
    total_usd: float = float("nan")  # bill of one episode
    moves: float = float("nan")  # per episode
    metrics: dict[str, float] = field(default_factory=dict)  # all others, as ``group/name``


def eta_s(progress: Progress) -> float:
    """Seconds left, by the share done so far; infinite at the very start."""
    if progress.done_frac <= 0.0:
        return float("inf")
    return progress.elapsed_s * (1.0 - min(1.0, progress.done_frac)) / progress.done_frac


def _clock(seconds: float) -> str:
    return "--:--" if seconds == float("inf") else f"{int(seconds) // 60:d}:{int(seconds) % 60:02d}"


def _figure(value: float, digits: int) -> str:
    return "-" if value != value else f"{value:,.{digits}f}"


def _row(progress: Progress) -> dict[str, str]:
    return {
        "phase": progress.phase.value,
        "steps": f"{progress.steps:,}",
        "steps/s": _figure(progress.steps_per_s, 0),
        "return": _figure(progress.episode_return, 3),
        "total USD": _figure(progress.total_usd, 2),
        "moves": _figure(progress.moves, 1),
        "elapsed": _clock(progress.elapsed_s),
        "ETA": _clock(eta_s(progress)),
    }


def progress_line(progress: Progress) -> str:
    """The reading on one plain line."""
    return "  ".join(f"{name} {value}" for name, value in _row(progress).items())


def progress_table(progress: Progress) -> Table:
    """The reading as a table, one figure a row so that it fits any terminal, and a bar."""
    table = Table("rayfold train", "", show_edge=False)
    table.columns[1].justify = "right"
    for name, value in _row(progress).items():
        table.add_row(name, value)
    table.add_row("done", ProgressBar(total=1.0, completed=min(1.0, progress.done_frac), width=24))
    return table


class ProgressDisplay:
    """Context manager; call it with each reading.

    Args:
        console: Where to show it.
        every_s: Least time between two plain lines of one phase.
        clock: Monotonic seconds.
    """

    def __init__(self, console: Console, *, every_s: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._every_s, self._clock = console, every_s, clock
        self._live = Live(console=console, refresh_per_second=4) if console.is_terminal else None
        self._last_s, self._last_phase = float("-inf"), ""

    def __enter__(self) -> "ProgressDisplay":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, progress: Progress) -> None:
        """Shows one reading."""
        if self._live is not None:
            self._live.update(progress_table(progress))
            return
        now_s = self._clock()
        if progress.phase != self._last_phase or now_s - self._last_s >= self._every_s:
            self._console.print(progress_line(progress), highlight=False, soft_wrap=True)
            self._last_s, self._last_phase = now_s, progress.phase
