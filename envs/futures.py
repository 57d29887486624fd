"""Traffic futures: what may arrive at a cluster from now on, for the simulator to be rolled forward under.

The forecaster is fitted on a scenario's training days; how requests arrive within a bin and how long they stay is the
scenario's ``RequestModel``. Dims: B bins, D deployments of the state, F futures.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.cluster import ClusterSpec
from rayfold.envs.forecast import Forecaster, fit_forecaster
from rayfold.envs.generator import generate_rates
from rayfold.envs.scenario import Scenario
from rayfold.envs.state import ClusterState
from rayfold.envs.traffic import Traffic, sample_traffic
from rayfold.envs.traffic_source import RequestModel, Split, TraceSource
from rayfold.errors import InputError

__all__ = ["RateHistory", "TrafficModel", "fit_traffic", "rate_history", "sample_futures"]

_GENERATED_DAYS = 7  # a scenario without traces has as many days of history, always the same ones
_DAY_S = 86400.0


class RateHistory(NamedTuple):
    """Rates of the past."""

    rates_rps: NDArray[np.float64]  # (B, D')
    bin_s: float
    start_s: float  # when the first bin begins; 0 is a midnight


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrafficModel:
    """Everything that futures are drawn from."""

    forecaster: Forecaster
    requests: RequestModel


def rate_history(scenario: Scenario) -> RateHistory:
    """The scenario's training days, D' = its deployments; a week from the generator where it has no traces."""
    source = scenario.source
    if isinstance(source, TraceSource):
        first, end = source.splits[Split.TRAIN]
        return RateHistory(source.rates_rps[first:end], source.bin_s, first * source.bin_s)
    num_bins = round(_GENERATED_DAYS * _DAY_S / source.bin_s)
    streams = np.random.default_rng(0).spawn(len(source.settings))
    columns = [
        generate_rates(settings, num_bins=num_bins, bin_s=source.bin_s, start_s=0.0, rng=rng)
        for settings, rng in zip(source.settings, streams, strict=True)
    ]
    return RateHistory(np.stack(columns, axis=1), source.bin_s, 0.0)


def fit_traffic(scenario: Scenario, spec: ClusterSpec) -> TrafficModel:
    """Learns the traffic of a cluster's deployments, found in the scenario by ``app/name``.

    Args:
        scenario: Gives history and request model; it may have deployments that the cluster has not.
        spec: Of the cluster; its deployments may come in another order.

    Raises:
        InputError: The scenario lacks one of them.
    """
    row_of = {deployment.key: i for i, deployment in enumerate(scenario.spec.deployments)}
    missing = [d.key for d in spec.deployments if d.key not in row_of]
    if missing:
        expected = f"a deployment for each one of the state ({', '.join(missing)})"
        raise InputError(f"scenario {scenario.name}", expected, ", ".join(row_of))
    rows = np.array([row_of[d.key] for d in spec.deployments], np.int64)
    history = rate_history(scenario)
    return TrafficModel(
        forecaster=fit_forecaster(history.rates_rps[:, rows], history.bin_s, start_s=history.start_s),
        requests=scenario.requests.rows(rows),
    )


def sample_futures(
    model: TrafficModel,
    state: ClusterState,
    *,
    horizon_s: float,
    num_futures: int,
    rng: np.random.Generator,
    clock_s: float | None = None,
) -> Iterator[Traffic]:
    """Draws futures one by one, since a long one is large. Equal generators give equal futures.

    The recent level of a deployment is what its ongoing requests of the last ten minutes tell: by Little's law,
    ``ongoing / service_s`` arrive per second.

    Args:
        model: Of the state's deployments.
        state: Now.
        horizon_s: Length, a multiple of the simulator step.
        num_futures: F.
        rng: Source of randomness; children are spawned from it.
        clock_s: Now on the clock of the history, of which the time of day counts; the state's clock if None.
    """
    settings = state.spec.settings
    rates_rng, *traffic_rngs = rng.spawn(1 + num_futures)
    recent_rps = state.arrays.deployment_ongoing_slow / model.requests.service_s
    now_s = state.now_s if clock_s is None else clock_s
    rates = model.forecaster.sample(now_s, recent_rps, horizon_s, num_futures, rates_rng)
    for future, traffic_rng in zip(rates, traffic_rngs, strict=True):
        yield sample_traffic(
            future,
            bin_s=model.forecaster.bin_s,
            service_s=model.requests.service_s,
            burstiness_cv=model.requests.burstiness_cv,
            has_weibull_arrivals=model.requests.has_weibull_arrivals,
            tokens_per_request=model.requests.tokens_per_request,
            look_back_s=np.array([d.autoscaling.look_back_period_s for d in state.spec.deployments]),
            num_steps=round(horizon_s / settings.substep_s),
            step_s=settings.substep_s,
            rng=traffic_rng,
            start_s=now_s,
        )
