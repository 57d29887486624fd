"""A process ends with its code, its output and its exit handlers, and without what comes after those."""

import subprocess
import sys

CODE = """
import atexit, ctypes, threading
from rayfold.process_exit import end_process

class Late:
    def __del__(self):
        ctypes.string_at(0)  # what a native library does when it is torn down in the wrong order

late = Late()
atexit.register(print, "handler")
print("output", end=" ")
{end}
"""


def run(end: str) -> "subprocess.CompletedProcess[str]":
    """A process that crashes when the interpreter is torn down, unless ``end`` ends it before."""
    return subprocess.run(
        [sys.executable, "-c", CODE.format(end=end)], capture_output=True, text=True, check=False, timeout=60
    )


def test_a_late_crash_does_not_change_the_code() -> None:
    """Handlers have run and output is there; the plain end crashes, so the case tells the two apart."""
    done = run("end_process(3)")
    assert (done.returncode, done.stdout) == (3, "output handler\n")
    assert run("raise SystemExit(3)").returncode < 0
