"""The sweep: settings spread over their ranges, each a policy that a user could name."""

from dataclasses import dataclass

import pytest

from rayfold.envs.safety import Limits
from rayfold.envs.scenario import Split, load_scenario
from rayfold.policies.by_name import HEURISTICS, make_policy
from rayfold.policies.settings import NoSettings, between, one_of
from rayfold.training.policy_choice import PolicyChoice
from rayfold.training.sweep import POINT_METRICS, sweep_choices, sweep_points, sweep_settings, with_settings
from rayfold.training.units import evaluate_units


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One of each kind."""

    count: int = between(3, 1, 9)
    wait_s: float = between(60.0, 10.0, 1000.0, is_log=True)
    order: str = one_of("a", "a", "b")


def test_settings_by_hand() -> None:
    """Halton in bases 2, 3, 5: the first points are (1/2, 1/3, 1/5) and (1/4, 2/3, 2/5)."""
    first, second = sweep_settings(Settings, 2)
    assert first == {"count": 5, "wait_s": pytest.approx(10.0 * 100 ** (1 / 3), rel=1e-3), "order": "a"}
    assert second == {"count": 3, "wait_s": pytest.approx(10.0 * 100 ** (2 / 3), rel=1e-3), "order": "a"}


def test_settings_cover_their_ranges() -> None:
    """Every value of a choice and both halves of a range come up; none twice; the same again; none where none are."""
    found = sweep_settings(Settings, 12)
    assert {s["order"] for s in found} == {"a", "b"}
    assert min(s["count"] for s in found) < 4 < 6 < max(s["count"] for s in found)
    assert all(found.count(s) == 1 for s in found)
    assert sweep_settings(Settings, 12) == found
    assert sweep_settings(NoSettings, 12) == []


def test_every_swept_heuristic_can_be_made() -> None:
    """The names parse back to the settings they were made of."""
    for name, (rule, _) in sweep_choices(list(HEURISTICS), 5).items():
        assert make_policy(name, Limits()).name.startswith(rule.split("_")[0])
    assert with_settings("patient", {"wait_s": 60.0, "spare": 2}) == "patient(wait_s=60.0,spare=2)"


def test_points_hold_what_is_paid_for_a_saving() -> None:
    """Cost, moves and unserved demand of the policies as evaluated and of each setting."""
    scenario = load_scenario("smoke").with_horizon(600.0)
    policies = [PolicyChoice(name=name) for name in ("none", "patient")]
    plain = evaluate_units(scenario, policies, (3, 4), Split.TRAIN)
    points = sweep_points(scenario, plain, 2, Split.TRAIN)
    assert [point["rule"] for point in points] == ["none", "patient", "patient", "patient"]
    assert [point["settings"] is None for point in points] == [True, True, False, False]
    assert all(set(POINT_METRICS) <= set(point) and point["cost_usd"]["mean"] > 0.0 for point in points)
