"""A policy as a user names it, before it is made: what travels to the process that runs it."""

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rayfold.envs.cluster import SchedulingStrategy
from rayfold.envs.futures import fit_traffic
from rayfold.envs.scenario import Scenario
from rayfold.errors import InputError
from rayfold.policies.best_of_plans import BestOfPlans, SearchSettings
from rayfold.policies.bundle import load_bundle
from rayfold.policies.by_name import HEURISTICS, NETWORK, make_policy, policy_maker, shipped_bundle, with_settings
from rayfold.policies.free_repacking import FreeRepacking
from rayfold.policies.protocol import Policy
from rayfold.policies.rollout import Rearranger
from rayfold.policies.settings import parse_settings
from rayfold.policies.tuned import SHIPPED, tuned_settings
from rayfold.training.worlds import name_and_prices

__all__ = ["PolicyChoice", "tuned_for"]


def tuned_for(scenario_name: str, source: str = SHIPPED) -> dict[str, dict[str, Any]]:
    """``tuned_settings``; what ships tuned for a scenario but not for the price has the settings of its own price.

    Nothing is to be compared with defaults unasked.

    Args:
        scenario_name: At any price, see ``worlds.name_at_prices``.
        source: As of ``tuned_settings``.

    Raises:
        InputError: As ``tuned_settings`` does.
    """
    found, (own, _) = tuned_settings(scenario_name, source), name_and_prices(scenario_name)
    return found if source != SHIPPED or own == scenario_name else tuned_settings(own) | found


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyChoice:
    """One column of a report.

    ``none@spread`` is a policy under another placement of Serve's than the scenario's.
    """

    name: str  # as given: rule, with settings and ``@spread`` or ``@pack`` if wanted
    bundle: Path | None = None  # of ``learned`` and of its parts
    tuned: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # see ``make_policy``

    @property
    def rule(self) -> str:
        """The name without ``@``."""
        return self.name.rpartition("@")[0] if self.scheduling is not None else self.name

    @property
    def scheduling(self) -> SchedulingStrategy | None:
        """How Serve places replicas under it; None = as the scenario says."""
        suffix = self.name.rpartition("@")[2] if "@" in self.name else ""
        return SchedulingStrategy(suffix) if suffix in list(SchedulingStrategy) else None

    def make(self, scenario: Scenario, where: str = "--policies") -> Policy | Rearranger:
        """The policy, for a scenario's limits; ``free_repacking`` is none, but may stand where one does.

        ``best_of_plans`` searches over plans of the bundle's network and of what leads it in doubt; what it expects of
        the traffic it has from the scenario's training days.

        Raises:
            InputError: See ``make_policy``.
        """
        limits = scenario.limits
        if self.rule == FreeRepacking.name:
            return FreeRepacking()
        rule, values = with_settings(self.rule, where)
        if rule != BestOfPlans.name:
            return make_policy(self.rule, limits, bundle=self.bundle, tuned=self.tuned, where=where)
        settings = parse_settings(SearchSettings, values or {}, f"{where} {rule}")
        bundle = load_bundle(self.bundle or shipped_bundle())
        make_network = functools.partial(policy_maker(NETWORK, bundle=bundle), limits)
        advisers = [make_policy(bundle.leader.card.reference, limits)] if bundle.leader is not None else []
        return BestOfPlans(make_network, limits, fit_traffic(scenario, scenario.spec), settings, advisers)

    def digest(self) -> str:
        """Hex SHA-256 of what decides how it acts, but for the code."""
        base, is_folder = self.rule.partition("(")[0], "/" in self.rule or Path(self.rule).is_dir()
        is_chain = "+" in self.rule and not is_folder  # its members may be heuristics and parts of the bundle
        tuned = self.tuned if is_chain else self.tuned.get(base, {})
        content: dict[str, Any] = {"name": self.name, "tuned": dict(tuned)}
        if is_chain or base not in (*HEURISTICS, FreeRepacking.name):
            content["bundle"] = _folder_digest(Path(self.rule) if is_folder else self.bundle or shipped_bundle())
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _folder_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    try:
        for path in sorted(p for p in folder.iterdir() if p.is_file()):
            digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    except OSError as err:
        raise InputError(str(folder), "a policy bundle", err.strerror or "unreadable") from None
    return digest.hexdigest()
