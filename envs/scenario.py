"""``Scenario``: a cluster, its traffic and the length of an episode.

Scenarios are YAML files, shipped or a user's own; ``scenario_file.py`` reads them. Dims: D deployments.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rayfold.envs.cluster import ClusterSpec
from rayfold.envs.safety import Limits
from rayfold.envs.scenario_file import open_scenario, to_spec
from rayfold.envs.scenario_traffic import to_traffic
from rayfold.envs.traffic import Traffic, sample_traffic
from rayfold.envs.traffic_source import GeneratorSource, RequestModel, Split, TrafficSource
from rayfold.errors import InputError

__all__ = ["Scenario", "Split", "load_scenario"]

_MAX_STEPS = 50e6  # times deployments; the traffic of an episode is held in memory


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scenario:
    """One scenario. Immutable; episodes are drawn from it by ``sample``."""

    name: str
    description: str  # one sentence: what it is for
    spec: ClusterSpec
    limits: Limits
    source: TrafficSource
    requests: RequestModel
    horizon_s: float  # length of an episode

    @property
    def is_synthetic(self) -> bool:
        """Whether the traffic is generated."""
        return isinstance(self.source, GeneratorSource)

    @property
    def traffic_name(self) -> str:
        """The trace files, or ``generated``."""
        return self.source.name

    def with_horizon(self, horizon_s: float) -> "Scenario":
        """The same scenario with episodes of another length.

        Raises:
            InputError: Not a whole number of decision intervals, or longer than a split.
        """
        _check_horizon(horizon_s, self.spec, self.source, "horizon_s")
        return replace(self, horizon_s=horizon_s)

    def sample(self, rng: np.random.Generator, split: Split) -> Traffic:
        """Draws the traffic of one episode.

        Args:
            rng: Equal generators give equal traffic. One number is taken from it, whatever the scenario.
            split: Which part of the traffic.
        """
        stream = np.random.default_rng((int(rng.integers(2**63)), list(Split).index(split)))
        settings = self.spec.settings
        drawn = self.source.rates(stream, split, self.horizon_s)
        return sample_traffic(
            drawn.rates_rps,
            bin_s=self.source.bin_s,
            service_s=self.requests.service_s,
            burstiness_cv=self.requests.burstiness_cv,
            has_weibull_arrivals=self.requests.has_weibull_arrivals,
            tokens_per_request=self.requests.tokens_per_request,
            look_back_s=np.array([d.autoscaling.look_back_period_s for d in self.spec.deployments]),
            num_steps=round(self.horizon_s / settings.substep_s),
            step_s=settings.substep_s,
            rng=stream,
            start_s=drawn.start_s,
        )


def _check_horizon(horizon_s: float, spec: ClusterSpec, source: TrafficSource, where: str) -> None:
    """Refuses an episode length that the scenario cannot have.

    Args:
        horizon_s: The length.
        spec: For the decision interval.
        source: For the days there are.
        where: For the message.

    Raises:
        InputError: Not a whole number of decision intervals, or longer than a split or than memory allows.
    """
    interval_s = spec.settings.decision_interval_s
    num_ticks = round(horizon_s / interval_s) if np.isfinite(horizon_s) else 0
    if num_ticks < 1 or abs(num_ticks * interval_s - horizon_s) > 1e-6:
        raise InputError(where, f"a multiple of the decision interval {interval_s:g} s", f"{horizon_s:g}")
    num_deployments, shortest_s = spec.num_deployments, min(spec.settings.substep_s, source.bin_s)
    if horizon_s / shortest_s * num_deployments > _MAX_STEPS:
        longest_s = int(_MAX_STEPS / num_deployments) * shortest_s
        most = f"at most {longest_s:g} s with {num_deployments} deployments and steps of {shortest_s:g} s"
        raise InputError(where, most, f"{horizon_s:g}")
    for split in Split:
        longest_s = source.max_horizon_s(split)
        if horizon_s > longest_s:
            raise InputError(where, f"at most {longest_s:g} s, the {split} part of {source.name}", f"{horizon_s:g}")


def load_scenario(name_or_path: str | Path, traces_dir: Path | None = None, *, synthetic: bool = False) -> Scenario:
    """Loads a scenario with its traffic.

    Args:
        name_or_path: Shipped name, or path of a YAML file.
        traces_dir: Where trace files are that do not lie beside the scenario file.
        synthetic: Use the generator even where the scenario names traces.

    Raises:
        InputError: No such scenario, a mistake in it, or a trace file is missing or malformed.
    """
    file = open_scenario(name_or_path)
    spec = to_spec(file)
    source, requests = to_traffic(file, traces_dir, synthetic=synthetic)
    _check_horizon(file.model.horizon_s, spec, source, f"{file.where}: horizon_s")
    return Scenario(
        name=file.name,
        description=file.model.description,
        spec=spec,
        limits=Limits(**file.model.limits.model_dump()),
        source=source,
        requests=requests,
        horizon_s=file.model.horizon_s,
    )
