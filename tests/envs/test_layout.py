"""The flat observation: its parts tile it, batched or not, in numpy and torch, and its schema has a name."""

import numpy as np
import pytest
import torch

from rayfold.envs import layout as module
from rayfold.envs.layout import (
    DEPLOYMENT_FEATURES,
    GLOBAL_FEATURES,
    NODE_FEATURES,
    NODE_TYPE_FEATURES,
    NOOP,
    ObsLayout,
    schema_hash,
)

LAYOUT = ObsLayout(3, 2, 2)
KEYS = (
    "global",
    "nodes",
    "deployments",
    "node_types",
    "occupancy",
    "source_mask",
    "destination_mask",
    "new_node_mask",
    "evacuate_mask",
)


def test_sizes_by_hand() -> None:
    """3 nodes, 2 deployments, 2 types: 10 + 3 * 20 + 2 * 14 + 2 * 6 features, 3 * 6 + 2 * 2 + 3 of cells and masks.

    NOOP, 6 cells and 3 nodes to evacuate; then 3 nodes and 2 new ones to go to.
    """
    features = (GLOBAL_FEATURES, NODE_FEATURES, DEPLOYMENT_FEATURES, NODE_TYPE_FEATURES)
    assert tuple(map(len, features)) == (10, 20, 14, 6)
    assert LAYOUT.size == 135
    assert LAYOUT.num_cells == 6
    assert LAYOUT.num_sources == 10
    assert LAYOUT.num_destinations == 5
    assert NOOP == 0


def test_parts_tile_the_vector_in_order() -> None:
    """Every number of the vector is in one part, once, in the documented order."""
    parts = LAYOUT.split(np.arange(LAYOUT.size))
    assert tuple(parts) == KEYS
    assert np.concatenate([part.ravel() for part in parts.values()]).tolist() == list(range(LAYOUT.size))
    assert parts["nodes"].shape == (3, 20)
    assert parts["deployments"].shape == (2, 14)
    assert parts["node_types"].shape == (2, 6)
    assert parts["destination_mask"].tolist() == [[122, 123], [124, 125], [126, 127]]
    assert parts["new_node_mask"].tolist() == [[128, 129], [130, 131]]
    assert parts["evacuate_mask"].tolist() == [132, 133, 134]


def test_parts_are_views() -> None:
    """What the encoder writes into a part is in the vector."""
    flat = np.zeros(LAYOUT.size, np.float32)
    for part in LAYOUT.split(flat).values():
        assert np.shares_memory(part, flat)
        part[...] = 1.0
    assert (flat == 1.0).all()


@pytest.mark.parametrize("lead", [(5,), (5, 4)])
def test_batches_split_row_by_row(lead: tuple[int, ...]) -> None:
    """Leading dimensions stay; numpy, torch and the single vector agree."""
    flat = np.random.default_rng(0).random((*lead, LAYOUT.size), np.float32)
    batch, tensors = LAYOUT.split(flat), LAYOUT.split(torch.from_numpy(flat))
    for index in np.ndindex(*lead):
        for key, part in LAYOUT.split(flat[index]).items():
            np.testing.assert_array_equal(batch[key][index], part)
            np.testing.assert_array_equal(tensors[key][index].numpy(), part)


@pytest.mark.parametrize("name", ["GLOBAL_FEATURES", "NODE_FEATURES", "DEPLOYMENT_FEATURES", "NODE_TYPE_FEATURES"])
def test_schema_hash_sees_names_and_order(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A renamed, moved or dropped feature in any of the four lists makes another schema."""
    names, hashes = getattr(module, name), {schema_hash()}
    for changed in (("renamed", *names[1:]), (names[1], names[0], *names[2:]), names[:-1]):
        monkeypatch.setattr(module, name, changed)
        hashes.add(schema_hash())
    assert len(hashes) == 4
    monkeypatch.setattr(module, name, names)
    assert schema_hash() in hashes


def test_feature_names_are_unique() -> None:
    """The encoder finds features by name."""
    for names in (GLOBAL_FEATURES, NODE_FEATURES, DEPLOYMENT_FEATURES, NODE_TYPE_FEATURES):
        assert len(set(names)) == len(names)
