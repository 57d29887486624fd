"""How one policy stands among many in the result of an evaluation: what it must beat, and whether it is dominated.

A result is the content of ``rayfold evaluate --json``. Differences in it are paired, as shares of the reference's bill.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from rayfold.training.evaluation import FREE_REPACKING

__all__ = ["Standing", "cheapest", "closed_share", "dominated_by", "hardest", "standing"]

Result = Mapping[str, Any]


class Standing(NamedTuple):
    """A policy's bill against another's."""

    against: str
    mean: float  # -0.1 is 10 % less
    low: float  # ends of the 95 % interval; the mean where there is none
    high: float

    @property
    def is_lower(self) -> bool:
        """Clear of zero."""
        return self.high < 0.0

    @property
    def is_higher(self) -> bool:
        """Clear of zero."""
        return self.low > 0.0


def _bill_usd(result: Result, name: str) -> float:
    return float(result["policies"][name]["total_usd"]["mean"])


def cheapest(result: Result, names: Iterable[str]) -> str:
    """The policy of at least one that has the lowest mean bill."""
    return min(names, key=lambda name: _bill_usd(result, name))


def standing(result: Result, name: str, against: str) -> Standing:
    """One policy against one other."""
    found = result["versus"][against][name]["total_usd"]
    low, high = found["ci95"] or (found["mean"], found["mean"])
    return Standing(against, found["mean"], low, high)


def hardest(result: Result, name: str, references: Iterable[str]) -> Standing:
    """The reference to which a policy loses the most, or over which it wins the least, by the end of the interval.

    Args:
        result: See the module.
        name: Of the policy.
        references: Other policies in the result.

    Raises:
        ValueError: No reference.
    """
    return max((standing(result, name, other) for other in references), key=lambda s: (s.high, s.mean))


def closed_share(result: Result, name: str, against: str) -> float:
    """How far a policy's bill is on the way from a reference's to free repacking's; NaN if there is no way to go."""
    there, mine, free = (_bill_usd(result, policy) for policy in (against, name, FREE_REPACKING))
    return (there - mine) / (there - free) if there > free else float("nan")


def dominated_by(result: Result, name: str, others: Iterable[str]) -> tuple[str, ...]:
    """Policies that pay no more for nodes, nor for moves and unserved demand together, and less for one of the two."""
    mine = _costs(result, name)
    return tuple(
        other
        for other, theirs in ((other, _costs(result, other)) for other in others)
        if theirs[0] <= mine[0] and theirs[1] <= mine[1] and theirs != mine
    )


def _costs(result: Result, name: str) -> tuple[float, float]:
    metrics = result["policies"][name]
    nodes, moves, unserved = (float(metrics[m]["mean"]) for m in ("cost_usd", "disruption_usd", "unserved_usd"))
    return nodes, moves + unserved
