"""Settings of a heuristic: typed, checked, and with the ranges in which tuning looks for them.

A heuristic's settings are a frozen dataclass whose fields were made with ``between`` or ``one_of``; every field has a
default, so that a policy can be had without any.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

from pydantic import TypeAdapter, ValidationError

from rayfold.errors import InputError

__all__ = ["Between", "NoSettings", "OneOf", "between", "one_of", "parse_settings", "search_space"]

S = TypeVar("S")
_SEARCH = "search"


class Between(NamedTuple):
    """A number is looked for in ``[low, high]``, evenly or evenly in its logarithm."""

    low: float
    high: float
    is_log: bool = False


class OneOf(NamedTuple):
    """One of a few values."""

    values: tuple[Any, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NoSettings:
    """Of a rule that has none."""


def between(default: Any, low: float, high: float, *, is_log: bool = False) -> Any:
    """A field that is a number in ``[low, high]``; whole if its default is an int."""
    return dataclasses.field(default=default, metadata={_SEARCH: Between(low, high, is_log)})


def one_of(default: Any, *values: Any) -> Any:
    """A field with a few possible values."""
    return dataclasses.field(default=default, metadata={_SEARCH: OneOf(values)})


def search_space(settings_type: type[Any]) -> dict[str, Between | OneOf]:
    """What tuning may try, by field."""
    return {f.name: f.metadata[_SEARCH] for f in dataclasses.fields(settings_type) if _SEARCH in f.metadata}


def parse_settings(settings_type: type[S], values: Mapping[str, Any], where: str) -> S:
    """Settings from what a user wrote.

    Args:
        settings_type: Their dataclass.
        values: By field; text is read as the field's type.
        where: For the message.

    Raises:
        InputError: A field that there is not, of another type, or outside its range.
    """
    known = [field.name for field in dataclasses.fields(settings_type)]  # type: ignore[arg-type]  # a dataclass
    for name in values:
        if name not in known:
            raise InputError(f"{where}: {name}", f"one of {', '.join(known)}" if known else "no settings", values[name])
    try:
        settings: S = TypeAdapter(settings_type).validate_python(dict(values))
    except ValidationError as err:
        first = err.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{where}: {place}", first["msg"], first["input"]) from None
    for name, allowed in search_space(settings_type).items():
        value = getattr(settings, name)
        if isinstance(allowed, OneOf):
            if value not in allowed.values:
                raise InputError(f"{where}: {name}", f"one of {', '.join(map(str, allowed.values))}", value)
        elif not allowed.low <= value <= allowed.high:
            raise InputError(f"{where}: {name}", f"{allowed.low:g} to {allowed.high:g}", value)
    return settings
