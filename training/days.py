"""Which days of a trace an evaluation draws its episodes from."""

import re
from dataclasses import replace

from rayfold.envs.scenario import Scenario, Split
from rayfold.envs.traffic_source import BinRange, TraceSource
from rayfold.errors import InputError

__all__ = ["days_of", "on_days"]

_DAY_S = 86400.0


def on_days(scenario: Scenario, days: str, where: str = "--days") -> tuple[Scenario, Split]:
    """The scenario with its traffic from so many days, and the split to ask it for.

    Args:
        scenario: What to evaluate.
        days: ``train``, ``validation``, or consecutive days of the trace from 0 on: ``9``, ``7-9`` or ``7,8,9``.
        where: The flag, for the message.

    Raises:
        InputError: Not such days, days that the trace does not have, or fewer than an episode needs.
    """
    if days in list(Split):
        return scenario, Split(days)
    source = scenario.source
    if not isinstance(source, TraceSource):
        raise InputError(where, "train or validation: generated traffic has no days", days)
    first, last = _first_and_last(days, where)
    num_days = int(len(source.rates_rps) * source.bin_s / _DAY_S)
    if last >= num_days:
        raise InputError(where, f"days 0 to {num_days - 1} of {source.name}", days)
    chosen = BinRange(round(first * _DAY_S / source.bin_s), round((last + 1) * _DAY_S / source.bin_s))
    narrowed = replace(scenario, source=replace(source, splits=dict.fromkeys(Split, chosen)))
    if scenario.horizon_s > (last + 1 - first) * _DAY_S:
        raise InputError(where, f"days that hold an episode of {scenario.horizon_s / 3600:g} h", days)
    return narrowed, Split.VALIDATION


def days_of(scenario: Scenario, split: Split) -> str:
    """Where the traffic of a split is from, for a card: trace files and days, or ``generated``."""
    source = scenario.source
    if not isinstance(source, TraceSource):
        return source.name
    first, end = (bins * source.bin_s / _DAY_S for bins in source.splits[split])
    return f"{source.name}, days {first:g} to {end - 1:g}"


def _first_and_last(days: str, where: str) -> tuple[int, int]:
    if span := re.fullmatch(r"(\d{1,4})-(\d{1,4})", days):
        listed = list(range(int(span[1]), int(span[2]) + 1))
    elif re.fullmatch(r"\d{1,4}(,\d{1,4})*", days):
        listed = [int(day) for day in days.split(",")]
    else:
        listed = []
    if not listed or listed != list(range(listed[0], listed[0] + len(listed))):
        raise InputError(where, "train, validation, or consecutive days as 7-9 or 7,8,9", days)
    return listed[0], listed[-1]
