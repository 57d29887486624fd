"""The state of a running cluster in a file, for the simulator to start from. Spec and arrays lie in one file."""

import os
from pathlib import Path

import ray

from rayfold.envs.state import ClusterState
from rayfold.errors import InputError
from rayfold.serving.attach import connect
from rayfold.serving.history import History
from rayfold.serving.live_settings import LiveSettings
from rayfold.serving.snapshot import take_snapshot

__all__ = ["save_snapshot", "write_state"]


def save_snapshot(address: str, settings: LiveSettings, path: Path) -> ClusterState:
    """Takes one snapshot of a cluster and writes it. Nothing in the cluster changes.

    One look cannot tell since when things are as they are: replicas count from their creation, empty nodes from what
    Ray says, and the slow mean of ongoing requests is the mean of Serve's look-back period.

    Args:
        address: ``HOST:PORT`` of the cluster; a connection that is there already is used and kept.
        settings: What the cluster does not say of itself.
        path: The file to be.

    Raises:
        InputError: No cluster answers at the address, or the file cannot be written.
        ClusterError: Serve does not run there.
    """
    connected_before = ray.is_initialized()
    connect(address)
    try:
        state = take_snapshot(settings, History())
    finally:
        if not connected_before:
            ray.shutdown()
    write_state(state, path)
    return state


def write_state(state: ClusterState, path: Path) -> None:
    """Writes a state whole or not at all.

    Raises:
        InputError: The file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        state.save(temporary)
        temporary.replace(path)
    except OSError as err:
        raise InputError(str(path), "a path that can be written", err.strerror or err) from err
    finally:
        temporary.unlink(missing_ok=True)
