"""Right-sizing on a real Ray 2.60 cluster: a move launches the smaller node that it goes to. Nothing is simulated."""

import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from rayfold.envs.cluster import Interval, NodeType
from rayfold.envs.moves import Move, MovePhase
from rayfold.envs.safety import Limits
from rayfold.policies.exact import Exact
from rayfold.serving.attach import deploy_decider
from rayfold.serving.decision import Mode
from rayfold.serving.executor import ServeExecutor
from rayfold.serving.history import History
from rayfold.serving.live_settings import LaunchSettings, NodeTypeSettings
from rayfold.serving.load import HttpLoad
from rayfold.serving.local_cluster import LocalCluster, free_port
from rayfold.serving.snapshot import take_snapshot
from tests.real_ray import LIVE_MARKS, wait_until
from tests.serving.live_cluster import (
    SETTINGS,
    finish,
    has_reattached,
    is_calm,
    kill_controller,
    request_nodes,
)

pytestmark = LIVE_MARKS
BOOT_S = Interval(1.0, 20.0)
BIG = NodeType(name="big", resources={"GPU": 4.0, "CPU": 8.0}, price_usd_per_h=4.0, max_nodes=1)
SMALL = NodeType(
    name="small", resources={"GPU": 2.0, "CPU": 4.0}, price_usd_per_h=1.0, max_nodes=2, labels={"size": "small"}
)
SMALL_SETTINGS = NodeTypeSettings(
    price_usd_per_h=SMALL.price_usd_per_h,
    max_nodes=SMALL.max_nodes,
    boot_s=BOOT_S,
    launch=LaunchSettings(labels=SMALL.labels, resources=SMALL.resources),
)
RIGHT_SIZING = dataclasses.replace(
    SETTINGS,
    node_types={"big": NodeTypeSettings(price_usd_per_h=4.0, max_nodes=1, boot_s=BOOT_S), "small": SMALL_SETTINGS},
    limits=Limits(max_concurrent_moves=2, deployment_cooldown_s=1.0, fence_s=60.0, allow_new_nodes=True),
)


class Site(NamedTuple):
    """One PACK group of two bundles, alone on a node of four GPUs."""

    address: str
    url: str  # of the application


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """The cluster."""
    from ray import serve

    from rayfold.serving import demo_apps

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing and starting Ray Serve warns of its own deprecations
        with LocalCluster(node_types=[BIG, SMALL], idle_timeout_s=SETTINGS.idle_timeout_s) as cluster:
            cluster.connect()
            request_nodes(1)
            wait_until("the big node to join", lambda: _node_types() == ["big"])
            port = free_port()
            serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
            demo_apps.deploy_echo("pack", 1, [{"GPU": 1.0, "CPU": 1.0}] * 2)
            request_nodes(0)
            yield Site(cluster.address, f"http://127.0.0.1:{port}/pack")


def _node_types() -> list[str]:
    """Of the alive worker nodes."""
    import ray

    api: Any = ray
    labels = [n["Labels"] for n in api.nodes() if n["Alive"] and n["Resources"].get("GPU", 0) > 0]
    return sorted(label["ray.io/node-group"] for label in labels)


def test_decider_launches_the_smaller_node_and_the_larger_is_released(site: Site, tmp_path: Path) -> None:
    """A node of 4 USD/h for two GPUs' worth of replicas becomes one of 1 USD/h, and no request is lost."""
    with HttpLoad([site.url], num_clients=4) as load:
        wait_until("load to flow", lambda: load.stats("start").requests > 20)
        load.begin("move")
        url = deploy_decider(
            address=site.address,
            make_policy=Exact,
            settings=RIGHT_SIZING,
            mode=Mode.ACT,
            token="test",
            journal_path=tmp_path / "journal.sqlite3",
        )
        wait_until("the small node alone", lambda: _node_types() == ["small"])
        load.begin("after")
        wait_until("load after the move", lambda: load.stats("after").requests > 20)
        (move,) = httpx.get(f"{url}/moves", timeout=10.0, trust_env=False).json()
        httpx.post(f"{url}/mode", json={"mode": "off"}, headers={"Authorization": "Bearer test"}, timeout=20.0)
    for phase in ("start", "move", "after"):
        assert load.stats(phase).failed == 0, load.stats(phase).errors
    assert (move["to_node"], move["phase"]) == ("new:small", "done")
    state = take_snapshot(RIGHT_SIZING, History())
    assert is_calm(state, 1)
    (node_id,) = (n for n in state.node_ids if not n.startswith("booting"))
    assert move["detail"] == f"on new node {node_id}"
    assert state.node_ids[int(state.arrays.replica_node[0])] == node_id


def test_node_that_never_comes_leaves_the_replica_where_it_is(site: Site) -> None:
    """No node type has such labels: the move times out in the controller, and the old replica serves on."""
    nowhere = LaunchSettings(labels={"size": "none"}, resources=SMALL.resources)
    node_types = {"small": dataclasses.replace(SMALL_SETTINGS, boot_s=Interval(1.0, 2.0), launch=nowhere)}
    executor = ServeExecutor(move_timeout_s=2.0, fence_s=0.0, node_types=node_types)
    state, before = take_snapshot(RIGHT_SIZING, History()), _node_types()
    assert is_calm(state, 1)
    t = [node_type.name for node_type in state.spec.node_types].index("small")
    move_id = executor.start(state, Move(0, len(state.arrays.node_type) + t))
    wait_until("the replacement to exist", lambda: executor.statuses()[move_id].replacement_id is not None)
    waiting = take_snapshot(RIGHT_SIZING, History())
    assert "booting-0" in waiting.node_ids, "the node that the move waits for is counted"
    assert finish(executor, move_id) == MovePhase.CANCELLED
    assert executor.statuses()[move_id].detail == "time-out"
    wait_until("one replica", lambda: is_calm(take_snapshot(RIGHT_SIZING, History()), 1))
    assert state.replica_ids[0] in take_snapshot(RIGHT_SIZING, History()).replica_ids
    assert _node_types() == before
    executor.detach()


def test_controller_killed_while_a_node_is_awaited(site: Site) -> None:
    """The move fails, nobody waits for the node any longer, and one replica answers."""
    nowhere = dataclasses.replace(
        SMALL_SETTINGS, launch=LaunchSettings(labels={"size": "none"}, resources=SMALL.resources)
    )
    executor = ServeExecutor(fence_s=0.0, node_types={"small": nowhere})
    state, before = take_snapshot(RIGHT_SIZING, History()), _node_types()
    t = [node_type.name for node_type in state.spec.node_types].index("small")
    move_id = executor.start(state, Move(0, len(state.arrays.node_type) + t))
    wait_until("the replacement to exist", lambda: executor.statuses()[move_id].replacement_id is not None)
    kill_controller()
    wait_until("the executor to attach again", lambda: has_reattached(executor))
    assert finish(executor, move_id) == MovePhase.FAILED
    wait_until("one replica", lambda: is_calm(take_snapshot(RIGHT_SIZING, History()), 1))
    answer = httpx.get(site.url, timeout=30.0, trust_env=False)
    assert answer.status_code == 200
    assert executor.statuses()[move_id].replacement_id not in take_snapshot(RIGHT_SIZING, History()).replica_ids
    assert _node_types() == before
    executor.detach()
