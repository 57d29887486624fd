"""Training and evaluation on a Ray cluster of several nodes that runs already, by flags only."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from rayfold.envs.cluster import NodeType
from rayfold.policies.bundle import load_bundle
from rayfold.serving.local_cluster import LocalCluster
from tests.real_ray import LIVE_MARKS, wait_until

_untyped: Any = ray  # leaves the types of these functions open
pytestmark = LIVE_MARKS
# One CPU each, and none on the head: what takes two CPUs is on two nodes.
NODE = NodeType(name="cpu1", resources={"CPU": 1.0, "memory_gib": 2.0}, price_usd_per_h=1.0, min_nodes=0, max_nodes=2)


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """A head, and up to two nodes that Ray's autoscaler launches when they are needed."""
    with LocalCluster(node_types=[NODE], head_cpus=0, idle_timeout_s=60.0) as running:
        running.connect()
        yield running


def rayfold(*arguments: str, cluster: LocalCluster | None = None) -> "subprocess.Popen[str]":
    """The command line, in a process of its own."""
    where = ["--address", cluster.address] if cluster is not None else []
    env = {**os.environ, **(cluster.client_env if cluster is not None else {})}
    command = [sys.executable, "-m", "rayfold", *arguments, *where]
    return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def ended(process: "subprocess.Popen[str]") -> None:
    """Waits for it; fails the test with what it printed."""
    output, _ = process.communicate(timeout=240.0)
    assert process.returncode == 0, output


def cpus() -> tuple[float, float]:
    """Of the cluster: all, and those that nothing has taken."""
    return tuple(found.get("CPU", 0.0) for found in (_untyped.cluster_resources(), _untyped.available_resources()))


@pytest.mark.parametrize("flag", ["--num-env-runners", "--num-learners"])
def test_two_nodes_train_one_network(cluster: LocalCluster, flag: str, tmp_path: Path) -> None:
    """Two env runners, or two learners, take both nodes, and the run goes through."""
    process = rayfold(
        "train", "--scenario", "smoke", "--warm-start", "", "--stop-steps", "600", "--batch-steps", "512",
        "--num-envs", "8", "--evaluation-episodes", "0", "--run-dir", str(tmp_path / "run"), flag, "2",
        cluster=cluster,
    )  # fmt: skip
    try:
        wait_until("both nodes are taken", lambda: cpus() == (2.0, 0.0) or process.poll() is not None, 120.0)
        assert process.poll() is None, process.communicate()[0]
        ended(process)
    finally:
        process.kill()
        process.wait()
    assert load_bundle(tmp_path / "run" / "bundle").card.steps >= 600
    wait_until("both nodes are free", lambda: cpus() == (2.0, 2.0), 120.0)


def test_episodes_are_played_on_the_nodes(cluster: LocalCluster, tmp_path: Path) -> None:
    """The figures are those of one process, but for the clock."""
    contents = []
    for name, where in (("here", None), ("there", cluster)):
        file = tmp_path / f"{name}.json"
        ended(
            rayfold("evaluate", "--scenario", "smoke", "--horizon-h", "0.25", "--seeds", "2", "--policies",
                    "none,best_fit", "--tuned", "none", "--json", str(file), cluster=where)
        )  # fmt: skip
        policies = json.loads(file.read_text())["policies"]
        contents.append({p: {k: v for k, v in m.items() if "decision_ms" not in k} for p, m in policies.items()})
    assert contents[0] == contents[1]
    assert contents[0]["none"]["total_usd"]["mean"] > 0.0


def test_there_is_no_cluster(tmp_path: Path) -> None:
    """One line and exit code 2, soon, and nothing is started in its stead."""
    process = rayfold("train", "--scenario", "smoke", "--run-dir", str(tmp_path / "run"), "--address", "127.0.0.1:1")
    output, _ = process.communicate(timeout=240.0)
    assert process.returncode == 2, output
    assert output == "error: --address: expected a running Ray cluster, got no answer at 127.0.0.1:1\n"
