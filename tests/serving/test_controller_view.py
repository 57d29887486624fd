"""What is read inside the controller, on hand-built ones."""

from types import SimpleNamespace
from typing import Any

from rayfold.serving.controller_view import own_compaction


def _controller(compacting: str | None, packs: bool) -> Any:
    node = None if compacting is None else SimpleNamespace(target_node_id=compacting)
    scheduler = SimpleNamespace(_compacting_node=node, _use_pack_strategy=lambda: packs)
    return SimpleNamespace(deployment_state_manager=SimpleNamespace(_deployment_scheduler=scheduler))


def test_own_compaction_is_told() -> None:
    """On where Ray packs, also where it has begun and packs no more; off where it cannot do anything."""
    assert own_compaction(_controller(None, packs=False)) == ""
    assert "RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY" in own_compaction(_controller(None, packs=True))
    assert own_compaction(_controller("n7", packs=False)) == "Ray is compacting node n7"
