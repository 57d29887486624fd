"""The command line: see ``rayfold --help``.

Heavy imports stand inside the verbs, so that ``--help`` is quick. What the user gave wrong is told in one line and
ends with exit code 2.
"""

import logging
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rayfold import (
    cli_evaluate,
    cli_explain,
    cli_journal,
    cli_leader,
    cli_operate,
    cli_simulate,
    cli_trace,
    cli_tune,
)
from rayfold.cli_options import AddressOption, SyntheticOption, TracesOption, names, traces_dir
from rayfold.errors import InputError, RayfoldError
from rayfold.process_exit import end_process

if TYPE_CHECKING:
    from rich.console import Console

    from rayfold.training.train_config import TrainConfig

__all__ = ["app", "entry", "main"]

app = typer.Typer(
    name="rayfold",
    help="Learned replica compaction for Ray Serve: train, evaluate, deploy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(cli_trace.app, name="trace")
app.add_typer(cli_evaluate.app)  # without a name: its verbs are the root's
app.add_typer(cli_simulate.app)  # without a name: its verbs are the root's
app.add_typer(cli_tune.app)
app.add_typer(cli_leader.app)
app.add_typer(cli_explain.app)
app.add_typer(cli_journal.app, name="journal")
app.add_typer(cli_operate.app)

_EXIT_INPUT, _EXIT_INTERRUPT = 2, 130


@app.command()
def train(
    ctx: typer.Context,
    scenario: Annotated[str, typer.Option(help="Shipped names or YAML paths, comma-separated.")] = "llm_api",
    stop_minutes: Annotated[float | None, typer.Option(help="Wall time of this call.")] = None,
    stop_steps: Annotated[int | None, typer.Option(help="Environment steps of PPO.")] = None,
    run_dir: Annotated[Path, typer.Option(help="Checkpoints, event files and the bundle go here.")] = Path(
        "runs/train"
    ),
    bundle: Annotated[Path | None, typer.Option(help="Write the policy bundle here too.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in --run-dir.")] = False,
    warm_start: Annotated[
        str, typer.Option(help="Heuristic to imitate; or go on from a bundle, 'network' = the shipped one; '' = none.")
    ] = "dearest_first",
    warm_start_steps: Annotated[int, typer.Option(help="Steps that the heuristic shows, in each round.")] = 16_000,
    warm_start_rounds: Annotated[
        int, typer.Option(help="More than one: the network plays, and the heuristic tells what it would do (DAgger).")
    ] = 1,
    horizon_h: Annotated[float, typer.Option(help="Longest episode to train on, in hours.")] = 4.0,
    lr: Annotated[float, typer.Option(help="Learning rate of PPO.")] = 3e-4,
    batch_steps: Annotated[int, typer.Option(help="Environment steps per PPO iteration.")] = 4096,
    num_envs: Annotated[int, typer.Option(help="Environments per env runner.")] = 32,
    group_size: Annotated[
        int, typer.Option(help="Environments that play the same episodes, whose advantages are compared; 1 = none do.")
    ] = 4,
    wait_intervals: Annotated[int, typer.Option(help="Decision intervals that NOOP passes in PPO.")] = 1,
    min_p: Annotated[
        float, typer.Option(help="PPO tries no move that has less than this share of the likeliest one's probability.")
    ] = 0.0,
    min_act_p: Annotated[float, typer.Option(help="PPO waits where acting is less likely than this.")] = 0.0,
    entropy_coeff: Annotated[float, typer.Option(help="Weight of PPO's entropy bonus.")] = 0.002,
    evaluation_episodes: Annotated[int, typer.Option(help="Per scenario, for the choice of the weights.")] = 4,
    vary_worlds: Annotated[
        bool, typer.Option("--vary-worlds", help="Draw start-up times, prices and limits anew in every episode.")
    ] = False,
    num_nodes: Annotated[
        str, typer.Option(help="LEAST-MOST, as 4-256: draw the size of the cluster, traffic with it, in every episode.")
    ] = "",
    seed: int = 0,
    traces: TracesOption = None,
    synthetic: SyntheticOption = False,
    address: AddressOption = "",
    num_env_runners: Annotated[int, typer.Option(help="0 = sample in this process.")] = 0,
    num_learners: Annotated[int, typer.Option(help="0 = learn in this process.")] = 0,
    num_gpus_per_learner: float = 0.0,
    tracker: Annotated[str, typer.Option(help="Beside TensorBoard: wandb, mlflow, or both, comma-separated.")] = "",
    tracker_project: Annotated[str, typer.Option(help="Project of W&B, experiment of MLflow.")] = "rayfold",
    tune: Annotated[
        int, typer.Option(min=0, help="Try so many settings of PPO with Ray Tune, these ones first; keep the best.")
    ] = 0,
    tune_jobs: Annotated[int, typer.Option(min=1, help="Runs of --tune at once.")] = 1,
    recipe: Annotated[
        str, typer.Option(help="Make a whole bundle, stage by stage: 'shipped' or a YAML file; with --bundle.")
    ] = "",
) -> None:
    """Train a policy offline and write its bundle."""
    if recipe:
        raise typer.Exit(_train_by_recipe(ctx, recipe, run_dir, bundle, traces, synthetic=synthetic))
    from rich.console import Console

    from rayfold.cli_checks import check_bundle_target, check_horizon, check_output
    from rayfold.policies.bundle import load_bundle, save_bundle
    from rayfold.training.ppo import train as run_training
    from rayfold.training.progress import ProgressDisplay
    from rayfold.training.trackers import trackers_of
    from rayfold.training.train_config import TrainConfig

    if tune and resume:
        raise InputError("--tune", "no --resume: the same command goes on", "--resume")
    if tune and address:
        raise InputError("--tune", "no --address: its runs share a folder of this machine", address)
    if stop_minutes is None and stop_steps is None:
        stop_minutes = 3.0
    config = TrainConfig(
        run_dir=run_dir,
        scenarios=names(scenario),
        stop_minutes=stop_minutes,
        stop_steps=stop_steps,
        resume=resume,
        warm_start=warm_start,
        warm_start_steps=warm_start_steps,
        warm_start_rounds=warm_start_rounds,
        horizon_s=3600.0 * horizon_h,
        lr=lr,
        batch_steps=batch_steps,
        num_envs=num_envs,
        group_size=group_size,
        wait_intervals=wait_intervals,
        min_p=min_p,
        min_act_p=min_act_p,
        entropy_coeff=entropy_coeff,
        evaluation_episodes=evaluation_episodes,
        vary_worlds=vary_worlds,
        num_nodes=_span(num_nodes),
        seed=seed,
        traces_dir=traces_dir(traces),
        synthetic=synthetic,
        address=address,
        num_env_runners=num_env_runners,
        num_learners=num_learners,
        num_gpus_per_learner=num_gpus_per_learner,
        trackers=trackers_of(names(tracker)),
        tracker_project=tracker_project,
    )
    check_bundle_target(bundle)
    check_horizon(horizon_h)
    if not resume:  # what is to be resumed must be there already
        config.check()
        check_output("--run-dir", run_dir / "train.json")
    console = Console()
    if tune:
        _search(config, tune, tune_jobs, bundle, console)
        return
    with ProgressDisplay(console) as display:
        result = run_training(config, display)
    if bundle is not None:
        made = load_bundle(result.bundle_dir)
        save_bundle(bundle, made.net, made.card)
    for name, excess in result.evaluation_excess_frac.items():
        console.print(f"{name}: bill {100 * excess:.1f} % above the lower bound", highlight=False)
    console.print(f"bundle: {result.bundle_dir} ({result.chosen} weights)\ncheckpoint: {result.checkpoint}")
    if result.interrupted:
        raise typer.Exit(_EXIT_INTERRUPT)


def _search(config: "TrainConfig", num_samples: int, jobs: int, bundle: Path | None, console: "Console") -> None:
    """Several runs, of which the best one's bundle and settings are kept."""
    from rich.progress import Progress

    from rayfold.policies.bundle import load_bundle, save_bundle
    from rayfold.training.ray_session import ray_session
    from rayfold.training.train_search import search_training, write_recipe

    with ray_session(max(2, jobs * len(config.ray_bundles))), Progress(console=console, transient=True) as progress:
        task = progress.add_task("runs", total=num_samples)
        found = search_training(config, num_samples, jobs=jobs, on_trial=lambda: progress.advance(task))
    recipe = config.run_dir / "best.yaml"
    write_recipe(recipe, config, found)
    made = load_bundle(found.bundle)
    for folder in (config.run_dir / "bundle", *([bundle] if bundle is not None else [])):
        save_bundle(folder, made.net, made.card)
    told = ", ".join(f"{name}={value:.4g}" for name, value in found.settings.items())
    console.print(
        f"best of {num_samples}: bill {100 * found.excess_frac:.1f} % above the lower bound, as given "
        f"{100 * found.default_excess_frac:.1f} %\n{told}\nbundle: {config.run_dir / 'bundle'}\nrecipe: {recipe}",
        highlight=False,
        soft_wrap=True,
    )


def _span(text: str) -> tuple[int, int] | None:
    """``4-256``; nothing is None."""
    if not text:
        return None
    match = re.fullmatch(r"(\d{1,6})-(\d{1,6})", text)
    if match is None:
        raise InputError("--num-nodes", "LEAST-MOST, as 4-256", text)
    return int(match[1]), int(match[2])


def _train_by_recipe(
    ctx: typer.Context, recipe: str, run_dir: Path, bundle: Path | None, traces: Path | None, *, synthetic: bool
) -> int:
    from rayfold.cli_checks import check_bundle_target, check_output
    from rayfold.training.recipe import load_recipe, run_recipe

    given = {name for name in ctx.params if str(ctx.get_parameter_source(name)).endswith(".COMMANDLINE")}
    if others := given - {"recipe", "run_dir", "bundle", "traces", "synthetic"}:
        told = ", ".join(sorted("--" + name.replace("_", "-") for name in others))
        raise InputError("--recipe", "no option that the recipe gives", told)
    if bundle is None:
        raise InputError("--recipe", "--bundle with the folder of the bundle to make", "none")
    stages = load_recipe(recipe)
    check_bundle_target(bundle)
    check_output("--run-dir", run_dir / "train.done")
    common = [*(["--traces", str(traces)] if traces else []), *(["--synthetic"] if synthetic else [])]

    def invoke(arguments: list[str]) -> int:
        typer.echo(f"rayfold {' '.join(arguments)}")
        return int(app(arguments, standalone_mode=False) or 0)

    return run_recipe(stages, run_dir, bundle, common, invoke)


@app.command()
def serve(
    address: Annotated[str, typer.Option(help="HOST:PORT of the Ray cluster.")],
    mode: Annotated[str, typer.Option(help="off, observe, recommend or act.")] = "recommend",
    policy: Annotated[str, typer.Option(help="A heuristic, 'learned', or the directory of a bundle.")] = "learned",
    settings: Annotated[Path | None, typer.Option(help="YAML: prices, start-up times, limits.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="Bearer token of POST /mode, file mode 0600.")] = None,
    journal: Annotated[Path | None, typer.Option(help="SQLite file on the head node.")] = None,
    decisions: Annotated[int | None, typer.Option(min=1, help="End after so many.")] = None,
) -> None:
    """Attach the decider to a running Ray Serve cluster."""
    from rich.console import Console

    from rayfold.serving.attach import serve_decider
    from rayfold.serving.live_settings import LiveSettings, load_live_settings

    console = Console()
    serve_decider(
        address=address,
        mode=mode,
        policy=policy,
        settings=load_live_settings(settings) if settings else LiveSettings(),
        token_file=token_file,
        journal_path=journal,
        progress=lambda text: console.print(text, highlight=False, soft_wrap=True),
        max_decisions=decisions,
    )


@app.command()
def detach(address: Annotated[str, typer.Option(help="HOST:PORT of the Ray cluster.")]) -> None:
    """Remove the decider from a cluster and leave its Serve controller as it was found."""
    from rayfold.serving.attach import detach_controller

    found = detach_controller(address)
    typer.echo(f"detached: {', '.join(found.patched)}" if found.patched else "nothing was attached")
    if found.is_declared:
        typer.echo(
            "the decider stands in a Serve config: take its entry out and run `serve deploy`, or it comes back "
            "when the Serve controller restarts"
        )


@app.command()
def demo(
    json: Annotated[Path | None, typer.Option(help="Write what was measured here.")] = None,
    train_minutes: Annotated[float, typer.Option(min=0.1, help="Wall time of the training.")] = 3.0,
    seeds: Annotated[int, typer.Option(min=1, help="Evaluation episodes.")] = 3,
    run_dir: Annotated[Path, typer.Option(help="The training's folder.")] = Path("runs/demo"),
    traces: TracesOption = None,
    synthetic: SyntheticOption = False,
) -> None:
    """The whole loop: train, evaluate, and let the trained policy act on a real local cluster."""
    from rayfold.cli_checks import check_output
    from rayfold.demo import run_demo

    check_output("--json", json)
    check_output("--run-dir", run_dir / "train.json")
    is_good = run_demo(
        json_path=json,
        train_minutes=train_minutes,
        num_seeds=seeds,
        run_dir=run_dir,
        traces_dir=traces_dir(traces),
        synthetic=synthetic,
    )
    if not is_good:
        raise typer.Exit(1)


@app.command()
def scenarios() -> None:
    """List the shipped scenarios."""
    from rich.console import Console
    from rich.table import Table

    from rayfold.envs.scenario import load_scenario
    from rayfold.envs.scenario_file import shipped_scenarios

    listing = Table("scenario", "nodes at most", "deployments", "what it is for")
    for name in shipped_scenarios():
        loaded = load_scenario(name, None, synthetic=True)
        listing.add_row(name, str(loaded.spec.max_nodes), str(loaded.spec.num_deployments), loaded.description)
    Console().print(listing)


def _print_version(wanted: bool) -> None:
    if wanted:
        from rayfold import __version__

        typer.echo(f"rayfold {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_print_version)] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens inside.")] = False,
) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )


def main() -> None:
    """Entry point: one line and exit code 2 for what the user gave wrong."""
    try:
        app(standalone_mode=True)
    except RayfoldError as err:
        typer.echo(f"error: {' '.join(str(err).split())}", err=True)
        sys.exit(_EXIT_INPUT)
    except KeyboardInterrupt:
        sys.exit(_EXIT_INTERRUPT)


def entry() -> None:
    """What the installed command and ``python -m rayfold`` run: ``main``, and the end of the process."""
    try:
        main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if "ray" in sys.modules:
            end_process(code)
        raise
