"""Errors a caller may want to catch.

RayfoldError
├── InputError      a file, flag or bundle the user gave is wrong: one line, exit code 2
├── ClusterError    the live cluster cannot be reached or is not as expected
└── ExecutorError   a move could not be started
"""

__all__ = ["ClusterError", "ExecutorError", "InputError", "RayfoldError"]

_MAX_QUOTED = 600  # characters


class RayfoldError(Exception):
    """Base of every error raised on purpose by rayfold."""


class InputError(RayfoldError):
    """What the user gave is wrong.

    Args:
        where: File with field or line, or the flag.
        expected: What would have been accepted.
        got: What was found.
    """

    def __init__(self, where: str, expected: str, got: object) -> None:
        self.where, self.expected, self.got = where, expected, got
        super().__init__(f"{where}: expected {_one_line(expected)}, got {_one_line(got)}")

    def __reduce__(self) -> tuple[type["InputError"], tuple[str, str, object]]:
        return InputError, (self.where, self.expected, self.got)


def _one_line(value: object) -> str:
    """As text of a file may be quoted: on one line, printable, not too long."""
    text = " ".join(str(value).split())
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= _MAX_QUOTED else f"{text[:_MAX_QUOTED]}..."


class ClusterError(RayfoldError):
    """The live cluster cannot be reached, or is not as expected."""


class ExecutorError(RayfoldError):
    """A move could not be started."""
