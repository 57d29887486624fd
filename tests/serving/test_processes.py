"""Only the cluster's own processes are found and ended."""

import os
import subprocess
import sys
import time
from pathlib import Path

from rayfold.serving import processes

_SLEEP = "import time; time.sleep(60)"


def test_ends_marked_processes_and_no_others(tmp_path: Path) -> None:
    """A marked process, its child, and one that names the directory end; a stranger and this test live on."""
    mark = f"test-{os.getpid()}-{time.monotonic_ns()}"
    env = {**os.environ, processes.MARK: mark}
    parent_code = f"import os, subprocess, sys; subprocess.run([sys.executable, '-c', {_SLEEP!r}], env={{}})"
    parent = subprocess.Popen([sys.executable, "-c", parent_code], env=env)
    named = subprocess.Popen([sys.executable, "-c", _SLEEP, f"{tmp_path}/log"])
    stranger = subprocess.Popen([sys.executable, "-c", _SLEEP], env={**os.environ, processes.MARK: "another"})
    try:
        deadline_s = time.monotonic() + 20.0
        while len(processes.find(mark, tmp_path)) < 3:
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        assert processes.end(mark, tmp_path, grace_s=5.0) == set()
        parent.wait(5.0)  # raises if it lives on
        named.wait(5.0)
        assert processes.find(mark, tmp_path) == []
        assert stranger.poll() is None
    finally:
        for process in (parent, named, stranger):
            process.kill()
            process.wait(5.0)
