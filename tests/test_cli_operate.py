"""``status``, ``plan``, ``pause``, ``resume``, ``mode``, ``attach``: against a real HTTP server over a fake cluster."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import uvicorn
from fastapi import FastAPI

from rayfold.envs.moves import Candidate, Move, Plan
from rayfold.serving.api import make_api
from rayfold.serving.decider import Decider
from rayfold.serving.decision import Mode
from rayfold.serving.local_cluster import free_port
from tests.serving.deciders import FakeCluster, make_decider
from tests.serving.test_api import TOKEN, FakeControls
from tests.test_cli import check_refused
from tests.test_cli_simulate import Run, run  # noqa: F401  # a fixture

VERBS = (("status",), ("plan",), ("pause",), ("resume",), ("mode", "act"), ("attach",))


@contextmanager
def http_server(app: Any) -> Iterator[str]:
    """The URL of an application served on a free port by uvicorn, as long as the block."""
    config = uvicorn.Config(app, port=free_port(), log_level="error", lifespan="off", ws="none", log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    started = threading.Event()
    original = server.startup

    async def startup(*args: Any, **keywords: Any) -> None:
        await original(*args, **keywords)
        started.set()

    server.startup = startup  # type: ignore[method-assign]  # uvicorn tells it in no other way
    thread.start()
    assert started.wait(10.0)
    try:
        yield f"http://127.0.0.1:{config.port}"
    finally:
        server.should_exit = True
        thread.join(10.0)


class OnCall(NamedTuple):
    """A served decider and the flags to reach it with its token."""

    decider: Decider
    executor: FakeCluster
    flags: tuple[str, ...]
    url: str


@pytest.fixture
def on_call(tmp_path: Path) -> Callable[..., AbstractContextManager[OnCall]]:
    """Serves deciders in a given mode; ``forbidden`` says why their cluster may not be touched."""
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN)
    token_file.chmod(0o600)

    @contextmanager
    def serve(mode: Mode = Mode.ACT, forbidden: str = "") -> Iterator[OnCall]:
        other = Candidate(moves=(Move(1, 1),), score=0.1, reason="stays [where] it is")
        plan = Plan(moves=(Move(0, 1),), scores=(0.5,), reason="because", candidates=(other,))
        executor = FakeCluster(forbidden=forbidden)
        decider = make_decider(lambda: plan, executor, mode=mode)
        api = FastAPI()
        api.mount("/rayfold", make_api(FakeControls(decider), TOKEN))
        with http_server(api) as base:
            url = f"{base}/rayfold"
            yield OnCall(decider, executor, ("--url", url, "--token-file", str(token_file)), url)

    return serve


Serve = Callable[..., AbstractContextManager[OnCall]]


def test_status_tells_what_the_interface_tells(run: Run, on_call: Serve) -> None:  # noqa: F811
    """Mode, lease, nodes and the move under way, for people and as JSON; after a pause, the reason too."""
    with on_call() as served:
        before = run("status", *served.flags)
        assert before.returncode == 0, before.stderr
        assert before.stdout.splitlines() == ["ok, mode act, holds the lease, no decision yet"]
        served.decider.tick()
        served.decider.pause("incident 4711")
        human = run("status", *served.flags).stdout
        told = json.loads(run("status", "--json", *served.flags).stdout)
    for part in ("paused: incident 4711", "2 nodes, 8.00 USD/h", "n0", served.executor.ids[0], "starting"):
        assert part in human
    assert told["health"]["paused"] == "incident 4711"
    assert [m["move_id"] for m in told["moves"]] == served.executor.ids
    assert len(told["state"]["nodes"]) == 2


def test_plan_shows_the_last_decision(run: Run, on_call: Serve) -> None:  # noqa: F811
    """Moves with verdicts and alternatives, texts as they are; before the first decision one line."""
    with on_call(Mode.RECOMMEND) as served:
        assert run("plan", *served.flags).stdout == "no decision yet\n"
        assert json.loads(run("plan", "--json", *served.flags).stdout) == {}
        served.decider.tick()
        human = run("plan", *served.flags).stdout
        told = json.loads(run("plan", "--json", *served.flags).stdout)
        few = run("plan", "--candidates", "0", *served.flags).stdout
    for part in ("decision 1 of fixed, mode recommend: because", "a/a", "allowed", "stays [where] it is"):
        assert part in human
    assert "stays" not in few
    assert (told["id"], told["moves"][0]["to_node"], told["carried_out"]) == (1, "n1", [])


def test_steering_reaches_the_decider(run: Run, on_call: Serve) -> None:  # noqa: F811
    """Pause, resume, mode and attach do what they say, and say what they did."""
    with on_call(Mode.OBSERVE) as served:
        assert run("pause", "--reason", "incident", *served.flags).stdout == "paused: incident\n"
        assert served.decider.paused == "incident"
        assert run("resume", *served.flags).stdout == "resumed\n"
        assert served.decider.paused == ""
        assert run("mode", "recommend", *served.flags).stdout == "mode recommend\n"
        assert str(served.decider.mode) == "recommend"
        assert json.loads(run("attach", "--json", *served.flags).stdout) == {"mode": "act"}
        assert str(served.decider.mode) == "act"


def test_what_the_decider_refuses_is_one_line(run: Run, on_call: Serve, tmp_path: Path) -> None:  # noqa: F811
    """No token, a wrong one, a cluster that may not be touched, a mode that is none: exit code 2, nothing changed."""
    wrong = tmp_path / "wrong"
    wrong.write_text("no")
    wrong.chmod(0o600)
    with on_call(Mode.OBSERVE, "Ray 9 is not a tested version") as served:
        for flags in ((), ("--token-file", str(wrong))):
            check_refused(run("pause", "--url", served.url, *flags), "--token-file", "bearer token is required")
        forbidden = run("attach", *served.flags)
        check_refused(run("mode", "dance", *served.flags), "off, observe, recommend, act", "dance")
        assert (served.decider.mode, served.decider.paused) == (Mode.OBSERVE, "")
    assert forbidden.returncode == 2
    assert forbidden.stderr.splitlines() == [f"error: {served.url}: Ray 9 is not a tested version"]


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: str(verb[0]))
def test_nobody_there_is_one_line(run: Run, verb: tuple[str, ...]) -> None:  # noqa: F811
    """A closed port, and an address that is none."""
    url = f"http://127.0.0.1:{free_port()}/rayfold"
    check_refused(run(*verb, "--url", url), url, "no answer")
    for malformed in ("", "nowhere", "ftp://x/y", "http://", "http://[::1"):
        check_refused(run(*verb, "--url", malformed), "http://HOST:PORT/rayfold")


def test_someone_else_there_is_one_line(run: Run) -> None:  # noqa: F811
    """Another server's 404, and answers of another shape, whatever it is."""
    with http_server(FastAPI()) as url:
        for verb in VERBS:
            check_refused(run(*verb, "--url", url), url)
    for answer in ([], {}, None, 3, [3], {"id": "x"}, {"status": 3}):

        async def app(scope: Any, receive: Any, send: Any, body: bytes = json.dumps(answer).encode()) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": body})

        with http_server(app) as url:
            for verb in VERBS:
                done = run(*verb, "--url", url)
                if verb != ("plan",) or answer not in ([], {}, None):  # to which there is no decision yet
                    check_refused(done, url, "another shape")
