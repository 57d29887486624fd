"""Sampling of an episode's offered load."""

import math
import time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rayfold.envs.traffic import SLOW_MEAN_S, Traffic, sample_traffic, service_time_s


def _sample(rates_rps: NDArray[np.float64], seed: int = 0, **changes: Any) -> Traffic:
    num_deployments = rates_rps.shape[1]
    arguments: dict[str, Any] = {
        "bin_s": 600.0,
        "service_s": np.full(num_deployments, 10.0),
        "burstiness_cv": np.ones(num_deployments),
        "tokens_per_request": np.full(num_deployments, 100.0),
        "look_back_s": np.full(num_deployments, 30.0),
        "num_steps": round(len(rates_rps) * 120),
        "step_s": 5.0,
    }
    return sample_traffic(rates_rps, rng=np.random.default_rng(seed), **(arguments | changes))


@pytest.mark.parametrize("step_s", [1.0, 5.0])
@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_littles_law(step_s: float, cv: float) -> None:
    """Mean ongoing requests = rate x service time, for services far shorter and far longer than a step."""
    rates, service_s = np.array([40.0, 4.0, 0.5, 0.2]), np.array([0.3, 4.0, 20.0, 90.0])
    got = _sample(
        np.tile(rates, (200, 1)),
        service_s=service_s,
        burstiness_cv=np.full(4, cv),
        step_s=step_s,
        num_steps=round(200 * 600 / step_s),
    )
    np.testing.assert_allclose(got.ongoing.mean(0), rates * service_s, rtol=0.04)


def test_poisson_arrivals_give_a_poisson_number_present() -> None:
    """M/M/inf is stationary at a Poisson number: variance = mean, and correlation exp(-t / service)."""
    x = _sample(np.full((1000, 1), 3.0)).ongoing[:, 0]
    assert x.var() / x.mean() == pytest.approx(1.0, abs=0.05)
    assert np.corrcoef(x[:-2], x[2:])[0, 1] == pytest.approx(math.exp(-1.0), abs=0.03)


def test_burstiness_sets_the_dispersion_of_arrivals() -> None:
    """With services much longer than a step, variance / mean of the number present is 1 + (cv^2 - 1) / 2.

    Arrivals in batches whose counts have variance cv^2 x mean, kept for an exponential time.
    """
    rates = np.full((2000, 3), 2.0)
    x = _sample(rates, service_s=np.full(3, 50.0), burstiness_cv=np.array([1.0, 2.0, 3.0])).ongoing
    np.testing.assert_allclose(x.var(0) / x.mean(0), [1.0, 2.5, 5.0], rtol=0.12)


def test_episode_starts_stationary() -> None:
    """The first row has the stationary mean and variance over seeds: no ramp from an empty queue."""
    rates, service_s = np.full((1, 1), 0.02), np.array([1000.0])  # longer than any warm-up
    samples = [_sample(rates, k, num_steps=2, service_s=service_s) for k in range(800)]
    assert {s.num_before for s in samples} == {120}
    first = np.array([s.ongoing[s.num_before, 0] for s in samples])
    assert first.mean() == pytest.approx(20.0, abs=4 * math.sqrt(20.0 / 800))
    assert first.var() == pytest.approx(20.0, rel=0.25)


def test_rates_follow_their_bins() -> None:
    """Each bin's rate rules its own 600 s, and no other."""
    rates = np.array([[50.0], [0.0], [100.0]])
    traffic = _sample(rates, service_s=np.array([1.0]))
    x = traffic.ongoing[traffic.num_before :, 0]
    assert len(x) == traffic.num_steps == 360
    assert x[:120].mean() == pytest.approx(50.0, rel=0.1)
    assert x[130:240].max() == 0
    assert x[245:].mean() == pytest.approx(100.0, rel=0.1)


def test_means_agree_with_their_definitions() -> None:
    """Before the first step, row by row in plain Python: sums of the look-back periods, and the ten-minute mean.

    ``test_dynamics.py`` follows both through the steps.
    """
    got = _sample(np.tile([1.0, 3.0, 9.0], (3, 1)), look_back_s=np.array([2.0, 30.0, 62.0]))
    assert got.window.tolist() == [1, 6, 12]
    before = got.ongoing[: got.num_before].astype(float)
    for d, rows in enumerate((1, 6, 12)):
        assert got.lookback_sum()[d] == sum(before[-1 - i, d] for i in range(rows))
        weights = [math.exp(-5.0 * i / SLOW_MEAN_S) for i in range(len(before))]
        mean = sum(w * before[-1 - i, d] for i, w in enumerate(weights)) / sum(weights)
        assert got.slow_mean(5.0)[d] == pytest.approx(mean)
    np.testing.assert_array_equal(got.tokens_per_ongoing_s, 100.0 / 10.0)


def test_steps_that_are_given() -> None:
    """Before them the load was that of the first one, for as long as any deployment looks back."""
    steps = np.array([[3.0, 1.0], [4.0, 0.0]])
    got = Traffic.of_steps(
        steps, look_back_s=np.array([10.0, 15.0]), step_s=5.0, tokens_per_ongoing_s=np.array([1.0, 2.0])
    )
    assert (got.num_before, got.num_steps) == (3, 2)
    assert got.ongoing.tolist() == [[3.0, 1.0]] * 4 + [[4.0, 0.0]]
    assert got.lookback_sum().tolist() == [6.0, 3.0]
    assert got.slow_mean(5.0).tolist() == pytest.approx([3.0, 1.0])


def test_slow_mean_starts_at_the_stationary_mean() -> None:
    """It neither starts at zero nor at the first sample."""
    first = np.array([_sample(np.full((1, 1), 2.0), seed, num_steps=1).slow_mean(5.0)[0] for seed in range(200)])
    assert first.mean() == pytest.approx(20.0, rel=0.02)
    assert first.std() < 1.5


def test_same_generator_same_traffic() -> None:
    """Bit-equal for a seed, different for another."""
    rates = np.full((6, 2), 3.0)
    a, b, c = (_sample(rates, seed, burstiness_cv=np.full(2, 2.0)) for seed in (7, 7, 8))
    np.testing.assert_array_equal(a.ongoing, b.ongoing)
    assert a.num_before == b.num_before == c.num_before
    assert not np.array_equal(a.ongoing, c.ongoing)


def test_bins_must_cover_the_episode() -> None:
    """Too few bins raise instead of repeating the last."""
    with pytest.raises(ValueError, match="rates must cover 605 s"):
        _sample(np.ones((1, 1)), num_steps=121)


def test_service_time_model() -> None:
    """Time to first token plus one token time per token."""
    assert service_time_s(0.5, 0.02, 100.0) == pytest.approx(2.5)


def test_a_day_of_24_deployments_in_half_a_second() -> None:
    """24 h at 5 s steps; the limit leaves room for a busy machine."""
    rates = np.full((144, 24), 5.0)
    _sample(rates[:1])  # compiles
    begun = time.perf_counter()
    _sample(rates, burstiness_cv=np.full(24, 2.0))
    assert time.perf_counter() - begun < 2.0
