"""Freeze windows: times of the week at which nothing is moved.

A window is ``DAYS HH:MM-HH:MM``. Days are ``daily``, or a comma-separated list of ``mon`` to ``sun`` and of spans as
``mon-fri``. It includes its first minute and not its last; 24:00 is the end of a day; one whose end is not after its
beginning reaches into the next day (``fri 22:00-06:00`` ends on Saturday).
"""

import datetime
import re
import zoneinfo
from collections.abc import Iterable
from typing import NamedTuple

from rayfold.errors import InputError

__all__ = ["FreezeWindow", "is_frozen", "parse_window", "parse_zone"]

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_FORM = re.compile(r"(\S+) (\d\d):(\d\d)-(\d\d):(\d\d)", re.ASCII)
_DAY_MIN = 24 * 60


class FreezeWindow(NamedTuple):
    """One window, in minutes of the day."""

    days: frozenset[int]  # on which it begins, Monday = 0
    start_min: int
    end_min: int  # at or before the start: of the next day


def parse_window(text: str, where: str) -> FreezeWindow:
    """Reads one window.

    Raises:
        InputError: It has another form.
    """
    found = _FORM.fullmatch(text)
    days = _parse_days(found[1]) if found else frozenset()
    if found is None or not days:
        raise InputError(where, "a window as 'mon-fri 08:00-18:00' or 'daily 22:00-06:00'", repr(text))
    start, end = (int(found[i]) * 60 + int(found[i + 1]) for i in (2, 4))
    if start >= _DAY_MIN or end > _DAY_MIN or int(found[3]) > 59 or int(found[5]) > 59:
        raise InputError(where, "times of day from 00:00 to 24:00", repr(text))
    return FreezeWindow(days, start, end)


def _parse_days(text: str) -> frozenset[int]:
    """Empty where it names none."""
    if text == "daily":
        return frozenset(range(7))
    days: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        last = last or first
        if first not in _DAYS or last not in _DAYS:
            return frozenset()
        span = (_DAYS.index(last) - _DAYS.index(first)) % 7
        days |= {(_DAYS.index(first) + i) % 7 for i in range(span + 1)}
    return frozenset(days)


def parse_zone(name: str, where: str) -> datetime.tzinfo:
    """A time zone by its name.

    Raises:
        InputError: This machine knows no such zone.
    """
    if name == "UTC":  # needs no database
        return datetime.UTC
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as err:
        raise InputError(where, "a time zone, as UTC or Europe/Berlin", repr(name)) from err


def is_frozen(windows: Iterable[FreezeWindow], now_s: float, zone: datetime.tzinfo) -> bool:
    """Whether a Unix time lies in any of the windows."""
    now = datetime.datetime.fromtimestamp(now_s, zone)
    today, minute = now.weekday(), now.hour * 60 + now.minute
    for window in windows:
        if window.end_min > window.start_min:
            if today in window.days and window.start_min <= minute < window.end_min:
                return True
        elif (today in window.days and minute >= window.start_min) or (
            (today - 1) % 7 in window.days and minute < window.end_min
        ):
            return True
    return False
