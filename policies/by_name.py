"""Policies by the name a user gives on the command line or in a file."""

from collections.abc import Callable
from pathlib import Path

from rayfold.envs.safety import Limits
from rayfold.errors import InputError
from rayfold.policies.best_fit import BestFit
from rayfold.policies.bundle import load_bundle
from rayfold.policies.dearest_first import DearestFirst
from rayfold.policies.learned import LearnedPolicy
from rayfold.policies.none import NoMoves
from rayfold.policies.protocol import Policy
from rayfold.policies.ray_serve import RayServe

__all__ = ["HEURISTICS", "LEARNED", "make_policy", "shipped_bundle"]

HEURISTICS: dict[str, Callable[[Limits], Policy]] = {
    "none": lambda limits: NoMoves(),
    "best_fit": BestFit,
    "dearest_first": DearestFirst,
    "ray_serve": RayServe,
}
LEARNED = "learned"


def shipped_bundle() -> Path:
    """Directory of the bundle that comes with rayfold."""
    return Path(__file__).parent / "bundles" / "default"


def make_policy(name: str, limits: Limits, *, bundle: Path | None = None, where: str = "--policy") -> Policy:
    """Makes one policy.

    Args:
        name: A heuristic, ``learned``, or the directory of a bundle.
        limits: What the safety filter allows.
        bundle: Directory that ``learned`` stands for; the shipped bundle if None.
        where: The flag, for the message.

    Raises:
        InputError: An unknown name, or a bundle that cannot be used.
    """
    if name in HEURISTICS:
        return HEURISTICS[name](limits)
    if name == LEARNED:
        return LearnedPolicy(load_bundle(bundle or shipped_bundle()).net, limits)
    if "/" in name or (name and Path(name).is_dir()):  # Path("") is the working directory
        return LearnedPolicy(load_bundle(Path(name)).net, limits)
    known = ", ".join([*HEURISTICS, LEARNED])
    raise InputError(where, f"one of {known}, or the directory of a policy bundle", name)
