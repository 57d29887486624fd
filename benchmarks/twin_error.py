"""The twin against what happened: a cluster without moves, three times on each validation day, two hours ahead.

    python benchmarks/twin_error.py [--scenario llm_api] [--traces DIR]

"What happened" is the simulator under the validation day's own rates; the twin sees its state after an hour and the
training days. So this measures the forecast's share of the error, not the simulator's.
"""

import argparse
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console

from rayfold.envs.futures import fit_traffic
from rayfold.envs.initial_state import initial_state
from rayfold.envs.ledger import Ledger
from rayfold.envs.scenario import Scenario, Split, load_scenario
from rayfold.envs.simulator import Simulator
from rayfold.envs.traffic import Traffic, sample_traffic
from rayfold.envs.traffic_source import TraceSource
from rayfold.errors import InputError
from rayfold.policies.none import NoMoves
from rayfold.policies.twin import simulate

_DAY_S, _HOUR_S = 86400.0, 3600.0
HOURS_OF_DAY, SETTLE_H, AHEAD_H, NUM_FUTURES = (3, 11, 19), 1, 2, 64


class Case(NamedTuple):
    """One look ahead."""

    actual_usd: float
    expected_usd: float
    low_usd: float  # 2.5 % of the futures
    high_usd: float


def true_traffic(scenario: Scenario, source: TraceSource, first_s: float, rng: np.random.Generator) -> Traffic:
    """The trace's own rates from a moment on."""
    horizon_s = (SETTLE_H + AHEAD_H) * _HOUR_S
    first, num_bins = round(first_s / source.bin_s), round(horizon_s / source.bin_s)
    step_s = scenario.spec.settings.substep_s
    return sample_traffic(
        source.rates_rps[first : first + num_bins],
        bin_s=source.bin_s,
        **scenario.requests._asdict(),
        look_back_s=np.array([d.autoscaling.look_back_period_s for d in scenario.spec.deployments]),
        num_steps=round(horizon_s / step_s),
        step_s=step_s,
        rng=rng,
    )


def main() -> None:
    """Prints one line per look and the summary."""
    parser = argparse.ArgumentParser(description="The twin's expected bill against what happened.")
    parser.add_argument("--scenario", default="llm_api")
    parser.add_argument("--traces", type=Path, default=Path(os.environ.get("RAYFOLD_TRACES") or "traces"))
    given = parser.parse_args()
    scenario, console = load_scenario(given.scenario, given.traces), Console()
    source = scenario.source
    if not isinstance(source, TraceSource):
        raise InputError("--scenario", "one with trace files", given.scenario)
    model, cases = fit_traffic(scenario, scenario.spec), []
    first, end = source.splits[Split.VALIDATION]
    steps_per_h = round(_HOUR_S / scenario.spec.settings.substep_s)
    for day_s in np.arange(first * source.bin_s, end * source.bin_s, _DAY_S):
        for hour in HOURS_OF_DAY:
            begin_s = float(day_s) + hour * _HOUR_S
            rng = np.random.default_rng(int(begin_s))
            traffic = true_traffic(scenario, source, begin_s, rng)
            cluster = Simulator(initial_state(scenario.spec, traffic, rng), traffic, scenario.limits, rng)
            cluster.advance(SETTLE_H * steps_per_h)
            state, before = cluster.state(), cluster.ledger()
            cluster.advance(AHEAD_H * steps_per_h)
            told = simulate(
                state, {"none": NoMoves()}, model, scenario.limits,
                horizon_s=AHEAD_H * _HOUR_S, num_futures=NUM_FUTURES, seed=int(begin_s),
                clock_s=begin_s + SETTLE_H * _HOUR_S,
            )["none"]  # fmt: skip
            actual = Ledger(values=cluster.ledger().values - before.values).total_usd
            # With rank k of n for the share k / (n + 1) the truth, one more draw, is outside as often as it should be.
            low, high = np.quantile([ledger.total_usd for ledger in told.ledgers], (0.025, 0.975), method="weibull")
            cases.append(Case(actual, told.total_usd.mean, float(low), float(high)))
            console.print(f"day {begin_s // _DAY_S:.0f} {hour:02d}:00 {cases[-1]}", highlight=False)
    actual_usd, expected_usd, low_usd, high_usd = np.array(cases).T
    error = expected_usd - actual_usd
    held = (actual_usd >= low_usd - 1e-6) & (actual_usd <= high_usd + 1e-6)
    console.print(
        f"{len(cases)} looks, mean bill {actual_usd.mean():.1f} USD: "
        f"bias {100 * error.mean() / actual_usd.mean():+.2f} %, "
        f"mean absolute error {100 * np.abs(error / actual_usd).mean():.2f} %, "
        f"inside the futures' 2.5..97.5 % in {100 * held.mean():.0f} % of looks"
    )


if __name__ == "__main__":
    main()
