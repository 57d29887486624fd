"""The Ray that a training run or an evaluation uses: a private one on this machine, or a cluster that runs already."""

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator

import ray

from rayfold.ray_address import connect

__all__ = ["ray_session"]

log = logging.getLogger(__name__)

_QUIET = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_DEDUP_LOGS": "1"}  # the first one ends a FutureWarning


@contextlib.contextmanager
def ray_session(num_cpus: int, address: str = "") -> Iterator[None]:
    """Starts Ray with a temporary folder of its own, and stops it; or joins a cluster and leaves it running.

    Where this process is connected to a Ray already, that one is used and left running.

    Args:
        num_cpus: Logical CPUs of a Ray of this process's own.
        address: Of the cluster to join instead, see ``ray_address.connect``; rayfold must be installed there.

    Raises:
        InputError: There is no cluster at the address.
    """
    if ray.is_initialized():
        yield
        return
    if address:
        connect(address)
        try:
            yield
        finally:
            ray.shutdown()
        return
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    folder = tempfile.mkdtemp(prefix="rayfold-")  # short: Unix socket paths end at 107 characters
    try:
        for attempt in (1, 2):
            try:
                _init(num_cpus, folder)
                break
            except Exception:
                ray.shutdown()
                if attempt == 2:
                    raise
                log.warning("Ray did not start; trying once more", exc_info=True)
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _init(num_cpus: int, folder: str) -> None:
    ray.init(
        address="local",  # also where RAY_ADDRESS names a running cluster
        num_cpus=num_cpus,
        include_dashboard=False,
        _temp_dir=folder,
        object_store_memory=400 * 1024**2,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
