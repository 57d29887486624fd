"""``tune``: the settings of heuristics that do best on training days."""

from pathlib import Path
from typing import Annotated

import typer

from rayfold.cli_options import PricesOption, SyntheticOption, TracesOption, names, traces_dir
from rayfold.errors import InputError

__all__ = ["app"]

app = typer.Typer()


@app.command()
def tune(
    policies: Annotated[str, typer.Option(help="Comma-separated heuristics; each gets the same budget.")],
    out: Annotated[Path, typer.Option(help="YAML file; heuristics that it holds already stay in it.")],
    scenario: Annotated[str, typer.Option(help="Shipped name or YAML path.")] = "llm_api",
    num_samples: Annotated[int, typer.Option(min=1, help="Settings to try, the default ones among them.")] = 32,
    seeds: Annotated[int, typer.Option(min=1, help="Episodes of the training days, for each of them.")] = 4,
    search_seed: Annotated[int, typer.Option(min=0, help="Draws the settings.")] = 0,
    horizon_h: Annotated[float | None, typer.Option(help="Length of an episode; default: the scenario's.")] = None,
    prices: PricesOption = 1.0,
    jobs: Annotated[int, typer.Option(min=1, help="Trials at once, one CPU each.")] = 1,
    run_dir: Annotated[Path, typer.Option(help="The searches; the same command goes on where it stopped.")] = Path(
        "runs/tune"
    ),
    traces: TracesOption = None,
    synthetic: SyntheticOption = False,
) -> None:
    """Tune heuristics with Ray Tune; `rayfold evaluate --tuned FILE` uses what was found."""
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    from rayfold.cli_checks import check_horizon, check_output, check_prices
    from rayfold.envs.scenario import load_scenario
    from rayfold.policies.by_name import HEURISTICS
    from rayfold.policies.settings import search_space
    from rayfold.training.ray_session import ray_session
    from rayfold.training.tuning import Budget, tune_heuristic, write_tuned
    from rayfold.training.worlds import at_prices

    tunable = [name for name, rule in HEURISTICS.items() if search_space(rule.settings_type)]
    chosen = names(policies)
    for name in chosen or ("none",):
        if name not in tunable:
            raise InputError("--policies", f"heuristics with settings: {', '.join(tunable)}", name)
    check_horizon(horizon_h)
    check_prices(prices)
    check_output("--out", out)
    loaded = at_prices(load_scenario(scenario, traces_dir(traces), synthetic=synthetic), prices)
    if horizon_h is not None:
        loaded = loaded.with_horizon(horizon_h * 3600.0)
    if out.exists():
        write_tuned(out, loaded, {})  # one that cannot be added to is refused now
    budget = Budget(num_samples=num_samples, num_seeds=seeds, search_seed=search_seed, jobs=jobs)
    table = Table("heuristic", "default USD", "tuned USD", "settings")
    console = Console()
    with ray_session(jobs), Progress(console=console, transient=True) as progress:
        task = progress.add_task("tuning", total=num_samples * len(chosen))
        for i, name in enumerate(chosen):
            found = tune_heuristic(
                loaded, name, HEURISTICS[name], budget, run_dir / loaded.name, lambda: progress.advance(task)
            )
            progress.update(task, completed=num_samples * (i + 1))
            write_tuned(out, loaded, {name: found})  # after each: a later one may be interrupted
            settings = ", ".join(f"{field}={value}" for field, value in found.settings.items())
            table.add_row(name, f"{found.default_total_usd:.2f}", f"{found.total_usd:.2f}", settings)
    console.print(table)
