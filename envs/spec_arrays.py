"""``SpecArrays``: what is fixed of a cluster, as the kernels of this room read it.

Dims: T node types, D deployments, K resources, M bundles of the largest group, P planes, B bills.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.views import by_reference

__all__ = ["SpecArrays"]


@by_reference(is_written=False)
class SpecArrays(NamedTuple):
    """``ClusterSpec`` as arrays, in the form the numba kernels read.

    A gang counts as one replica here: targets, bounds and requests are those of the whole gang.
    """

    type_capacity: NDArray[np.float64]  # (T, K)
    type_num_gpus: NDArray[np.int64]  # (T,)
    type_price_usd_per_h: NDArray[np.float64]  # (T,)
    type_min_nodes: NDArray[np.int64]  # (T,)
    type_max_nodes: NDArray[np.int64]  # (T,)
    type_boot_s: NDArray[np.float64]  # (T, 2) min, max
    type_is_spot: NDArray[np.bool_]  # (T,)
    type_is_opted_out: NDArray[np.bool_]  # (T,)
    type_interruptions_per_h: NDArray[np.float64]  # (T,)
    type_notice_s: NDArray[np.float64]  # (T,)
    type_stockout_prob: NDArray[np.float64]  # (T,)
    type_stockout_s: NDArray[np.float64]  # (T, 2) min, max
    type_other_work: NDArray[np.float64]  # (T, K)
    type_other_work_prob: NDArray[np.float64]  # (T,)
    type_other_work_s: NDArray[np.float64]  # (T, 2) min, max
    demand: NDArray[np.float64]  # (D, K) one replica, all bundles
    least_demand: NDArray[np.float64]  # (K,) of any deployment
    demand_rank: NDArray[np.int64]  # (D,) 0 = asks for most, GPU first, then CPU, memory, custom; equal ones share it
    has_whole_demand: bool  # no bundle of any deployment asks for a share of a GPU
    bundle: NDArray[np.float64]  # (D, M, K) each bundle
    num_bundles: NDArray[np.int64]  # (D,) at most M
    gang_size: NDArray[np.int64]  # (D,) replicas of a gang, with as many bundles each; 1 = no gang
    can_span: NDArray[np.bool_]  # (D,) its bundles may lie on several nodes
    spreads: NDArray[np.bool_]  # (D,) and do wherever they can
    sums_gpus: NDArray[np.bool_]  # (D,) on one node, the devices of all bundles are those of their sum
    fits_type: NDArray[np.bool_]  # (D, T) labels match and an empty node holds a whole replica
    bundle_fits_type: NDArray[np.bool_]  # (D, T) labels match and an empty node holds each bundle by itself
    label_rank: NDArray[np.int64]  # (D, T) see Deployment.label_rank
    num_labels: NDArray[np.int64]  # (D,) labels asked for
    num_selectors: NDArray[np.int64]  # (D,) the label selector and its fallbacks
    placement_rank: NDArray[np.int64]  # (D,) 0 = Serve places it first under pack: see placement.asks_more
    launch_rank: NDArray[np.int64]  # (D,) 0 = the node autoscaler packs it first; equal requests share a rank
    max_per_node: NDArray[np.int64]  # (D,) 0 = no limit
    limited: NDArray[np.int64]  # rows of the deployments that have such a limit
    min_replicas: NDArray[np.int64]  # (D,)
    max_replicas: NDArray[np.int64]  # (D,)
    initial_replicas: NDArray[np.int64]  # (D,) -1 = not said
    target_ongoing: NDArray[np.float64]  # (D,)
    max_ongoing: NDArray[np.float64]  # (D,)
    upscale_delay_s: NDArray[np.float64]  # (D,)
    downscale_delay_s: NDArray[np.float64]  # (D,)
    downscale_to_zero_delay_s: NDArray[np.float64]  # (D,)
    upscaling_factor: NDArray[np.float64]  # (D,)
    downscaling_factor: NDArray[np.float64]  # (D,)
    startup_s: NDArray[np.float64]  # (D, 2) min, max
    drain_s: NDArray[np.float64]  # (D, 2) min, max
    start_failure_prob: NDArray[np.float64]  # (D,)
    slow_start_prob: NDArray[np.float64]  # (D,)
    slow_start_factor: NDArray[np.float64]  # (D,)
    is_movable: NDArray[np.bool_]  # (D,)
    replica_usd_per_h: NDArray[np.float64]  # (D,) share of the price of the cheapest type it fits
    bound_usd_per_h: NDArray[np.float64]  # (D, K) least price of one replica's share, by that resource alone
    plane_usd_per_h: NDArray[np.float64]  # (1 + D, P) see packing_bound; P = 0 unless ClusterSpec.bounds_packing
    bills_usd_per_h: NDArray[np.float64]  # (B,) the lowest sums of node prices; B = 0 likewise
