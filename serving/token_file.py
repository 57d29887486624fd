"""The bearer token of the decider's HTTP interface, from a file that nobody else can read."""

import os
import secrets
import stat
from pathlib import Path

from rayfold.errors import InputError

__all__ = ["read_token"]

# A secret that Kubernetes mounts is root's, and its group's to read (``fsGroup``): the only way a process gets it.
_OTHERS, _OTHERS_OF_A_FOREIGN_FILE = 0o077, 0o027


def read_token(path: Path | None) -> str:
    """The token in a file, or a new one where there is no file.

    Raises:
        InputError: The file is missing, empty, or readable by others.
    """
    if path is None:
        return secrets.token_urlsafe(32)
    try:
        found, token = path.stat(), path.read_text().strip()
    except (OSError, UnicodeDecodeError) as err:
        raise InputError(str(path), "a file with a token", getattr(err, "strerror", None) or err) from err
    mode, is_own = stat.S_IMODE(found.st_mode), found.st_uid == os.getuid()
    if mode & (_OTHERS if is_own else _OTHERS_OF_A_FOREIGN_FILE):
        raise InputError(str(path), "file mode 0600", oct(mode))
    if not token:
        raise InputError(str(path), "a token", "an empty file")
    if not (token.isascii() and token.isprintable()):  # it travels in an HTTP header
        raise InputError(str(path), "a token of one line of ASCII", "other characters")
    return token
