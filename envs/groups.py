"""Placement groups that may span nodes: where Ray's GCS puts the bundles of one replica, or of a gang.

Follows ``BundlePackSchedulingPolicy`` and ``BundleSpreadSchedulingPolicy`` (C++, Ray 2.60; read, not importable):
PACK takes the best node for the next bundle and puts every other bundle there that still fits, then goes on with
the rest; SPREAD takes a node of its own for each bundle while there is one, then uses nodes again. The best node is
the one with the largest share of the asked resources left (``LeastResourceScorer``). All bundles or none. Dims:
N nodes, M bundles, K resources.
"""

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.devices import EPS, can_take_gpus, release_gpus, take_gpus
from rayfold.envs.jit import inner, kernel
from rayfold.envs.spec_arrays import SpecArrays
from rayfold.envs.state import NodePhase, StateArrays

__all__ = ["hold_group"]

_ALIVE = int(NodePhase.ALIVE)


@inner
def _share_left(spec: SpecArrays, st: StateArrays, d: int, j: int, n: int) -> float:
    """Mean share of the asked resources that bundle ``j`` would leave free on ``n``; -1 if it does not fit."""
    if not spec.bundle_fits_type[d, st.node_type[n]] or not can_take_gpus(st.gpu_free, n, spec.bundle[d, j, 0]):
        return -1.0
    total, kinds = 0.0, 0
    for k in range(spec.bundle.shape[2]):
        asked, free = spec.bundle[d, j, k], st.node_free[n, k]
        if asked <= 0.0:
            continue
        if asked > free + EPS:
            return -1.0
        total += (free - asked) / free
        kinds += 1
    return max(0.0, total / max(1, kinds))


@inner
def _best_node(
    spec: SpecArrays, st: StateArrays, now_s: float, d: int, j: int, used: NDArray[np.bool_], is_fence_kept: bool
) -> int:
    best, best_share = -1, -1.0
    for n in range(st.node_type.shape[0]):
        if st.node_phase[n] != _ALIVE or used[n] or (is_fence_kept and st.node_fenced_until_s[n] > now_s):
            continue
        share = _share_left(spec, st, d, j, n)
        if share > best_share:
            best, best_share = n, share
    return best


@inner
def _take(spec: SpecArrays, st: StateArrays, r: int, j: int, n: int) -> None:
    d = st.replica_deployment[r]
    st.replica_gpus[r, j] = take_gpus(st.gpu_free, n, spec.bundle[d, j, 0])
    st.replica_bundle_node[r, j] = n
    for k in range(spec.bundle.shape[2]):
        st.node_free[n, k] -= spec.bundle[d, j, k]


@inner
def _give_back(spec: SpecArrays, st: StateArrays, r: int) -> None:
    d = st.replica_deployment[r]
    for j in range(spec.num_bundles[d]):
        n = st.replica_bundle_node[r, j]
        if n >= 0:
            release_gpus(st.gpu_free, n, st.replica_gpus[r, j], spec.bundle[d, j, 0])
            for k in range(spec.bundle.shape[2]):
                st.node_free[n, k] += spec.bundle[d, j, k]
        st.replica_bundle_node[r, j] = -1
        st.replica_gpus[r, j] = 0


@kernel
def hold_group(spec: SpecArrays, st: StateArrays, now_s: float, r: int) -> bool:
    """Places the bundles of pending replica ``r`` on one node or several, in place.

    Fenced nodes are used only if the group fits nowhere else.

    Returns:
        Whether it fits; nothing is changed if not.
    """
    return _try_group(spec, st, now_s, r, True) or _try_group(spec, st, now_s, r, False)


@inner
def _try_group(spec: SpecArrays, st: StateArrays, now_s: float, r: int, is_fence_kept: bool) -> bool:
    d = st.replica_deployment[r]
    used = np.zeros(st.node_type.shape[0], np.bool_)
    for j in range(spec.num_bundles[d]):
        if st.replica_bundle_node[r, j] >= 0:
            continue
        n = _best_node(spec, st, now_s, d, j, used, is_fence_kept)
        if n < 0 and spec.spreads[d]:
            used[:] = False
            n = _best_node(spec, st, now_s, d, j, used, is_fence_kept)
        if n < 0:
            _give_back(spec, st, r)
            return False
        _take(spec, st, r, j, n)
        used[n] = True
        if not spec.spreads[d]:
            for i in range(j + 1, spec.num_bundles[d]):
                if st.replica_bundle_node[r, i] < 0 and _share_left(spec, st, d, i, n) >= 0.0:
                    _take(spec, st, r, i, n)
    _settle(spec, st, r)
    return True


@inner
def _settle(spec: SpecArrays, st: StateArrays, r: int) -> None:
    """Counts the replica on its nodes; one that lies on a single node is kept as any other."""
    d = st.replica_deployment[r]
    st.replica_node[r] = st.replica_bundle_node[r, 0]
    for j in range(spec.num_bundles[d]):
        n = st.replica_bundle_node[r, j]
        st.replica_spans[r] |= n != st.replica_node[r]
        is_first = True
        for i in range(j):
            if st.replica_bundle_node[r, i] == n:
                is_first = False
        if is_first:
            st.node_held[n, d] += 1
            st.node_num_held[n] += 1
            st.node_idle_since_s[n] = np.inf
            st.node_fenced_until_s[n] = -np.inf  # the group fits nowhere else: the fence yields
    if not st.replica_spans[r]:
        for j in range(spec.num_bundles[d]):
            st.replica_bundle_node[r, j] = -1
        if spec.sums_gpus[d]:
            for j in range(1, spec.num_bundles[d]):
                st.replica_gpus[r, 0] |= st.replica_gpus[r, j]
                st.replica_gpus[r, j] = 0
