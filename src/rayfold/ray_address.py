"""Connects this process to a Ray cluster that runs already."""

import logging
import socket

import ray

from rayfold.errors import InputError

__all__ = ["CONNECT_TIMEOUT_S", "connect"]

CONNECT_TIMEOUT_S = 12.0


def connect(address: str) -> None:
    """Connects, unless the process is connected to a Ray already.

    Args:
        address: ``auto``, ``HOST:PORT`` or ``ray://HOST:PORT``, as ``ray.init`` takes it.

    Raises:
        InputError: No Ray answers at the address within about 12 s, or this process may not connect.
    """
    if ray.is_initialized():
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address != "auto" and not (host and port.isdigit()):
        raise InputError("--address", "HOST:PORT of a Ray cluster", address)
    # Ray's own patience is set by an environment variable that it reads once; asking first keeps to ours.
    if address != "auto" and not _answers(host, int(port)):
        raise InputError("--address", "a running Ray cluster", f"no answer at {address}")
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError, ValueError) as err:
        raise InputError("--address", "a Ray cluster that lets this process in", err) from err


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S / 2).close()
    except OSError:
        return False
    return True
