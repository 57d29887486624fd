"""``rayfold demo``: what counts as success, and the whole loop on a real cluster."""

import dataclasses
import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

import psutil
import pytest

from rayfold.demo import is_goal_reached
from rayfold.serving.demo_cluster import LiveDemoResult

MARK = "RAYFOLD_DEMO_TEST"

REACHED = LiveDemoResult(
    policy="learned",
    nodes_before=3,
    nodes_after=2,
    usd_per_h_before=12.0,
    usd_per_h_after=8.0,
    moves=(),
    requests=100,
    failed=0,
    p50_ms_before=1.0,
    p99_ms_before=2.0,
    p50_ms_during=1.0,
    p99_ms_during=2.0,
    took_s=30.0,
    errors=(),
    listing_before=(),
    listing_after=(),
)


def test_goal_is_a_released_node_and_no_failed_request() -> None:
    """A node was released under load."""
    assert is_goal_reached(REACHED)


@pytest.mark.parametrize("fault", [{"nodes_after": 3}, {"nodes_after": 4}, {"failed": 1}, {"requests": 0}])
def test_goal_is_missed(fault: dict[str, int]) -> None:
    """No node less, one failed request, or no load at all: each alone is enough."""
    assert not is_goal_reached(dataclasses.replace(REACHED, **fault))  # type: ignore[arg-type]  # all are int


def marked_processes(mark: str) -> list[int]:
    """Ids of live processes that carry a mark in their environment, as every child of the demo's process does."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def test_left_process_is_found() -> None:
    """The search of the end-to-end test can fail: it sees a process that is there, and only while it is there."""
    mark = uuid.uuid4().hex
    with subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"],
        env={**os.environ, MARK: mark},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert marked_processes(mark) == [process.pid]
        process.communicate("\n", timeout=30.0)
    assert marked_processes(mark) == []


@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_demo_end_to_end(tmp_path: Path) -> None:
    """Without traces it says so, trains, evaluates, acts on a live cluster, writes the JSON, leaves no process.

    The exit code must agree with what was measured, and the trained bundle must have released a node.
    """
    mark = uuid.uuid4().hex
    environment = {key: value for key, value in os.environ.items() if key != "RAYFOLD_TRACES"}
    done = subprocess.run(
        [sys.executable, "-m", "rayfold", "demo", "--train-minutes", "0.5", "--seeds", "1", "--json", "out/demo.json"],
        cwd=tmp_path,
        env={**environment, "COLUMNS": "200", "OMP_NUM_THREADS": "1", MARK: mark},
        capture_output=True,
        text=True,
        timeout=850,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "Generated traffic is used instead" in done.stdout
    record = json.loads((tmp_path / "out" / "demo.json").read_text())
    assert record["nodes_after"] < record["nodes_before"]
    assert record["failed"] == 0
    assert record["requests"] > 0
    assert record["moves"] == len(record["move_details"])
    assert any(move["phase"] == "done" for move in record["move_details"])
    for name in ("p50_ms_before", "p99_ms_before", "p50_ms_during", "p99_ms_during", "train_minutes"):
        assert record[name] > 0.0
    assert record["p50_ms_during"] <= record["p99_ms_during"]
    assert record["evaluation"]["traffic"] == "generated"
    assert set(record["evaluation"]["policies"]) == {"none", "best_fit", "ray_serve", "learned"}
    assert (tmp_path / "runs" / "demo" / "evaluation.png").read_bytes().startswith(b"\x89PNG")
    assert marked_processes(mark) == []
