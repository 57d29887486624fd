"""The load driver against a small HTTP server of the standard library: every lost request is seen."""

import http.server
import threading
import time
from collections.abc import Iterator

import pytest

from rayfold.serving.load import HttpLoad


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    status = 200

    def do_GET(self) -> None:
        self.send_response(type(self).status)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def server() -> Iterator[http.server.ThreadingHTTPServer]:
    """A server whose answers' status can be changed."""
    _Handler.status = 200
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    made.daemon_threads = True
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join(5.0)


def _wait(load: HttpLoad, phase: str, count: int) -> None:
    deadline_s = time.monotonic() + 20.0
    while load.stats(phase).requests < count:
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_phases_count_what_they_saw(server: http.server.ThreadingHTTPServer) -> None:
    """Good answers, then planted errors, then a closed port: each phase has its own count."""
    with HttpLoad([f"http://127.0.0.1:{server.server_port}/"], num_clients=2, think_s=0.001) as load:
        _wait(load, "start", 20)
        assert load.stats("start").failed == 0
        assert 0.0 < load.stats("start").p50_ms <= load.stats("start").p99_ms
        _Handler.status = 503
        load.begin("bad")
        _wait(load, "bad", 5)
    assert load.stats("bad").failed >= 3  # the first of each client may have been on its way
    assert "status 503" in load.stats("bad").errors[0]
    assert load.stats("never").requests == 0


def test_another_answer_is_a_failure(server: http.server.ThreadingHTTPServer) -> None:
    """Cut short or exchanged: where the right one is known, only that one counts."""
    url = f"http://127.0.0.1:{server.server_port}/"
    for body, fails in (("ok", False), ("okay", True)):
        with HttpLoad([url], num_clients=1, think_s=0.001, bodies={url: body}) as load:
            _wait(load, "start", 5)
        assert (load.stats("start").failed > 0) is fails
        if fails:
            assert load.stats("start").errors == (f"{url}: another answer, of 2 characters",)


def test_unanswered_requests_fail() -> None:
    """Nobody listens: all fail, with the error's name."""
    with HttpLoad(["http://127.0.0.1:9/"], num_clients=1) as load:
        _wait(load, "start", 2)
    assert load.stats("start").failed == load.stats("start").requests
    assert "ConnectError" in load.stats("start").errors[0]
