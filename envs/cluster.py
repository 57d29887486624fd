"""Static description of a cluster: node types, deployments, autoscaler settings.

Dims: T node types, D deployments, K resources, G GPU devices of the largest node type.
Everything here is fixed for an episode; what changes with time is in ``state.py``.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.packing_bound import bills_usd_per_h, packing_planes
from rayfold.envs.spec_arrays import SpecArrays

__all__ = [
    "AutoscalingConfig",
    "ClusterSettings",
    "ClusterSpec",
    "Deployment",
    "Interval",
    "NodeType",
    "PlacementGroupStrategy",
    "Prices",
    "ReplicaShape",
    "SchedulingStrategy",
]

GPU, CPU, MEMORY_GIB = "GPU", "CPU", "memory_gib"
MEMORY_IDX = 2  # of memory_gib in ClusterSpec.resource_names
NO_MATCH = 99
BYTES_PER = {MEMORY_GIB: 2.0**30}  # Ray counts memory in bytes


class SchedulingStrategy(enum.StrEnum):
    """How Serve places replicas (``RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY`` off or on)."""

    SPREAD = "spread"
    PACK = "pack"


class PlacementGroupStrategy(enum.StrEnum):
    """Ray's placement-group strategy of a replica or a gang; NONE is a plain actor."""

    NONE = "NONE"
    PACK = "PACK"  # one node if it can be, else several
    SPREAD = "SPREAD"  # as many nodes as it can be
    STRICT_PACK = "STRICT_PACK"  # one node


class Interval(NamedTuple):
    """A duration drawn uniformly from ``[min_s, max_s]``, in seconds."""

    min_s: float
    max_s: float

    @property
    def mean_s(self) -> float:
        """Mean duration in seconds."""
        return 0.5 * (self.min_s + self.max_s)


_BOOT_S = Interval(120.0, 180.0)
_STARTUP_S = Interval(60.0, 120.0)
_DRAIN_S = Interval(2.0, 10.0)
_STOCKOUT_S = Interval(600.0, 1800.0)
_OTHER_WORK_S = Interval(1800.0, 7200.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeType:
    """One kind of machine the autoscaler can launch."""

    name: str
    resources: Mapping[str, float]  # Ray names: GPU (devices), CPU; memory_gib; custom
    price_usd_per_h: float
    accelerator: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    min_nodes: int = 0
    max_nodes: int = 8
    boot_s: Interval = _BOOT_S
    is_head: bool = False  # the cluster's head: one node, there from the start, never released and not billed
    is_opted_out: bool = False  # no replica is moved off such a node
    is_spot: bool = False  # told to policies; what it means is said by the next two
    interruptions_per_h: float = 0.0  # of one node: spot reclaims and failures, exponential in time
    notice_s: float = 120.0  # from the notice of an interruption, when Ray drains the node, to its end
    stockout_prob: float = 0.0  # that the cloud has no such node when one is asked for
    stockout_s: Interval = _STOCKOUT_S  # for how long it then has none
    other_work: Mapping[str, float] = field(default_factory=dict)  # what non-Serve work holds on a node
    other_work_prob: float = 0.0  # that a launched node gets such work
    other_work_s: Interval = _OTHER_WORK_S  # how long it stays


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaShape:
    """What one replica asks for; a plain actor has one bundle."""

    bundles: tuple[Mapping[str, float], ...]
    strategy: PlacementGroupStrategy = PlacementGroupStrategy.NONE

    def total(self, resource: str) -> float:
        """Sum of one resource over the bundles."""
        return float(sum(bundle.get(resource, 0.0) for bundle in self.bundles))


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoscalingConfig:
    """Ray Serve's ``AutoscalingConfig``, same names and meaning (``ray/serve/config.py``, 2.60)."""

    min_replicas: int = 1
    max_replicas: int = 8
    initial_replicas: int | None = None
    target_ongoing_requests: float = 2.0
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0
    downscale_to_zero_delay_s: float | None = None  # from one replica to none; None = downscale_delay_s
    upscaling_factor: float = 1.0
    downscaling_factor: float = 1.0
    look_back_period_s: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """One Serve deployment.

    A gang (``GangSchedulingConfig``, Serve 2.60) is modelled as one wide replica: ``gang_size`` replicas that are
    created, counted and stopped together, in one placement group of all their bundles.
    """

    name: str
    app: str = "default"
    shape: ReplicaShape
    gang_size: int = 1
    gang_strategy: PlacementGroupStrategy = PlacementGroupStrategy.PACK
    autoscaling: AutoscalingConfig = AutoscalingConfig()
    max_ongoing_requests: float = 5.0  # requests one replica serves at once (Serve's name)
    max_replicas_per_node: int = 0  # 0 = no limit
    label_selector: Mapping[str, str] = field(default_factory=dict)
    label_fallbacks: tuple[Mapping[str, str], ...] = ()  # other selectors, tried in order (``fallback_strategy``)
    startup_s: Interval = _STARTUP_S
    drain_s: Interval = _DRAIN_S
    start_failure_prob: float = 0.0  # that a start-up ends in a failure
    slow_start_prob: float = 0.0  # that it takes slow_start_factor times as long
    slow_start_factor: float = 3.0
    is_movable: bool = True  # False = opted out of compaction

    @property
    def key(self) -> str:
        """``app/name``, unique in a cluster."""
        return f"{self.app}/{self.name}"

    @property
    def bundles(self) -> tuple[Mapping[str, float], ...]:
        """M bundles that are placed together: of one replica, or of a whole gang."""
        return self.shape.bundles * self.gang_size

    @property
    def strategy(self) -> PlacementGroupStrategy:
        """How they are placed."""
        return self.gang_strategy if self.gang_size > 1 else self.shape.strategy

    @property
    def can_span(self) -> bool:
        """Whether they may lie on several nodes."""
        spans = (PlacementGroupStrategy.PACK, PlacementGroupStrategy.SPREAD)
        return self.strategy in spans and len(self.bundles) > 1

    def label_rank(self, labels: Mapping[str, str]) -> int:
        """0 = the selector matches, 1 = the first fallback does, and so on; ``NO_MATCH`` = none."""
        for rank, selector in enumerate((self.label_selector, *self.label_fallbacks)):
            if selector.items() <= labels.items():
                return rank
        return NO_MATCH


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What a move and unserved demand cost (DESIGN §5)."""

    move_frac: float = 0.02  # fixed price of a move, as share of the replica's hourly price
    unserved_factor: float = 3.0  # times the hourly price of the replicas that would have served
    disruption_scale: float = 1.0  # scales cold starts and the fixed price alike


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSettings:
    """Settings of Serve, of the node autoscaler and of the decision process."""

    scheduling: SchedulingStrategy = SchedulingStrategy.SPREAD
    idle_timeout_s: float = 300.0  # an empty node is released after this long
    decision_interval_s: float = 60.0  # DESIGN §5: one decision tick
    substep_s: float = 5.0  # simulator step; divides decision_interval_s
    prices: Prices = Prices()


@dataclass(frozen=True, kw_only=True)
class ClusterSpec:
    """Node types, deployments and settings of one cluster."""

    node_types: tuple[NodeType, ...]
    deployments: tuple[Deployment, ...]
    settings: ClusterSettings = ClusterSettings()
    bounds_packing: bool = False  # the lower bound packs nodes, for which some tenths of a second are spent once

    @property
    def max_nodes(self) -> int:
        """Largest number of nodes there can be at once."""
        return sum(t.max_nodes for t in self.node_types)

    @property
    def num_deployments(self) -> int:
        """D."""
        return len(self.deployments)

    @cached_property
    def resource_names(self) -> tuple[str, ...]:
        """K names: GPU, CPU, memory_gib first, custom ones sorted after them."""
        used = {name for t in self.node_types for name in t.resources}
        used |= {name for d in self.deployments for b in d.shape.bundles for name in b}
        return (GPU, CPU, MEMORY_GIB, *sorted(used - {GPU, CPU, MEMORY_GIB}))

    @cached_property
    def max_gpus(self) -> int:
        """G: GPU devices of the largest node type, at least 1 so that arrays are never empty."""
        return max(1, *(int(t.resources.get(GPU, 0)) for t in self.node_types))

    @cached_property
    def max_bundles(self) -> int:
        """M: bundles of the largest group, or gang."""
        return max((len(d.bundles) for d in self.deployments), default=1)

    @cached_property
    def arrays(self) -> SpecArrays:
        """The same content as arrays."""
        arrays = SpecArrays(
            **_type_arrays(self),
            **_demand_arrays(self),
            **_deployment_arrays(self.deployments),
            plane_usd_per_h=np.zeros((1 + self.num_deployments, 0)),
            bills_usd_per_h=np.zeros(0),
        )
        if not self.bounds_packing:
            return arrays
        return arrays._replace(plane_usd_per_h=packing_planes(arrays), bills_usd_per_h=bills_usd_per_h(arrays))

    @property
    def packs(self) -> bool:
        """Whether Serve packs: one PACK placement group anywhere makes it spread (``_use_pack_strategy``, 2.60).

        A gang of plain actors has a group as well, of which that rule does not know.
        """
        several = (PlacementGroupStrategy.PACK, PlacementGroupStrategy.SPREAD)
        is_group = [
            d.shape.strategy in several or (d.gang_size > 1 and len(d.shape.bundles) > 1) for d in self.deployments
        ]
        return self.settings.scheduling is SchedulingStrategy.PACK and not any(is_group)


def _type_arrays(spec: ClusterSpec) -> dict[str, Any]:
    types, names = spec.node_types, spec.resource_names
    return {
        "type_capacity": np.array([[t.resources.get(n, 0.0) for n in names] for t in types], np.float64),
        "type_num_gpus": np.array([int(t.resources.get(GPU, 0)) for t in types], np.int64),
        "type_price_usd_per_h": np.array([0.0 if t.is_head else t.price_usd_per_h for t in types], np.float64),
        "type_min_nodes": np.array([t.min_nodes for t in types], np.int64),
        "type_max_nodes": np.array([t.max_nodes for t in types], np.int64),
        "type_boot_s": np.array([tuple(t.boot_s) for t in types], np.float64),
        "type_is_spot": np.array([t.is_spot for t in types], np.bool_),
        "type_is_opted_out": np.array([t.is_opted_out for t in types], np.bool_),
        "type_interruptions_per_h": np.array([t.interruptions_per_h for t in types], np.float64),
        "type_notice_s": np.array([t.notice_s for t in types], np.float64),
        "type_stockout_prob": np.array([t.stockout_prob for t in types], np.float64),
        "type_stockout_s": np.array([tuple(t.stockout_s) for t in types], np.float64),
        "type_other_work": np.array([[t.other_work.get(n, 0.0) for n in names] for t in types], np.float64),
        "type_other_work_prob": np.array([t.other_work_prob for t in types], np.float64),
        "type_other_work_s": np.array([tuple(t.other_work_s) for t in types], np.float64),
    }


def _demand_arrays(spec: ClusterSpec) -> dict[str, Any]:
    """What replicas ask for, where it fits, and what it costs at least."""
    types, deps, names = spec.node_types, spec.deployments, spec.resource_names
    capacity = np.array([[t.resources.get(n, 0.0) for n in names] for t in types], np.float64)
    is_head = np.array([t.is_head for t in types], np.bool_)
    price = np.array([0.0 if t.is_head else t.price_usd_per_h for t in types], np.float64)
    bundle = np.zeros((len(deps), spec.max_bundles, len(names)))
    for i, d in enumerate(deps):
        bundle[i, : len(d.bundles)] = [[b.get(n, 0.0) for n in names] for b in d.bundles]
    demand = bundle.sum(1)
    rank = np.array([[d.label_rank(t.labels) for t in types] for d in deps], np.int64)
    is_for_replicas = np.array([t.max_nodes > 0 for t in types], np.bool_)
    matches = (rank < NO_MATCH) & is_for_replicas
    fits = matches & (demand[:, None] <= capacity[None] + 1e-9).all(-1)
    fits &= np.array([d.strategy is not PlacementGroupStrategy.SPREAD or len(d.bundles) == 1 for d in deps])[:, None]
    can_span = np.array([d.can_span for d in deps], np.bool_)
    bundle_fits = matches & (bundle[:, None] <= capacity[None, :, None] + 1e-9).all((-1, -2))
    usable = fits | (can_span[:, None] & bundle_fits)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.nan_to_num(demand[:, None] / capacity[None], nan=0.0, posinf=np.inf)  # (D, T, K)
        # No GPU on the head, which costs nothing: nan, and not usable.
        usd = np.where(usable & ~is_head, share.max(-1) * price, np.inf).min(-1)
        bound = np.where(usable[..., None], share * price[:, None], np.inf).min(1)
    whole = np.abs(bundle[:, :, 0] - np.round(bundle[:, :, 0])) < 1e-9
    return {
        "demand": demand,
        "least_demand": demand.min(axis=0, initial=np.inf),
        "demand_rank": np.unique(-demand, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64),
        "has_whole_demand": bool(whole.all()),
        "bundle": bundle,
        "num_bundles": np.array([len(d.bundles) for d in deps], np.int64),
        "can_span": can_span,
        "spreads": can_span & np.array([d.strategy is PlacementGroupStrategy.SPREAD for d in deps]),
        "sums_gpus": np.array([len(d.bundles) == 1 for d in deps]) | whole.all(1),
        "fits_type": fits,
        "bundle_fits_type": bundle_fits,
        "label_rank": rank,
        "num_labels": np.array([len(d.label_selector) for d in deps], np.int64),
        "num_selectors": np.array([1 + len(d.label_fallbacks) for d in deps], np.int64),
        "placement_rank": _placement_ranks(deps, demand),
        "launch_rank": np.array(_launch_ranks(deps), np.int64),
        "replica_usd_per_h": np.where(np.isfinite(usd), usd, 0.0),
        "bound_usd_per_h": np.where(np.isfinite(bound), bound, 0.0),
    }


def _deployment_arrays(deployments: tuple[Deployment, ...]) -> dict[str, Any]:
    """Settings of Serve and of the process, per replica or gang."""
    gang = np.array([d.gang_size for d in deployments], np.int64)
    scaling = [d.autoscaling for d in deployments]

    def floats(values: list[float]) -> NDArray[np.float64]:
        return np.array(values, np.float64)

    def ints(values: list[int]) -> NDArray[np.int64]:
        return np.array(values, np.int64)

    initial = ints([-1 if a.initial_replicas is None else a.initial_replicas for a in scaling])
    to_zero = [
        a.downscale_delay_s if a.downscale_to_zero_delay_s is None else a.downscale_to_zero_delay_s for a in scaling
    ]
    return {
        "gang_size": gang,
        "max_per_node": ints([d.max_replicas_per_node for d in deployments]),
        "limited": ints([i for i, d in enumerate(deployments) if d.max_replicas_per_node > 0]),
        "min_replicas": -(-ints([a.min_replicas for a in scaling]) // gang),
        "max_replicas": ints([a.max_replicas for a in scaling]) // gang,
        "initial_replicas": np.where(initial < 0, -1, -(-initial // gang)),
        "target_ongoing": floats([a.target_ongoing_requests for a in scaling]) * gang,
        "max_ongoing": floats([d.max_ongoing_requests for d in deployments]) * gang,
        "upscale_delay_s": floats([a.upscale_delay_s for a in scaling]),
        "downscale_delay_s": floats([a.downscale_delay_s for a in scaling]),
        "downscale_to_zero_delay_s": floats(to_zero),
        "upscaling_factor": floats([a.upscaling_factor for a in scaling]),
        "downscaling_factor": floats([a.downscaling_factor for a in scaling]),
        "startup_s": np.array([tuple(d.startup_s) for d in deployments], np.float64),
        "drain_s": np.array([tuple(d.drain_s) for d in deployments], np.float64),
        "start_failure_prob": floats([d.start_failure_prob for d in deployments]),
        "slow_start_prob": floats([d.slow_start_prob for d in deployments]),
        "slow_start_factor": floats([d.slow_start_factor for d in deployments]),
        "is_movable": np.array([d.is_movable and d.gang_size == 1 for d in deployments], np.bool_),
    }


def _placement_ranks(deployments: tuple[Deployment, ...], demand: NDArray[np.float64]) -> NDArray[np.int64]:
    """Ranks ``(D,)``: largest demand first, of equal ones those with a limit per node, then as they are listed."""
    order = sorted(range(len(deployments)), key=lambda i: (*(-demand[i]), deployments[i].max_replicas_per_node == 0, i))
    ranks = np.empty(len(deployments), np.int64)
    ranks[order] = np.arange(len(deployments))
    return ranks


def _launch_ranks(deployments: tuple[Deployment, ...]) -> list[int]:
    """Ranks ``(D,)`` of ``ResourceDemandScheduler._try_schedule``: most labels, most kinds of resources, largest sum.

    Ray sums GPUs, CPUs and bytes alike, so that memory decides wherever it is asked for.
    """

    def key(d: Deployment) -> tuple[int, int, float, list[tuple[str, float]]]:
        names = {name for bundle in d.bundles for name in bundle}
        total = {n: d.shape.total(n) * d.gang_size for n in names}
        asked = {"memory" if n == MEMORY_GIB else n: total[n] * BYTES_PER.get(n, 1.0) for n in names}
        asked = {n: amount for n, amount in asked.items() if amount > 0.0}
        return len(d.label_selector), len(asked), sum(asked.values()), sorted(asked.items())

    keys = [key(d) for d in deployments]
    order = sorted(keys, reverse=True)
    return [order.index(k) for k in keys]
