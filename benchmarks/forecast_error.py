"""Error of the traffic forecaster on validation days, beside persistence and seasonal naive.

    python benchmarks/forecast_error.py [--scenario llm_api] [--traces DIR]

Fitted on the scenario's training days. Every bin of the validation days is an origin, as long as the longest lead fits
in. WAPE: sum of absolute errors over sum of rates, all deployments together (weighted by traffic) or the median over
deployments. Coverage: share of rates within the 90 % band, bounds included, every deployment alike; then of those rates
that are not zero. Persistence: the last bin's rate stays. Seasonal naive: the rate a day before the target.
"""

import argparse
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from rayfold.envs.forecast import Forecaster, fit_forecaster
from rayfold.envs.futures import rate_history
from rayfold.envs.scenario import Split, load_scenario
from rayfold.envs.traffic_source import TraceSource
from rayfold.errors import InputError

LEADS_S = (600.0, 1800.0, 3600.0, 7200.0)
_DAY_S = 86400.0
_EDGE = 1e-9


class Forecasts(NamedTuple):
    """At every origin O and lead L."""

    median: NDArray[np.float64]  # (O, L, D)
    low: NDArray[np.float64]  # (O, L, D) 5 %
    high: NDArray[np.float64]  # (O, L, D) 95 %


def forecasts(
    model: Forecaster, rates_rps: NDArray[np.float64], origins: NDArray[np.int64], leads: NDArray[np.int64]
) -> Forecasts:
    """What the forecaster says at each origin: the bin that begins there is not known yet."""
    horizon_s = float(leads.max()) * model.bin_s

    def at(share: float) -> NDArray[np.float64]:
        rows = [model.quantile(o * model.bin_s, rates_rps[o - 1], horizon_s, share)[leads - 1] for o in origins]
        return np.stack(rows)

    return Forecasts(at(0.5), at(0.05), at(0.95))


def wape(forecast: NDArray[np.float64], truth: NDArray[np.float64]) -> tuple[float, float]:
    """Weighted absolute percentage error: all together, and the median over deployments that have traffic."""
    error, volume = np.abs(forecast - truth).sum(axis=0), truth.sum(axis=0)
    busy = volume > 0
    return float(error.sum() / volume.sum()), float(np.median(error[busy] / volume[busy]))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="Error of the traffic forecaster on validation days.")
    parser.add_argument("--scenario", default="llm_api")
    parser.add_argument("--traces", type=Path, default=Path(os.environ.get("RAYFOLD_TRACES") or "traces"))
    given = parser.parse_args()
    scenario = load_scenario(given.scenario, given.traces)
    source = scenario.source
    if not isinstance(source, TraceSource):
        raise InputError("--scenario", "one with trace files", given.scenario)
    history = rate_history(scenario)
    model = fit_forecaster(history.rates_rps, history.bin_s, start_s=history.start_s)
    first, end = source.splits[Split.VALIDATION]
    leads = np.unique(np.maximum(1, np.rint(np.array(LEADS_S) / source.bin_s))).astype(np.int64)
    day = round(_DAY_S / source.bin_s)
    origins = np.arange(max(first, day, 1), end - leads.max() + 1)
    rates = source.rates_rps
    told = forecasts(model, rates, origins, leads)
    title = f"{scenario.name}: WAPE % in all (median over {rates.shape[1]} deployments), {len(origins)} origins"
    band = "90 % band holds % (of rates > 0)"
    table = Table("lead, min", "forecaster", "persistence", "seasonal naive", band, title=title)
    for i, lead in enumerate(leads):
        truth = rates[origins + lead - 1]
        rivals = (told.median[:, i], rates[origins - 1], rates[origins + lead - 1 - day])
        cells = [f"{100 * total:.1f} ({100 * middle:.1f})" for total, middle in (wape(r, truth) for r in rivals)]
        held = (truth >= told.low[:, i] - _EDGE) & (truth <= told.high[:, i] + _EDGE)
        table.add_row(
            f"{lead * source.bin_s / 60:g}", *cells, f"{100 * held.mean():.1f} ({100 * held[truth > 0].mean():.1f})"
        )
    Console().print(table)


if __name__ == "__main__":
    main()
