"""Which releases count as undone."""

from rayfold.serving.undone import UNDONE_WITHIN_S, NodeWatch, watch_nodes

AB = {"a": "big", "b": "big", "c": "small"}


def _after(*looks: tuple[float, dict[str, str]]) -> tuple[str, ...]:
    """Nodes undone at the last look; a, b and c were emptied by moves."""
    seen: NodeWatch | None = None
    undone: tuple[str, ...] = ()
    for now_s, nodes in looks:
        seen, undone = watch_nodes(seen, nodes, {"a", "b", "c"}, now_s)
        assert NodeWatch.from_json(seen.to_json()) == seen
    return undone


def test_join_of_the_type_within_half_an_hour_undoes_the_oldest_release() -> None:
    """One join, one release; another type undoes nothing."""
    rest = {"c": "small"}
    gone_one_by_one = ((0.0, AB), (10.0, {"b": "big", **rest}), (20.0, rest))
    assert _after(*gone_one_by_one, (30.0, {**rest, "x": "big"})) == ("a",)
    assert _after(*gone_one_by_one, (30.0, {**rest, "x": "big", "y": "big"})) == ("a", "b")
    assert _after(*gone_one_by_one, (30.0, {**rest, "x": "small"})) == ()
    assert _after(*gone_one_by_one, (30.0, {**rest, "x": "big"}), (40.0, {**rest, "x": "big", "y": "big"})) == ("b",)


def test_later_than_half_an_hour_is_not_undone() -> None:
    """At the bound it is."""
    for late_s, expected in ((UNDONE_WITHIN_S, ("c",)), (UNDONE_WITHIN_S + 1.0, ())):
        rest = {"a": "big", "b": "big"}
        assert _after((0.0, AB), (10.0, rest), (10.0 + late_s, {**rest, "x": "small"})) == expected


def test_what_no_move_emptied_is_not_undone() -> None:
    """A node that vanished by itself, and nodes that were there at the first look."""
    seen, undone = watch_nodes(None, AB, (), 0.0)
    assert undone == ()
    seen, undone = watch_nodes(seen, {"a": "big", "b": "big"}, {"a", "b"}, 10.0)
    _, undone = watch_nodes(seen, {"a": "big", "b": "big", "x": "small"}, {"a", "b"}, 20.0)
    assert undone == ()
    assert NodeWatch.from_json(None) is None
