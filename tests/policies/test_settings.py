"""Settings are read as their types, kept in their ranges, and told by name where they cannot be."""

from dataclasses import dataclass
from typing import Any

import pytest

from rayfold.errors import InputError
from rayfold.policies.settings import Between, NoSettings, OneOf, between, one_of, parse_settings, search_space


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """Of no policy."""

    wait_s: float = between(300.0, 0.0, 1800.0)
    num_nodes: int = between(1, 1, 8)
    order: str = one_of("price", "price", "size")
    note: str = ""  # not looked for


def test_defaults_text_and_numbers() -> None:
    """What is not given keeps its default; text, as from a command line, becomes a number."""
    assert parse_settings(Example, {}, "here") == Example()
    assert parse_settings(Example, {"wait_s": "60", "num_nodes": "3"}, "here") == Example(wait_s=60.0, num_nodes=3)
    assert parse_settings(Example, {"order": "size"}, "here").order == "size"
    assert parse_settings(NoSettings, {}, "here") == NoSettings()


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"wait": 1.0}, "here: wait"),
        ({"wait_s": "soon"}, "here: wait_s"),
        ({"wait_s": -1.0}, "here: wait_s"),
        ({"wait_s": float("nan")}, "here: wait_s"),
        ({"num_nodes": 2.5}, "here: num_nodes"),
        ({"num_nodes": 9}, "here: num_nodes"),
        ({"order": "age"}, "here: order"),
    ],
)
def test_what_cannot_be(values: dict[str, Any], where: str) -> None:
    """Named by place, one line."""
    with pytest.raises(InputError) as caught:
        parse_settings(Example, values, "here")
    assert caught.value.where == where
    assert "\n" not in str(caught.value)


def test_search_space_has_what_is_looked_for() -> None:
    """Fields with a range, as given; the others are not tuned."""
    assert search_space(Example) == {
        "wait_s": Between(0.0, 1800.0),
        "num_nodes": Between(1, 8),
        "order": OneOf(("price", "size")),
    }
    assert search_space(NoSettings) == {}
