"""``train-timing``: learn when the exact planner begins."""

from pathlib import Path
from typing import Annotated

import typer

from rayfold.cli_options import SyntheticOption, TracesOption, names, one_each, shortened_scenarios

__all__ = ["app"]

app = typer.Typer()


@app.command("train-timing")
def train_timing(
    out: Annotated[Path, typer.Option(help="Folder of the bundle with the timing; may be --bundle itself.")],
    scenario: Annotated[str, typer.Option(help="Shipped names or YAML paths, comma-separated.")] = "llm_api",
    horizon_h: Annotated[str, typer.Option(help="Length of an episode: one for all, or one each.")] = "12",
    generations: Annotated[int, typer.Option(min=1, help="Each tries every rule once per scenario.")] = 25,
    population: Annotated[int, typer.Option(min=4, help="Rules per generation.")] = 6,
    bundle: Annotated[Path | None, typer.Option(help="Gives the network; default: the shipped one.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of rules and episodes.")] = 0,
    jobs: Annotated[int, typer.Option(min=1, help="Processes, as Ray tasks; 1 = this one, without Ray.")] = 1,
    run_dir: Annotated[Path, typer.Option(help="What is done; the same command goes on where it stopped.")] = Path(
        "runs/timing"
    ),
    traces: TracesOption = None,
    synthetic: SyntheticOption = False,
) -> None:
    """Learn when the exact planner begins, by evolution on whole episodes of the training days."""
    from rich.console import Console
    from rich.progress import Progress

    from rayfold.cli_checks import check_bundle_target, check_output
    from rayfold.policies.bundle import load_bundle, save_bundle
    from rayfold.policies.by_name import shipped_bundle
    from rayfold.training.timing_training import Search, train_timing
    from rayfold.training.workers import Workers

    chosen = names(scenario)
    hours = one_each("--horizon-h", horizon_h, len(chosen))
    check_bundle_target(out)
    check_output("--run-dir", run_dir / "any")
    scenarios = shortened_scenarios(chosen, hours, traces, synthetic=synthetic)
    base = load_bundle(bundle or shipped_bundle())
    console = Console()
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("evolving", total=generations)

        def told(generation: int, bill_frac: float) -> None:
            progress.update(task, completed=generation, description=f"bill {100 * bill_frac:.1f} % of none's")

        search = Search(generations=generations, population=population, seed=seed)
        trained = train_timing(scenarios, search, run_dir, workers=Workers(jobs=jobs), on_generation=told)
    save_bundle(out, base.net, base.card, trained)  # without a leader: it has learned of the timing before
    worth = ", ".join(f"{name} {100 * value:+.2f} %" for name, value in trained.card.metrics.items())
    console.print(f"bundle: {out}\n{trained.timing}\nbill against exact, on other training episodes: {worth}")
