"""Random clusters, and what the invariants know of them: plain numbers read off the description, not ``SpecArrays``.

Dims: T node types, D deployments, K resources (GPU, CPU, memory), M bundles.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.cluster import ClusterSpec, Deployment, NodeType, PlacementGroupStrategy, ReplicaShape
from rayfold.envs.views import by_reference

__all__ = ["RESOURCES", "Facts", "facts_of", "random_spec"]

RESOURCES = ("GPU", "CPU", "memory_gib")
_TIERS = ("gold", "iron")


@by_reference(is_written=False)
class Facts(NamedTuple):
    """A cluster in plain numbers."""

    capacity: NDArray[np.float64]  # (T, K)
    min_nodes: NDArray[np.int64]  # (T,)
    max_nodes: NDArray[np.int64]  # (T,)
    bundles: NDArray[np.float64]  # (D, M, K), 0 beyond those that a deployment has
    num_bundles: NDArray[np.int64]  # (D,)
    may_span: NDArray[np.bool_]  # (D,) its bundles may lie on several nodes
    matches: NDArray[np.bool_]  # (D, T) labels, and bundles that belong together
    may_move: NDArray[np.bool_]  # (D,)
    max_per_node: NDArray[np.int64]  # (D,) 0 = no limit


def facts_of(spec: ClusterSpec) -> Facts:
    """Reads a description."""
    types, deployments = spec.node_types, spec.deployments
    bundles = np.zeros((len(deployments), max(len(d.bundles) for d in deployments), len(RESOURCES)))
    for i, d in enumerate(deployments):
        for j, bundle in enumerate(d.bundles):
            bundles[i, j] = [bundle.get(name, 0.0) for name in RESOURCES]
    spanning = (PlacementGroupStrategy.PACK, PlacementGroupStrategy.SPREAD)
    return Facts(
        capacity=np.array([[t.resources.get(name, 0.0) for name in RESOURCES] for t in types]),
        min_nodes=np.array([t.min_nodes for t in types]),
        max_nodes=np.array([t.max_nodes for t in types]),
        bundles=bundles,
        num_bundles=np.array([len(d.bundles) for d in deployments]),
        may_span=np.array([d.strategy in spanning and len(d.bundles) > 1 for d in deployments]),
        matches=np.array([[_matches(d, t) for t in types] for d in deployments]),
        may_move=np.array([d.is_movable and d.gang_size == 1 for d in deployments]),
        max_per_node=np.array([d.max_replicas_per_node for d in deployments]),
    )


def _matches(d: Deployment, t: NodeType) -> bool:
    if d.strategy is PlacementGroupStrategy.SPREAD and len(d.bundles) > 1:
        return False  # one node is no place for it
    selectors = (d.label_selector, *d.label_fallbacks)
    return any(all(t.labels.get(key) == value for key, value in selector.items()) for selector in selectors)


def random_spec(rng: np.random.Generator) -> ClusterSpec:
    """Two or three node types and six deployments: shares, whole GPUs, groups, labels, limits, opt-outs."""
    types = tuple(
        NodeType(
            name=f"t{i}",
            resources={
                "GPU": float(rng.integers(1, 9)),
                "CPU": float(rng.integers(4, 33)),
                "memory_gib": float(rng.integers(16, 129)),
            },
            price_usd_per_h=float(rng.uniform(0.5, 20.0)),
            labels={"tier": str(rng.choice(_TIERS))} if rng.random() < 0.7 else {},
            min_nodes=int(rng.integers(0, 3)),
            max_nodes=int(rng.integers(3, 6)),
        )
        for i in range(rng.integers(2, 4))
    )
    return ClusterSpec(node_types=types, deployments=tuple(_deployment(rng, f"d{i}") for i in range(6)))


def _deployment(rng: np.random.Generator, name: str) -> Deployment:
    strategies = (PlacementGroupStrategy.STRICT_PACK, PlacementGroupStrategy.PACK, PlacementGroupStrategy.SPREAD)
    num_bundles = int(rng.choice([1, 1, 1, 2, 3]))
    strategy = PlacementGroupStrategy.NONE if num_bundles == 1 else strategies[rng.integers(3)]
    bundles = tuple(
        {
            "GPU": float(rng.choice([0.0, 0.25, 0.3, 0.5, 1.0, 1.0, 2.0, 4.0])),
            "CPU": float(rng.choice([0.5, 1.0, 4.0])),
            "memory_gib": float(rng.choice([0.0, 1.0, 24.0])),
        }
        for _ in range(num_bundles)
    )
    return Deployment(
        name=name,
        shape=ReplicaShape(bundles=bundles, strategy=strategy),
        gang_size=2 if num_bundles == 1 and rng.random() < 0.1 else 1,
        label_selector={"tier": str(rng.choice(_TIERS))} if rng.random() < 0.3 else {},
        label_fallbacks=({"tier": str(rng.choice(_TIERS))},) if rng.random() < 0.1 else (),
        max_replicas_per_node=int(rng.choice([0, 0, 1, 2])),
        is_movable=bool(rng.random() < 0.9),
    )
