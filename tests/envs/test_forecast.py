"""The forecaster: profiles by hand, known truths recovered, bands that hold what they promise."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rayfold.envs.forecast import fit_forecaster

HOUR_S, DAY_S = 3600.0, 86400.0


def sinusoid(times_s: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """10 requests a second at midnight and noon, 16 at 06:00, 4 at 18:00."""
    return np.asarray(10.0 + 6.0 * np.sin(2.0 * math.pi * times_s / DAY_S), np.float64)


def test_profile_by_hand() -> None:
    """Hourly bins are not smoothed; each hour's z is the mean of two days': geometric mean of rate + shift."""
    first, second = np.arange(1.0, 25.0), np.arange(2.0, 26.0)
    made = fit_forecaster(np.concatenate([first, second])[:, None], HOUR_S)
    shift = 0.05 * 13.0  # 5 % of the mean
    by_hand = 0.5 * (np.log1p(first / shift) + np.log1p(second / shift))
    overall = by_hand.mean()
    weight = (made.profile[0, 0] - overall) / (by_hand[0] - overall)
    assert made.shift_rps.tolist() == [pytest.approx(shift)]
    assert weight == pytest.approx(1.0)
    np.testing.assert_allclose(made.profile[:, 0], by_hand)
    exactly = shift * np.expm1(made.profile[3:5])  # of the profile itself nothing deviates
    np.testing.assert_allclose(made.median(3 * HOUR_S, shift * np.expm1(made.profile[2]), 2 * HOUR_S), exactly)


@pytest.mark.parametrize("usual", [math.inf, 0.7, 0.0])
def test_deviation_fades_by_hand(usual: float) -> None:
    """Flat profile: of the recent level's z, the usual part shrinks by exp(-lead / decay) and the rest stays."""
    shift, z5, z20 = 0.25, math.log1p(5.0 / 0.25), math.log1p(20.0 / 0.25)
    made = replace(
        fit_forecaster(np.full((4, 1), 5.0), HOUR_S), decay_s=np.array([2 * HOUR_S]), usual=np.array([usual])
    )
    swing = min(usual, z20 - z5)
    z = z5 + np.exp([-0.5, -1.0, -1.5]) * swing + (z20 - z5 - swing)
    np.testing.assert_allclose(made.median(0.0, np.array([20.0]), 3 * HOUR_S)[:, 0], shift * np.expm1(z))


def test_a_new_level_stays_and_a_usual_swing_does_not() -> None:
    """Noise of 10 % that is gone an hour later: 12 instead of 10 comes back, 0 instead of 10 does not."""
    rates = 10.0 * np.exp(np.random.default_rng(0).normal(0.0, 0.1, (7 * 24, 1)))
    made = fit_forecaster(rates, HOUR_S)
    assert made.median(0.0, np.array([12.0]), 3 * HOUR_S)[-1, 0] == pytest.approx(10.0, rel=0.05)
    assert made.median(0.0, np.array([0.0]), 3 * HOUR_S)[-1, 0] < 0.3


def test_known_sinusoid_is_recovered() -> None:
    """Seven noisy days: the next day's forecast from any hour lies within 6 % of the truth, 12 hours ahead too."""
    rng, bin_s = np.random.default_rng(0), 600.0
    times_s = (np.arange(7 * 144) + 0.5) * bin_s
    rates = sinusoid(times_s) * np.exp(rng.normal(0.0, 0.1, len(times_s)))
    made = fit_forecaster(rates[:, None], bin_s)
    for hour in (0, 6, 13, 21):
        now_s = 7 * DAY_S + hour * HOUR_S
        truth = sinusoid(now_s + (np.arange(72) + 0.5) * bin_s)
        forecast = made.median(now_s, sinusoid(np.array([now_s])), 12 * HOUR_S)[:, 0]
        np.testing.assert_allclose(forecast, truth, rtol=0.06)
    assert made.noise[0, 0] == pytest.approx(0.1, rel=0.15)


def test_history_may_begin_at_any_time_of_day() -> None:
    """The profile is laid by the clock, not by the row: two histories of other beginnings agree."""
    times_s = np.arange(8 * 24) * HOUR_S + 0.5 * HOUR_S
    whole = fit_forecaster(sinusoid(times_s[: 7 * 24])[:, None], HOUR_S)
    late = fit_forecaster(sinusoid(times_s[9 : 7 * 24 + 9])[:, None], HOUR_S, start_s=9 * HOUR_S)
    recent = np.array([9.0])
    np.testing.assert_allclose(whole.median(0.0, recent, DAY_S), late.median(5 * DAY_S, recent, DAY_S))


@pytest.mark.parametrize("lead", [1, 3, 12])
def test_band_covers_what_it_promises(lead: int) -> None:
    """AR(1) noise of known size: of 400 independent tests, 90 % of the truths lie in the 90 % band."""
    rng, bin_s, keep, sigma, num = np.random.default_rng(lead), 1200.0, 0.9, 0.3, 400

    def noisy(num_bins: int) -> NDArray[np.float64]:
        x = np.empty((num_bins, num))
        x[0] = rng.normal(0.0, sigma, num)
        for t in range(1, num_bins):
            x[t] = keep * x[t - 1] + rng.normal(0.0, sigma * math.sqrt(1.0 - keep**2), num)
        return 8.0 * np.exp(x)

    made = fit_forecaster(noisy(8 * 72), bin_s)
    fresh = noisy(lead + 1)
    low, high = (made.quantile(0.0, fresh[0], lead * bin_s, share)[-1] for share in (0.05, 0.95))
    held = int(((fresh[lead] >= low) & (fresh[lead] <= high)).sum())
    four_sd = 4.0 * math.sqrt(num * 0.9 * 0.1)
    assert abs(held - 0.9 * num) <= four_sd


def test_futures_have_the_quantiles_of_the_band() -> None:
    """Second route: 5 % of 20,000 sampled paths lie below ``quantile(0.05)`` at each lead, half below the median."""
    rng = np.random.default_rng(1)
    rates = np.exp(np.cumsum(rng.normal(0.0, 0.1, (3 * 144, 2)), axis=0) * 0.3 + 1.0)
    made, recent = fit_forecaster(rates, 600.0), rates[-1]
    futures = made.sample(100.0, recent, 2 * HOUR_S, 20_000, rng)
    assert futures.shape == (20_000, 12, 2)
    for share in (0.05, 0.5, 0.95):
        below = (futures <= made.quantile(100.0, recent, 2 * HOUR_S, share)).mean(axis=0)
        step = 1.0 / len(rates)  # paths repeat as many moments
        np.testing.assert_allclose(below, share, atol=step + 4.0 * math.sqrt(share * (1 - share) / 20_000))


def test_futures_repeat_what_the_history_was_wrong_by() -> None:
    """By hand, a flat profile that nothing deviates from: each path is a run of the history, end to start."""
    rates = np.array([5.0, 5.0, 5.0, 9.0, 5.0, 2.0])[:, None]
    made = fit_forecaster(rates, HOUR_S)
    still = made.history._replace(level=np.full((6, 1), math.log1p(5.0 / made.shift_rps[0])))
    flat = math.log1p(5.0 / made.shift_rps[0])
    made = replace(
        made,
        profile=np.full((1, 1), flat),
        history=still._replace(mean_without=np.full((1, 1), flat)),
        weight=np.zeros(1),
    )
    futures = made.sample(0.0, np.array([5.0]), 3 * HOUR_S, 300, np.random.default_rng(0))[:, :, 0]
    runs = {tuple(np.roll(rates[:, 0], -first)[:3].tolist()) for first in range(6)}
    assert {tuple(path) for path in futures.round(9).tolist()} == runs


def test_what_fails_together_fails_together_in_futures() -> None:
    """Two deployments that stop in the same hours at random: of a future's hours with one at rest the other is, too."""
    is_on = np.random.default_rng(0).random((7 * 24, 1)) < 0.7
    made = fit_forecaster(np.where(is_on, [8.0, 3.0], 0.0), HOUR_S)
    futures = made.sample(0.0, np.array([8.0, 3.0]), 6 * HOUR_S, 500, np.random.default_rng(1))
    rests = futures < 0.5 * np.array([8.0, 3.0])
    assert 0.1 < rests[..., 0].mean() < 0.5
    assert (rests[..., 0] == rests[..., 1]).mean() > 0.98


def test_noise_is_measured_on_days_that_the_profile_has_not_seen() -> None:
    """Every hour of two days is its own draw of 0.4 (0.38 in z): residuals in sample would show 0.27."""
    rates = np.exp(np.random.default_rng(2).normal(2.0, 0.4, (2 * 24, 300)))
    made = fit_forecaster(rates, HOUR_S)
    assert float(np.median(made.noise[0])) > 0.35


def test_zero_traffic_stays_zero() -> None:
    """Not a single request is made up, and a busy neighbour does not leak."""
    rates = np.zeros((3 * 24, 2))
    rates[:, 1] = 4.0
    made = fit_forecaster(rates, HOUR_S)
    futures = made.sample(0.0, np.array([0.0, 4.0]), DAY_S, 50, np.random.default_rng(0))
    assert not futures[..., 0].any()
    np.testing.assert_allclose(futures[..., 1], 4.0)
    woken = made.median(0.0, np.array([2.0, 4.0]), 2 * HOUR_S)[:, 0]  # never seen before: a new level
    np.testing.assert_allclose(woken, 2.0)


def test_equal_seeds_equal_futures() -> None:
    """The generator is the only source of randomness."""
    rates = np.random.default_rng(0).uniform(1.0, 9.0, (48, 3))
    made = fit_forecaster(rates, HOUR_S)
    first, again, other = (made.sample(0.0, rates[-1], DAY_S, 4, np.random.default_rng(seed)) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_short_histories() -> None:
    """Under a day the profile is flat; a single bin is its own forecast, with noise that says: unknown."""
    half_day = fit_forecaster(np.arange(1.0, 13.0)[:, None], HOUR_S)
    assert half_day.profile.shape == (1, 1)
    single = fit_forecaster(np.array([[3.0, 0.0]]), HOUR_S)
    np.testing.assert_allclose(single.median(0.0, np.array([3.0, 0.0]), 5 * HOUR_S), [[3.0, 0.0]] * 5)
    assert single.noise.shape == (1, 2)
    assert single.noise[0, 0] > 0.0
    assert single.noise[0, 1] == 0.0
    futures = single.sample(0.0, np.array([3.0, 0.0]), 600.0, 9, np.random.default_rng(0))
    assert futures.shape == (9, 1, 2)
    assert not futures[..., 1].any()
    one_day = fit_forecaster(sinusoid(np.arange(24) * HOUR_S)[:, None], HOUR_S)
    assert np.isfinite(one_day.sample(0.0, np.array([9.0]), DAY_S, 3, np.random.default_rng(0))).all()


@pytest.mark.parametrize("rates", [np.zeros((0, 2)), np.array([[-1.0]]), np.array([[np.nan]]), np.zeros(3)])
def test_what_is_no_history_is_refused(rates: NDArray[np.float64]) -> None:
    """Nothing, negative, not a number, not a table."""
    with pytest.raises(ValueError, match="rates must be"):
        fit_forecaster(rates, HOUR_S)


def test_no_future_beyond_the_peak() -> None:
    """On and off at random, 20 or 0: no draw exceeds 20. From a new level of 60, one standard deviation at most."""
    rates = np.where(np.random.default_rng(0).random((7 * 24, 1)) < 0.3, 20.0, 0.0)
    made = fit_forecaster(rates, HOUR_S)
    assert made.noise[0, 0] > 1.0  # uncapped, draws of several times 20 would be common
    rng = np.random.default_rng(1)
    assert made.sample(0.0, np.array([20.0]), DAY_S, 500, rng).max() == pytest.approx(20.0)
    assert made.quantile(0.0, np.array([20.0]), DAY_S, 0.999).max() == pytest.approx(20.0)
    new = replace(made, usual=np.zeros(1), noise=np.full((1, 1), 0.1), profile=np.zeros((1, 1)), weight=np.zeros(1))
    z = math.log1p(60.0 / new.shift_rps[0]) + 0.1
    highest = new.sample(0.0, np.array([60.0]), HOUR_S, 500, rng).max()
    assert highest == pytest.approx(new.shift_rps[0] * math.expm1(z))
