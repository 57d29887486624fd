"""Find and end the processes of one local cluster, and no others.

A process belongs to the cluster if its environment carries the cluster's mark, if its command line names the
cluster's temporary directory, or if an ancestor does. Workers rename themselves, hence the three ways.
"""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import ray  # noqa: F401  # puts the psutil that Ray bundles on the path

__all__ = ["MARK", "end", "find"]

MARK = "RAYFOLD_LOCAL_CLUSTER"


def _belongs(process: "psutil.Process", mark: str, temp_dir: str) -> bool:
    try:
        if process.environ().get(MARK) == mark:
            return True
        return any(temp_dir in part for part in process.cmdline())
    except psutil.Error:
        return False


def find(mark: str, temp_dir: Path) -> list["psutil.Process"]:
    """Processes of the cluster, descendants included, this process excluded.

    Args:
        mark: Value of ``MARK`` in the environment of the cluster's processes.
        temp_dir: Temporary directory of the cluster.
    """
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        if process.pid == os.getpid() or not _belongs(process, mark, f"{temp_dir}{os.sep}"):
            continue
        found[process.pid] = process
        try:
            found.update({child.pid: child for child in process.children(recursive=True)})
        except psutil.Error:
            continue
    found.pop(os.getpid(), None)
    return list(found.values())


def end(mark: str, temp_dir: Path, *, grace_s: float, clock: Callable[[], float] = time.monotonic) -> set[int]:
    """Ends the processes of the cluster: asks first, kills after the grace.

    Args:
        mark: See ``find``.
        temp_dir: See ``find``.
        grace_s: Seconds between the two.
        clock: Seconds, monotonic.

    Returns:
        Ids of processes that are still there.
    """
    members = find(mark, temp_dir)
    for process in members:
        _signal(process, signal.SIGTERM)
    _, alive = psutil.wait_procs(members, timeout=grace_s)
    deadline_s = clock() + grace_s
    # The autoscaler may have started a node while the first round ran.
    while (alive := [*alive, *find(mark, temp_dir)]) and clock() < deadline_s:
        for process in alive:
            _signal(process, signal.SIGKILL)
        _, alive = psutil.wait_procs(alive, timeout=1.0)
    return {process.pid for process in alive}


def _signal(process: "psutil.Process", number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.Error:
        return
