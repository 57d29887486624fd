"""Nodes that are launched for pending replicas, beside ``ray.autoscaler.v2.scheduler.ResourceDemandScheduler``."""

import numpy as np

from tests.envs.test_node_autoscaler import our_launches, random_demand, rays_launches
from tests.ray_oracle.tally import Tally

__all__ = ["launches"]


def launches(num_states: int, seed: int) -> Tally:
    """Number of nodes of every type: labels, order of packing, scores, ties and limits."""
    mismatches = []
    for i in range(num_states):
        spec, waiting = random_demand(np.random.default_rng([seed, i]))
        ours, rays = our_launches(spec, waiting), rays_launches(spec, waiting)
        if ours != rays:
            mismatches.append(f"seed {seed}, state {i}: ours {ours}, Ray's {rays}")
    return Tally(num_states, num_states, tuple(mismatches))
