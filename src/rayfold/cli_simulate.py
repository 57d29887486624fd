"""``simulate`` and ``snapshot``: a cluster's state, written to a file and rolled forward."""

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rayfold.cli_options import SyntheticOption, TracesOption, names, traces_dir
from rayfold.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from rayfold.policies.interval import Interval95
    from rayfold.policies.twin import TwinResult

__all__ = ["app"]

app = typer.Typer()

# Metric, heading, digits. Never a saving without moves, undone moves and unserved demand beside it.
_FIGURES = (
    ("total_usd", "total USD", 2),
    ("cost_usd", "nodes USD", 2),
    ("disruption_usd", "moves USD", 2),
    ("unserved_usd", "unserved USD", 2),
    ("node_h", "node-h", 2),
    ("moves", "moves", 1),
    ("undone_moves", "undone", 1),
    ("unserved_replica_h", "unserved replica-h", 3),
)


@app.command()
def simulate(
    from_state: Annotated[Path, typer.Option(help="A state as `rayfold snapshot` or ClusterState.save writes it.")],
    scenario: Annotated[str, typer.Option(help="Shipped name or YAML path: traffic history, requests, limits.")],
    policy: Annotated[
        str,
        typer.Option(help="Comma-separated heuristics, 'learned', or bundle directories; the first is the baseline."),
    ] = "none",
    hours: Annotated[float, typer.Option(help="How far; rounded to whole decision intervals.")] = 1.0,
    futures: Annotated[int, typer.Option(min=1, max=100_000, help="Sampled traffic futures.")] = 32,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    time_of_day: Annotated[
        str | None, typer.Option(help="HH:MM of the state on the traffic's clock; default: the state's clock, UTC.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write every metric here.")] = None,
    traces: TracesOption = None,
    synthetic: SyntheticOption = False,
) -> None:
    """Roll a cluster forward: the bill to expect under each policy, on the same traffic futures."""
    from rich.console import Console
    from rich.progress import Progress

    from rayfold.cli_checks import MAX_HORIZON_H, check_output
    from rayfold.envs.futures import fit_traffic
    from rayfold.envs.scenario import load_scenario
    from rayfold.envs.state import ClusterState
    from rayfold.envs.state_check import check_state
    from rayfold.policies.by_name import make_policy
    from rayfold.policies.twin import simulate as run_twin
    from rayfold.policies.twin import startable
    from rayfold.training.report import write_json

    if not 0.0 < hours <= MAX_HORIZON_H:
        raise InputError("--hours", f"more than 0 and at most {MAX_HORIZON_H:g} hours", f"{hours:g}")
    clock_s = _clock_s(time_of_day)
    read = ClusterState.load(from_state)
    check_state(read, str(from_state))
    state = startable(read)
    loaded = load_scenario(scenario, traces_dir(traces), synthetic=synthetic)
    chosen = {name: make_policy(name, loaded.limits) for name in names(policy)}
    if not chosen:
        raise InputError("--policy", "at least one policy", "none")
    check_output("--json", json)
    model = fit_traffic(loaded, state.spec)
    interval_s = state.spec.settings.decision_interval_s
    horizon_s = max(1, round(hours * 3600.0 / interval_s)) * interval_s
    console = Console()
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("simulating", total=futures)
        results = run_twin(
            state,
            chosen,
            model,
            loaded.limits,
            horizon_s=horizon_s,
            num_futures=futures,
            seed=seed,
            clock_s=clock_s,
            on_future=lambda: progress.advance(task),
        )
    console.print(_table(results, f"the next {horizon_s / 3600.0:g} h, {futures} futures, mean ± 95 %"))
    if json is not None:
        about = {
            "from_state": str(from_state),
            "state_digest": state.digest(),
            "scenario": loaded.name,
            "traffic": loaded.traffic_name,
            "horizon_s": horizon_s,
            "futures": futures,
            "seed": seed,
        }
        write_json(json, {**about, **_as_json(results)})


@app.command()
def snapshot(
    address: Annotated[str, typer.Option(help="HOST:PORT of the Ray cluster.")],
    out: Annotated[Path, typer.Option(help="Write the state here, for `rayfold simulate --from-state`.")],
    settings: Annotated[Path | None, typer.Option(help="YAML: prices, start-up times, limits.")] = None,
) -> None:
    """Write the state of a running Ray Serve cluster to a file; nothing in the cluster changes."""
    from rayfold.cli_checks import check_output
    from rayfold.serving.live_settings import LiveSettings, load_live_settings
    from rayfold.serving.state_file import save_snapshot

    check_output("--out", out)
    state = save_snapshot(address, load_live_settings(settings) if settings else LiveSettings(), out)
    num_nodes, num_replicas = len(state.node_ids), len(state.replica_ids)
    typer.echo(f"{out}: {num_nodes} nodes, {state.spec.num_deployments} deployments, {num_replicas} replicas")


def _clock_s(time_of_day: str | None) -> float | None:
    """Seconds since midnight."""
    if time_of_day is None:
        return None
    match = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)", time_of_day)
    if match is None:
        raise InputError("--time-of-day", "HH:MM", repr(time_of_day))
    return 3600.0 * int(match[1]) + 60.0 * int(match[2])


def _cell(value: "Interval95", digits: int) -> str:
    mean = f"{value.mean:,.{digits}f}"
    return mean if math.isnan(value.ci95) else f"{mean} ± {value.ci95:,.{digits}f}"


def _table(results: "dict[str, TwinResult]", title: str) -> "Table":
    """Figures down, policies across: names of policies are few, figures are many."""
    from rich.table import Column, Table

    first = next(iter(results))
    table = Table("", *(Column(name, justify="right", overflow="fold") for name in results), title=title)
    summaries = [result.summary() for result in results.values()]
    for metric, heading, digits in _FIGURES:
        table.add_row(heading, *(_cell(summary[metric], digits) for summary in summaries))
    if len(results) > 1:
        above = [_cell(result.cost_above(results[first]), 2) for result in results.values()]
        table.add_row(f"cost above {first}, USD", *above)
    return table


def _as_json(results: "dict[str, TwinResult]") -> dict[str, Any]:
    first = next(iter(results))
    return {
        "policies": {
            name: {metric: value.as_json() for metric, value in result.summary().items()}
            for name, result in results.items()
        },
        "total_usd_by_future": {name: [ledger.total_usd for ledger in r.ledgers] for name, r in results.items()},
        "refused_moves": {name: sum(result.num_refused) for name, result in results.items()},
        "cost_above_usd": {first: {name: r.cost_above(results[first]).as_json() for name, r in results.items()}},
    }
