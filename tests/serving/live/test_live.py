"""Against a real Ray 2.60 cluster with Serve and the autoscaler: nothing here is simulated.

The cluster is that of ``live_cluster``. Every test leaves its five replicas serving, up to the last one.
"""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from rayfold.envs.encoding import encode_state
from rayfold.envs.ledger import Entry
from rayfold.envs.moves import Move, MovePhase
from rayfold.envs.safety import Limits
from rayfold.envs.state import ClusterState
from rayfold.envs.state_check import check_state
from rayfold.errors import ClusterError, ExecutorError
from rayfold.policies.best_fit import BestFit
from rayfold.policies.none import NoMoves
from rayfold.policies.twin import roll_forward, startable
from rayfold.serving import controller_patch, controller_view
from rayfold.serving.attach import deploy_decider, detach_controller, serve_decider
from rayfold.serving.decision import Mode
from rayfold.serving.executor import ServeExecutor, call_controller, serve_controller
from rayfold.serving.lease import GcsStore, Lease
from rayfold.serving.live_moves import FINAL, MoveRecord
from rayfold.serving.load import HttpLoad
from rayfold.serving.state_file import save_snapshot
from tests.envs.clusters import constant_traffic
from tests.real_ray import LIVE_MARKS, wait_until
from tests.serving.live_cluster import (
    SETTINGS,
    Live,
    ask,
    decider_pid,
    fences_of,
    finish,
    has_reattached,
    is_calm,
    num_nodes,
    other_node,
    replicas_of,
    request_nodes,
    scheduler_class,
    snapshot,
)

pytestmark = LIVE_MARKS
SERVE_CONFIG = Path(controller_patch.__file__).parent / "config.yaml"


@pytest.fixture
def executor(live: Live) -> Iterator[ServeExecutor]:
    """An attached executor, detached afterwards."""
    made = ServeExecutor(move_timeout_s=60.0, fence_s=0.0)
    made.attach()
    yield made
    made.detach()


def _node_of(state: ClusterState, replica_id: str) -> str:
    return state.node_ids[int(state.arrays.replica_node[state.replica_ids.index(replica_id)])]


def test_snapshot_file_starts_the_simulator(live: Live, tmp_path: Path) -> None:
    """The file of a live cluster is all the twin needs: three nodes and five replicas cost what three nodes cost."""
    save_snapshot(live.address, SETTINGS, tmp_path / "live.npz")
    loaded = ClusterState.load(tmp_path / "live.npz")
    check_state(loaded, "live.npz")
    state = startable(loaded)
    assert is_calm(state, 5)
    spec = state.spec
    num_steps = round(60.0 / spec.settings.substep_s)
    busy = {d.name: 2.0 * d.autoscaling.target_ongoing_requests * d.autoscaling.max_replicas for d in spec.deployments}
    traffic = constant_traffic(spec, busy, num_steps)
    result = roll_forward(state, NoMoves(), [traffic], SETTINGS.limits, np.random.default_rng(0))
    elapsed_h = result.ledgers[0][Entry.ELAPSED_S] / 3600.0
    assert elapsed_h == pytest.approx(60.0 / 3600.0)
    occupied = len(set(state.arrays.replica_node.tolist()))
    paid_nodes = result.ledgers[0][Entry.COST_USD] / (4.0 * elapsed_h)
    assert occupied - 1e-6 <= paid_nodes <= 3.0 + 1e-6


@pytest.mark.parametrize(("app", "gpus"), [("plain", 1.0), ("pack", 2.0)])
def test_move_under_load_loses_no_request(live: Live, executor: ServeExecutor, app: str, gpus: float) -> None:
    """A plain actor and a PACK group arrive whole on the named node, and every request is answered."""
    state = snapshot()
    r = replicas_of(state, f"{app}/{app}")[0]
    n = other_node(state, r, gpus)
    with HttpLoad([f"{live.url}/{app}"], num_clients=6) as load:
        wait_until("load to flow", lambda: load.stats("start").requests > 20)
        load.begin("move")
        move_id = executor.start(state, Move(r, n))
        assert finish(executor, move_id) == MovePhase.DONE, executor.statuses()[move_id]
        load.begin("after")
        wait_until("load after the move", lambda: load.stats("after").requests > 20)
    status = executor.statuses()[move_id]
    after = snapshot()
    assert status.replacement_id is not None
    assert _node_of(after, status.replacement_id) == state.node_ids[n]
    assert state.replica_ids[r] not in after.replica_ids
    assert is_calm(after, 5)
    assert all(d.is_movable for d in after.spec.deployments), "the group must not span nodes"
    for phase in ("start", "move", "after"):
        stats = load.stats(phase)
        assert stats.failed == 0, stats.errors
    assert load.stats("move").requests > 20


def test_cancel_leaves_the_target_count(live: Live, executor: ServeExecutor) -> None:
    """A move that cannot land is cancelled: the old replica serves on, and the count is the target."""
    state, r, n = _crowded_node(executor)
    move_id = executor.start(state, Move(r, n))
    wait_until("the replacement to exist", lambda: executor.statuses()[move_id].replacement_id is not None)
    assert executor.phase(move_id) == MovePhase.STARTING
    executor.cancel(move_id)
    assert finish(executor, move_id) == MovePhase.CANCELLED
    wait_until("five replicas", lambda: is_calm(snapshot(), 5))
    assert state.replica_ids[r] in snapshot().replica_ids


def test_time_out_cancels(live: Live, executor: ServeExecutor) -> None:
    """The controller itself ends a move that takes too long."""
    hasty = ServeExecutor(move_timeout_s=2.0, fence_s=0.0)
    state, r, n = _crowded_node(executor)
    move_id = hasty.start(state, Move(r, n))
    assert finish(hasty, move_id, 20.0) == MovePhase.CANCELLED
    assert hasty.statuses()[move_id].detail == "time-out"
    wait_until("five replicas", lambda: is_calm(snapshot(), 5))
    assert state.replica_ids[r] in snapshot().replica_ids


def _crowded_node(executor: ServeExecutor) -> tuple[ClusterState, int, int]:
    """Moves plain replicas onto one node until a PACK group has no room there; that group's row and the node's."""
    for _ in range(4):
        state = snapshot()
        st, r = state.arrays, replicas_of(state, "pack/pack")[0]
        others = [n for n in range(len(st.node_type)) if n != st.replica_node[r]]
        n = min(others, key=lambda row: st.node_free[row, 0])
        if st.node_free[n, 0] < 2.0:
            return state, r, n
        mover = next(row for row in replicas_of(state, "plain/plain") if st.replica_node[row] != n)
        assert finish(executor, executor.start(state, Move(mover, n))) == MovePhase.DONE
        wait_until("five replicas", lambda: is_calm(snapshot(), 5))
    pytest.fail("no node could be crowded")


def test_second_move_of_one_replica_is_refused(live: Live, executor: ServeExecutor) -> None:
    """One replica moves to one place at a time, and never to where it is."""
    state = snapshot()
    r = replicas_of(state, "plain/plain")[0]
    home = int(state.arrays.replica_node[r])
    with pytest.raises(ExecutorError, match="is on that node"):
        executor.start(state, Move(r, home))
    n = other_node(state, r, 1.0)
    move_id = executor.start(state, Move(r, n))
    with pytest.raises(ExecutorError, match=r"moved already|no running replica"):
        executor.start(state, Move(r, n))
    executor.cancel(move_id)
    assert finish(executor, move_id) in (MovePhase.CANCELLED, MovePhase.DONE)
    wait_until("five replicas", lambda: is_calm(snapshot(), 5))


def test_other_version_is_refused_and_untouched(live: Live) -> None:
    """On a Ray that was not tested, attaching is refused, the controller stays as it is, and observing works."""
    with pytest.raises(ClusterError, match="not a tested version"):
        ServeExecutor(tested_ray=("2.59.0",)).attach()
    assert call_controller(scheduler_class)[2] is False
    assert len(snapshot().replica_ids) == 5
    assert call_controller(controller_view.own_compaction) == "", "this cluster spreads"


def test_detach_leaves_the_controller_as_found(live: Live) -> None:
    """Scheduler class and method are the old ones again after a detach."""
    before = call_controller(scheduler_class)
    executor = ServeExecutor()
    executor.attach()
    assert call_controller(scheduler_class) != before
    executor.detach()
    assert call_controller(scheduler_class) == before


def test_detach_verb_leaves_the_controller_as_found(live: Live) -> None:
    """Whoever attached: three things are changed, named, and put back; a second time there is nothing to do."""
    ServeExecutor().attach()
    found = call_controller(controller_patch.patched)
    assert [name.rpartition(".")[2] for name in found] == [
        "_rayfold_desk",
        "__class__",
        "migrate_replicas_on_draining_nodes",
    ]
    assert detach_controller(live.address) == (found, False)
    assert call_controller(controller_patch.patched) == []
    assert call_controller(scheduler_class)[2] is False
    assert detach_controller(live.address) == ([], False)


def test_lease_of_the_gcs_has_one_holder(live: Live) -> None:
    """The real store: absent is put once, a silent holder is taken over, and the controller refuses its term."""
    now_s = {"now_s": 0.0}
    first, second = (Lease(GcsStore(), name, 10.0, lambda: now_s["now_s"]) for name in ("first", "second"))
    assert first.hold() == ""
    assert second.hold() == f"{first.name} holds the lease"
    now_s["now_s"] = 10.0
    assert second.hold() == ""
    assert second.name in first.hold()
    late, holder = (ServeExecutor(fence_s=0.0, term=lambda term=term: term) for term in (1, second.term))  # type: ignore[misc]
    state = snapshot()
    r = replicas_of(state, "plain/plain")[0]
    move_id = holder.start(state, Move(r, other_node(state, r, 1.0)))
    with pytest.raises(ExecutorError, match="another decider has taken over"):
        late.start(state, Move(r, other_node(state, r, 1.0)))
    late.detach()
    assert call_controller(scheduler_class)[2] is True, "the late one must not detach the holder"
    assert finish(holder, move_id) == MovePhase.DONE
    holder.detach()
    assert call_controller(scheduler_class)[2] is False
    second.release()
    assert first.hold() == ""
    first.release()


def test_moves_of_a_dead_decider_are_adopted_and_never_begun_twice(live: Live) -> None:
    """One that the controller has taken is finished; one that it has not is closed, and its late start is refused."""
    state, dead = snapshot(), ServeExecutor(fence_s=0.0)
    one, other = replicas_of(state, "plain/plain")[:2]
    records = [
        MoveRecord(
            move_id=name,
            decision_id=1,
            deployment="plain/plain",
            replica_id=state.replica_ids[r],
            from_node=state.node_ids[int(state.arrays.replica_node[r])],
            to_node=state.node_ids[other_node(state, r, 1.0)],
            started_s=time.time(),
        )
        for name, r in (("taken", one), ("intended", other))
    ]
    dead.start(state, Move(one, other_node(state, one, 1.0)), "taken")
    heir = ServeExecutor(fence_s=0.0)
    heir.adopt(records)
    assert heir.phase("intended") == MovePhase.CANCELLED
    with pytest.raises(ExecutorError, match="known already"):
        dead.start(state, Move(other, other_node(state, other, 1.0)), "intended")
    assert finish(heir, "taken") == MovePhase.DONE
    with pytest.raises(ExecutorError, match="known already"):
        dead.start(state, Move(one, other_node(state, one, 1.0)), "taken")
    assert state.replica_ids[other] in snapshot().replica_ids
    dead.detach()
    wait_until("five replicas", lambda: is_calm(snapshot(), 5))


def test_restarted_controller_is_attached_again(live: Live) -> None:
    """A controller that died knows nothing of rayfold; it is told by its token, and gets its fences again."""
    import ray

    state, executor = snapshot(), ServeExecutor(fence_s=60.0)
    r = replicas_of(state, "plain/plain")[0]
    source = state.node_ids[int(state.arrays.replica_node[r])]
    assert finish(executor, executor.start(state, Move(r, other_node(state, r, 1.0)))) == MovePhase.DONE
    assert executor.keep_attached() is False
    ray.kill(serve_controller(), no_restart=False)
    wait_until("the controller to be back", lambda: has_reattached(executor))
    assert call_controller(scheduler_class)[2] is True
    assert call_controller(fences_of).keys() == {source}
    executor.detach()
    assert call_controller(controller_patch.patched) == []
    wait_until("five replicas", lambda: is_calm(snapshot(), 5))
    assert httpx.get(f"{live.url}/plain", timeout=10.0, trust_env=False).status_code == 200


def test_permanent_form_attaches_a_restarted_controller(live: Live) -> None:
    """Ray calls the callback when the controller starts: it is attached though nobody attached it, and moves."""
    import ray

    assert call_controller(controller_patch.patched) == []
    live.wish.touch()
    ray.kill(serve_controller(), no_restart=False)
    wait_until("an attached controller", lambda: len(_patched()) == 3)
    live.wish.unlink()
    wait_until("five replicas", lambda: is_calm(snapshot(), 5))
    executor, state = ServeExecutor(fence_s=0.0), snapshot()
    r = replicas_of(state, "plain/plain")[0]
    assert finish(executor, executor.start(state, Move(r, other_node(state, r, 1.0)))) == MovePhase.DONE
    assert len(detach_controller(live.address).patched) == 3
    assert call_controller(controller_patch.patched) == []


def _patched() -> list[str]:
    try:
        return list(call_controller(controller_patch.patched, timeout_s=5.0))
    except ClusterError:
        return []


def test_fenced_node_takes_no_new_replica(live: Live, executor: ServeExecutor) -> None:
    """Under spread, a fenced node with most room is passed over, by a scale-up of an unpatched application."""
    from ray import serve

    from rayfold.serving import demo_apps

    state = snapshot()
    free = state.arrays.node_free[:, 0]
    fenced = int(free.argmax())
    room_elsewhere = int(free.sum() - free[fenced])
    assert room_elsewhere >= 1
    call_controller(controller_patch.fence, state.node_ids[fenced], time.time() + 60.0)
    count = min(2, room_elsewhere)
    demo_apps.deploy_echo("late", count)
    after = snapshot()
    nodes = {int(after.arrays.replica_node[r]) for r in replicas_of(after, "late/late")}
    assert len(replicas_of(after, "late/late")) == count
    assert after.node_ids.index(state.node_ids[fenced]) not in nodes
    serve.delete("late")
    call_controller(controller_patch.fence, state.node_ids[fenced], 0.0)
    wait_until("five replicas", lambda: is_calm(snapshot(), 5))


@pytest.mark.usefixtures("autoscaled")
def test_burst_in_the_middle_of_an_evacuation(live: Live) -> None:
    """Ten users become sixty while a node is emptied: what Serve scales up stays off it, and nobody goes unserved.

    The scale-up is that of Serve's own autoscaler.
    """
    limits = Limits(max_concurrent_moves=10, deployment_cooldown_s=0.0)
    state, executor = snapshot(), ServeExecutor(fence_s=60.0)
    plan = BestFit(limits).plan(state, np.random.default_rng(0))
    (source,) = {int(state.arrays.replica_node[move.replica_idx]) for move in plan.moves}
    urls = [f"{live.url}/burst", f"{live.url}/plain", f"{live.url}/pack"]
    with HttpLoad(urls, num_clients=10) as calm, contextlib.ExitStack() as later:
        later.callback(executor.detach)
        wait_until("load to flow", lambda: calm.stats("start").requests > 50)
        move_ids = [executor.start(state, move) for move in plan.moves]
        wait_until("a replacement", lambda: any(s.replacement_id for s in executor.statuses().values()))
        burst = later.enter_context(HttpLoad(urls[:1], num_clients=50))
        assert any(status.phase not in FINAL for status in executor.statuses().values())
        for move_id in move_ids:
            assert finish(executor, move_id) == MovePhase.DONE, executor.statuses()[move_id]
        # How far Serve scales depends on how fast this machine answers; that it does at all is what is needed.
        wait_until("the scale-up", lambda: len(replicas_of(snapshot(), "burst/burst")) > 2)
        wait_until("load after it", lambda: burst.stats("start").requests > 500)
        after = snapshot()
    assert state.node_ids[source] not in {after.node_ids[n] for n in after.arrays.replica_node}
    for load in (calm, burst):
        assert load.stats("start").failed == 0, load.stats("start").errors


@pytest.fixture
def autoscaled(live: Live) -> Iterator[None]:
    """``/burst``: two replicas of a tenth of a GPU, up to six where more than three requests wait for each."""
    from ray import serve

    from rayfold.serving import demo_apps

    scaling = {
        "min_replicas": 2,
        "max_replicas": 6,
        "target_ongoing_requests": 3,
        "upscale_delay_s": 0.5,
        "downscale_delay_s": 600.0,
        "look_back_period_s": 2.0,
        "metrics_interval_s": 0.5,
    }
    deployment: Any = serve.deployment(
        name="burst",
        autoscaling_config=scaling,
        ray_actor_options={"num_cpus": 1, "num_gpus": 0.1},
        max_ongoing_requests=20,
        graceful_shutdown_wait_loop_s=1.0,
    )(demo_apps.Echo)
    serve.run(deployment.bind("burst"), name="burst", route_prefix="/burst")
    yield
    serve.delete("burst")
    wait_until("five replicas", lambda: is_calm(snapshot(), 5))


def test_live_snapshot_encodes_as_the_equal_hand_built_state(live: Live) -> None:
    """Free room, devices and counts rebuilt by hand from the replicas alone give the same observation."""
    state = snapshot()
    st, spec = state.arrays, state.spec
    hand = st.copy()
    hand.node_free[:] = spec.arrays.type_capacity[hand.node_type]
    hand.gpu_free[:] = 1.0
    for r in range(len(state.replica_ids)):
        n, num_gpus = int(st.replica_node[r]), int(spec.arrays.demand[st.replica_deployment[r], 0])
        hand.node_free[n] -= spec.arrays.demand[st.replica_deployment[r]]
        first = int((hand.gpu_free[n] < 1.0).sum())
        hand.gpu_free[n, first : first + num_gpus] = 0.0
    built = dataclasses.replace(state, arrays=hand, node_ids=(), replica_ids=())
    np.testing.assert_allclose(encode_state(state, Limits()), encode_state(built, Limits()), atol=1e-5)


def test_recommend_shows_a_plan_and_touches_nothing(live: Live, tmp_path: Path) -> None:
    """Mode recommend tells its moves, starts none, asks for the token, and is gone afterwards."""
    before = snapshot().replica_ids
    lines: list[str] = []
    answers: dict[str, httpx.Response] = {}
    stop, token_file = threading.Event(), tmp_path / "token"
    token_file.write_text("s3cret")
    token_file.chmod(0o600)
    bearer = {"Authorization": "Bearer s3cret"}

    def tell(line: str) -> None:
        lines.append(line)
        if not line.startswith("recommend"):
            return
        base = f"{live.url}/rayfold"
        with httpx.Client(timeout=10.0, trust_env=False) as client:
            for name in ("healthz", "state", "plan", "decisions", "moves", "metrics", "openapi.json"):
                answers[name] = client.get(f"{base}/{name}")
            answers["no token"] = client.post(f"{base}/mode", json={"mode": "act"})
            answers["wrong"] = client.post(f"{base}/mode", json={"mode": "act"}, headers={"Authorization": "Bearer no"})
            answers["right"] = client.post(f"{base}/settings", json={"brakes": {"moves_per_h": 7}}, headers=bearer)
            answers["absent"] = client.get(f"{base}/decisions/999999")
            answers["method"] = client.put(f"{base}/settings")

    seen = serve_decider(
        address=live.address,
        mode="recommend",
        settings=SETTINGS,
        token_file=token_file,
        progress=tell,
        stop=stop,
        max_decisions=2,
    )
    assert seen == 2
    assert answers["healthz"].json()["status"] == "ok"
    assert len(answers["state"].json()["replicas"]) == 5
    assert answers["plan"].json()["policy"] == "best_fit"
    assert len(answers["decisions"].json()) >= 1
    assert answers["moves"].json() == []
    assert answers["right"].json()["brakes"] == {**answers["right"].json()["brakes"], "moves_per_h": 7}
    assert (answers["absent"].status_code, answers["absent"].json()) == (404, {"error": "no decision 999999"})
    assert (answers["method"].status_code, answers["method"].headers["allow"]) == (405, "GET, POST")
    assert 'rayfold_mode{mode="recommend"} 1.0' in answers["metrics"].text
    assert "/moves/{move_id}/cancel" in answers["openapi.json"].json()["paths"]
    assert (answers["no token"].status_code, answers["wrong"].status_code) == (401, 401)
    assert any(line.startswith("recommend best_fit: 3 nodes, 12.00 USD/h") for line in lines), lines
    assert sorted(snapshot().replica_ids) == sorted(before)
    assert httpx.get(f"{live.url}/rayfold/healthz", timeout=10.0, trust_env=False).status_code == 404


def test_serve_deploy_brings_the_decider(live: Live, tmp_path: Path) -> None:
    """Ray's own command with the shipped file, over the dashboard, with Ray's token: it recommends, touches nothing.

    A detach tells that it came by a file, and a file without its entry takes it away for good.
    """
    before = snapshot().replica_ids
    _serve_deploy(live, SERVE_CONFIG)
    url = f"{live.url}/rayfold"
    wait_until("a decision", lambda: bool(ask(f"{url}/plan")), 90.0)
    health, decision = ask(f"{url}/healthz"), ask(f"{url}/plan")
    assert (health["status"], health["mode"], decision["policy"]) == ("ok", "recommend", "learned"), health
    assert len(ask(f"{url}/state")["replicas"]) == 5
    assert httpx.post(f"{url}/pause", timeout=10.0, trust_env=False).status_code == 401, "nobody has its token"
    assert call_controller(controller_patch.patched) == []
    assert detach_controller(live.address).is_declared
    (tmp_path / "without.yaml").write_text("applications: []")
    _serve_deploy(live, tmp_path / "without.yaml")  # what is only deleted comes back when the controller restarts
    wait_until("the decider to be gone", lambda: call_controller(decider_pid) is None)
    assert sorted(snapshot().replica_ids) == sorted(before)


def _serve_deploy(live: Live, config: Path) -> None:
    program, environment = Path(sys.executable).parent / "serve", {**os.environ, **live.cluster.client_env}
    command = [str(program), "deploy", str(config), "--address", live.cluster.dashboard_url]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_killed_decider_goes_on_and_a_node_is_released(live: Live) -> None:
    """The last test: after a scale-down the decider moves what is left together, and is killed in its first move.

    Serve starts it again; it finishes what was under way, waits for the lease of the dead one to run out, moves nothing
    twice, loses no request, and the autoscaler takes a node.
    """
    from ray import serve

    from rayfold.serving import demo_apps

    demo_apps.scale_echo("plain", 3)
    wait_until("four replicas", lambda: is_calm(snapshot(), 4))
    _spread_out()
    assert len({int(n) for n in snapshot().arrays.replica_node}) == 3
    with HttpLoad([f"{live.url}/plain", f"{live.url}/pack"], num_clients=4) as load:
        url = deploy_decider(address=live.address, make_policy=BestFit, settings=SETTINGS, mode=Mode.ACT, token="t")
        wait_until("a first move", lambda: bool(ask(f"{url}/moves")))
        first = ask(f"{url}/moves")
        pid = call_controller(decider_pid)
        os.kill(pid, signal.SIGKILL)
        request_nodes(0)
        wait_until("another decider", lambda: call_controller(decider_pid) not in (None, pid), 60.0)
        wait_until("a node to be released", lambda: num_nodes() < 3, 90.0)
        wait_until("the moves to end", lambda: _are_final(ask(f"{url}/moves")))
        moves = ask(f"{url}/moves")
        metrics = httpx.get(f"{url}/metrics", timeout=10.0, trust_env=False).text
        serve.delete("rayfold")
    assert {m["move_id"] for m in first} <= {m["move_id"] for m in moves}
    done = [m["replica_id"] for m in moves if m["phase"] == "done"]
    assert done
    assert len(set(done)) == len(done), "a replica was moved twice"
    assert "rayfold_cluster_usd_per_hour" in metrics
    assert load.stats("start").failed == 0, load.stats("start").errors
    wait_until("the controller to be as found", lambda: call_controller(controller_patch.patched) == [])
    wait_until("four replicas", lambda: is_calm(snapshot(), 4))


def _are_final(moves: Any) -> bool:
    return bool(moves) and all(m["phase"] in ("done", "failed", "cancelled") for m in moves)


def _spread_out() -> None:
    """Moves plain replicas until every node holds something."""
    executor = ServeExecutor(fence_s=0.0)
    for _ in range(3):
        state = snapshot()
        st = state.arrays
        empty = [n for n in range(len(st.node_type)) if n not in st.replica_node]
        if not empty:
            break
        counts = np.bincount(st.replica_node, minlength=len(st.node_type))
        r = max(replicas_of(state, "plain/plain"), key=lambda row: counts[st.replica_node[row]])
        assert finish(executor, executor.start(state, Move(r, empty[0]))) == MovePhase.DONE
    executor.detach()
