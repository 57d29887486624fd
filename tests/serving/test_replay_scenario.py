"""The pieces of the recorded scenario: the choice of moves, and load whose number of clients changes."""

import http.server
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import ClassVar

import pytest

from rayfold.envs.moves import Move
from rayfold.envs.safety import Limits
from rayfold.serving.replay_scenario import VaryingLoad, choose_move, ten_minutes
from tests.envs.clusters import add_node, add_replica, empty_state, small_spec

LIMITS = Limits(max_concurrent_moves=8, deployment_cooldown_s=0.0, fence_s=60.0)


def test_choose_move_goes_from_fewest_to_most() -> None:
    """The lone replica goes to the fullest node that has room; the full node is passed over; at last there is none."""
    state = empty_state(small_spec())
    full, half, lone = (add_node(state, n) for n in range(3))
    for _ in range(4):
        add_replica(state, 0, full)
    add_replica(state, 0, half)
    add_replica(state, 0, half)
    r = add_replica(state, 0, lone)
    assert choose_move(state, LIMITS) == Move(r, half)
    state.arrays.node_fenced_until_s[half] = state.now_s + 10.0
    assert choose_move(state, LIMITS) != Move(r, half)
    state.arrays.node_releasable[:] = False
    assert choose_move(state, LIMITS) is None


def test_ten_minutes_is_within_its_nodes() -> None:
    """At its highest the scenario asks for no more GPUs than its nodes have, and it begins with every node type."""
    scenario = ten_minutes()
    gpus = sum(t.max_nodes * t.resources["GPU"] for t in scenario.node_types)
    assert sum(a.max_replicas * a.num_gpus for a in scenario.apps) <= gpus == 16.0
    assert all(t.min_nodes >= 1 for t in scenario.node_types)
    assert scenario.stages[0].at_s == 0.0
    assert scenario.stages[-1].at_s < scenario.duration_s == 600.0


class _Counting(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    now: ClassVar[Counter[str]] = Counter()
    most: ClassVar[Counter[str]] = Counter()
    lock = threading.Lock()
    status = 200

    def do_GET(self) -> None:
        with self.lock:
            self.now[self.path] += 1
            self.most[self.path] = max(self.most[self.path], self.now[self.path])
        time.sleep(0.05)  # the service time
        with self.lock:
            self.now[self.path] -= 1
        self.send_response(type(self).status)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def url() -> Iterator[str]:
    """A server that counts the requests it has in hand."""
    _Counting.now, _Counting.most, _Counting.status = Counter(), Counter(), 200
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Counting)
    made.daemon_threads = True
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{made.server_port}"
    made.shutdown()
    made.server_close()
    thread.join(5.0)


def _wait(what: str, is_so: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 20.0
    while not is_so():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.02)


def test_varying_load_has_as_many_requests_as_clients(url: str) -> None:
    """None, then four and one at a time, then none again; nothing fails until the answers are bad."""
    with VaryingLoad({f"{url}/a": 4, f"{url}/b": 1}) as load:
        load.set_clients(f"{url}/a", 99)
        load.set_clients(f"{url}/b", 1)
        _wait("five in hand", lambda: _Counting.now == {"/a": 4, "/b": 1})
        load.set_clients(f"{url}/a", 0)
        _wait("one in hand", lambda: _Counting.now["/a"] == 0 and _Counting.now["/b"] == 1)
        assert (load.failed, load.answered >= 4) == (0, True)
        _Counting.status = 503
        _wait("failures", lambda: load.failed > 1)
    assert _Counting.most == {"/a": 4, "/b": 1}
