"""Which releases were undone: a node was emptied and released, and one of its type joined within half an hour.

The live counterpart of the simulator's count. Only joins can be seen here, so a launch counts when its node has
booted; a node released and one joined between two looks count as one release undone.
"""

import json
from collections.abc import Collection, Mapping
from typing import NamedTuple

__all__ = ["UNDONE_WITHIN_S", "NodeWatch", "present_nodes", "watch_nodes"]

UNDONE_WITHIN_S = 1800.0


class NodeWatch(NamedTuple):
    """Memory between two looks."""

    nodes: Mapping[str, str]  # node id to type, at the last look
    released: Mapping[str, tuple[str, float]]  # emptied and gone: node id to type and time (Unix s)

    def to_json(self) -> str:
        """As text, for the decider that comes after."""
        return json.dumps(self._asdict())

    @staticmethod
    def from_json(text: str | None) -> "NodeWatch | None":
        """What ``to_json`` wrote; None where there is nothing."""
        if not text:
            return None
        values = json.loads(text)
        return NodeWatch(values["nodes"], {node: (t, s) for node, (t, s) in values["released"].items()})


def present_nodes(node_ids: Collection[str], node_types: Collection[str]) -> dict[str, str]:
    """Types of the nodes that have joined; those still booting have no id of their own."""
    return {n: t for n, t in zip(node_ids, node_types, strict=True) if not n.startswith("booting-")}


def watch_nodes(
    last: NodeWatch | None, nodes: Mapping[str, str], emptied: Collection[str], now_s: float
) -> tuple[NodeWatch, tuple[str, ...]]:
    """Takes in one look.

    Args:
        last: Memory; None at the first look, at which nothing has happened yet.
        nodes: Node id to type, now.
        emptied: Ids of the nodes that moves were made off.
        now_s: Unix time.

    Returns:
        The new memory, and the nodes whose release is undone now. One join undoes the oldest release of its type.
    """
    if last is None:
        return NodeWatch(dict(nodes), {}), ()
    released = {n: r for n, r in last.released.items() if now_s - r[1] <= UNDONE_WITHIN_S}
    gone = {n: t for n, t in last.nodes.items() if n not in nodes and n in emptied}
    released |= {n: (node_type, now_s) for n, node_type in gone.items()}
    undone = []
    for joined in (node_type for n, node_type in nodes.items() if n not in last.nodes):
        back = min((n for n, r in released.items() if r[0] == joined), key=lambda n: released[n][1], default=None)
        if back is not None:
            undone.append(back)
            del released[back]
    return NodeWatch(dict(nodes), released), tuple(undone)
