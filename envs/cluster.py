"""Static description of a cluster: node types, deployments, autoscaler settings.

Dims: T node types, D deployments, K resources, G GPU devices of the largest node type.
Everything here is fixed for an episode; what changes with time is in ``state.py``.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

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
    "SpecArrays",
]

GPU, CPU, MEMORY_GIB = "GPU", "CPU", "memory_gib"
BYTES_PER = {MEMORY_GIB: 2.0**30}  # Ray counts memory in bytes


class SchedulingStrategy(enum.StrEnum):
    """How Serve places replicas (``RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY`` off or on)."""

    SPREAD = "spread"
    PACK = "pack"


class PlacementGroupStrategy(enum.StrEnum):
    """Ray's placement-group strategy of a replica; NONE is a plain actor."""

    NONE = "NONE"
    PACK = "PACK"
    STRICT_PACK = "STRICT_PACK"


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaShape:
    """What one replica asks for.

    A plain actor has one bundle. A replica is modelled on one node: a PACK group that really spans
    nodes is reported by the live snapshot as unmovable.
    """

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
    """One Serve deployment."""

    name: str
    app: str = "default"
    shape: ReplicaShape
    autoscaling: AutoscalingConfig = AutoscalingConfig()
    max_ongoing_requests: float = 5.0  # requests one replica serves at once (Serve's name)
    max_replicas_per_node: int = 0  # 0 = no limit
    label_selector: Mapping[str, str] = field(default_factory=dict)
    startup_s: Interval = _STARTUP_S
    drain_s: Interval = _DRAIN_S
    is_movable: bool = True  # False = opted out of compaction

    @property
    def key(self) -> str:
        """``app/name``, unique in a cluster."""
        return f"{self.app}/{self.name}"


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


class SpecArrays(NamedTuple):
    """``ClusterSpec`` as arrays, in the form the numba kernels read."""

    type_capacity: NDArray[np.float64]  # (T, K)
    type_num_gpus: NDArray[np.int64]  # (T,)
    type_price_usd_per_h: NDArray[np.float64]  # (T,)
    type_min_nodes: NDArray[np.int64]  # (T,)
    type_max_nodes: NDArray[np.int64]  # (T,)
    type_boot_s: NDArray[np.float64]  # (T, 2) min, max
    demand: NDArray[np.float64]  # (D, K) one replica, all bundles
    fits_type: NDArray[np.bool_]  # (D, T) labels match and an empty node is large enough
    num_labels: NDArray[np.int64]  # (D,) labels asked for
    launch_rank: NDArray[np.int64]  # (D,) 0 = the node autoscaler packs it first; equal requests share a rank
    max_per_node: NDArray[np.int64]  # (D,) 0 = no limit
    min_replicas: NDArray[np.int64]  # (D,)
    max_replicas: NDArray[np.int64]  # (D,)
    initial_replicas: NDArray[np.int64]  # (D,)
    target_ongoing: NDArray[np.float64]  # (D,)
    max_ongoing: NDArray[np.float64]  # (D,)
    upscale_delay_s: NDArray[np.float64]  # (D,)
    downscale_delay_s: NDArray[np.float64]  # (D,)
    downscale_to_zero_delay_s: NDArray[np.float64]  # (D,)
    upscaling_factor: NDArray[np.float64]  # (D,)
    downscaling_factor: NDArray[np.float64]  # (D,)
    startup_s: NDArray[np.float64]  # (D, 2) min, max
    drain_s: NDArray[np.float64]  # (D, 2) min, max
    is_movable: NDArray[np.bool_]  # (D,)
    replica_usd_per_h: NDArray[np.float64]  # (D,) share of the price of the cheapest type it fits


@dataclass(frozen=True, kw_only=True)
class ClusterSpec:
    """Node types, deployments and settings of one cluster."""

    node_types: tuple[NodeType, ...]
    deployments: tuple[Deployment, ...]
    settings: ClusterSettings = ClusterSettings()

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
    def arrays(self) -> SpecArrays:
        """The same content as arrays."""
        types, deps, names = self.node_types, self.deployments, self.resource_names
        capacity = np.array([[t.resources.get(n, 0.0) for n in names] for t in types], np.float64)
        price = np.array([t.price_usd_per_h for t in types], np.float64)
        demand = np.array([[d.shape.total(n) for n in names] for d in deps], np.float64)
        labels = np.array([[d.label_selector.items() <= t.labels.items() for t in types] for d in deps])
        fits = labels & (demand[:, None] <= capacity[None] + 1e-9).all(-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.nan_to_num(demand[:, None] / capacity[None], nan=0.0, posinf=np.inf).max(-1)
        replica_usd = np.where(fits, share * price, np.inf).min(-1)
        scaling = [d.autoscaling for d in deps]

        def floats(values: list[float]) -> NDArray[np.float64]:
            return np.array(values, np.float64)

        def ints(values: list[int]) -> NDArray[np.int64]:
            return np.array(values, np.int64)

        return SpecArrays(
            type_capacity=capacity,
            type_num_gpus=ints([int(t.resources.get(GPU, 0)) for t in types]),
            type_price_usd_per_h=price,
            type_min_nodes=ints([t.min_nodes for t in types]),
            type_max_nodes=ints([t.max_nodes for t in types]),
            type_boot_s=np.array([tuple(t.boot_s) for t in types], np.float64),
            demand=demand,
            fits_type=fits,
            num_labels=ints([len(d.label_selector) for d in deps]),
            launch_rank=ints(_launch_ranks(deps)),
            max_per_node=ints([d.max_replicas_per_node for d in deps]),
            min_replicas=ints([a.min_replicas for a in scaling]),
            max_replicas=ints([a.max_replicas for a in scaling]),
            initial_replicas=ints(
                [a.min_replicas if a.initial_replicas is None else a.initial_replicas for a in scaling]
            ),
            target_ongoing=floats([a.target_ongoing_requests for a in scaling]),
            max_ongoing=floats([d.max_ongoing_requests for d in deps]),
            upscale_delay_s=floats([a.upscale_delay_s for a in scaling]),
            downscale_delay_s=floats([a.downscale_delay_s for a in scaling]),
            downscale_to_zero_delay_s=floats(
                [
                    a.downscale_delay_s if a.downscale_to_zero_delay_s is None else a.downscale_to_zero_delay_s
                    for a in scaling
                ]
            ),
            upscaling_factor=floats([a.upscaling_factor for a in scaling]),
            downscaling_factor=floats([a.downscaling_factor for a in scaling]),
            startup_s=np.array([tuple(d.startup_s) for d in deps], np.float64),
            drain_s=np.array([tuple(d.drain_s) for d in deps], np.float64),
            is_movable=np.array([d.is_movable for d in deps], np.bool_),
            replica_usd_per_h=np.where(np.isfinite(replica_usd), replica_usd, 0.0),
        )

    @property
    def packs(self) -> bool:
        """Whether Serve packs: one PACK placement group anywhere makes it spread (``_use_pack_strategy``, 2.60)."""
        spans = any(d.shape.strategy is PlacementGroupStrategy.PACK for d in self.deployments)
        return self.settings.scheduling is SchedulingStrategy.PACK and not spans


def _launch_ranks(deployments: tuple[Deployment, ...]) -> list[int]:
    """Ranks ``(D,)`` of ``ResourceDemandScheduler._try_schedule``: most labels, most kinds of resources, largest sum.

    Ray sums GPUs, CPUs and bytes alike, so that memory decides wherever it is asked for.
    """

    def key(d: Deployment) -> tuple[int, int, float, list[tuple[str, float]]]:
        names = {name for bundle in d.shape.bundles for name in bundle}
        asked = {"memory" if n == MEMORY_GIB else n: d.shape.total(n) * BYTES_PER.get(n, 1.0) for n in names}
        asked = {n: amount for n, amount in asked.items() if amount > 0.0}
        return len(d.label_selector), len(asked), sum(asked.values()), sorted(asked.items())

    keys = [key(d) for d in deployments]
    order = sorted(keys, reverse=True)
    return [order.index(k) for k in keys]
