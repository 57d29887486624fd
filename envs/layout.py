"""Shape of observation and action: sizes, feature names, and the one flat vector that holds an observation.

Dims: N padded nodes, D padded deployments, T padded node types. The flat float32 vector is
``global (G,) | nodes (N, FN) | deployments (D, FD) | node_types (T, FT)``, then three times ``(N, D)``:
``occupancy``, ``source_mask``, ``destination_mask``, then ``new_node_mask (T, D)`` and ``evacuate_mask (N,)``.
The masks are the safety filter's answer (1 = allowed). The encoder that fills it is ``encoding.py``.

An action is a pair. First stage: 0 = NOOP, ``1 + n * D + d`` = take a replica of d from node n, ``1 + N * D + n`` =
evacuate node n. Second stage, read for single replicas only: ``n`` = to node n, ``N + t`` = to a new node of type t.
"""

import hashlib
import json
import math
from typing import Any, NamedTuple

from rayfold.envs.views import by_reference

__all__ = [
    "DEPLOYMENT_FEATURES",
    "DT_INDEX",
    "GLOBAL_FEATURES",
    "NODE_FEATURES",
    "NODE_TYPE_FEATURES",
    "NOOP",
    "ObsLayout",
    "schema_hash",
]

NOOP = 0  # of the first stage

GLOBAL_FEATURES = (
    "dt_intervals",  # decision intervals passed since the previous obs: 0 after a move, 1 after NOOP
    "moves_in_flight_frac",  # of the limit
    "log_num_nodes",
    "log_num_replicas",
    "booting_frac",  # of the nodes
    "bound_frac",  # lower bound on the node bill over the present node bill
    "log_idle_timeout",  # ln(1 + idle timeout / decision interval)
    "log_interval_s",  # ln(decision interval in seconds) / 5
    "pack",  # 1 = pack scheduling, 0 = spread
    "pending_frac",  # replicas waiting for a node
)
DT_INDEX = GLOBAL_FEATURES.index("dt_intervals")  # in the flat vector too, which begins with these
NODE_FEATURES = (
    "present",
    "alive",
    "fenced",
    "releasable",
    "head",
    "free_gpu_frac",
    "free_cpu_frac",
    "free_memory_frac",
    "price_rel",  # hourly price over the mean price of the present nodes
    "log_num_gpus",
    "log_num_replicas",
    "outgoing_frac",  # replicas leaving, of those on the node
    "incoming_frac",  # replacements starting, of those on the node
    "idle_frac",  # time empty over idle timeout, at most 1
    "evacuable",  # every replica may move and fits elsewhere by best fit
    "log_moves_needed",  # replicas still to leave
    "coldstart_usd_rel",  # price of emptying it over what the node costs in an hour
    "occupied_frac",  # dominant share held by replicas
    "draining",  # will be interrupted
    "spot",
)
DEPLOYMENT_FEATURES = (
    "present",
    "movable",
    "demand_gpu_frac",  # of the largest node
    "demand_cpu_frac",
    "demand_memory_frac",
    "log_target",
    "log_running",
    "starting_frac",  # of the target
    "load",  # ongoing / (running * target_ongoing_requests), at most 3
    "load_slow",  # the same over ten minutes
    "wanted_rel",  # (replicas the load asks for - target) / max(1, target), within -1..1
    "log_startup",  # ln(1 + mean start-up time / decision interval)
    "cooldown_frac",  # part of the cooldown still to run
    "calm",  # minutes since the last change / 10, at most 1
)


NODE_TYPE_FEATURES = (
    "present",
    "price_rel",  # hourly price over the mean price of the present nodes
    "log_num_gpus",
    "log_boot",  # ln(1 + mean boot time / decision interval)
    "spot",
    "room_frac",  # nodes that may still be launched, of the most there can be
)


@by_reference(is_written=False)
class ObsLayout(NamedTuple):
    """Padded size of an observation."""

    num_nodes: int
    num_deployments: int
    num_types: int

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each part, in the order of the flat vector."""
        n, d, t = self
        return {
            "global": (len(GLOBAL_FEATURES),),
            "nodes": (n, len(NODE_FEATURES)),
            "deployments": (d, len(DEPLOYMENT_FEATURES)),
            "node_types": (t, len(NODE_TYPE_FEATURES)),
            "occupancy": (n, d),
            "source_mask": (n, d),
            "destination_mask": (n, d),
            "new_node_mask": (t, d),
            "evacuate_mask": (n,),
        }

    @property
    def size(self) -> int:
        """Length of the flat vector."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def num_cells(self) -> int:
        """Cells of the first stage."""
        return self.num_nodes * self.num_deployments

    @property
    def num_sources(self) -> int:
        """Choices of the first stage: NOOP, every cell, and to evacuate each node."""
        return 1 + self.num_cells + self.num_nodes

    @property
    def num_destinations(self) -> int:
        """Choices of the second stage: nodes, and new nodes of each type."""
        return self.num_nodes + self.num_types

    def split(self, flat: Any) -> dict[str, Any]:
        """Views into a flat vector.

        Args:
            flat: ``(..., size)`` numpy array or torch tensor.

        Returns:
            The parts of ``shapes``, each with the leading dims of ``flat``, without copying.
        """
        lead = tuple(flat.shape[:-1])
        out, start = {}, 0
        for name, shape in self.shapes.items():
            length = math.prod(shape)
            out[name] = flat[..., start : start + length].reshape(*lead, *shape)
            start += length
        return out


def schema_hash() -> str:
    """Hex SHA-256 over the feature names: a policy trained on another schema must not be used."""
    schema = {
        "version": 2,
        "global": GLOBAL_FEATURES,
        "nodes": NODE_FEATURES,
        "deployments": DEPLOYMENT_FEATURES,
        "node_types": NODE_TYPE_FEATURES,
    }
    return hashlib.sha256(json.dumps(schema, sort_keys=True).encode()).hexdigest()
