"""The VMR snapshot: 279 machines and 2,089 VMs of a production cluster, a state that no scenario of ours made.

Data of "Towards VM Rescheduling Optimization Through Deep Reinforcement Learning" (EuroSys 2025), published at
https://github.com/bytedance/DRL-based-VM-Rescheduling, Apache-2.0. JSON, gzipped: ``cluster_list[]`` with
``host_info[]`` (``node_id``, ``numa[]`` of ``node``, ``total_cpu``, ``free_cpu``) and ``vm_instance[]``
(``host_id``, ``numa[]`` of ``node``, ``cpu``). A machine has two sockets; a VM has cores on one of them, or as many on
both. Memory (4.2 GB per core of a machine, 2 of a VM) never binds and is not read; the clusters are taken as one.
Dims: P machines, V VMs, T kinds.
"""

import gzip
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.cluster import AutoscalingConfig, ClusterSpec, Deployment, NodeType, PlacementGroupStrategy
from rayfold.envs.cluster import ReplicaShape as Shape
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase, StateArrays
from rayfold.errors import InputError

__all__ = ["FRAGMENT_CORES", "VMR_SHA256", "Kind", "VmrSnapshot", "fragment_rate", "read_vmr", "vmr_state"]

VMR_SHA256 = "ba0418b0304ac38eaca527af7508c010d747b443c9ebae8481d329cc4cbed310"
FRAGMENT_CORES = 16  # the paper's VM: free cores of a socket beyond a multiple of it are a fragment
BOTH = -1  # sockets of a VM


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Kind:
    """VMs that are alike."""

    num_sockets: int  # 1 or 2
    cores: int  # on each of them


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VmrSnapshot:
    """Machines with two sockets, and VMs on them."""

    machine_ids: tuple[str, ...]  # (P,)
    kinds: tuple[Kind, ...]  # (T,)
    total: NDArray[np.int64]  # (P, 2) cores
    free: NDArray[np.int64]  # (P, 2) cores
    vm_kind: NDArray[np.int64]  # (V,)
    vm_machine: NDArray[np.int64]  # (V,)
    vm_socket: NDArray[np.int64]  # (V,) 0, 1 or BOTH


def fragment_rate(free: NDArray[np.int64]) -> float:
    """Share of all free cores that are no part of a block of 16 on one socket: the paper's objective.

    Args:
        free: ``(P, 2)`` free cores.
    """
    return float((free % FRAGMENT_CORES).sum() / max(1, free.sum()))


def read_vmr(path: Path, sha256: str | None = VMR_SHA256) -> VmrSnapshot:
    """Reads a snapshot.

    Args:
        path: A ``.json.gz`` file.
        sha256: What the file must hash to; None = any.

    Raises:
        InputError: No such file, another file, or one that is not as said above.
    """
    try:
        data = path.read_bytes()
    except OSError as err:
        raise InputError(str(path), "the VMR snapshot", err.strerror or type(err).__name__) from None
    digest = hashlib.sha256(data).hexdigest()
    if sha256 is not None and digest != sha256:
        raise InputError(str(path), f"the VMR snapshot with SHA-256 {sha256}", digest)
    try:
        return _snapshot(json.loads(gzip.decompress(data)), str(path))
    except (OSError, EOFError, ValueError, KeyError, TypeError, IndexError) as err:
        raise InputError(str(path), "a VMR snapshot", f"{type(err).__name__}: {err}") from err


def _snapshot(data: dict[str, Any], where: str) -> VmrSnapshot:
    hosts = [host for cluster in data["cluster_list"] for host in cluster["host_info"]]
    vms = [vm for cluster in data["cluster_list"] for vm in cluster["vm_instance"]]
    ids = tuple(str(host["node_id"]) for host in hosts)
    row = {name: i for i, name in enumerate(ids)}
    if len(row) < len(ids):
        raise InputError(where, "machines with different names", f"{len(ids) - len(row)} names twice")
    sockets = [sorted(host["numa"], key=lambda numa: int(numa["node"])) for host in hosts]
    total = np.array([[int(numa["total_cpu"]) for numa in pair] for pair in sockets], np.int64).reshape(-1, 2)
    free = np.array([[int(numa["free_cpu"]) for numa in pair] for pair in sockets], np.int64).reshape(-1, 2)
    found = [Kind(num_sockets=len(vm["numa"]), cores=int(vm["numa"][0]["cpu"])) for vm in vms]
    for vm in vms:
        if len({int(numa["cpu"]) for numa in vm["numa"]}) != 1 or not 1 <= len(vm["numa"]) <= 2:
            raise InputError(f"{where}: {vm['instance_id']}", "as many cores on one socket or on both", vm["numa"])
    kinds = tuple(sorted(set(found)))
    snapshot = VmrSnapshot(
        machine_ids=ids,
        kinds=kinds,
        total=total,
        free=free,
        vm_kind=np.array([kinds.index(kind) for kind in found], np.int64),
        vm_machine=np.array([row[vm["host_id"]] for vm in vms], np.int64),
        vm_socket=np.array([BOTH if len(vm["numa"]) == 2 else int(vm["numa"][0]["node"]) for vm in vms], np.int64),
    )
    if (used_cores(snapshot) != total - free).any():
        raise InputError(where, "free cores that are what VMs leave", "others")
    return snapshot


def used_cores(snapshot: VmrSnapshot) -> NDArray[np.int64]:
    """Cores that VMs hold: ``(P, 2)``."""
    used = np.zeros_like(snapshot.total)
    cores = np.array([kind.cores for kind in snapshot.kinds], np.int64)[snapshot.vm_kind]
    for s in (0, 1):
        there = (snapshot.vm_socket == s) | (snapshot.vm_socket == BOTH)
        np.add.at(used[:, s], snapshot.vm_machine[there], cores[there])
    return used


def vmr_state(snapshot: VmrSnapshot) -> ClusterState:
    """The snapshot as a cluster: sockets are GPU devices, VMs are replicas that hold shares of them.

    A VM on both sockets with at most half of the cores of each does not move: replicas may have two shares on one
    device, VMs may not. A machine costs 1 USD/h, a move nothing but the fixed price.

    Raises:
        InputError: Sockets of different sizes.
    """
    size = int(snapshot.total.max(initial=1))
    if (snapshot.total != size).any():
        raise InputError("VMR snapshot", f"sockets of {size} cores", "others")
    spec = _spec(snapshot, size)
    num_machines, num_vms = len(snapshot.total), len(snapshot.vm_kind)
    st, arrays = StateArrays.empty(spec, num_machines, num_vms + 1), spec.arrays
    st.node_type[:], st.node_phase[:] = 0, int(NodePhase.ALIVE)
    st.gpu_free[:] = snapshot.free / size
    vms = slice(0, num_vms)
    st.replica_deployment[vms], st.replica_node[vms] = snapshot.vm_kind, snapshot.vm_machine
    st.replica_phase[vms] = int(ReplicaPhase.RUNNING)
    np.add.at(st.node_held, (snapshot.vm_machine, snapshot.vm_kind), 1)
    st.node_num_held[:] = st.node_held.sum(1)
    st.node_free[:] = arrays.type_capacity[0] - st.node_held @ arrays.demand
    st.node_idle_since_s[st.node_num_held == 0] = 0.0
    for r, (d, s) in enumerate(zip(snapshot.vm_kind, snapshot.vm_socket, strict=True)):
        if s != BOTH:
            st.replica_gpus[r, 0] = 1 << s
        elif arrays.sums_gpus[d]:
            st.replica_gpus[r, 0] = 3
        else:
            st.replica_gpus[r, :2] = 1, 2
    st.deployment_target[:] = np.bincount(snapshot.vm_kind, minlength=len(snapshot.kinds))
    return ClusterState(spec=spec, now_s=0.0, arrays=st)


def _spec(snapshot: VmrSnapshot, size: int) -> ClusterSpec:
    counts = np.bincount(snapshot.vm_kind, minlength=len(snapshot.kinds))
    deployments = []
    for kind, count in zip(snapshot.kinds, counts, strict=True):
        bundles = ({"GPU": kind.cores / size},) * kind.num_sockets
        strategy = PlacementGroupStrategy.STRICT_PACK if kind.num_sockets == 2 else PlacementGroupStrategy.NONE
        deployments.append(
            Deployment(
                name=f"{kind.num_sockets}x{kind.cores}",
                shape=Shape(bundles=bundles, strategy=strategy),
                autoscaling=AutoscalingConfig(min_replicas=int(count), max_replicas=int(count)),
                is_movable=kind.num_sockets == 1 or 2 * kind.cores > size,
            )
        )
    machine = NodeType(name="machine", resources={"GPU": 2.0}, price_usd_per_h=1.0, max_nodes=len(snapshot.total))
    return ClusterSpec(node_types=(machine,), deployments=tuple(deployments))
