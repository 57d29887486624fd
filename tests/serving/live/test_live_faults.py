"""Kill -9 in the middle of a move, on a real cluster with a real decider, and other people's faults.

Whatever is killed, and in which phase: the deployments come back to their targets, the journal says how the move ended,
no replica is moved twice, and no node stays fenced for a move that came to nothing.
"""

import functools
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from rayfold.envs.moves import Move
from rayfold.envs.safety import Limits, Reason, check_move
from rayfold.envs.state import ClusterState
from rayfold.policies.best_fit import BestFit
from rayfold.serving import controller_patch
from rayfold.serving.attach import deploy_decider
from rayfold.serving.decision import Mode
from rayfold.serving.executor import ServeExecutor, call_controller
from rayfold.serving.journal import Journal
from rayfold.serving.live_settings import Brakes, LiveSettings
from tests.real_ray import LIVE_MARKS, wait_until
from tests.serving.gated import WishPolicy, deploy_gated
from tests.serving.live_cluster import (
    SETTINGS,
    Live,
    ask,
    ask_controller,
    decider_pid,
    fences_of,
    is_calm,
    kill_controller,
    num_nodes,
    replicas_of,
    request_nodes,
    snapshot,
)
from tests.serving.test_dashboard import ray_samples

pytestmark = LIVE_MARKS

FINAL = ("done", "failed", "cancelled")
NUM_REPLICAS = 6  # four plain, one pack, one gated
FAULTS = LiveSettings(
    idle_timeout_s=SETTINGS.idle_timeout_s,
    decision_interval_s=0.5,
    move_timeout_s=60.0,
    node_types=SETTINGS.node_types,
    limits=Limits(deployment_cooldown_s=0.0, fence_s=600.0),
    brakes=Brakes(moves_per_h=1000, moves_per_deployment_h=1000, moving_frac=1.0, min_run_s=0.0),
    lease_ttl_s=1.0,
)


class Bench(NamedTuple):
    """The cluster with the gated application and a decider that does as it is told."""

    live: Live
    url: str  # of the decider
    folder: Path  # of the gates
    journal: Path

    def gate(self, name: str, *, is_open: bool = True) -> None:
        """Opens or closes a gate."""
        (self.folder / name).touch() if is_open else (self.folder / name).unlink(missing_ok=True)


@pytest.fixture(scope="module")
def bench(live: Live, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Three nodes, six replicas, one decider; afterwards the controller is as it was found."""
    from ray import serve

    from rayfold.serving import demo_apps

    folder = tmp_path_factory.mktemp("gates")
    journal = folder / "journal.sqlite3"
    request_nodes(3)
    demo_apps.scale_echo("plain", 4)
    wait_until("three nodes", lambda: num_nodes() == 3, 90.0)
    deploy_gated(folder)
    url = deploy_decider(
        address=live.address,
        make_policy=functools.partial(WishPolicy, str(folder)),
        settings=FAULTS,
        mode=Mode.ACT,
        token="t",
        journal_path=journal,
    )
    yield Bench(live, url, folder, journal)
    serve.delete("rayfold")
    serve.delete("gated")
    wait_until("the controller to be as found", lambda: call_controller(controller_patch.patched) == [])
    demo_apps.scale_echo("plain", 4)
    wait_until("five replicas", lambda: is_calm(snapshot(), 5))


@pytest.fixture
def calm(bench: Bench) -> Iterator[Bench]:
    """All serve and nothing moves before; after the test that is so again, whatever it did."""
    for name in ("broken", "answer", "held", "wish"):
        bench.gate(name, is_open=False)
    bench.gate("start")
    wait_until("six replicas", lambda: is_calm(snapshot(), NUM_REPLICAS), 90.0)
    for node in call_controller(fences_of):
        call_controller(controller_patch.fence, node, 0.0)  # of earlier tests
    yield bench
    bench.gate("start")
    bench.gate("answer")
    check_aftermath(bench)


def check_aftermath(bench: Bench) -> None:
    """Targets, journal, fences."""
    wait_until("the moves to end", lambda: _all_final(ask(f"{bench.url}/moves")), 90.0)
    wait_until("six replicas", lambda: is_calm(snapshot(), NUM_REPLICAS), 90.0)
    journal = Journal(bench.journal, read_only=True)
    moves = journal.moves(10**6)
    journal.close()
    started = [m["replica_id"] for m in moves if m["phase"] == "done"]
    assert len(set(started)) == len(started), "a replica was moved twice"
    for move in moves:
        phases = [p["phase"] for p in move["phases"]]
        assert phases[0] == "intended"
        assert phases[-1] == move["phase"]
        assert [p for p in phases if p in FINAL] == [move["phase"]], "a move ends once"
    emptied = {m["from_node"] for m in moves if m["phase"] == "done"}
    wait_until("fences of moves that came to nothing to be lifted", lambda: _fenced() <= emptied)


def _fenced() -> set[str]:
    return {node for node, until_s in call_controller(fences_of).items() if until_s > 0.0}


def _all_final(moves: Any) -> bool:
    return isinstance(moves, list) and all(m["phase"] in FINAL for m in moves)


def write_wish(bench: Bench, key: str = "gated/gated") -> None:
    """Wishes a replica moved to the node with most room that is not its own."""
    state = snapshot()
    st, r = state.arrays, replicas_of(state, key)[0]
    open_nodes = [n for n in range(len(st.node_type)) if n != st.replica_node[r]]
    n = max(open_nodes, key=lambda row: st.node_free[row, 0])
    (bench.folder / "wish.part").write_text(f"{state.replica_ids[r]} {state.node_ids[n]}")
    (bench.folder / "wish.part").rename(bench.folder / "wish")


def wish(bench: Bench) -> dict[str, Any]:
    """Has the gated replica moved; the move as soon as it is known."""
    before = {m["move_id"] for m in ask(f"{bench.url}/moves")}
    if not (bench.folder / "wish").exists():
        write_wish(bench)
    found: list[dict[str, Any]] = []

    def look() -> bool:
        found[:] = [m for m in ask(f"{bench.url}/moves") or [] if m["move_id"] not in before]
        return bool(found)

    wait_until("the wished move", look)
    bench.gate("wish", is_open=False)
    return found[0]


def move_now(bench: Bench, move_id: str) -> dict[str, Any]:
    """The move as the decider tells it; nothing while it does not answer."""
    return next((m for m in ask(f"{bench.url}/moves") or [] if m["move_id"] == move_id), {})


def pid_of(controller: Any, replica_id: str) -> int | None:
    """Runs in the controller: process id of a replica, None before it has one."""
    states = controller.deployment_state_manager._deployment_states
    found = [r for s in states.values() for r in s._replicas.get() if r.replica_id.unique_id == replica_id]
    return found[0].actor_details.pid if found else None


def ask_text(url: str) -> str:
    """The answer, empty where there is none."""
    try:
        answer = httpx.get(url, timeout=2.0, trust_env=False)
    except httpx.HTTPError:
        return ""
    return answer.text if answer.status_code == 200 else ""


def kill(what: str, move: Mapping[str, Any]) -> None:
    """Kill -9, and returns when the process is gone and, where it restarts, another is there."""
    if what == "controller":
        kill_controller()
        return
    if what == "decider":
        pid = call_controller(decider_pid)
        os.kill(pid, signal.SIGKILL)
        wait_until("another decider", lambda: ask_controller(decider_pid) not in (None, pid), 90.0)
        return
    replica = move["replica_id"] if what == "old" else move["replacement_id"]
    wait_until(f"the process of {replica}", lambda: call_controller(pid_of, replica) is not None)
    os.kill(call_controller(pid_of, replica), signal.SIGKILL)


def begin(bench: Bench, phase: str) -> tuple[dict[str, Any], "Held | None"]:
    """A move that is in ``phase`` and stays there until a gate is opened."""
    held = None
    if phase == "starting":
        bench.gate("start", is_open=False)
    else:
        held = Held(bench)
    move_id = wish(bench)["move_id"]
    wait_until(
        f"phase {phase}", lambda: (m := move_now(bench, move_id)).get("phase") == phase and bool(m["replacement_id"])
    )
    return move_now(bench, move_id), held


class Held:
    """A request that a replica answers only when the gate is opened, so that it drains until then."""

    def __init__(self, bench: Bench) -> None:
        self._answers: list[httpx.Response] = []
        self._url = f"{bench.live.url}/gated?hold=1"
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()
        wait_until("the request to be held", (bench.folder / "held").exists)

    def _ask(self) -> None:
        self._answers.append(httpx.get(self._url, timeout=60.0, trust_env=False))

    def status(self) -> int:
        """Of the answer."""
        self._thread.join(60.0)
        return self._answers[0].status_code


@pytest.mark.parametrize("phase", ["starting", "draining"])
@pytest.mark.parametrize("what", ["replacement", "old", "controller", "decider"])
def test_kill_in_the_middle_of_a_move(calm: Bench, what: str, phase: str) -> None:
    """The move ends as it must, told once; a request held by a replica that was not killed is answered."""
    move, held = begin(calm, phase)
    kill(what, move)
    calm.gate("start")
    calm.gate("answer")
    expected = {
        ("replacement", "starting"): ("failed", "cancelled"),
        ("replacement", "draining"): ("done",),
        ("old", "starting"): ("failed",),
        ("old", "draining"): ("done",),
        ("controller", "starting"): ("failed",),
        ("controller", "draining"): ("done", "failed"),  # Serve may be quicker, and stop the replacement
        ("decider", "starting"): ("done",),
        ("decider", "draining"): ("done",),
    }
    wait_until("the move to end", lambda: move_now(calm, move["move_id"]).get("phase") in FINAL, 90.0)
    told = move_now(calm, move["move_id"])
    assert told["phase"] in expected[what, phase], told
    if held is not None and what != "old":
        assert held.status() == 200
    check_aftermath(calm)
    wait_until("the application to answer", lambda: ask_text(f"{calm.live.url}/gated") == "gated")
    if what == "controller":
        assert "reattached" in [e["kind"] for e in ask(f"{calm.url}/state")["events"]]


@pytest.mark.parametrize("phase", ["starting", "draining"])
def test_destination_dies_in_the_middle_of_a_move(calm: Bench, phase: str) -> None:
    """Kill -9 of its raylet: all on it dies, the autoscaler brings another node, and the targets are met again."""
    move, held = begin(calm, phase)
    os.kill(raylet_pid(move["to_node"]), signal.SIGKILL)
    wait_until("the node to be gone", lambda: move["to_node"] not in _alive_nodes())
    calm.gate("start")
    calm.gate("answer")
    wait_until("the move to end", lambda: move_now(calm, move["move_id"]).get("phase") in FINAL, 90.0)
    told = move_now(calm, move["move_id"])
    assert told["phase"] == ("failed" if phase == "starting" else "done"), told
    if phase == "starting":
        answer = httpx.get(f"{calm.live.url}/gated", timeout=30.0, trust_env=False)
        assert answer.status_code == 200, "the old replica serves on"
        assert move["replica_id"] in snapshot().replica_ids
    elif held is not None:
        assert held.status() == 200
    wait_until("three nodes", lambda: num_nodes() == 3, 90.0)
    check_aftermath(calm)
    wait_until("the application to answer", lambda: ask_text(f"{calm.live.url}/gated") == "gated")


def raylet_pid(node_id: str) -> int:
    """Process id of a node's raylet: alone of all processes it has this argument."""
    argument = f"--node_id={node_id}"
    (pid,) = (p.pid for p in psutil.process_iter(["cmdline"]) if argument in (p.info["cmdline"] or ()))
    return pid


def _alive_nodes() -> set[str]:
    import ray

    api: Any = ray
    return {n["NodeID"] for n in api.nodes() if n["Alive"]}


@pytest.mark.parametrize("how", ["hangs", "fails"])
def test_replacement_that_never_becomes_healthy(calm: Bench, how: str) -> None:
    """It hangs until the time-out, or fails to start: the old replica serves on, and is the same one."""
    old = snapshot().replica_ids
    calm.gate("start", is_open=False)
    calm.gate("broken", is_open=how == "fails")
    if how == "hangs":
        _post(calm, "settings", {"move_timeout_s": 3.0})
    move_id = wish(calm)["move_id"]
    wait_until("the move to end", lambda: move_now(calm, move_id).get("phase") in FINAL)
    told = move_now(calm, move_id)
    calm.gate("start")
    calm.gate("broken", is_open=False)
    _post(calm, "settings", {"move_timeout_s": FAULTS.move_timeout_s})
    assert told["phase"] == ("cancelled" if how == "hangs" else "failed"), told
    assert told["detail"] == ("time-out" if how == "hangs" else "the replacement ended before it was ready")
    check_aftermath(calm)
    assert sorted(snapshot().replica_ids) == sorted(old)


def _post(bench: Bench, path: str, content: Mapping[str, Any]) -> None:
    answer = httpx.post(
        f"{bench.url}/{path}", json=content, headers={"Authorization": "Bearer t"}, timeout=10.0, trust_env=False
    )
    assert answer.status_code == 200, answer.text


def test_destination_filled_by_somebody_else(calm: Bench) -> None:
    """An actor of somebody else takes the room between plan and start: the move ends, and the old replica serves on."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    state = snapshot()
    st, r = state.arrays, replicas_of(state, "gated/gated")[0]
    n = max((n for n in range(len(st.node_type)) if n != st.replica_node[r]), key=lambda row: st.node_free[row, 0])
    room = float(st.node_free[n, 0])

    class Squatter:
        def ready(self) -> bool:
            return True

    affinity = NodeAffinitySchedulingStrategy(state.node_ids[n], soft=False)
    make: Any = ray.remote(Squatter)
    squatter = make.options(num_cpus=0, num_gpus=room, scheduling_strategy=affinity).remote()
    try:
        assert ray.get(squatter.ready.remote(), timeout=60.0)
        hasty = ServeExecutor(move_timeout_s=2.0, fence_s=0.0)
        move_id = hasty.start(state, Move(r, n))
        wait_until("the move to end", lambda: hasty.statuses()[move_id].phase.value in FINAL)
        assert (hasty.phase(move_id).value, hasty.statuses()[move_id].detail) == ("cancelled", "time-out")
    finally:
        ray.kill(squatter)
    assert state.replica_ids[r] in snapshot().replica_ids


@pytest.mark.parametrize("num_gpus", [0.0, 0.5])
def test_node_with_a_detached_actor_is_not_emptied(calm: Bench, num_gpus: float) -> None:
    """It keeps its node from being released, even if it holds no resource: each move off it says so."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    class Tenant:
        def ready(self) -> bool:
            return True

    state = snapshot()
    key = _key_with_room(state, num_gpus)
    node = state.node_ids[int(state.arrays.replica_node[replicas_of(state, key)[0]])]
    affinity = NodeAffinitySchedulingStrategy(node, soft=False)
    make: Any = ray.remote(Tenant)
    options = {"num_cpus": 0, "num_gpus": num_gpus, "scheduling_strategy": affinity}
    tenant = make.options(name="tenant", lifetime="detached", **options).remote()
    try:
        assert ray.get(tenant.ready.remote(), timeout=60.0)
        _refuse_wish(calm, key, "source_not_releasable")
        told = {n["node_id"]: (n["releasable"], n["kept_by"]) for n in ask(f"{calm.url}/state")["nodes"]}
    finally:
        ray.kill(tenant)
    assert told.pop(node) == (False, ["tenant"])
    assert set(map(str, told.values())) == {"(True, [])"}
    wait_until("the node to be releasable", lambda: _releasable(node))


def _key_with_room(state: ClusterState, num_gpus: float) -> str:
    """A deployment whose first replica has so many GPUs free beside it: where Serve puts them is Serve's choice."""
    st = state.arrays
    keys = [d.key for d in state.spec.deployments if replicas_of(state, d.key)]
    return next(k for k in keys if st.node_free[st.replica_node[replicas_of(state, k)[0]], 0] >= num_gpus)


def _releasable(node_id: str) -> bool:
    state = snapshot()
    return bool(state.arrays.node_releasable[state.node_ids.index(node_id)])


def _refuse_wish(bench: Bench, key: str, reason: str) -> None:
    """Wishes a replica moved, and waits for a decision that refuses it for this reason, and starts nothing."""
    before, newest = ask(f"{bench.url}/moves"), ask(f"{bench.url}/decisions?limit=1")[0]["id"]
    write_wish(bench, key)
    wait_until(f"a refusal: {reason}", lambda: _has_refused(bench.url, reason, newest))
    bench.gate("wish", is_open=False)
    assert ask(f"{bench.url}/moves") == before


def test_group_that_spans_nodes_is_never_moved(calm: Bench) -> None:
    """A PACK group of six GPUs lies on two nodes at least: it is told so, refused wherever it would go, and stays."""
    from ray import serve

    from rayfold.serving import demo_apps

    demo_apps.scale_echo("plain", 1)
    wait_until("three replicas", lambda: is_calm(snapshot(), NUM_REPLICAS - 3))
    demo_apps.deploy_echo("wide", 1, [{"GPU": 2.0, "CPU": 1.0}] * 3)
    state = snapshot()
    st, (r,) = state.arrays, replicas_of(state, "wide/wide")
    assert st.replica_spans[r]
    assert len({int(n) for n in st.replica_bundle_node[r]} - {-1}) >= 2
    others = [n for n in range(len(st.node_type)) if n != st.replica_node[r]]
    assert {check_move(state, Move(r, n), Limits()).reason for n in others} == {Reason.REPLICA_SPANS_NODES}
    plan = BestFit(Limits()).plan(state, np.random.default_rng(0))
    assert r not in {move.replica_idx for move in plan.moves}
    _refuse_wish(calm, "wide/wide", "replica_spans_nodes")
    after = snapshot()
    (again,) = replicas_of(after, "wide/wide")
    assert after.replica_ids[again] == state.replica_ids[r]
    serve.delete("wide")
    demo_apps.scale_echo("plain", 4)


def test_ray_s_exporter_tells_the_metrics(calm: Bench) -> None:
    """What the head's own exporter serves is what the dashboard asks for; after a move, with its phases."""
    move_id = wish(calm)["move_id"]
    wait_until("the move to end", lambda: move_now(calm, move_id).get("phase") in FINAL)
    rare = {"ray_rayfold_fallback_total", "ray_rayfold_tick_errors_total", "ray_rayfold_moves_undone_total"}
    expected = {name: labels for name, labels in ray_samples().items() if name not in rare}
    wait_until("the exporter to tell them", lambda: expected.keys() <= _exported().keys(), 90.0)
    told = _exported()
    assert all(labels <= told[name] for name, labels in expected.items())
    known = {name for name in told if not name.endswith("_bucket")}
    assert known <= expected.keys() | rare


def _exported() -> dict[str, set[str]]:
    """Labels by name of the decider's samples at the exporter of its node."""
    import ray

    api: Any = ray
    (port,) = (n["MetricsExportPort"] for n in api.nodes() if "node:__internal_head__" in n["Resources"])
    page = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10.0, trust_env=False).text
    samples = [s for family in text_string_to_metric_families(page) for s in family.samples]
    return {s.name: set(s.labels) for s in samples if s.name.startswith("ray_rayfold_")}


@pytest.fixture
def rival(calm: Bench) -> Iterator[str]:
    """The URL of a second decider, in mode act, that wishes the same."""
    from ray import serve

    from rayfold.serving.decider_app import DeciderConfig, decider_application

    config = DeciderConfig(
        make_policy=functools.partial(WishPolicy, str(calm.folder)),
        settings=FAULTS,
        mode=Mode.ACT,
        token="t",
        journal_path=calm.folder / "rival.sqlite3",
    )
    serve.run(decider_application(config), name="rival", route_prefix="/rival")
    yield f"{calm.live.url}/rival"
    serve.delete("rival")
    wait_until("six replicas", lambda: is_calm(snapshot(), NUM_REPLICAS))


def test_of_two_deciders_one_acts(calm: Bench, rival: str) -> None:
    """The second decides the same, is refused with the holder's name, and starts nothing, even while that pauses."""
    _post(calm, "pause", {"reason": "planted"})
    write_wish(calm)
    for url, why in ((calm.url, "paused: planted"), (rival, "holds the lease")):
        wait_until(f"a refusal: {why}", functools.partial(_has_refused, url, why))
    _post(calm, "resume", {})
    move_id = wish(calm)["move_id"]
    wait_until("the move to end", lambda: move_now(calm, move_id).get("phase") in FINAL)
    assert move_now(calm, move_id)["phase"] == "done"
    assert ask(f"{rival}/moves") == []
    assert ask(f"{rival}/state")["lease_held"] is False


def _has_refused(url: str, why: str, after_id: int = 0) -> bool:
    newer = [decision for decision in ask(f"{url}/decisions") if decision["id"] > after_id]
    return any(move["reason"].endswith(why) for decision in newer for move in decision["moves"])
