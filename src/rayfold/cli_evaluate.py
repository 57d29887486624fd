"""``evaluate``: policies on the same episodes, here or on a Ray cluster, as table, JSON, picture and page."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rayfold.cli_options import AddressOption, PricesOption, SyntheticOption, TracesOption, names, traces_dir
from rayfold.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from rayfold.envs.scenario import Scenario, Split
    from rayfold.envs.simulator import Simulator
    from rayfold.policies.protocol import Policy
    from rayfold.training.evaluation import Evaluation
    from rayfold.training.policy_choice import PolicyChoice
    from rayfold.training.unit_store import UnitStore
    from rayfold.training.units import Unit
    from rayfold.training.workers import Workers

__all__ = ["app"]

app = typer.Typer()


@app.command()
def evaluate(
    scenario: Annotated[str, typer.Option(help="Shipped names or YAML paths, comma-separated.")] = "llm_api",
    policies: Annotated[
        str,
        typer.Option(
            help="Comma-separated: NAME, NAME(a=1), NAME@spread; learned; folders; best_of_plans; free_repacking."
        ),
    ] = "none,best_fit,ray_serve",
    bundle: Annotated[Path | None, typer.Option(help="Bundle of 'learned'; default: the shipped one.")] = None,
    tuned: Annotated[
        str, typer.Option(help="Settings of heuristics that are given without any: shipped, none, or a file of `tune`.")
    ] = "shipped",
    seeds: Annotated[int, typer.Option(min=1, help="Episodes.")] = 8,
    first_seed: Annotated[int, typer.Option(min=0)] = 0,
    days: Annotated[str | None, typer.Option(help="train, validation, or days of the trace: 9, 7-9, 7,8,9.")] = None,
    split: Annotated[str, typer.Option(help="train or validation; --days says more.")] = "validation",
    horizon_h: Annotated[float | None, typer.Option(help="Length of an episode; default: the scenario's.")] = None,
    prices: PricesOption = 1.0,
    sweep: Annotated[int, typer.Option(min=0, max=200, help="Settings to try per heuristic, for the curve.")] = 0,
    audit: Annotated[bool, typer.Option("--audit", help="Check that no policy knows the future.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Processes, as Ray tasks; 1 = this one, without Ray.")] = 1,
    address: AddressOption = "",
    json: Annotated[
        Path | None, typer.Option(help="Write every metric here, a PNG beside it; finished episodes go to F.units.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write D/index.html, one self-contained page.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write the picture here.")] = None,
    traces: TracesOption = None,
    synthetic: SyntheticOption = False,
) -> None:
    """Evaluate policies on the same episodes. Ctrl-C keeps what is done; the same command goes on with it."""
    from rich.console import Console

    from rayfold.cli_checks import check_bundle_flag, check_horizon, check_output, check_prices
    from rayfold.envs.scenario import Split, load_scenario
    from rayfold.training.days import on_days
    from rayfold.training.policy_choice import PolicyChoice
    from rayfold.training.unit_store import UnitStore
    from rayfold.training.workers import workers_of
    from rayfold.training.worlds import at_prices

    if split not in list(Split):
        raise InputError("--split", " or ".join(Split), split)
    workers = workers_of(jobs, address)
    check_horizon(horizon_h)
    check_prices(prices)
    wanted = names(policies)
    check_bundle_flag([PolicyChoice(name=name).rule for name in wanted], bundle)
    if not wanted:
        raise InputError("--policies", "at least one policy", "none")
    scenarios = names(scenario)
    if not scenarios:
        raise InputError("--scenario", "at least one scenario", "none")
    prepared = []
    for name in scenarios:
        loaded = at_prices(load_scenario(name, traces_dir(traces), synthetic=synthetic), prices)
        if horizon_h is not None:
            loaded = loaded.with_horizon(horizon_h * 3600.0)
        prepared.append(on_days(loaded, days or split))
    choices = [_choices(wanted, bundle, tuned, loaded) for loaded, _ in prepared]
    check_output("--json", json)  # before a name is made of it: "." has no suffix to replace
    picture = png or (json.with_suffix(".png") if json is not None else None)
    check_output("--png", picture)
    check_output("--html", html / "index.html" if html is not None else None)
    console = Console()
    for (loaded, chosen_split), chosen in zip(prepared, choices, strict=True):
        task = _Task(
            scenario=loaded,
            split=chosen_split,
            days=days or split,
            choices=chosen,
            seeds=range(first_seed, first_seed + seeds),
            sweep=sweep,
            audit=audit,
            workers=workers,
            store=UnitStore(json.with_name(f"{json.name}.units") if json is not None else None),
        )
        part = loaded.name if len(prepared) > 1 else ""
        _report(task, console, _beside(json, part), html / part if html is not None else None, _beside(picture, part))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """One scenario's evaluation."""

    scenario: "Scenario"
    split: "Split"
    days: str
    choices: "tuple[PolicyChoice, ...]"
    seeds: range
    sweep: int  # settings per heuristic
    audit: bool
    workers: "Workers"
    store: "UnitStore"


def _choices(
    wanted: tuple[str, ...], bundle: Path | None, tuned: str, scenario: "Scenario"
) -> "tuple[PolicyChoice, ...]":
    """Every policy is made once, so that a mistake shows before any work."""
    from rayfold.training.policy_choice import PolicyChoice, tuned_for

    found = tuned_for(scenario.name, tuned)
    choices = tuple(PolicyChoice(name=name, bundle=bundle, tuned=found) for name in dict.fromkeys(wanted))
    for choice in choices:
        choice.make(scenario)
    return choices


def _beside(path: Path | None, part: str) -> Path | None:
    """With several scenarios each has files of its own: ``out.json`` becomes ``out_<scenario>.json``."""
    return path.with_name(f"{path.stem}_{part}{path.suffix}") if path is not None and part else path


def _report(task: _Task, console: "Console", json: Path | None, html: Path | None, png: Path | None) -> None:
    from rayfold.training.html_report import write_html
    from rayfold.training.published import published
    from rayfold.training.report import table, write_json, write_png

    evaluation, points, audited = _run(task, console)
    console.print(table(evaluation))
    tuned = {choice.name: dict(choice.tuned[choice.rule]) for choice in task.choices if choice.rule in choice.tuned}
    content: dict[str, Any] = {**evaluation.to_json(), "tuned": tuned, "published": published(evaluation)}
    if task.sweep:
        content["sweep"] = points
    if task.audit:
        content["audit"] = audited
        for name, said in audited.items():
            console.print(f"audit of {name}: {said}", highlight=False, markup=False, soft_wrap=True)
    if json is not None:
        write_json(json, content)
    if html is not None:
        write_html(html / "index.html", evaluation, content)
        console.print(f"page: {html / 'index.html'}", highlight=False, soft_wrap=True)
    if png is not None:
        write_png(png, evaluation)


def _run(task: _Task, console: "Console") -> "tuple[Evaluation, list[dict[str, Any]], dict[str, str]]":
    """The evaluation, the points of the sweep, and what the audit says of each policy."""
    from rayfold.training.sweep import sweep_choices, sweep_points
    from rayfold.training.units import evaluate_units

    num_swept = len(sweep_choices([choice.name for choice in task.choices], task.sweep)) if task.sweep else 0
    total = len(task.seeds) * (len(task.choices) + num_swept)
    with _progress(console, task.scenario.name, total, task.store.folder) as on_unit:
        evaluation = evaluate_units(
            task.scenario, task.choices, task.seeds, task.split,
            days=task.days, store=task.store, workers=task.workers, on_unit=on_unit,
        )  # fmt: skip
        points = sweep_points(
            task.scenario, evaluation, task.sweep, task.split,
            store=task.store, workers=task.workers, on_unit=on_unit,
        ) if task.sweep else []  # fmt: skip
    return evaluation, points, _audit(task) if task.audit else {}


def _audit(task: _Task) -> dict[str, str]:
    from rayfold.policies.rollout import Rearranger
    from rayfold.training.audit import AuditError, check_causal

    said = {}
    for choice in task.choices:
        policy = choice.make(task.scenario)
        if isinstance(policy, Rearranger):
            continue
        try:
            num_moves = check_causal(functools.partial(_same, policy), task.scenario, task.seeds[0], split=task.split)
            said[choice.name] = f"{num_moves} moves do not depend on the future"
        except AuditError as err:
            said[choice.name] = f"FAILED: {err}"
    return said


def _same(policy: "Policy", _: "Simulator") -> "Policy":
    """A policy that is honest needs no simulator."""
    return policy


@contextmanager
def _progress(console: "Console", scenario: str, total: int, folder: Path | None) -> "Iterator[Callable[[Unit], None]]":
    """A bar; what an interrupt leaves is said."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    num_done = 0
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=console, transient=True,
    )  # fmt: skip
    with bar:
        shown = bar.add_task(scenario, total=total)

        def advance(unit: "Unit") -> None:
            nonlocal num_done
            num_done += 1
            bar.advance(shown)

        try:
            yield advance
        except KeyboardInterrupt:
            kept = f"kept in {folder}; the same command goes on" if folder is not None else "not kept: no --json"
            console.print(f"interrupted: {num_done} of {total} episodes {kept}", highlight=False, soft_wrap=True)
            raise
