"""``Forecaster``: request rates of the next hours from a seasonal profile and the recent level.

Dims: B bins of the history, D deployments, S slots of a day, H leads in bins, F futures.

*Scale.* Everything happens in ``z = log(1 + rate / shift)``, with ``shift`` a twentieth of the deployment's mean rate:
for busy hours noise is then multiplicative (log-normal), and no traffic is 0 and stays 0.

*Model.* ``z[t + h] = profile[slot(t + h)] + exp(-h / decay) * deviation[t] + noise[h]``. The profile is the mean of
each time of day, smoothed, and drawn towards the overall mean by a weight; ``deviation`` is how far the recent level
lies from the profile. What of a deviation goes beyond the history's ``usual`` ones (99 of 100) does not fade: what has
never been seen to come back is a new level, not a swing. Weight 0 with slow decay is persistence ("naive"), weight 1
with fast decay the mean of the seasonal naive forecasts; the history decides between them. This is the additive
seasonal form of exponential smoothing with a level that reverts to the profile (Holt-Winters and seasonal naive:
Hyndman and Athanasopoulos, Forecasting: Principles and Practice, 3rd ed., §5.2 and §8.3; the fading deviation is
their AR(1) error, §10).

*Fit.* Each day is forecast by the profile of the other days, so that noise is not measured on what the profile has
seen. Where there is no other day, the overall mean stands in.

*Futures.* A path is the forecast plus what it was wrong by from some moment of the history on, the same moment for
every deployment: errors keep their size, their tails, how long they last and what they have in common, which normal
ones do not where traffic is on and off more than it swings. Behind the last bin comes the first one; beyond the
longest lead errors are those of that lead. A history too short to measure errors gets normal ones. No draw goes beyond
the history's peak, unless the point forecast does; then at most one standard deviation above it.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Forecaster", "fit_forecaster"]

_DAY_S = 86400.0
_LEVEL_S = 600.0  # the recent level is the mean over this long, as in the slow mean of ClusterState
_SMOOTH_S = 1800.0  # the profile is a moving mean over this long
_SHIFT_FRAC, _MIN_SHIFT_RPS = 0.05, 1e-3
_MAX_LEAD_S = 4 * 3600.0  # noise is measured up to this lead, and stays as it is there beyond
_NUM_LEADS = 24  # leads at which it is measured; in between it is interpolated
_DECAYS_S = (*(600.0 * 2.0**i for i in range(10)), math.inf)  # 10 min to 3.5 days, and never
_WEIGHTS = (1.0, 0.75, 0.5, 0.25, 0.0)
_USUAL_SHARE = 0.99
_UNKNOWN_DECAY_S = 3600.0
_UNKNOWN_NOISE = 0.25  # where the history is too short to measure any


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Forecaster:
    """What has been learned from a history; made by ``fit_forecaster``."""

    bin_s: float
    profile: NDArray[np.float64]  # (S, D) z by time of day, slot 0 begins at midnight of the history's clock
    shift_rps: NDArray[np.float64]  # (D,) see above
    decay_s: NDArray[np.float64]  # (D,) time constant of a deviation, inf = it stays
    usual: NDArray[np.float64]  # (D,) deviations up to this size fade
    peak: NDArray[np.float64]  # (D,) largest z of the history
    noise: NDArray[np.float64]  # (H, D) standard deviation of z, 1 to H bins ahead; never falls with the lead
    weight: NDArray[np.float64]  # (D,) of the profile
    history: "_History"  # gives the errors of futures

    def median(self, now_s: float, recent_rps: NDArray[np.float64], horizon_s: float) -> NDArray[np.float64]:
        """Point forecast: ``(B', D)`` rates of the bins that follow ``now_s``; B' bins cover the horizon.

        Args:
            now_s: On the clock of the history; only the time of day counts.
            recent_rps: ``(D,)`` mean rates of about the last ten minutes.
            horizon_s: How far.
        """
        return self._to_rates(self._centre(now_s, recent_rps, horizon_s))

    def quantile(
        self, now_s: float, recent_rps: NDArray[np.float64], horizon_s: float, share: float
    ) -> NDArray[np.float64]:
        """``(B', D)`` rates that are not exceeded with probability ``share``, bin by bin; see ``median``."""
        centre = self._centre(now_s, recent_rps, horizon_s)
        noise, every = self._noise(len(centre)), np.arange(len(self.history.z))
        errors = NormalDist().inv_cdf(share) * noise
        if len(self.history.leads):
            errors = np.stack([np.quantile(self._errors(every, lead), share, axis=0) for lead in _leads(centre)])
        return self._to_rates(np.minimum(centre + errors, self._cap(centre, noise)))

    def sample(
        self,
        now_s: float,
        recent_rps: NDArray[np.float64],
        horizon_s: float,
        num_futures: int,
        rng: np.random.Generator,
    ) -> NDArray[np.float64]:
        """Draws futures: ``(F, B', D)`` rates; see ``median``. Equal generators give equal futures."""
        centre = self._centre(now_s, recent_rps, horizon_s)
        noise = self._noise(len(centre))
        if len(self.history.leads):
            moments = rng.integers(len(self.history.z), size=num_futures)
            errors = np.stack([self._errors(moments, lead) for lead in _leads(centre)], axis=1)
        else:
            errors = rng.standard_normal((num_futures, *centre.shape)) * noise
        return self._to_rates(np.minimum(centre + errors, self._cap(centre, noise)))

    def _errors(self, moments: NDArray[np.int64], lead: int) -> NDArray[np.float64]:
        """``(F, D)`` error of the forecast ``lead`` bins after some bins of the history, of its longest lead beyond."""
        history, num_bins = self.history, len(self.history.z)
        ahead = min(lead, int(history.leads[-1]))
        target = (moments + lead) % num_bins
        day, origin = history.days[target], (target - ahead) % num_bins
        mean, shape = history.mean_without[day], history.shape_without
        deviation = history.level[origin] - mean - self.weight * shape[day, history.slots[origin]]
        swing = np.clip(deviation, -self.usual, self.usual)
        told = swing * np.exp(-ahead * self.bin_s / self.decay_s) + (deviation - swing)
        errors: NDArray[np.float64] = history.z[target] - mean - self.weight * shape[day, history.slots[target]] - told
        return errors

    def _centre(self, now_s: float, recent_rps: NDArray[np.float64], horizon_s: float) -> NDArray[np.float64]:
        """``(B', D)`` forecast in z."""
        leads = np.arange(1, max(1, math.ceil(horizon_s / self.bin_s - 1e-9)) + 1)
        slots = _slots(now_s + (np.arange(len(leads) + 1) - 0.5) * self.bin_s, len(self.profile))  # the past bin first
        deviation = np.log1p(recent_rps / self.shift_rps) - self.profile[slots[0]]
        fading = np.exp(-leads[:, None] * self.bin_s / self.decay_s)
        swing = np.clip(deviation, -self.usual, self.usual)
        centre: NDArray[np.float64] = self.profile[slots[1:]] + fading * swing + (deviation - swing)
        return centre

    def _noise(self, num_bins: int) -> NDArray[np.float64]:
        return self.noise[np.minimum(np.arange(num_bins), len(self.noise) - 1)]

    def _cap(self, centre: NDArray[np.float64], noise: NDArray[np.float64]) -> NDArray[np.float64]:
        beyond = np.maximum(0.0, centre - self.peak)
        return self.peak + beyond + np.minimum(noise, beyond)

    def _to_rates(self, z: NDArray[np.float64]) -> NDArray[np.float64]:
        rates: NDArray[np.float64] = self.shift_rps * np.expm1(np.maximum(z, 0.0))
        return rates


class _History(NamedTuple):
    """A history in z, and what the other days say of each day."""

    z: NDArray[np.float64]  # (B, D)
    level: NDArray[np.float64]  # (B, D) z of the mean rate over the last ten minutes
    slots: NDArray[np.int64]  # (B,)
    days: NDArray[np.int64]  # (B,) row in the two below
    mean_without: NDArray[np.float64]  # (days, D) overall mean without that day
    shape_without: NDArray[np.float64]  # (days, S, D) profile minus that mean, both without that day
    leads: NDArray[np.int64]  # leads at which errors are measured


def fit_forecaster(rates_rps: NDArray[np.float64], bin_s: float, *, start_s: float = 0.0) -> Forecaster:
    """Learns a forecaster. Less than a day of history gives a flat profile.

    Args:
        rates_rps: ``(B, D)`` requests per second, B >= 1, all finite and >= 0.
        bin_s: Width of a bin.
        start_s: When the first bin begins; 0 is a midnight.

    Raises:
        ValueError: No bin, or a rate that is negative or not finite.
    """
    if rates_rps.ndim != 2 or len(rates_rps) < 1 or not np.isfinite(rates_rps).all() or (rates_rps < 0).any():
        raise ValueError(f"rates must be (B >= 1, D), finite and >= 0, got {rates_rps.shape}")
    shift = np.maximum(_SHIFT_FRAC * rates_rps.mean(axis=0), _MIN_SHIFT_RPS)
    history = _read(rates_rps, shift, bin_s, start_s)
    weight, decay_s, squares = _choose(history, bin_s)
    num_slots = history.shape_without.shape[1]
    overall = history.z.mean(axis=0)
    shape = _smooth(_means(history.z, history.slots, num_slots), bin_s) - overall
    return Forecaster(
        bin_s=bin_s,
        profile=overall + weight * shape,
        shift_rps=shift,
        decay_s=decay_s,
        usual=np.quantile(np.abs(_deviations(history, 0, weight)[0]), _USUAL_SHARE, axis=0),
        peak=history.z.max(axis=0),
        noise=_noise_by_lead(history.leads, squares, has_traffic=rates_rps.max(axis=0) > 0.0),
        weight=weight,
        history=history,
    )


def _read(rates_rps: NDArray[np.float64], shift: NDArray[np.float64], bin_s: float, start_s: float) -> _History:
    num_bins, num_deployments = rates_rps.shape
    times_s = start_s + (np.arange(num_bins) + 0.5) * bin_s
    num_slots = max(1, round(_DAY_S / bin_s)) if num_bins * bin_s >= _DAY_S else 1
    z, slots = np.log1p(rates_rps / shift), _slots(times_s, num_slots)
    _, days = np.unique(np.floor(times_s / _DAY_S), return_inverse=True)
    num_days = int(days.max()) + 1 if num_slots > 1 else 1
    days = days.astype(np.int64) if num_slots > 1 else np.zeros(num_bins, np.int64)
    mean_without = np.tile(z.mean(axis=0), (num_days, 1))
    shape_without = np.zeros((num_days, num_slots, num_deployments))
    for day in range(num_days if num_days > 1 else 0):
        rest = days != day
        mean_without[day] = z[rest].mean(axis=0)
        shape_without[day] = _smooth(_means(z[rest], slots[rest], num_slots), bin_s) - mean_without[day]
    longest = min(round(_MAX_LEAD_S / bin_s), num_bins // 2)
    leads = np.unique(np.rint(np.geomspace(1, max(1, longest), _NUM_LEADS)).astype(np.int64))
    return _History(
        z, _level(rates_rps, shift, bin_s), slots, days, mean_without, shape_without, leads if longest else leads[:0]
    )


def _choose(history: _History, bin_s: float) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Weight of the profile ``(D,)`` and decay ``(D,)`` of least absolute error, mean squares of it ``(leads, D)``.

    Squared errors would let one jump of a history outvote all its calm days.
    """
    num_deployments, leads = history.z.shape[1], history.leads
    best = np.full(num_deployments, np.inf)
    weight, decay_s = np.ones(num_deployments), np.full(num_deployments, _UNKNOWN_DECAY_S)
    squares = np.zeros((len(leads), num_deployments))
    for w in _WEIGHTS if len(leads) else ():
        pairs = [_deviations(history, int(h), w) for h in leads]
        for candidate_s in _DECAYS_S:
            fading = np.exp(-leads * bin_s / candidate_s)
            errors = [y - f * x for (x, y), f in zip(pairs, fading, strict=True)]
            error = np.mean([np.abs(e).mean(axis=0) for e in errors], axis=0)
            better = error < best - 1e-9
            best = np.where(better, error, best)
            weight, decay_s = np.where(better, w, weight), np.where(better, candidate_s, decay_s)
            squares = np.where(better, [(e * e).mean(axis=0) for e in errors], squares)
    return weight, decay_s, squares


def _deviations(
    history: _History, h: int, weight: float | NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Deviation now and ``h`` bins later, ``(B - h, D)`` each.

    Both are taken from the profile without the day of the later one, so that nothing jumps where a day ends.
    """
    z, level, slots, day = history.z[h:], history.level[: len(history.z) - h], history.slots, history.days[h:]
    mean, shape = history.mean_without[day], history.shape_without
    return level - mean - weight * shape[day, slots[: len(z)]], z - mean - weight * shape[day, slots[h:]]


def _leads(centre: NDArray[np.float64]) -> range:
    return range(1, len(centre) + 1)


def _slots(times_s: NDArray[np.floating[Any]], num_slots: int) -> NDArray[np.int64]:
    """Slot of the day that each time lies in."""
    return np.asarray(np.floor(times_s % _DAY_S / _DAY_S * num_slots).astype(np.int64) % num_slots, np.int64)


def _sums(z: NDArray[np.float64], slots: NDArray[np.int64], num_slots: int) -> NDArray[np.float64]:
    total = np.zeros((num_slots, z.shape[1]))
    np.add.at(total, slots, z)
    return total


def _means(z: NDArray[np.float64], slots: NDArray[np.int64], num_slots: int) -> NDArray[np.float64]:
    """``(S, D)`` mean of each slot, the overall mean where it has no value."""
    count = np.bincount(slots, minlength=num_slots)[:, None]
    return np.where(count > 0, _sums(z, slots, num_slots) / np.maximum(count, 1), z.mean(axis=0))


def _smooth(profile: NDArray[np.float64], bin_s: float) -> NDArray[np.float64]:
    """Moving mean round the clock."""
    half = min(round(0.5 * _SMOOTH_S / bin_s), (len(profile) - 1) // 2)
    around = np.concatenate([profile[len(profile) - half :], profile, profile[:half]])
    total = np.vstack([np.zeros(profile.shape[1]), np.cumsum(around, axis=0)])
    mean: NDArray[np.float64] = (total[2 * half + 1 :] - total[: len(profile)]) / (2 * half + 1)
    return mean


def _level(rates_rps: NDArray[np.float64], shift_rps: NDArray[np.float64], bin_s: float) -> NDArray[np.float64]:
    """``(B, D)`` z of the mean rate over the last ten minutes, fewer at the top."""
    total = np.vstack([np.zeros(rates_rps.shape[1]), np.cumsum(rates_rps, axis=0)])
    last = np.arange(1, len(rates_rps) + 1)
    first = np.maximum(0, last - max(1, round(_LEVEL_S / bin_s)))
    mean = (total[last] - total[first]) / (last - first)[:, None]
    return np.log1p(np.maximum(mean, 0.0) / shift_rps)


def _noise_by_lead(
    leads: NDArray[np.int64], squares: NDArray[np.float64], has_traffic: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """``(H, D)`` standard deviation for every lead up to the longest, made to never fall."""
    if not len(leads):
        return np.where(has_traffic, _UNKNOWN_NOISE, 0.0)[None, :]
    every = np.arange(1, int(leads[-1]) + 1)
    noise = np.stack([np.interp(every, leads, column) for column in np.sqrt(squares).T], axis=1)
    return np.maximum.accumulate(noise, axis=0)
