"""*Free repacking*: the episode in which compaction costs nothing and takes no time.

At every tick all replicas that may be moved are packed anew onto the nodes there are, so that the dearest nodes are
emptied: best fit decreasing, node after node given up, the dearest first. Emptied nodes are released by the
autoscaler's own rules, after the idle time-out; what starts, drains or is opted out stays where it is, and labels,
devices and ``max_replicas_per_node`` hold. Fences, cooldowns and the limit on concurrent moves do not.

It is the far end of the scale on which policies are placed, not a bound: it does not know what traffic comes, packs
by a heuristic, and never moves anything to a new node, so that now and then a policy may end below it.

Dims: N nodes, I replicas that may be moved.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.devices import take_gpus
from rayfold.envs.jit import kernel
from rayfold.envs.placement import hold, less_left, let_go
from rayfold.envs.safety import Limits, count_nodes, has_capacity
from rayfold.envs.simulator import Simulator
from rayfold.envs.spec_arrays import SpecArrays
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase, StateArrays

__all__ = ["FreeRepacking", "repack"]

_RUNNING = int(ReplicaPhase.RUNNING)


class _Lifted(NamedTuple):
    """The cluster without the replicas that may be moved."""

    st: StateArrays
    rows: NDArray[np.int64]  # (I,) those, in the order in which they are packed
    deployment: NDArray[np.int64]  # (I,)
    may_take: NDArray[np.bool_]  # (N,) nodes that they may go to
    may_empty: NDArray[np.bool_]  # (N,) those of them that hold nothing else


class FreeRepacking:
    """A ``Rearranger``: repacks whatever cluster it stands in."""

    name = "free_repacking"

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Nothing has been seen yet."""
        self._seen = b""

    def rearrange(self, sim: Simulator) -> None:
        """Repacks where anything has changed since the last time."""
        if _signature(sim.view.arrays) != self._seen:
            repack(sim.view, sim.limits)
            self._seen = _signature(sim.view.arrays)


def _signature(st: StateArrays) -> bytes:
    """Equal as long as there is nothing new to repack."""
    return b"".join(a.tobytes() for a in (st.node_phase, st.node_held, st.node_releasable, st.replica_phase))


def repack(state: ClusterState, limits: Limits) -> bool:
    """Moves replicas at once and for nothing, in place, if that empties nodes or trades them for cheaper ones.

    Args:
        state: Written.
        limits: Whether nodes that cannot be released may take replicas.

    Returns:
        Whether anything was moved.
    """
    st, spec = state.arrays, state.spec.arrays
    lifted = _lift(state, limits)
    price = np.where(lifted.may_empty, spec.type_price_usd_per_h[st.node_type], 0.0)
    least, best = float(price[st.node_num_held > 0].sum()) - 1e-9, None
    size, choices = spec.placement_rank[lifted.deployment], spec.fits_type.sum(1)[lifted.deployment]
    share = -(spec.demand / np.maximum(spec.type_capacity.max(0), 1e-9)).max(1)[lifted.deployment]
    for order in (np.argsort(size, kind="stable"), np.lexsort((size, choices)), np.lexsort((size, share))):
        part = lifted._replace(rows=lifted.rows[order], deployment=lifted.deployment[order])
        destination = _fewest(spec, part, price)
        if destination is not None and (usd_per_h := float(price[np.unique(destination)].sum())) < least:
            least, best = usd_per_h, (part.rows, part.deployment, destination)
    if best is None:
        return False
    for r in lifted.rows:
        let_go(spec, st, r, state.now_s)
    for r, d, n in zip(*best, strict=True):
        st.replica_deployment[r], st.replica_phase[r] = d, _RUNNING
        hold(spec, st, r, n)
    return True


def _lift(state: ClusterState, limits: Limits) -> _Lifted:
    """Takes away whatever the safety filter would let go but for its limits in time and number."""
    st, spec = state.arrays.copy(), state.spec.arrays
    is_alive = (st.node_phase == NodePhase.ALIVE) & ~st.node_is_head
    may_leave = is_alive & ~st.node_is_opted_out & st.node_releasable
    is_movable = (st.replica_phase == _RUNNING) & (st.replica_peer < 0) & ~st.replica_spans
    is_movable &= spec.is_movable[st.replica_deployment] & may_leave[st.replica_node]
    rows = np.flatnonzero(is_movable)
    deployment = st.replica_deployment[rows]
    for r in map(int, rows):
        let_go(spec, st, r, state.now_s)
    may_take = is_alive & (st.node_releasable | limits.use_unreleasable_nodes)
    return _Lifted(st, rows, deployment, may_take, may_take & may_leave & (st.node_num_held == 0))


def _fewest(spec: SpecArrays, lifted: _Lifted, price: NDArray[np.float64]) -> NDArray[np.int64] | None:
    """Destinations ``(I,)`` on the nodes that are left when one after another is given up; None if not even all do."""
    st, kept = lifted.st, lifted.may_take.copy()
    spare = count_nodes(st, len(spec.type_min_nodes)) - spec.type_min_nodes
    best = None
    # Of equal price those go first that are empty anyway, longest first, then the last rows.
    order = sorted(np.flatnonzero(lifted.may_empty), key=lambda n: (-price[n], st.node_idle_since_s[n], -n))
    for n in order:
        t = st.node_type[n]
        if spare[t] <= 0:
            continue
        kept[n] = False
        destination = _pack(spec, lifted, kept)
        if destination is None:
            kept[n] = True
            continue
        best = destination
        spare[t] -= 1
    return best


def _pack(spec: SpecArrays, lifted: _Lifted, kept: NDArray[np.bool_]) -> NDArray[np.int64] | None:
    st, destination = lifted.st, np.full(len(lifted.rows), -1)
    fits = best_fit(
        spec,
        st.node_type,
        kept,
        lifted.deployment,
        st.node_free.copy(),
        st.gpu_free.copy(),
        st.node_held.copy(),
        destination,
    )
    return destination if fits else None


@kernel
def best_fit(
    spec: SpecArrays,
    node_type: NDArray[np.int64],
    kept: NDArray[np.bool_],
    deployment: NDArray[np.int64],
    node_free: NDArray[np.float64],
    gpu_free: NDArray[np.float64],
    node_held: NDArray[np.int64],
    destination: NDArray[np.int64],
) -> bool:
    """Puts replicas one after another on the node that is left with least.

    Args:
        spec: Static description.
        node_type: ``(N,)``.
        kept: ``(N,)`` nodes that may take replicas.
        deployment: ``(I,)`` of the replicas, in their order.
        node_free: ``(N, K)``, written.
        gpu_free: ``(N, G)``, written.
        node_held: ``(N, D)``, written.
        destination: ``(I,)`` node rows, written.

    Returns:
        Whether all fit.
    """
    demand, bundle, num_bundles, fits_type = spec.demand, spec.bundle, spec.num_bundles, spec.fits_type
    max_per_node, sums_gpus = spec.max_per_node, spec.sums_gpus
    for i in range(deployment.shape[0]):
        d, best = deployment[i], -1
        for n in range(kept.shape[0]):
            if not kept[n] or not fits_type[d, node_type[n]] or (best >= 0 and not less_left(node_free, n, best)):
                continue
            if has_capacity(demand, bundle, num_bundles, max_per_node, sums_gpus, node_free, gpu_free, node_held, d, n):
                best = n
        if best < 0:
            return False
        if sums_gpus[d]:
            take_gpus(gpu_free, best, demand[d, 0])
        else:
            for j in range(num_bundles[d]):
                take_gpus(gpu_free, best, bundle[d, j, 0])
        for k in range(demand.shape[1]):
            node_free[best, k] -= demand[d, k]
        node_held[best, d] += 1
        destination[i] = best
    return True
