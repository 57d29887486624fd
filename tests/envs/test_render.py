"""Pictures show what the arrays say, by hand-made clusters."""

import numpy as np
import pytest

from rayfold.envs.moves import Move
from rayfold.envs.render import gpu_owner, render_ansi, render_rgb
from rayfold.envs.safety import Limits
from rayfold.envs.state import ClusterState, NodePhase
from rayfold.envs.transition import with_move
from tests.envs.clusters import add_node, add_replica, empty_state, random_state, small_spec

ONE, TWO, HALF = 0, 1, 2


def small() -> ClusterState:
    """Node 0: one, two. Node 1: half, half. Row 2 absent. Node 3: booting gold with two GPUs."""
    state = empty_state(small_spec(), now_s=5400.0)
    add_node(state, 0)
    add_node(state, 1)
    add_node(state, 3, 1, NodePhase.BOOTING)
    add_replica(state, ONE, 0)
    add_replica(state, TWO, 0)
    add_replica(state, HALF, 1)
    add_replica(state, HALF, 1)
    return state


def test_owners_by_hand() -> None:
    """Devices in the order in which they were taken; two halves share one; -1 is free, -2 no device."""
    assert gpu_owner(small()).tolist() == [
        [0, 1, 1, -1],
        [2, -1, -1, -1],
        [-2, -2, -2, -2],
        [-1, -1, -2, -2],
        [-2, -2, -2, -2],
    ]


def test_owners_agree_with_free_devices() -> None:
    """On random states a device has an owner just if some of it is taken."""
    for seed in range(30):
        state = random_state(np.random.default_rng(seed))
        st = state.arrays
        owner = gpu_owner(state)
        exists = np.arange(4) < np.array([4, 2, 0])[st.node_type][:, None]
        np.testing.assert_array_equal(owner == -2, ~exists)
        np.testing.assert_array_equal(owner >= 0, exists & (st.gpu_free < 1.0 - 1e-9))


def test_text_by_hand() -> None:
    """Clock in hours, one line per node that is there, what goes on at its end, and the legend."""
    state = with_move(small(), Move(0, 1), Limits())
    assert render_ansi(state).splitlines() == [
        "t = 1.50 h",
        "    node 0 plain            [ABB.] fenced, 1 leaving",
        "    node 1 plain            [CA..]",
        "    node 3 gold             [..] booting",
        "A=one B=two C=half D=single E=golden F=fixed",
    ]


def test_text_shows_live_ids() -> None:
    """A live cluster's node ids stand in place of row numbers."""
    state = small()
    live = ClusterState(
        spec=state.spec, now_s=state.now_s, arrays=state.arrays, node_ids=("gpu-a", "gpu-b", "", "gpu-d", "")
    )
    lines = render_ansi(live).splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["gpu-a", "gpu-b", "gpu-d"]


def colours(state: ClusterState) -> set[tuple[int, ...]]:
    """Saturated colours of the picture: those of deployments."""
    picture = render_rgb(state)
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    assert picture.shape[2] == 3
    pixels = np.unique(picture.reshape(-1, 3), axis=0).astype(int)
    return {tuple(p) for p in pixels[pixels.max(1) - pixels.min(1) > 60].tolist()}


def test_picture_has_a_colour_per_deployment() -> None:
    """None on an empty cluster, and those of the deployments that hold a GPU otherwise."""
    state = empty_state(small_spec())
    add_node(state, 0)
    assert colours(state) == set()
    add_replica(state, ONE, 0)
    first = colours(state)
    blue = (31, 119, 180)  # the first colour of matplotlib's tab20
    assert blue in first
    add_replica(state, HALF, 0)
    orange = (255, 127, 14)  # the third
    assert {blue, orange} <= colours(state)
    assert orange not in first


@pytest.mark.parametrize("num_nodes", [0, 1, 5])
def test_picture_of_any_size(num_nodes: int) -> None:
    """An empty cluster too; more nodes make a wider picture."""
    state = empty_state(small_spec())
    for n in range(num_nodes):
        add_node(state, n)
    height, width, _ = render_rgb(state).shape
    assert height > 0
    assert width == 176 * max(1, num_nodes)
