"""Verbs of whoever is on call: ask a running decider how it is, and steer it, over HTTP.

They need neither Ray nor a connection to the cluster, only the address of the decider.
"""

import json as json_format
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rayfold.cli_journal import show_decision
from rayfold.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from rayfold.serving.client import DeciderClient

__all__ = ["app"]

app = typer.Typer()

_MODES = ("off", "observe", "recommend", "act")
_RECENT_MOVES, _RECENT_EVENTS = 10, 5

UrlOption = Annotated[str, typer.Option("--url", help="Of the decider.")]
TokenOption = Annotated[Path | None, typer.Option("--token-file", help="The decider's bearer token, file mode 0600.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]
_URL = "http://127.0.0.1:8000/rayfold"


def _client(url: str, token_file: Path | None) -> "DeciderClient":
    from rayfold.serving.client import DeciderClient
    from rayfold.serving.token_file import read_token

    return DeciderClient(url, read_token(token_file) if token_file else "")


@app.command()
def status(url: UrlOption = _URL, token_file: TokenOption = None, json: JsonOption = False) -> None:
    """How a running decider and its cluster are: mode, pause, nodes, moves, what happened lately."""
    client = _client(url, token_file)
    told = {"health": client.get("/healthz"), "state": client.get("/state"), "moves": client.get("/moves", limit=50)}
    if json:
        typer.echo(json_format.dumps(told))
        return
    with client.expecting():
        _show_status(_console(), told["health"], told["state"], told["moves"], time.time())


@app.command()
def plan(
    url: UrlOption = _URL,
    token_file: TokenOption = None,
    json: JsonOption = False,
    candidates: Annotated[int, typer.Option(min=0, help="Alternatives shown.")] = 8,
) -> None:
    """The last decision of a running decider: its moves, each with its verdict, and the alternatives."""
    client = _client(url, token_file)
    newest = client.get("/decisions", limit=1)
    with client.expecting():
        decision = client.get(f"/decisions/{int(newest[-1]['id'])}") if newest else {}
    if json:
        typer.echo(json_format.dumps(decision))
    elif not decision:
        typer.echo("no decision yet")
    else:
        with client.expecting():
            show_decision(_console(), decision, candidates)


@app.command()
def pause(
    url: UrlOption = _URL,
    token_file: TokenOption = None,
    json: JsonOption = False,
    reason: Annotated[str, typer.Option(help="Told to everyone who asks.")] = "by hand",
) -> None:
    """Keep a running decider from moving anything until `resume`; what is under way goes on."""
    client = _client(url, token_file)
    answer = client.post("/pause", {"reason": reason})
    with client.expecting():
        _tell(answer, f"paused: {answer['paused']}", json)


@app.command()
def resume(url: UrlOption = _URL, token_file: TokenOption = None, json: JsonOption = False) -> None:
    """End a pause, the churn breaker's too."""
    client = _client(url, token_file)
    answer = client.post("/resume")
    with client.expecting():
        _tell(answer, f"paused: {answer['paused']}" if answer["paused"] else "resumed", json)


@app.command()
def mode(
    mode: Annotated[str, typer.Argument(help=", ".join(_MODES))],
    url: UrlOption = _URL,
    token_file: TokenOption = None,
    json: JsonOption = False,
) -> None:
    """Change the mode of a running decider; leaving `act` detaches it from the Serve controller."""
    if mode not in _MODES:
        raise InputError("mode", ", ".join(_MODES), mode)
    _set_mode(mode, url, token_file, json)


@app.command()
def attach(url: UrlOption = _URL, token_file: TokenOption = None, json: JsonOption = False) -> None:
    """Let a running decider act: the same as `mode act`. `detach` takes it out of the cluster."""
    _set_mode("act", url, token_file, json)


def _set_mode(mode: str, url: str, token_file: Path | None, json: bool) -> None:
    client = _client(url, token_file)
    answer = client.post("/mode", {"mode": mode})
    with client.expecting():
        _tell(answer, f"mode {answer['mode']}", json)


def _tell(answer: Any, text: str, json: bool) -> None:
    typer.echo(json_format.dumps(answer) if json else text)


def _console() -> "Console":
    from rich.console import Console

    return Console(markup=False, highlight=False)


def _show_status(
    console: "Console", health: Mapping[str, Any], state: Mapping[str, Any], moves: list[Any], now_s: float
) -> None:
    """Tells what ``GET /healthz``, ``/state`` and ``/moves`` say.

    Args:
        console: Where to.
        health: Of ``/healthz``.
        state: Of ``/state``; without nodes before the first decision.
        moves: Of ``/moves``.
        now_s: Unix time.
    """
    last_s = health["last_decision_s"]
    decided = f"last decision {now_s - last_s:.0f} s ago" if last_s else "no decision yet"
    lease = "holds the lease" if state["lease_held"] else "without the lease"
    console.print(f"{health['status']}, mode {health['mode']}, {lease}, {decided}", soft_wrap=True)
    for what in ("paused", "error"):
        if health[what]:
            console.print(f"{what}: {health[what]}", soft_wrap=True)
    if state.get("nodes"):
        _show_cluster(console, state)
    under_way = [m for m in moves if m["phase"] not in ("done", "failed", "cancelled")]
    _show_moves(console, [*[m for m in moves if m not in under_way][-_RECENT_MOVES:], *under_way], now_s)
    for event in state["events"][-_RECENT_EVENTS:]:
        text = f"{now_s - event['time_s']:.0f} s ago: {event['kind']} {event['text']}".rstrip()
        console.print(text, soft_wrap=True)


def _show_cluster(console: "Console", state: Mapping[str, Any]) -> None:
    from rich.table import Column, Table

    nodes, replicas = state["nodes"], state["replicas"]
    usd_per_h = sum(node["price_usd_per_h"] for node in nodes)
    right = [Column(heading, justify="right") for heading in ("replicas", "moving", "free GPU", "USD/h")]
    table = Table("node", "type", "phase", *right, title=f"{len(nodes)} nodes, {usd_per_h:.2f} USD/h")
    for node in nodes:
        here = [r for r in replicas if r["node_id"] == node["node_id"]]
        kept = " by ".join(["kept", *([", ".join(node["kept_by"])] if node["kept_by"] else [])])
        marks = [m for m in ("fenced",) if node[m]] + ([] if node["releasable"] else [kept])
        table.add_row(
            node["node_id"],
            node["node_type"],
            ", ".join([node["phase"], *marks]),
            str(len(here)),
            str(sum(r["moving"] for r in here)),
            f"{node['free'].get('GPU', 0.0):g}",
            f"{node['price_usd_per_h']:.2f}",
        )
    console.print(table)


def _show_moves(console: "Console", moves: list[Any], now_s: float) -> None:
    from rich.table import Column, Table

    if not moves:
        return
    table = Table("move", "deployment", "from", "to", "phase", Column("since s", justify="right"), "why", title="moves")
    for move in moves:
        ends = (move["move_id"], move["deployment"], move["from_node"], move["to_node"])
        why = "; ".join(text for text in (move["detail"], "undone" if move["undone_s"] else "") if text)
        table.add_row(*ends, move["phase"], f"{now_s - move['phase_s']:.0f}", why)
    console.print(table)
