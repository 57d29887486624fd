"""States whose least number of nodes is known by construction, as in Karpenter's consolidation tests.

*Construction.* Half as many nodes as asked for are filled to the last GPU, each with replicas of at most 5 GPUs that
add up to 8; CPU and memory are asked for in the same proportion. Then all replicas are scattered over all nodes.

*Proof of the optimum k.* The full nodes hold all replicas, so k nodes are enough. The replicas ask for 8 k GPUs and a
node has 8, so fewer are not.

*Proof that scattering never gets stuck.* A replica of s <= 5 GPUs that fits nowhere finds at least 9 - s >= 4 GPUs held
on each of the 2 k nodes, 8 k in all; but all replicas together ask for 8 k, and this one is not placed yet.

*Which sizes.* With ``MIXED`` ones there is a replica for every gap, and greedy rules reach the optimum. With
``AWKWARD`` ones there is none for the GPU that 5 + 2 or 3 + 2 + 2 leave, and they do not.
"""

from typing import NamedTuple

import numpy as np

from rayfold.envs.cluster import AutoscalingConfig, ClusterSpec, Deployment, NodeType, ReplicaShape
from rayfold.envs.node_autoscaler import add_node
from rayfold.envs.placement import hold
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase, StateArrays

__all__ = ["AWKWARD", "MIXED", "KnownOptimum", "known_optimum"]

MIXED, AWKWARD = (1, 2, 3, 4, 5), (2, 3, 5)  # GPUs of a replica
_GPUS, _LARGEST = 8, 5  # of a node, of a replica
_CPUS, _MEMORY_GIB, _USD_PER_H = 96.0, 1152.0, 27.44705  # p4de.24xlarge, AWS on-demand, us-east-1, mid 2026


class KnownOptimum(NamedTuple):
    """A state and what it can be compacted to."""

    state: ClusterState
    optimal_num_nodes: int


def known_optimum(num_nodes: int, rng: np.random.Generator, sizes: tuple[int, ...] = MIXED) -> KnownOptimum:
    """A scattered state in which every node holds a replica or more, and half of the nodes would do.

    The numbers of replicas are fixed (``min_replicas = max_replicas``), so the optimum stays the same in a simulator,
    whatever the traffic.

    Args:
        num_nodes: An even number, at least 2.
        rng: Draws replicas and places.
        sizes: GPUs that a replica may have, 1 to 5, some of which add up to 8.

    Raises:
        ValueError: ``num_nodes`` or ``sizes`` are not as said.
    """
    fillings = _fillings(tuple(sorted(set(sizes))), _GPUS)
    if num_nodes < 2 or num_nodes % 2:
        raise ValueError(f"num_nodes must be even and >= 2, got {num_nodes}")
    if not fillings or not all(1 <= size <= _LARGEST for size in sizes):
        raise ValueError(f"sizes must be 1..{_LARGEST} and add up to {_GPUS} in some way, got {sizes}")
    optimum = num_nodes // 2
    replicas = [size for i in rng.integers(len(fillings), size=optimum) for size in fillings[i]]
    counts = [replicas.count(size) for size in sizes]
    spec = _spec(num_nodes, sizes, counts)
    st = StateArrays.empty(spec, num_nodes, 2 * len(replicas))
    for _ in range(num_nodes):
        add_node(spec.arrays, st, 0, int(NodePhase.ALIVE), 0.0)
    order, free = rng.permutation(replicas), np.full(num_nodes, _GPUS)
    for r, size in enumerate(order):
        # The first ones go to a node each: a full node has two replicas or more, so there are enough.
        n = r if r < num_nodes else int(rng.choice(np.flatnonzero(free >= size)))
        free[n] -= size
        st.replica_deployment[r], st.replica_phase[r] = sizes.index(size), int(ReplicaPhase.RUNNING)
        hold(spec.arrays, st, r, n)
    st.deployment_target[:] = counts
    st.deployment_ongoing[:] = st.deployment_ongoing_slow[:] = spec.arrays.target_ongoing * counts
    return KnownOptimum(ClusterState(spec=spec, now_s=0.0, arrays=st), optimum)


def _fillings(sizes: tuple[int, ...], gpus: int) -> list[tuple[int, ...]]:
    """All ways to add up to ``gpus``, each in order of size."""
    if gpus == 0:
        return [()]
    return [(s, *rest) for i, s in enumerate(sizes) if 0 < s <= gpus for rest in _fillings(sizes[i:], gpus - s)]


def _spec(num_nodes: int, sizes: tuple[int, ...], counts: list[int]) -> ClusterSpec:
    resources = {"GPU": float(_GPUS), "CPU": _CPUS, "memory_gib": _MEMORY_GIB}
    return ClusterSpec(
        node_types=(NodeType(name="node", resources=resources, price_usd_per_h=_USD_PER_H, max_nodes=num_nodes),),
        deployments=tuple(
            Deployment(
                name=f"gpu{size}",
                shape=ReplicaShape(bundles=({name: amount * size / _GPUS for name, amount in resources.items()},)),
                autoscaling=AutoscalingConfig(min_replicas=count, max_replicas=count),
            )
            for size, count in zip(sizes, counts, strict=True)
        ),
    )
