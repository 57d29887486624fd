"""``journal``: what a live decider recorded, as JSON lines and as one decision for people."""

import json as json_format
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rayfold.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from rayfold.envs.state import ClusterState

__all__ = ["app", "recorded_decision", "show_decision"]

app = typer.Typer(help="What a live decider recorded.", no_args_is_help=True)


@app.callback()
def _verbs() -> None:
    """A callback keeps ``export`` a verb of its own while it is the only one."""


@app.command()
def export(
    journal: Annotated[Path, typer.Option(help="SQLite file that `rayfold serve` writes; it may be running.")],
    out: Annotated[Path, typer.Option(help="JSON lines: decisions, moves with their phases, events.")],
) -> None:
    """Write everything but the states as JSON lines."""
    from rayfold.cli_checks import check_output
    from rayfold.serving.journal import Journal
    from rayfold.training.report import write_atomically

    check_output("--out", out)
    opened = Journal(journal, read_only=True)
    records = list(opened.export())
    opened.close()
    write_atomically(out, b"".join(json_format.dumps(record).encode() + b"\n" for record in records))
    counts = Counter(record["record"] for record in records)
    told = ", ".join(f"{counts[kind]} {kind}s" for kind in ("decision", "move", "event"))
    typer.echo(f"{out}: {told}")


def recorded_decision(journal: Path, decision_id: int) -> tuple[dict[str, Any], "ClusterState"]:
    """A decision with its moves, and the state it was made on.

    Raises:
        InputError: No journal, no such decision, or the state is damaged.
    """
    from rayfold.serving.journal import Journal

    opened = Journal(journal, read_only=True)
    try:
        decision = opened.decision(decision_id)
        if decision is None:
            ids = [d["id"] for d in opened.decisions(1)]
            newest = f"the newest is {ids[0]}" if ids else "the journal has none"
            raise InputError(f"--decision {decision_id}", f"a decision of {journal}", newest)
        return decision, opened.state(decision_id)
    finally:
        opened.close()


def show_decision(console: "Console", decision: dict[str, Any], limit: int) -> None:
    """The decision as recorded: the state in a line, the moves, the alternatives, and what became of the moves.

    Args:
        console: Where to.
        decision: Of ``recorded_decision``.
        limit: Candidates shown.
    """
    from rich.table import Column, Table

    saving = decision["expected_saving_usd"]
    usd_per_h = _number(decision["usd_per_h"], 2)
    by = f"{decision['policy'] or 'no policy'}, mode {decision['mode']}"
    console.print(
        f"decision {decision['id']} of {by}: {decision['reason'] or 'no reason given'}\n"
        f"state {decision['state_digest'][:12]}: {decision['num_nodes']} nodes, {usd_per_h} USD/h"
        + (f", expected to save {saving:.2f} USD" if saving else ""),
        highlight=False,
        soft_wrap=True,
    )
    if decision["moves"]:
        table = Table("deployment", "replica", "from", "to", "score", "verdict", title="moves")
        for move in decision["moves"]:
            ends = (move["deployment"], move["replica_id"], move["from_node"], move["to_node"])
            table.add_row(*ends, _number(move["score"], 3), move["reason"])
        console.print(table)
    if decision["candidates"] and limit:
        right = [Column(heading, justify="right") for heading in ("score", "moves", "price USD", "saves USD/h")]
        table = Table("from", *right, "verdict", "why", title="candidates")
        for one in decision["candidates"][:limit]:
            no = [move["reason"] for move in one["moves"] if not move["allowed"]]
            table.add_row(
                ", ".join(dict.fromkeys(move["from_node"] for move in one["moves"])) or "-",
                _number(one["score"], 3),
                str(len(one["moves"])),
                _number(one["price_usd"], 3),
                _number(one["saving_usd_per_h"], 2),
                f"{len(no)} refused: {no[0]}" if no else "allowed",
                one["reason"],
            )
        console.print(table)
    for move in decision["carried_out"]:
        phases = ", ".join(f"{p['phase']} ({p['detail']})" if p["detail"] else p["phase"] for p in move["phases"])
        undone = "; undone" if move["undone_s"] else ""
        console.print(f"move {move['move_id']} of {move['replica_id']}: {phases}{undone}", highlight=False)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
