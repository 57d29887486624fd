"""The curve a policy is judged against: each heuristic at many settings of its own, on the same episodes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rayfold.envs.scenario import Scenario, Split
from rayfold.policies.by_name import HEURISTICS
from rayfold.policies.settings import Between, OneOf, search_space
from rayfold.training.evaluation import Evaluation
from rayfold.training.policy_choice import PolicyChoice
from rayfold.training.unit_store import UnitStore
from rayfold.training.units import Unit, evaluate_units
from rayfold.training.workers import HERE, Workers

__all__ = ["POINT_METRICS", "sweep_choices", "sweep_points", "sweep_settings", "with_settings"]

_PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29)  # a base per setting; what there is beyond keeps its default

POINT_METRICS = (
    "total_usd",
    "cost_usd",
    "disruption_usd",
    "unserved_usd",
    "moves",
    "undone_moves",
    "unserved_request_s",
)


def sweep_settings(settings_type: type[Any], num_settings: int) -> list[dict[str, Any]]:
    """Settings spread evenly over the ranges in which tuning looks: points of the Halton sequence, always the same.

    Args:
        settings_type: Dataclass of a heuristic's settings.
        num_settings: How many; equal ones are left out.
    """
    space = search_space(settings_type)
    if not space:
        return []
    defaults = settings_type()
    found: list[dict[str, Any]] = []
    for i in range(1, num_settings + 1):
        settings = {
            name: _at(allowed, _halton(i, base), is_whole=type(getattr(defaults, name)) is int)
            for (name, allowed), base in zip(space.items(), _PRIMES, strict=False)
        }
        if settings not in found:
            found.append(settings)
    return found


def _halton(i: int, base: int) -> float:
    """The digits of ``i`` in a base, mirrored at the point: 1, 2, 3 in base 2 are 1/2, 1/4, 3/4."""
    share, weight = 0.0, 1.0
    while i > 0:
        weight /= base
        i, digit = divmod(i, base)
        share += weight * digit
    return share


def _at(allowed: Between | OneOf, share: float, *, is_whole: bool) -> Any:
    """The value at a share of its range."""
    if isinstance(allowed, OneOf):
        return allowed.values[int(share * len(allowed.values))]
    low, high = allowed.low, allowed.high
    value = low * (high / low) ** share if allowed.is_log else low + share * (high - low)
    return round(value) if is_whole else float(f"{value:.4g}")


def with_settings(rule: str, settings: Mapping[str, Any]) -> str:
    """``rule(a=1,b=2)``, as ``make_policy`` reads it."""
    return f"{rule}({','.join(f'{name}={value}' for name, value in settings.items())})"


def sweep_choices(rules: Sequence[str], num_settings: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """``{name of a policy: (rule, settings)}`` for every heuristic among the rules that has settings."""
    return {
        with_settings(rule, settings): (rule, settings)
        for rule in rules
        if rule in HEURISTICS
        for settings in sweep_settings(HEURISTICS[rule].settings_type, num_settings)
    }


def sweep_points(
    scenario: Scenario,
    plain: Evaluation,
    num_settings: int,
    split: Split,
    *,
    store: UnitStore | None = None,
    workers: Workers = HERE,
    on_unit: Callable[[Unit], None] = lambda unit: None,
) -> list[dict[str, Any]]:
    """Cost, moves and unserved demand of each heuristic at each setting, and of the policies evaluated already.

    Args:
        scenario: As evaluated.
        plain: What was evaluated: its policies, seeds.
        num_settings: Tried per heuristic.
        split: As evaluated.
        store: See ``evaluate_units``.
        workers: See ``evaluate_units``.
        on_unit: See ``evaluate_units``.
    """
    choices = sweep_choices(list(plain.results), num_settings)
    points = [_point(plain, name, name, None) for name in plain.results]
    if choices:
        policies = [PolicyChoice(name=name) for name in choices]
        swept = evaluate_units(
            scenario, policies, plain.seeds, split, store=store, workers=workers, is_recorded=False, on_unit=on_unit
        )
        points += [_point(swept, name, rule, settings) for name, (rule, settings) in choices.items()]
    return points


def _point(evaluation: Evaluation, name: str, rule: str, settings: Mapping[str, Any] | None) -> dict[str, Any]:
    figures = evaluation.summary()[name]
    return {
        "name": name,
        "rule": rule,
        "settings": None if settings is None else dict(settings),  # None = as evaluated
        **{metric: figures[metric].as_json() for metric in POINT_METRICS},
    }
