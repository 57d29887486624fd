"""Weibull arrivals: beside a renewal process that is laid out request by request."""

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from rayfold.envs.arrivals import MANY, count_renewals, first_wait, weibull_shape
from rayfold.envs.scenario import Split, load_scenario
from rayfold.envs.traffic import sample_traffic
from rayfold.errors import InputError

NUM_STEPS = 20_000


def counted(cv: float, mean: float, seed: int, num_steps: int = NUM_STEPS) -> NDArray[np.int64]:
    """Our counts in consecutive steps."""
    rng, shape = np.random.default_rng(seed), weibull_shape(cv)
    wait, counts = first_wait(shape, rng), np.empty(num_steps, np.int64)
    for t in range(num_steps):
        counts[t], wait = count_renewals(wait, mean, shape, rng)
    return counts


def laid_out(cv: float, mean: float, seed: int) -> NDArray[np.int64]:
    """All requests of a process on one axis, and how many lie in each step; numpy's Weibull, and no first wait."""
    rng, shape = np.random.default_rng(seed), weibull_shape(cv)
    waits = rng.weibull(shape, round(1.3 * mean * NUM_STEPS) + 20_000) / math.gamma(1.0 + 1.0 / shape)
    times = np.cumsum(waits)[100:]  # long enough after the first request
    steps = np.floor((times - times[0] - 50.0) / mean).astype(np.int64)
    return np.bincount(steps[(steps >= 0) & (steps < NUM_STEPS)], minlength=NUM_STEPS)


@pytest.mark.parametrize("cv", [1.0, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("mean", [0.2, 1.0, 5.0, 40.0])
def test_counts_are_those_of_the_process(cv: float, mean: float) -> None:
    """Mean, variance, share of empty steps and correlation with the next step, for short and long steps."""
    ours, theirs = counted(cv, mean, 1), laid_out(cv, mean, 2)
    sd = cv * math.sqrt(mean / NUM_STEPS)  # of a mean
    assert ours.mean() == pytest.approx(mean, abs=4.0 * sd)
    assert theirs.mean() == pytest.approx(mean, abs=4.0 * sd)
    assert ours.var() == pytest.approx(theirs.var(), rel=0.12)
    assert (ours == 0).mean() == pytest.approx((theirs == 0).mean(), abs=0.02)
    next_to = [np.corrcoef(x[:-1], x[1:])[0, 1] for x in (ours, theirs)]
    assert next_to[0] == pytest.approx(next_to[1], abs=0.04)


def test_the_comparison_can_fail() -> None:
    """Counts with the variance of the limit, which short steps have not, are seen; so is a process that starts late."""
    rng = np.random.default_rng(7)
    of_limit = rng.poisson(rng.gamma(1.0 / 8.0, 8.0, NUM_STEPS))
    assert of_limit.var() != pytest.approx(laid_out(3.0, 1.0, 2).var(), rel=0.12)
    shape = weibull_shape(2.0)
    late = [count_renewals(1.0, 3.0, shape, rng)[0] for _ in range(6000)]
    assert np.mean(late) != pytest.approx(3.0, abs=4.0 * 2.0 * math.sqrt(3.0 / 6000))


@pytest.mark.parametrize("mean", [0.2, 1.0, 5.0, 40.0])
def test_cv_1_is_poisson(mean: float) -> None:
    """Every probability from the formula, within four standard deviations."""
    counts = counted(1.0, mean, 3)
    assert weibull_shape(1.0) == pytest.approx(1.0)
    for k in range(round(mean + 3.0 * math.sqrt(mean)) + 1):
        p = math.exp(k * math.log(mean) - mean - math.lgamma(k + 1.0))
        assert (counts == k).mean() == pytest.approx(p, abs=4.0 * math.sqrt(p * (1.0 - p) / NUM_STEPS) + 1e-4)


@pytest.mark.parametrize("cv", [1.5, 3.0])
def test_long_steps_have_the_variance_of_the_limit(cv: float) -> None:
    """At ``MANY`` the variance is ``cv**2`` times the mean within 8 %: from there on Gamma arrivals may stand in."""
    counts = counted(cv, MANY, 4, 8000)
    assert counts.var() / counts.mean() == pytest.approx(cv**2, rel=0.08)


@pytest.mark.parametrize("cv", [1.0, 1.3, 2.0, 5.0, 100.0])
def test_shape_has_the_cv(cv: float) -> None:
    """The moments of a Weibull distribution, from the formula."""
    k = weibull_shape(cv)
    first, second = math.lgamma(1.0 + 1.0 / k), math.lgamma(1.0 + 2.0 / k)
    assert math.sqrt(math.expm1(second - 2.0 * first)) == pytest.approx(cv, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("mean", [0.5, 3.0, 40.0])
def test_a_first_wait_is_stationary(mean: float) -> None:
    """The first step counts as any later one, over 6,000 processes: no burst at the beginning."""
    rng, shape = np.random.default_rng(5), weibull_shape(2.0)
    first = [count_renewals(first_wait(shape, rng), mean, shape, rng)[0] for _ in range(6000)]
    assert np.mean(first) == pytest.approx(mean, abs=4.0 * 2.0 * math.sqrt(mean / 6000))


def _present(rates_rps: NDArray[np.float64], cv: list[float], step_s: float, service_s: float) -> NDArray[np.float32]:
    num = rates_rps.shape[1]
    return sample_traffic(
        rates_rps,
        bin_s=600.0,
        service_s=np.full(num, service_s),
        burstiness_cv=np.array(cv),
        tokens_per_request=np.full(num, 100.0),
        look_back_s=np.full(num, 30.0),
        num_steps=round(len(rates_rps) * 600.0 / step_s),
        step_s=step_s,
        rng=np.random.default_rng(6),
        has_weibull_arrivals=np.ones(num, np.bool_),
    ).ongoing


@pytest.mark.parametrize("rate_rps", [0.3, 2.0, 90.0])
def test_requests_present_in_a_queue(rate_rps: float) -> None:
    """Little's law, and with services far longer than a step variance / mean = 1 + (cv^2 - 1) / 2, as for Gamma ones.

    The last rate is beyond ``MANY`` in a step.
    """
    x = _present(np.full((1500, 3), rate_rps), [1.0, 2.0, 3.0], 5.0, 100.0)
    np.testing.assert_allclose(x.mean(0), rate_rps * 100.0, rtol=0.03)
    np.testing.assert_allclose(x.var(0) / x.mean(0), [1.0, 2.5, 5.0], rtol=0.25)


def test_rates_that_change_and_stop() -> None:
    """A bin without traffic has none, and the next one has its own rate."""
    x = _present(np.tile([[8.0], [0.0], [80.0], [2.0]], (50, 1)), [2.0], 5.0, 1.0).reshape(-1)[-50 * 480 :]
    by_bin = x.reshape(50, 4, 120)[:, :, 20:].mean(axis=(0, 2))
    np.testing.assert_allclose(by_bin, [8.0, 0.0, 80.0, 2.0], rtol=0.08)


SCENARIO = """
description: Two of a kind.
horizon_s: 3600
node_types: [{name: n, resources: {GPU: 4}, price_usd_per_h: 1}]
deployments:
  - name: a
    shape: {bundles: [{GPU: 1}]}
    requests: {output_tokens_per_request: 9, generator: {kind: steady, mean_rps: 5}}
  - name: b
    shape: {bundles: [{GPU: 1}]}
    requests: {output_tokens_per_request: 9, arrivals: ARRIVALS, generator: {kind: steady, mean_rps: 5}}
"""


def test_scenarios_choose(tmp_path: Path) -> None:
    """``requests.arrivals`` per deployment, Gamma where nothing is said; the choice of one leaves the one before it."""
    drawn = {}
    for arrivals in ("gamma", "weibull"):
        (tmp_path / "two.yaml").write_text(SCENARIO.replace("ARRIVALS", arrivals))
        scenario = load_scenario(tmp_path / "two.yaml")
        assert scenario.requests.has_weibull_arrivals.tolist() == [False, arrivals == "weibull"]
        drawn[arrivals] = scenario.sample(np.random.default_rng(0), Split.TRAIN).ongoing
    np.testing.assert_array_equal(drawn["gamma"][:, 0], drawn["weibull"][:, 0])
    assert (drawn["gamma"][:, 1] != drawn["weibull"][:, 1]).any()


def test_other_arrivals_are_refused(tmp_path: Path) -> None:
    """In one line that names the two."""
    (tmp_path / "two.yaml").write_text(SCENARIO.replace("ARRIVALS", "pareto"))
    with pytest.raises(InputError, match=r"requests\.arrivals: expected 'gamma' or 'weibull', got 'pareto'"):
        load_scenario(tmp_path / "two.yaml")
