"""``train-leader``: learn which policy leads in which kind of cluster."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rayfold.cli_options import AddressOption, SyntheticOption, TracesOption, names, traces_dir
from rayfold.errors import InputError

if TYPE_CHECKING:
    from rayfold.envs.scenario import Scenario

__all__ = ["app"]

app = typer.Typer()


@app.command("train-leader")
def train_leader(
    out: Annotated[Path, typer.Option(help="Folder of the bundle with the leader; may be --bundle itself.")],
    scenario: Annotated[str, typer.Option(help="Shipped names or YAML paths, comma-separated.")] = "llm_api",
    episodes: Annotated[str, typer.Option(help="Of the training days: one number for all, or one each.")] = "20",
    price_episodes: Annotated[
        str, typer.Option(help="More of them at a quarter and at four times the prices, each: one number, or one each.")
    ] = "0",
    horizon_h: Annotated[str, typer.Option(help="Length of an episode: one for all, or one each.")] = "12",
    bundle: Annotated[Path | None, typer.Option(help="Gives the network; default: the shipped one.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the folds; episodes have the seeds from 0 on.")] = 0,
    jobs: Annotated[int, typer.Option(min=1, help="Processes, as Ray tasks; 1 = this one, without Ray.")] = 1,
    address: AddressOption = "",
    run_dir: Annotated[Path, typer.Option(help="What is done; the same command goes on where it stopped.")] = Path(
        "runs/leader"
    ),
    traces: TracesOption = None,
    synthetic: SyntheticOption = False,
) -> None:
    """Learn which policy leads in which kind of cluster: every one plays the same episodes of the training days."""
    from rich.console import Console
    from rich.progress import Progress

    from rayfold.cli_checks import check_bundle_target, check_output
    from rayfold.policies.bundle import load_bundle, save_bundle
    from rayfold.policies.by_name import shipped_bundle
    from rayfold.training.leader_training import CANDIDATES, Lesson, price_lessons, train_leader
    from rayfold.training.workers import workers_of

    workers = workers_of(jobs, address)
    chosen = names(scenario)
    counts = [round(count) for count in _one_each("--episodes", episodes, len(chosen))]
    at_prices = [round(count) for count in _one_each("--price-episodes", price_episodes, len(chosen), least=0.0)]
    hours = _one_each("--horizon-h", horizon_h, len(chosen))
    check_bundle_target(out)
    check_output("--run-dir", run_dir / "episodes" / "any")
    scenarios = _shortened_scenarios(chosen, hours, traces, synthetic=synthetic)
    lessons = [Lesson(scenario=s, seeds=tuple(range(count))) for s, count in zip(scenarios, counts, strict=True)]
    for s, count in zip(scenarios, at_prices, strict=True):
        lessons += price_lessons(s, count)
    base = load_bundle(bundle or shipped_bundle())
    console = Console()
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("playing", total=sum(len(x.seeds) for x in lessons) * len(CANDIDATES))
        trained = train_leader(
            lessons,
            base,
            run_dir,
            seed=seed,
            workers=workers,
            on_unit=lambda name, seed: progress.advance(task),
        )
    save_bundle(out, base.net, base.card, trained)
    metrics = trained.card.metrics
    told = ", ".join(f"{name} {100 * value:+.2f} %" for name, value in metrics.items() if "/" not in name)
    against = f"{trained.card.episodes} episodes; bill against {trained.card.reference}, on those left out"
    console.print(f"bundle: {out}\n{against}: {told}")


def _one_each(flag: str, text: str, count: int, *, least: float = 1.0) -> list[float]:
    """``count`` numbers of at least ``least``, or one number for all.

    Raises:
        InputError: Anything else.
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(flag, "numbers separated by commas", text) from None
    if len(values) not in (1, count) or not all(value >= least for value in values):
        raise InputError(flag, f"one number of at least {least:g}, or {count}", text)
    return values * count if len(values) == 1 else values


def _shortened_scenarios(
    chosen: Sequence[str], hours: Sequence[float], traces: Path | None, *, synthetic: bool
) -> "list[Scenario]":
    """Scenarios to train on, each no longer than its number of hours.

    Raises:
        InputError: One cannot be loaded, or a number of hours cannot be.
    """
    from rayfold.cli_checks import check_horizon
    from rayfold.envs.scenario import load_scenario

    loaded = []
    for name, hour in zip(chosen, hours, strict=True):
        check_horizon(hour)
        scenario = load_scenario(name, traces_dir(traces), synthetic=synthetic)
        loaded.append(scenario.with_horizon(min(scenario.horizon_s, hour * 3600.0)))
    return loaded
