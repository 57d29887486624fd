"""Standings of a made-up result whose figures can be worked out by hand."""

import math
from typing import Any

import pytest

from rayfold.training.standing import closed_share, dominated_by, hardest, standing

BILLS = {  # nodes, moves, unserved, USD
    "learned": (80.0, 5.0, 5.0),
    "thrifty": (79.0, 20.0, 5.0),
    "calm": (95.0, 1.0, 5.0),
    "worse": (80.0, 6.0, 5.0),
    "better": (80.0, 2.0, 7.0),
    "same": (80.0, 2.0, 8.0),
    "free_repacking": (70.0, 0.0, 5.0),
}


def _figure(mean: float, half: float | None = None) -> dict[str, Any]:
    return {"mean": mean, "ci95": None if half is None else [mean - half, mean + half]}


def _result() -> dict[str, Any]:
    policies = {
        name: {
            "cost_usd": _figure(nodes), "disruption_usd": _figure(moves), "unserved_usd": _figure(unserved),
            "total_usd": _figure(nodes + moves + unserved),
        }
        for name, (nodes, moves, unserved) in BILLS.items()
    }  # fmt: skip
    halves = {"thrifty": 0.02, "calm": 0.3, "worse": None}
    versus = {
        other: {"learned": {"total_usd": _figure(90.0 / sum(bill) - 1.0, halves.get(other, 0.01))}}
        for other, bill in BILLS.items()
    }
    return {"policies": policies, "versus": versus}


def test_standing_has_its_interval() -> None:
    """A mean without interval is its own interval, so that one episode can still be told of."""
    found = standing(_result(), "learned", "thrifty")
    assert found.mean == pytest.approx(90.0 / 104.0 - 1.0)
    assert (found.high - found.mean, found.mean - found.low) == pytest.approx((0.02, 0.02))
    assert found.is_lower
    assert not found.is_higher
    alone = standing(_result(), "learned", "worse")
    assert alone.low == alone.mean == alone.high
    assert standing(_result(), "learned", "free_repacking").is_higher


def test_the_hardest_reference_is_that_of_the_worst_end() -> None:
    """``calm`` is beaten by more than ``worse`` in the mean, but might have won."""
    assert hardest(_result(), "learned", ("thrifty", "calm", "worse")).against == "calm"
    assert hardest(_result(), "learned", ("thrifty", "worse")).against == "worse"
    with pytest.raises(ValueError, match="empty"):
        hardest(_result(), "learned", ())


def test_share_of_the_gap() -> None:
    """From 104 USD to 75 there are 29; 14 of them are closed. From 75 to 75 there is no way."""
    assert closed_share(_result(), "learned", "thrifty") == pytest.approx(14.0 / 29.0)
    assert math.isnan(closed_share(_result(), "learned", "free_repacking"))


def test_dominated_only_by_what_is_nowhere_dearer() -> None:
    """A trade of nodes for moves dominates nothing, nor does an equal; less for moves and unserved together does."""
    assert dominated_by(_result(), "learned", ("thrifty", "calm", "worse", "better", "same")) == ("better",)
    assert dominated_by(_result(), "worse", ("learned", "thrifty")) == ("learned",)
