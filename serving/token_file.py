"""The bearer token of the decider's HTTP interface, from a file that only its owner can read."""

import secrets
import stat
from pathlib import Path

from rayfold.errors import InputError

__all__ = ["read_token"]


def read_token(path: Path | None) -> str:
    """The token in a file, or a new one where there is no file.

    Raises:
        InputError: The file is missing, empty, or readable by others.
    """
    if path is None:
        return secrets.token_urlsafe(32)
    try:
        mode, token = path.stat().st_mode, path.read_text().strip()
    except (OSError, UnicodeDecodeError) as err:
        raise InputError(str(path), "a file with a token", getattr(err, "strerror", None) or err) from err
    if stat.S_IMODE(mode) & 0o077:
        raise InputError(str(path), "file mode 0600", oct(stat.S_IMODE(mode)))
    if not token:
        raise InputError(str(path), "a token", "an empty file")
    if not (token.isascii() and token.isprintable()):  # it travels in an HTTP header
        raise InputError(str(path), "a token of one line of ASCII", "other characters")
    return token
