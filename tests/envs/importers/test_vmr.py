"""The VMR snapshot, on a few machines in the same format."""

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayfold.envs.importers.vmr import BOTH, Kind, fragment_rate, read_vmr, used_cores, vmr_state
from rayfold.envs.moves import Move
from rayfold.envs.placement import let_go
from rayfold.envs.safety import Limits, Reason, check_move
from rayfold.errors import InputError
from tests.envs.conservation import check_conserved


def vm(name: str, host: str, *places: tuple[int, int]) -> dict[str, Any]:
    """One VM with cores on sockets."""
    numa = [{"node": s, "cpu": cores, "mem_mb": 2048.0 * cores} for s, cores in places]
    return {"instance_id": name, "instance_type": "x", "host_id": host, "numa": numa, "allow_migration": True}


def cluster_of(vms: list[dict[str, Any]], hosts: tuple[str, ...], size: int = 44) -> dict[str, Any]:
    """One cluster; free cores are what the VMs leave."""
    info = []
    for host in hosts:
        numa = []
        for s in (0, 1):
            used = sum(n["cpu"] for v in vms if v["host_id"] == host for n in v["numa"] if n["node"] == s)
            numa.append({"node": s, "total_cpu": size, "free_cpu": float(size - used)})
        info.append({"node_id": host, "status": "ACTIVE", "numa": numa})
    return {"cluster_name": "c", "host_info": info, "vm_instance": vms}


def sample() -> dict[str, Any]:
    """Three machines in two clusters, a VM of each sort."""
    first = [
        vm("a", "pm_0", (0, 8)),
        vm("b", "pm_0", (1, 32)),
        vm("c", "pm_1", (0, 32), (1, 32)),
        vm("d", "pm_1", (0, 4), (1, 4)),
    ]
    return {"cluster_list": [cluster_of(first, ("pm_0", "pm_1")), cluster_of([vm("e", "pm_2", (1, 8))], ("pm_2",))]}


def write(path: Path, data: object) -> Path:
    """As gzipped JSON."""
    path.write_bytes(gzip.compress(json.dumps(data).encode()))
    return path


def test_reads_machines_and_vms(tmp_path: Path) -> None:
    """Kinds in order, VMs on their sockets, and free cores by hand."""
    snapshot = read_vmr(write(tmp_path / "s.json.gz", sample()), None)
    assert snapshot.machine_ids == ("pm_0", "pm_1", "pm_2")
    assert snapshot.kinds == tuple(Kind(num_sockets=s, cores=c) for s, c in ((1, 8), (1, 32), (2, 4), (2, 32)))
    assert snapshot.free.tolist() == [[36, 12], [8, 8], [44, 36]]
    assert snapshot.vm_socket.tolist() == [0, 1, BOTH, BOTH, 1]
    assert snapshot.vm_machine.tolist() == [0, 0, 1, 1, 2]
    assert used_cores(snapshot).tolist() == [[8, 32], [36, 36], [0, 8]]


def test_fragment_rate_by_hand() -> None:
    """36, 12, 8, 8, 44 and 36 free: 4 + 12 + 8 + 8 + 12 + 4 of 144 are beyond blocks of 16."""
    assert fragment_rate(np.array([[36, 12], [8, 8], [44, 36]])) == pytest.approx(48 / 144)
    assert fragment_rate(np.zeros((1, 2), np.int64)) == 0.0


def test_state_holds_what_the_snapshot_says(tmp_path: Path) -> None:
    """Free shares of devices are free cores, nothing is counted twice, and what leaves gives back its own devices."""
    snapshot = read_vmr(write(tmp_path / "s.json.gz", sample()), None)
    state = vmr_state(snapshot)
    check_conserved(state)
    np.testing.assert_allclose(state.arrays.gpu_free * 44, snapshot.free)
    np.testing.assert_allclose(state.arrays.node_free[:, 0] * 44, snapshot.free.sum(1))
    after = state.arrays.copy()
    for r in range(5):
        let_go(state.spec.arrays, after, r, 0.0)
    np.testing.assert_allclose(after.gpu_free, 1.0)
    np.testing.assert_allclose(after.node_free[:, 0], 2.0)


def test_sockets_bind_as_devices(tmp_path: Path) -> None:
    """32 cores fit on a socket with 44 free, not on two with 8; small VMs on both sockets stay; large ones need two."""
    state = vmr_state(read_vmr(write(tmp_path / "s.json.gz", sample()), None))
    limits = Limits(deployment_cooldown_s=0.0)
    assert check_move(state, Move(1, 2), limits).allowed
    assert check_move(state, Move(1, 1), limits).reason in {Reason.NO_CAPACITY, Reason.NO_GPU_DEVICE}
    assert check_move(state, Move(3, 2), limits).reason is Reason.DEPLOYMENT_OPTED_OUT
    assert check_move(state, Move(2, 2), limits).allowed
    assert not check_move(state, Move(2, 0), limits).allowed


def test_another_file_is_refused(tmp_path: Path) -> None:
    """By its hash, which is said; and by name where there is none."""
    path = write(tmp_path / "s.json.gz", sample())
    with pytest.raises(InputError, match=hashlib.sha256(path.read_bytes()).hexdigest()):
        read_vmr(path)
    with pytest.raises(InputError, match="No such file"):
        read_vmr(tmp_path / "none.json.gz")


def broken(change: str) -> object:
    """A sample with one fault."""
    data = sample()
    host = data["cluster_list"][0]["host_info"][0]
    if change == "free cores":
        host["numa"][0]["free_cpu"] = 35
    elif change == "name":
        host["node_id"] = "pm_1"
    elif change == "host":
        data["cluster_list"][0]["vm_instance"][0]["host_id"] = "pm_9"
    elif change == "uneven":
        data["cluster_list"][0]["vm_instance"][2]["numa"][0]["cpu"] = 16
    else:
        return [1]
    return data


@pytest.mark.parametrize("change", ["free cores", "name", "host", "uneven", "list"])
def test_faults_are_told(tmp_path: Path, change: str) -> None:
    """One line with the file's name."""
    with pytest.raises(InputError, match=r"s\.json\.gz") as caught:
        read_vmr(write(tmp_path / "s.json.gz", broken(change)), None)
    assert "\n" not in str(caught.value)


def test_what_is_no_gzip_is_told(tmp_path: Path) -> None:
    """And what ends too early."""
    path = tmp_path / "s.json.gz"
    for data in (b"{}", gzip.compress(json.dumps(sample()).encode())[:-20]):
        path.write_bytes(data)
        with pytest.raises(InputError, match="a VMR snapshot"):
            read_vmr(path, None)


def test_sockets_of_one_size(tmp_path: Path) -> None:
    """A device is the same share everywhere."""
    data = sample()
    data["cluster_list"].append(cluster_of([], ("pm_3",), size=48))
    with pytest.raises(InputError, match=r"44|48"):
        vmr_state(read_vmr(write(tmp_path / "s.json.gz", data), None))
