"""``explain``: for one state, what each policy would do and why, and the exact optimum beside it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rayfold.cli_options import names
from rayfold.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from rayfold.envs.state import ClusterState
    from rayfold.policies.explain import Explanation

__all__ = ["app"]

app = typer.Typer()

_OPTIMUM = "exact"


@app.command()
def explain(
    state: Annotated[
        Path | None, typer.Option(help="A state as `rayfold snapshot` or ClusterState.save writes it.")
    ] = None,
    decision: Annotated[
        int | None, typer.Option(min=1, help="A decision of --journal instead: as recorded, with its state.")
    ] = None,
    journal: Annotated[Path | None, typer.Option(help="The journal of a live decider.")] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated heuristics, 'learned', or bundle directories; default: ray_serve,learned, "
            "and none for a recorded decision."
        ),
    ] = None,
    scenario: Annotated[
        str | None, typer.Option(help="Shipped name or YAML path: its limits; default: the filter's own.")
    ] = None,
    optimum: Annotated[bool, typer.Option(help="Show the exact planner's choice beside them.")] = True,
    candidates: Annotated[int, typer.Option(min=0, help="Candidates to show per policy.")] = 8,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    json: Annotated[Path | None, typer.Option(help="Write everything here.")] = None,
) -> None:
    """Show what policies would do in one state, why, and what the safety filter says to it; or a recorded decision."""
    import numpy as np
    from rich.console import Console

    from rayfold.cli_checks import check_output
    from rayfold.cli_journal import recorded_decision, show_decision
    from rayfold.envs.safety import Limits
    from rayfold.envs.scenario import load_scenario
    from rayfold.envs.state import ClusterState
    from rayfold.envs.state_check import check_state
    from rayfold.policies.by_name import HEURISTICS, make_policy
    from rayfold.policies.explain import explain as ask
    from rayfold.training.report import write_json

    if (state is None) == (decision is None) or (decision is None) != (journal is None):
        got = " ".join(f for f, v in (("--state", state), ("--decision", decision), ("--journal", journal)) if v)
        raise InputError("explain", "either --state, or --decision with --journal", got or "none of them")
    recorded = None
    if journal is not None and decision is not None:
        recorded, read = recorded_decision(journal, decision)
    elif state is not None:
        read = ClusterState.load(state)
    where = str(state) if recorded is None else f"{journal}: decision {decision}"
    check_state(read, where)
    limits = load_scenario(scenario, None, synthetic=True).limits if scenario else Limits()
    asked = names(policy or ("ray_serve,learned" if recorded is None else ""))
    if not asked and (recorded is None or policy is not None):
        raise InputError("--policy", "at least one policy", "none")
    wanted = dict.fromkeys((*asked, _OPTIMUM) if asked and optimum and _OPTIMUM in HEURISTICS else asked)
    chosen = {name: make_policy(name, limits, num_candidates=candidates) for name in wanted}
    check_output("--json", json)
    answers = {name: ask(made, read, limits, np.random.default_rng(seed)) for name, made in chosen.items()}
    console = Console()
    if recorded is not None:
        show_decision(console, recorded, candidates)
    for name, answer in answers.items():
        console.print(_moves(name, read, answer) if answer.plan.moves else f"{name}: {answer.plan.reason}")
        if answer.plan.candidates and candidates:
            console.print(_candidates(name, read, answer, candidates))
    if json is not None:
        about = {"state": where, "state_digest": read.digest(), "seed": seed, "limits": limits._asdict()}
        if recorded is not None:
            about["recorded"] = recorded
        write_json(json, {**about, "policies": {name: a.as_json(read) for name, a in answers.items()}})


def _moves(name: str, state: "ClusterState", answer: "Explanation") -> "Table":
    from rich.table import Table

    plan = answer.as_json(state)
    saving = (
        f", saves {plan['expected_saving_usd']:,.2f} USD by its own estimate" if plan["expected_saving_usd"] else ""
    )
    table = Table("deployment", "replica", "from", "to", "score", "filter", title=f"{name}: {plan['reason']}{saving}")
    for move in plan["moves"]:
        score = f"{move['score']:.3f}"
        table.add_row(move["deployment"], move["replica"], move["from"], move["to"], score, move["verdict"].lower())
    return table


def _candidates(name: str, state: "ClusterState", answer: "Explanation", limit: int) -> "Table":
    from rich.table import Column, Table

    right = [Column(heading, justify="right") for heading in ("score", "moves", "price USD", "saves USD/h")]
    table = Table("from", "to", *right, "filter", "why", title=f"{name}: candidates")
    found = answer.as_json(state)["candidates"]
    for one in found[:limit]:
        refused = [move["verdict"].lower() for move in one["moves"] if move["verdict"] != "ALLOWED"]
        table.add_row(
            *(", ".join(dict.fromkeys(move[end] for move in one["moves"])) or "-" for end in ("from", "to")),
            f"{one['score']:.3f}",
            str(len(one["moves"])),
            f"{one['price_usd']:.3f}",
            f"{one['saving_usd_per_h']:.2f}",
            f"{len(refused)} refused: {refused[0]}" if refused else "allowed",
            one["reason"],
        )
    if len(found) > limit:
        table.caption = f"{len(found) - limit} more in --json"
    return table
