"""Actors that keep a node from being released though Serve's replicas could leave it.

A node is idle for Ray's autoscaler only when no worker process on it is leased ("Busy workers on node"): an actor that
holds no resource, Ray's default for a running one, shows in no account of resources and keeps its node all the same.
"""

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["find_tenants"]

_SERVES = "SERVE_"  # names of Serve's own actors begin so: replicas, proxies, the controller


def find_tenants(actors: Iterable[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Actors that do not go where Serve's go, by node.

    What a replica has created ends with it, and so do their children; what is detached ends with nothing.

    Args:
        actors: Alive ones, as ``ray._private.state.actors`` tells them.

    Returns:
        Node id to their names, or classes where they have none.
    """
    rest = list(actors)
    owners: set[tuple[str, int]] = set()
    found = [actor for actor in rest if actor["Name"].startswith(_SERVES)]
    while found:
        owners |= {_address(actor["Address"]) for actor in found}
        ids = {actor["ActorID"] for actor in found}
        rest = [actor for actor in rest if actor["ActorID"] not in ids]
        found = [a for a in rest if not a["IsDetached"] and _address(a["OwnerAddress"]) in owners]
    tenants: dict[str, tuple[str, ...]] = {}
    for actor in rest:
        node, name = actor["Address"]["NodeID"], actor["Name"] or actor["ActorClassName"]
        tenants[node] = (*tenants.get(node, ()), name)
    return tenants


def _address(address: Mapping[str, Any]) -> tuple[str, int]:
    return address["IPAddress"], address["Port"]
