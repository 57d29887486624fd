"""The traffic generator: shapes, means and determinism."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from rayfold.envs.cluster import Interval
from rayfold.envs.generator import GeneratorSettings, TrafficKind, generate_rates

DAY_S = 86400.0


def _rates(settings: GeneratorSettings, days: float, seed: int = 0, start_s: float = 0.0) -> NDArray[np.float64]:
    num_bins = round(days * DAY_S / 60)
    return generate_rates(settings, num_bins=num_bins, bin_s=60.0, start_s=start_s, rng=np.random.default_rng(seed))


@pytest.mark.parametrize("kind", [k for k in TrafficKind if k is not TrafficKind.STEP])
def test_long_run_mean_is_mean_rps(kind: TrafficKind) -> None:
    """Whatever the kind, the mean over many days is what was asked for, and no rate is negative."""
    rates = _rates(GeneratorSettings(kind=kind, mean_rps=7.0, noise_frac=0.2, active_frac=0.2), days=200)
    assert rates.mean() == pytest.approx(7.0, rel=0.05)
    assert rates.min() >= 0
    assert np.isfinite(rates).all()


def test_diurnal_peaks_at_its_hour() -> None:
    """Without noise the rate is the cosine itself, also when the episode starts in the afternoon."""
    settings = GeneratorSettings(
        kind=TrafficKind.DIURNAL, mean_rps=10.0, swing_frac=0.5, peak_at_h=15.0, noise_frac=0.0
    )
    rates = _rates(settings, days=1)
    assert rates.max() == pytest.approx(15.0, rel=1e-4)
    assert rates.min() == pytest.approx(5.0, rel=1e-4)
    assert abs(int(rates.argmax()) - 15 * 60) <= 1
    later = _rates(settings, days=1, start_s=14 * 3600.0)
    assert abs(int(later.argmax()) - 60) <= 1


def test_bursts_have_their_share_length_and_factor() -> None:
    """Time in bursts, mean burst length and the ratio of the two rates are the parameters."""
    settings = GeneratorSettings(
        kind=TrafficKind.BURSTY, mean_rps=3.0, noise_frac=0.0, active_frac=0.25, active_s=1200.0, burst_factor=5.0
    )
    rates = _rates(settings, days=300)
    low, high = np.unique(rates.round(9))
    assert high / low == pytest.approx(5.0)
    active = rates > (low + high) / 2
    assert active.mean() == pytest.approx(0.25, rel=0.1)
    num_bursts = np.count_nonzero(np.diff(active.astype(int)) == 1)
    # A geometric number of bins: its mean is 1 / (1 - exp(-60 / 1200)) bins.
    assert active.sum() * 60.0 / num_bursts == pytest.approx(60.0 / -math.expm1(-0.05), rel=0.1)


def test_sporadic_is_zero_when_not_active() -> None:
    """Nothing comes outside the active times, and all of the mean within them."""
    settings = GeneratorSettings(kind=TrafficKind.SPORADIC, mean_rps=2.0, noise_frac=0.0, active_frac=0.1)
    assert set(np.unique(_rates(settings, days=30))) == {0.0, 20.0}


@pytest.mark.parametrize("kind", [TrafficKind.BURSTY, TrafficKind.SPORADIC])
@pytest.mark.parametrize("active_frac", [0.9, 1.0])
def test_nearly_always_active(kind: TrafficKind, active_frac: float) -> None:
    """Shares near and at one work, also where bursts are shorter than a bin."""
    settings = GeneratorSettings(kind=kind, mean_rps=2.0, noise_frac=0.0, active_frac=active_frac, active_s=10.0)
    assert _rates(settings, days=30).mean() == pytest.approx(2.0, rel=0.05)


def test_step_drops_and_comes_back() -> None:
    """The rate is low exactly between drop and return; both moments vary with the seed."""
    settings = GeneratorSettings(
        kind=TrafficKind.STEP,
        mean_rps=8.0,
        noise_frac=0.0,
        low_frac=0.25,
        drop_at_s=Interval(600.0, 1800.0),
        low_for_s=Interval(1200.0, 2400.0),
    )
    begins = set()
    for seed in range(20):
        rates = _rates(settings, days=0.1, seed=seed)
        low = np.flatnonzero(rates == 2.0)
        assert set(np.unique(rates)) == {2.0, 8.0}
        assert (np.diff(low) == 1).all()
        assert 600 - 60 <= low[0] * 60 <= 1800 + 60
        assert 1200 - 60 <= len(low) * 60 <= 2400 + 60
        begins.add(int(low[0]))
    assert len(begins) > 5
    for_good = GeneratorSettings(kind=TrafficKind.STEP, noise_frac=0.0, drop_at_s=Interval(600.0, 600.0))
    rates = _rates(for_good, days=0.1)
    assert (rates[:10] == 1.0).all()
    assert (rates[10:] == 0.1).all()


def test_noise_is_slow_and_of_the_given_size() -> None:
    """The log rate has the standard deviation asked for and forgets itself over an hour."""
    rates = _rates(GeneratorSettings(mean_rps=5.0, noise_frac=0.3), days=400)
    log = np.log(rates)
    assert log.std() == pytest.approx(0.3, rel=0.05)
    assert np.corrcoef(log[:-60], log[60:])[0, 1] == pytest.approx(math.exp(-1), abs=0.06)


@pytest.mark.parametrize("kind", list(TrafficKind))
def test_same_seed_same_rates(kind: TrafficKind) -> None:
    """Bit-equal for a seed, different for another."""
    settings = GeneratorSettings(kind=kind)
    np.testing.assert_array_equal(_rates(settings, 1, seed=4), _rates(settings, 1, seed=4))
    assert not np.array_equal(_rates(settings, 1, seed=4), _rates(settings, 1, seed=5))
