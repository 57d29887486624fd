"""``ClusterState``: everything a decision may depend on, as arrays.

Dims: N node rows, R replica rows, D deployments, K resources, G GPU devices per node, M bundles. Rows may be unused
(``NodePhase.ABSENT``, ``ReplicaPhase.EMPTY``), so that a simulator can keep its row numbers over time.
Times are absolute seconds on the clock of ``now_s``; only differences to ``now_s`` carry meaning.
"""

import enum
import hashlib
import io
import json
import struct
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from rayfold.envs.cluster import ClusterSpec
from rayfold.envs.views import by_reference
from rayfold.errors import InputError

__all__ = ["ClusterState", "NodePhase", "ReplicaPhase", "StateArrays"]

FORMAT_VERSION = 2
# What numpy, zipfile, json and pydantic raise for files that are no state, beside OSError and ValueError.
_UNREADABLE = (
    *(OSError, ValueError, KeyError, TypeError, IndexError, ArithmeticError, EOFError, MemoryError, SyntaxError),
    *(RuntimeError, struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error, ValidationError),
)


class NodePhase(enum.IntEnum):
    """Life of a node row."""

    ABSENT = 0
    BOOTING = 1
    ALIVE = 2
    DRAINING = 3  # to be interrupted: takes no replicas, Serve moves those it has


class ReplicaPhase(enum.IntEnum):
    """Life of a replica row. STARTING and later hold resources; RUNNING serves; STOPPING drains.

    The replacement of a move to a new node is PENDING until that node is alive.
    """

    EMPTY = 0
    PENDING = 1
    STARTING = 2
    RUNNING = 3
    STOPPING = 4


@by_reference(is_written=True)
class StateArrays(NamedTuple):
    """The arrays of a state, in the form the numba kernels read and write."""

    node_type: NDArray[np.int64]  # (N,) row in ClusterSpec.node_types, -1 = absent
    node_phase: NDArray[np.int64]  # (N,) NodePhase
    node_free: NDArray[np.float64]  # (N, K) not held by replicas nor by others
    gpu_free: NDArray[np.float64]  # (N, G) free fraction per device, 0 beyond the node's devices
    node_others: NDArray[np.float64]  # (N, K) held by non-Serve work
    node_idle_since_s: NDArray[np.float64]  # (N,) empty since, inf = not empty
    node_fenced_until_s: NDArray[np.float64]  # (N,) being emptied: no new replicas until then, -inf = no
    node_releasable: NDArray[np.bool_]  # (N,) False = pinned, opted out or holds non-Serve work
    node_is_head: NDArray[np.bool_]  # (N,)
    node_is_opted_out: NDArray[np.bool_]  # (N,) no replica is moved off it; it may be released when empty
    node_held: NDArray[np.int64]  # (N, D) replicas that hold something there; kept by placement.hold and let_go
    node_num_held: NDArray[np.int64]  # (N,) their sum
    replica_deployment: NDArray[np.int64]  # (R,) row in ClusterSpec.deployments, -1 = empty row
    replica_node: NDArray[np.int64]  # (R,) node row, of the first bundle if it spans; -1 = not placed
    replica_spans: NDArray[np.bool_]  # (R,) its bundles lie on several nodes
    replica_bundle_node: NDArray[np.int64]  # (R, M) node row per bundle of a spanning replica, else -1
    replica_pinned_node: NDArray[np.int64]  # (R,) the one node a PENDING replacement may start on, -1 = any
    replica_phase: NDArray[np.int64]  # (R,) ReplicaPhase
    replica_since_s: NDArray[np.float64]  # (R,) entered its phase at
    replica_peer: NDArray[np.int64]  # (R,) migration link source <-> replacement, -1 = none
    replica_gpus: NDArray[np.int64]  # (R, M) bit masks of devices held: per bundle, or all in column 0
    deployment_target: NDArray[np.int64]  # (D,) replicas wanted by the replica autoscaler
    deployment_ongoing: NDArray[np.float64]  # (D,) ongoing requests, mean of the look-back period
    deployment_ongoing_slow: NDArray[np.float64]  # (D,) same, exponential mean over 10 min
    deployment_moved_s: NDArray[np.float64]  # (D,) last move started at, -inf = never
    deployment_changed_s: NDArray[np.float64]  # (D,) target or replica set last changed at, -inf = never

    @staticmethod
    def empty(spec: ClusterSpec, num_nodes: int, num_replicas: int) -> "StateArrays":
        """All rows unused.

        Args:
            spec: Gives D, K and G.
            num_nodes: N.
            num_replicas: R.
        """
        n, r, d, k = num_nodes, num_replicas, spec.num_deployments, len(spec.resource_names)
        m = spec.max_bundles
        return StateArrays(
            node_type=np.full(n, -1, np.int64),
            node_phase=np.zeros(n, np.int64),
            node_free=np.zeros((n, k)),
            gpu_free=np.zeros((n, spec.max_gpus)),
            node_others=np.zeros((n, k)),
            node_idle_since_s=np.full(n, np.inf),
            node_fenced_until_s=np.full(n, -np.inf),
            node_releasable=np.ones(n, np.bool_),
            node_is_head=np.zeros(n, np.bool_),
            node_is_opted_out=np.zeros(n, np.bool_),
            node_held=np.zeros((n, d), np.int64),
            node_num_held=np.zeros(n, np.int64),
            replica_deployment=np.full(r, -1, np.int64),
            replica_node=np.full(r, -1, np.int64),
            replica_spans=np.zeros(r, np.bool_),
            replica_bundle_node=np.full((r, m), -1, np.int64),
            replica_pinned_node=np.full(r, -1, np.int64),
            replica_phase=np.zeros(r, np.int64),
            replica_since_s=np.zeros(r),
            replica_peer=np.full(r, -1, np.int64),
            replica_gpus=np.zeros((r, m), np.int64),
            deployment_target=np.zeros(d, np.int64),
            deployment_ongoing=np.zeros(d),
            deployment_ongoing_slow=np.zeros(d),
            deployment_moved_s=np.full(d, -np.inf),
            deployment_changed_s=np.full(d, -np.inf),
        )

    def copy(self) -> "StateArrays":
        """A deep copy."""
        return StateArrays._make(a.copy() for a in self)

    def with_rows(self, spec: ClusterSpec, num_nodes: int, num_replicas: int) -> "StateArrays":
        """A copy with so many unused rows more."""
        spare = StateArrays.empty(spec, num_nodes, num_replicas)
        grown = {
            name: np.concatenate([getattr(self, name), getattr(spare, name)])
            for name in StateArrays._fields
            if not name.startswith("deployment_")
        }
        return self.copy()._replace(**grown)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterState:
    """One moment of a cluster, simulated or live."""

    spec: ClusterSpec
    now_s: float  # clock of all *_s arrays
    arrays: StateArrays
    node_ids: tuple[str, ...] = ()  # (N,) live ids; empty in the simulator
    replica_ids: tuple[str, ...] = ()  # (R,) live ids; empty in the simulator

    def save(self, path: Path) -> None:
        """Writes one ``.npz`` file: the arrays, and the rest as JSON."""
        header = {
            "format": FORMAT_VERSION,
            "spec": TypeAdapter(ClusterSpec).dump_python(self.spec, mode="json"),
            "now_s": self.now_s,
            "node_ids": self.node_ids,
            "replica_ids": self.replica_ids,
        }
        with path.open("wb") as f:
            arrays: dict[str, Any] = self.arrays._asdict()
            np.savez_compressed(f, header=np.array(json.dumps(header)), **arrays)

    @staticmethod
    def load(path: Path) -> "ClusterState":
        """Reads what ``save`` wrote.

        Raises:
            InputError: The file is missing, truncated, of another format or inconsistent.
        """
        try:
            return _from_bytes(path.read_bytes(), str(path))
        except InputError:
            raise
        except FileNotFoundError:
            raise InputError(str(path), "a saved ClusterState", "no such file") from None
        except _UNREADABLE as err:
            got = " ".join(f"{type(err).__name__}: {err}".split())
            raise InputError(str(path), "a saved ClusterState", got[:200]) from err

    def digest(self) -> str:
        """Hex SHA-256 of clock and arrays: equal states, equal digests."""
        h = hashlib.sha256(np.float64(self.now_s).tobytes())
        for array in self.arrays:
            h.update(np.ascontiguousarray(array).tobytes())
        return h.hexdigest()


def _from_bytes(content: bytes, where: str) -> ClusterState:
    """Parses a file of ``ClusterState.save``; raises ``_UNREADABLE`` or ``InputError``."""
    # From memory: numpy leaves the file of a truncated archive open.
    with np.load(io.BytesIO(content), allow_pickle=False) as data:
        header = json.loads(str(data["header"]))
        arrays = StateArrays(**{name: data[name] for name in StateArrays._fields})
    if header["format"] != FORMAT_VERSION:
        raise InputError(where, f"state format {FORMAT_VERSION}", header["format"])
    spec = TypeAdapter(ClusterSpec).validate_python(header["spec"])
    num_nodes, num_replicas = len(arrays.node_type), len(arrays.replica_deployment)
    like = StateArrays.empty(spec, num_nodes, num_replicas)
    for name, want, got in zip(StateArrays._fields, like, arrays, strict=True):
        if want.shape != got.shape or want.dtype != got.dtype:
            raise InputError(f"{where}: {name}", f"{want.shape} {want.dtype}", f"{got.shape} {got.dtype}")
    ids = TypeAdapter(tuple[str, ...])
    node_ids, replica_ids = (ids.validate_python(header[name]) for name in ("node_ids", "replica_ids"))
    return ClusterState(
        spec=spec, now_s=float(header["now_s"]), arrays=arrays, node_ids=node_ids, replica_ids=replica_ids
    )
