"""Which actors keep a node: those that do not end with a replica of Serve."""

from collections.abc import Mapping
from typing import Any

from rayfold.serving.tenants import find_tenants


def _actor(name: str, port: int, node: str, owner: int = 0, *, is_detached: bool = False) -> Mapping[str, Any]:
    """As Ray tells it; its class is always ``Worker``."""
    return {
        "ActorID": f"id-{port}",
        "ActorClassName": "Worker",
        "IsDetached": is_detached,
        "Name": name,
        "Address": {"IPAddress": "10.0.0.1", "Port": port, "NodeID": node},
        "OwnerAddress": {"IPAddress": "10.0.0.1", "Port": owner, "NodeID": "head"},
    }


def test_serve_and_what_belongs_to_it_keeps_no_node() -> None:
    """Replicas, proxies, and the workers of a replica with their own children, in whatever order."""
    actors = [
        _actor("", 4, "n1", owner=3),
        _actor("", 3, "n1", owner=1),
        _actor("SERVE_REPLICA::a#b#c", 1, "n1"),
        _actor("SERVE_PROXY_ACTOR-n1", 2, "n1"),
    ]
    assert find_tenants(actors) == {}


def test_others_keep_their_node() -> None:
    """A driver's actor, a detached one, even of a replica, and the child of a tenant; by name, or by class."""
    actors = [
        _actor("SERVE_REPLICA::a#b#c", 1, "n1"),
        _actor("", 5, "n1", owner=9),
        _actor("cache", 6, "n2", owner=1, is_detached=True),
        _actor("", 7, "n2", owner=6),
    ]
    assert find_tenants(actors) == {"n1": ("Worker",), "n2": ("cache", "Worker")}


def test_port_of_another_host_is_another_owner() -> None:
    """An owner is a process, which host and port name together."""
    elsewhere = {**_actor("", 2, "n1", owner=1), "OwnerAddress": {"IPAddress": "10.0.0.2", "Port": 1, "NodeID": "x"}}
    assert find_tenants([_actor("SERVE_REPLICA::a#b#c", 1, "n1"), elsewhere]) == {"n1": ("Worker",)}
