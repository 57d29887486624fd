"""The progress display: every figure is shown, live in a terminal and as plain lines elsewhere."""

import io
import math

import pytest
from rich.console import Console

from rayfold.training.progress import Phase, Progress, ProgressDisplay, eta_s, progress_line

READING = Progress(
    phase=Phase.PPO,
    elapsed_s=30.0,
    done_frac=0.25,
    steps=12_345,
    steps_per_s=987.6,
    episode_return=-1.2345,
    total_usd=1704.05,
    moves=19.04,
)


def test_eta_by_hand() -> None:
    """A quarter took 30 s, so three quarters take 90 s; at the start nothing is known; at the end nothing is left."""
    assert eta_s(READING) == 90.0
    assert math.isinf(eta_s(Progress(phase=Phase.PPO, elapsed_s=1.0, done_frac=0.0)))
    assert eta_s(Progress(phase=Phase.DONE, elapsed_s=10.0, done_frac=1.0)) == 0.0


def test_line_holds_every_figure() -> None:
    """Return, cost, moves, steps, steps/s, elapsed and ETA; a dash for what is not known yet."""
    assert progress_line(READING) == (
        "phase ppo  steps 12,345  steps/s 988  return -1.234  total USD 1,704.05  moves 19.0  elapsed 0:30  ETA 1:30"
    )
    assert progress_line(Progress(phase=Phase.DEMONSTRATE, elapsed_s=0.0, done_frac=0.0)) == (
        "phase demonstrate  steps 0  steps/s -  return -  total USD -  moves -  elapsed 0:00  ETA --:--"
    )


def test_plain_lines_are_rare_but_show_each_phase() -> None:
    """Outside a terminal: at most one line per interval and phase, without control codes, whatever the width."""
    out, now_s = io.StringIO(), [0.0]
    with ProgressDisplay(Console(file=out, width=20), every_s=10.0, clock=lambda: now_s[0]) as display:
        for second in range(25):
            now_s[0] = float(second)
            display(READING)
        display(Progress(phase=Phase.DONE, elapsed_s=99.0, done_frac=1.0))
    lines = out.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[0] == progress_line(READING)
    assert lines[-1].startswith("phase done")
    assert "\x1b" not in out.getvalue()


@pytest.mark.parametrize("width", [45, 140])
def test_terminal_shows_a_live_table(width: int) -> None:
    """In a terminal the table is redrawn in place and ends with the last reading."""
    out = io.StringIO()
    with ProgressDisplay(Console(file=out, force_terminal=True, width=width)) as display:
        display(READING)
    assert "\x1b[" in out.getvalue()
    for text in ("return", "-1.234", "total USD", "1,704.05", "moves", "19.0", "steps/s", "988", "ETA", "1:30"):
        assert text in out.getvalue()
