"""What a comparison found."""

from collections.abc import Callable
from typing import NamedTuple

__all__ = ["Comparison", "Tally"]


class Tally(NamedTuple):
    """Decisions compared, and the ones that differ."""

    num_states: int
    num_decisions: int
    mismatches: tuple[str, ...] = ()  # not explained; one line each
    num_explained: int = 0  # differ for the one reason that the comparison names


class Comparison(NamedTuple):
    """One row of the table in ``docs/simulator.md``."""

    rule: str
    ray_class: str
    run: Callable[[int, int], Tally]  # number of states, seed
    explained_by: str = ""  # the one reason for which a decision may differ
