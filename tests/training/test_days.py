"""Days of a trace: those asked for, and no others."""

from dataclasses import replace

import numpy as np
import pytest

from rayfold.envs.scenario import Scenario, Split, load_scenario
from rayfold.envs.traffic_source import BinRange, TraceSource
from rayfold.errors import InputError
from rayfold.training.days import days_of, on_days


@pytest.fixture
def fortnight() -> Scenario:
    """``smoke`` with a trace of 14 days in which the rate is the number of the day."""
    scenario = load_scenario("smoke")
    rates = np.repeat(np.arange(14.0), 144)[:, None] * np.ones(scenario.spec.num_deployments)
    splits = {Split.TRAIN: BinRange(0, 7 * 144), Split.VALIDATION: BinRange(7 * 144, 14 * 144)}
    return replace(scenario, source=TraceSource(name="made up", rates_rps=rates, bin_s=600.0, splits=splits))


@pytest.mark.parametrize(("text", "days"), [("9", {9}), ("7-9", {7, 8, 9}), ("3,4", {3, 4}), ("train", set(range(7)))])
def test_episodes_come_from_these_days(fortnight: Scenario, text: str, days: set[int]) -> None:
    """All of them are drawn from, and no other."""
    chosen, split = on_days(fortnight, text)
    rng = np.random.default_rng(0)
    seen = {float(rate) for _ in range(200) for rate in chosen.source.rates(rng, split, 3600.0).rates_rps[:, 0]}
    assert seen == {float(day) for day in days}


def test_a_card_tells_the_days(fortnight: Scenario) -> None:
    """Of a trace; what is generated has none."""
    assert days_of(fortnight, Split.TRAIN) == "made up, days 0 to 6"
    assert days_of(fortnight, Split.VALIDATION) == "made up, days 7 to 13"
    assert days_of(load_scenario("smoke"), Split.TRAIN) == "generated"


@pytest.mark.parametrize("text", ["14", "12-14", "9-7", "1,3", "yesterday", "", "-1", "3;4"])
def test_other_days_are_refused(fortnight: Scenario, text: str) -> None:
    """What the trace does not have, and what is no run of days."""
    with pytest.raises(InputError, match="--days"):
        on_days(fortnight, text)


def test_days_must_hold_an_episode(fortnight: Scenario) -> None:
    """Two days of traffic do not come from one."""
    with pytest.raises(InputError, match="an episode of 48 h"):
        on_days(fortnight.with_horizon(2 * 86400.0), "9")


def test_generated_traffic_has_no_days() -> None:
    """A day of it would be a lie."""
    with pytest.raises(InputError, match="generated"):
        on_days(load_scenario("smoke"), "7-9")
