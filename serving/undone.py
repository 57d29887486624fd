"""Which releases were undone: a node was emptied and released, and one of its type joined within half an hour.

The live counterpart of the simulator's count. Only joins can be seen here, so a launch counts when its node has
booted; a node released and one joined between two looks count as one release undone.
"""

import json
from collections.abc import Collection, Mapping
from typing import NamedTuple

from rayfold.envs.state import ClusterState
from rayfold.serving.journal import Journal

__all__ = ["UNDONE_WITHIN_S", "NodeWatch", "UndoneMoves", "watch_nodes"]

UNDONE_WITHIN_S = 1800.0
_DAY_S = 86400.0  # a node may stay empty for so long before it is released
_NODES = "nodes"  # the journal's note of the nodes seen last


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


class UndoneMoves:
    """Marks the moves whose nodes were released and launched again. Its memory is in the journal.

    Args:
        journal: Of the moves.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal, self._seen = journal, NodeWatch.from_json(journal.noted(_NODES))

    def look(self, state: ClusterState) -> int:
        """Takes in one snapshot. How many moves are undone now."""
        types, st = state.spec.node_types, state.arrays
        nodes = {
            node: types[t].name
            for node, t in zip(state.node_ids, st.node_type.tolist(), strict=True)
            if t >= 0 and not node.startswith("booting-")  # those have no id of their own yet
        }
        emptied = {record.from_node for record in self._journal.moves_since(state.now_s - _DAY_S)}
        before = self._seen
        self._seen, undone = watch_nodes(before, nodes, emptied, state.now_s)
        count = 0
        for node in undone:
            marked = self._journal.mark_undone(node, state.now_s)
            if marked:
                self._journal.add_event("undone", f"node {node} was released and launched again", state.now_s)
            count += marked
        if self._seen != before:
            self._journal.note(_NODES, self._seen.to_json())
        return count
