"""How a process of ours ends once everything is done."""

import atexit
import os
import sys

__all__ = ["end_process"]


def end_process(code: int) -> None:
    """Runs the exit handlers, flushes, and ends the process without tearing the interpreter down.

    Threads of Ray's core worker outlive ``ray.shutdown`` (2.60); now and then one of them crashes in ``_raylet.so``
    while the interpreter frees what it uses, and work that was done would end with a segmentation fault.

    Args:
        code: Exit code.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
