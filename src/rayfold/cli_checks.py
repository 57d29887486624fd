"""What the command line checks before it starts work that takes long: a wrong flag must not cost an hour."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from rayfold.errors import InputError
from rayfold.policies.best_of_plans import BestOfPlans
from rayfold.policies.by_name import BUNDLED, LEARNED, shipped_bundle

__all__ = ["MAX_HORIZON_H", "check_bundle_flag", "check_bundle_target", "check_horizon", "check_output", "check_prices"]

MAX_PRICES = 1000.0
MAX_HORIZON_H = 744.0  # 31 days; generated traffic has no end of its own, memory has


def check_output(flag: str, path: Path | None) -> None:
    """Refuses a file that could not be written; makes its folder. Files already there stay as they are.

    Args:
        flag: For the message.
        path: The file; None passes.

    Raises:
        InputError: A folder, or in a place where nothing can be written.
    """
    if path is None:
        return
    if path.is_dir():
        raise InputError(f"{flag} {path}", "the path of a file", "a folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as err:
        raise InputError(f"{flag} {path}", "a path that can be written", err.strerror or "an error") from None


def check_bundle_flag(policies: Sequence[str], bundle: Path | None) -> None:
    """Refuses ``learned`` without a bundle, and a bundle that no policy would use.

    Args:
        policies: Names as given to ``--policies``.
        bundle: As given to ``--bundle``.

    Raises:
        InputError: Says how to get a bundle.
    """
    if LEARNED in policies and bundle is None and not shipped_bundle().is_dir():
        raise InputError("--policies learned", "--bundle DIR, as written by `rayfold train`", "no bundle")
    if bundle is not None and not {*BUNDLED, BestOfPlans.name} & {name.partition("(")[0] for name in policies}:
        raise InputError("--bundle", f"'{LEARNED}' among --policies", ",".join(policies) or "none")


def check_bundle_target(path: Path | None) -> None:
    """Refuses a place where ``save_bundle`` would not write.

    Args:
        path: The bundle's folder to be; None passes.

    Raises:
        InputError: It holds something else than a bundle, or nothing can be written there.
    """
    if path is None:
        return
    if path.exists() and not (path / "bundle.json").is_file():
        raise InputError(f"--bundle {path}", "a bundle to replace, or nothing", "another file or folder")
    check_output("--bundle", path / "bundle.json" if path.exists() else path)


def check_horizon(horizon_h: float | None) -> None:
    """Refuses an episode too long to be held in memory.

    Args:
        horizon_h: As given to ``--horizon-h``; None passes.

    Raises:
        InputError: Above ``MAX_HORIZON_H``, or not positive.
    """
    if horizon_h is not None and not 0.0 < horizon_h <= MAX_HORIZON_H:
        raise InputError("--horizon-h", f"more than 0 and at most {MAX_HORIZON_H:g} hours", f"{horizon_h:g}")


def check_prices(factor: float) -> None:
    """Refuses a factor of prices that makes no bill.

    Args:
        factor: As given to ``--prices``.

    Raises:
        InputError: Negative, above ``MAX_PRICES``, or no number.
    """
    if not 0.0 <= factor <= MAX_PRICES:
        raise InputError("--prices", f"0 to {MAX_PRICES:g}", f"{factor:g}")
