"""A training run that is killed: what came after the newest checkpoint is lost, and nothing else."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rayfold.policies.bundle import load_bundle
from rayfold.training.checkpoints import FOLDER, POSITION, newest_checkpoint
from rayfold.training.ppo import train
from tests.real_ray import wait_until
from tests.training.test_ppo import small

ROOT = Path(__file__).resolve().parents[2]
ENDLESS = """
import sys
from pathlib import Path
from rayfold.training.ppo import train
from tests.training.test_ppo import small

train(small(Path(sys.argv[1]), stop_steps=10**9, warm_start=""))
"""


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """For Ray's sockets, whose paths must be short."""
    folder = tempfile.mkdtemp(prefix="rf-")
    yield Path(folder)
    shutil.rmtree(folder, ignore_errors=True)


def is_mentioned(folder: Path) -> bool:
    """Whether a process was started with a path in the folder."""
    processes = psutil.process_iter(["cmdline"])
    return any(str(folder) in argument for p in processes for argument in p.info["cmdline"] or ())


@pytest.mark.cluster
def test_a_killed_run_goes_on_from_its_checkpoint(tmp_path: Path, short_folder: Path) -> None:
    """Kill -9 while a checkpoint is being written: Ray's processes end, and the run goes on from the one before."""
    checkpoints = tmp_path / FOLDER
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(tmp_path)], cwd=ROOT, env={**os.environ, "TMPDIR": str(short_folder)}
    )
    try:
        wait_until("two checkpoints", lambda: len(list(checkpoints.glob(f"[0-9]*/{POSITION}"))) >= 2, 120.0)
        wait_until("a third one begun", (checkpoints / ".partial").exists, 120.0, poll_s=0.001)
    finally:
        process.kill()
        process.wait()
    assert not (tmp_path / "bundle").exists()
    wait_until("no process of its Ray", lambda: not is_mentioned(short_folder), 120.0)
    before = json.loads((newest_checkpoint(tmp_path) / POSITION).read_text())

    result = train(small(tmp_path, resume=True, stop_steps=before["steps"] + 300))
    assert before["steps"] + 300 <= result.position.steps < before["steps"] + 300 + 2 * 256
    assert result.position.iterations == before["iterations"] + 2
    assert load_bundle(result.bundle_dir).card.steps == result.position.steps
    readings = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    steps = [reading["steps"] for reading in readings if reading["phase"] == "ppo"]
    assert all(later > sooner for sooner, later in itertools.pairwise(steps[-2:]))
    assert readings[-1]["phase"] == "done"
