"""Policies by the name a user gives on the command line or in a file."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rayfold.envs.safety import Limits
from rayfold.errors import InputError
from rayfold.policies.best_fit import BestFit
from rayfold.policies.bundle import PolicyBundle, load_bundle
from rayfold.policies.chained import Chained
from rayfold.policies.dearest_first import DearestFirst
from rayfold.policies.descheduler import Descheduler, DeschedulerSettings
from rayfold.policies.exact import Exact, ExactSettings
from rayfold.policies.first_fit_decreasing import FirstFitDecreasing
from rayfold.policies.fragmentation import Fragmentation, FragmentationSettings
from rayfold.policies.karpenter import BalancedSettings, Karpenter, KarpenterBalanced, KarpenterSettings
from rayfold.policies.learned import LearnedPolicy
from rayfold.policies.least_moves import LeastMoves
from rayfold.policies.led import Led
from rayfold.policies.none import NoMoves
from rayfold.policies.patient import Patient, PatientSettings
from rayfold.policies.protocol import Policy
from rayfold.policies.ray_serve import RayServe
from rayfold.policies.settings import NoSettings, parse_settings

__all__ = [
    "BUNDLED",
    "HEURISTICS",
    "LEARNED",
    "NETWORK",
    "Heuristic",
    "make_policy",
    "needs_bundle",
    "policy_maker",
    "shipped_bundle",
    "with_settings",
]


class Heuristic(NamedTuple):
    """How a rule is made."""

    make: Callable[[Limits, Any], Policy]  # of limits and settings
    settings_type: type[Any] = NoSettings


HEURISTICS: dict[str, Heuristic] = {
    "none": Heuristic(lambda limits, _: NoMoves()),
    "best_fit": Heuristic(lambda limits, _: BestFit(limits)),
    "dearest_first": Heuristic(lambda limits, _: DearestFirst(limits)),
    "exact": Heuristic(Exact, ExactSettings),
    "first_fit_decreasing": Heuristic(lambda limits, _: FirstFitDecreasing(limits)),
    "least_moves": Heuristic(lambda limits, _: LeastMoves(limits)),
    "patient": Heuristic(Patient, PatientSettings),
    "ray_serve": Heuristic(lambda limits, _: RayServe(limits)),
    "karpenter": Heuristic(Karpenter, KarpenterSettings),
    "karpenter_balanced": Heuristic(KarpenterBalanced, BalancedSettings),
    "descheduler": Heuristic(Descheduler, DeschedulerSettings),
    "fragmentation": Heuristic(Fragmentation, FragmentationSettings),
}
LEARNED, NETWORK, GREEDY = "learned", "network", "network_greedy"
BUNDLED = (LEARNED, NETWORK, GREEDY)  # what leads in a bundle, and its network alone
_WITH_SETTINGS = re.compile(r"(?P<name>\w+)\((?P<settings>[^()]*)\)")
_THEN = re.compile(r"\+(?![^()]*\))")  # not the sign of a number in settings


def shipped_bundle() -> Path:
    """Directory of the bundle that comes with rayfold."""
    return Path(__file__).parent / "bundles" / "default"


def policy_maker(
    name: str,
    *,
    bundle: Path | PolicyBundle | None = None,
    tuned: Mapping[str, Mapping[str, Any]] | None = None,
    num_candidates: int = 0,
    where: str = "--policy",
) -> Callable[[Limits], Policy]:
    """What makes one policy from limits, as often as they change; what it reads from files it has read.

    Args:
        name: A heuristic, with settings of its own if wanted as ``patient(wait_s=120,spare_gpus=4)``; ``learned``, or
            ``network`` or ``network_greedy`` for its network alone; or the directory of a bundle.
            Several but for directories, joined by ``+``, are asked in turn, see ``Chained``.
        bundle: The bundle that these stand for, or its directory; the shipped bundle if None.
        tuned: Settings by name of heuristic, for those that are given without any; else its defaults.
        num_candidates: How many candidates a learned policy lists in its plans; heuristics list all they weigh.
        where: The flag, for the message.

    Raises:
        InputError: An unknown name, settings that cannot be, or a bundle that cannot be used.
    """
    is_folder = "/" in name or (name and Path(name).is_dir())  # Path("") is the working directory
    parts = [name] if is_folder else _THEN.split(name)
    if len(parts) > 1:
        given = {"bundle": bundle, "tuned": tuned, "num_candidates": num_candidates, "where": where}
        makers = [policy_maker(part, **given) for part in parts]  # type: ignore[arg-type]  # as they came
        return lambda limits: Chained([make(limits) for make in makers])
    rule, given_values = with_settings(name, where)
    if rule in HEURISTICS:
        make, settings_type = HEURISTICS[rule]
        values = (tuned or {}).get(rule, {}) if given_values is None else given_values
        settings = parse_settings(settings_type, values, f"{where} {rule}")
        return lambda limits: make(limits, settings)
    if is_folder:
        return _bundled(LEARNED, load_bundle(Path(name)), num_candidates, where)
    if name in BUNDLED:
        found = bundle if isinstance(bundle, PolicyBundle) else load_bundle(bundle or shipped_bundle())
        return _bundled(name, found, num_candidates, where)
    known = ", ".join([*HEURISTICS, *BUNDLED])
    raise InputError(where, f"one of {known}, or the directory of a policy bundle", name)


def _bundled(name: str, found: PolicyBundle, num_candidates: int, where: str) -> Callable[[Limits], Policy]:
    """A part of a bundle, or what leads in it."""
    if name == LEARNED and found.leader is not None:
        leader = found.leader.leader
        names = (*leader.experience.members, found.leader.card.reference)
        told = f"{where}: {name}"
        *members, reference = (policy_maker(m, bundle=found, num_candidates=num_candidates, where=told) for m in names)
        return lambda limits: Led(leader, members, reference, limits)
    return lambda limits: LearnedPolicy(
        found.net, limits, greedy=name == GREEDY, num_candidates=num_candidates, name=name
    )


def make_policy(
    name: str,
    limits: Limits,
    *,
    bundle: Path | None = None,
    tuned: Mapping[str, Mapping[str, Any]] | None = None,
    num_candidates: int = 0,
    where: str = "--policy",
) -> Policy:
    """Makes one policy; see ``policy_maker``.

    Raises:
        InputError: As there.
    """
    return policy_maker(name, bundle=bundle, tuned=tuned, num_candidates=num_candidates, where=where)(limits)


def needs_bundle(name: str) -> bool:
    """Whether a name, or one of several joined by ``+``, stands for something in a bundle."""
    return any(part in BUNDLED for part in _THEN.split(name))


def with_settings(name: str, where: str) -> tuple[str, dict[str, str] | None]:
    """``rule(a=1,b=2)`` is the rule and its settings by name; any other name, itself and None.

    Raises:
        InputError: A setting without a value.
    """
    match = _WITH_SETTINGS.fullmatch(name)
    if match is None:
        return name, None
    values, rule = {}, match["name"]
    for part in filter(None, (part.strip() for part in match["settings"].split(","))):
        setting, equals, value = part.partition("=")
        if not equals:
            raise InputError(f"{where} {rule}", "settings as name=value, separated by commas", part)
        values[setting.strip()] = value.strip()
    return rule, values
