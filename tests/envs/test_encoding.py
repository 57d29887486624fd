"""The encoder: features by hand, padding and order change nothing, and no NaN whatever the state."""

import math

import numpy as np
import pytest

from rayfold.envs.encoding import encode_state
from rayfold.envs.layout import DEPLOYMENT_FEATURES, GLOBAL_FEATURES, NODE_FEATURES, NODE_TYPE_FEATURES, ObsLayout
from rayfold.envs.moves import Move
from rayfold.envs.safety import Limits
from rayfold.envs.state import ClusterState, NodePhase, StateArrays
from rayfold.envs.transition import with_move
from tests.envs.clusters import add_node, add_replica, empty_state, random_state, small_spec

ONE = 0
LIMITS = Limits(max_concurrent_moves=4, deployment_cooldown_s=120.0)


def parts(state: ClusterState, layout: ObsLayout | None = None, dt: float = 0.0) -> dict[str, np.ndarray]:
    """The observation, split."""
    layout = layout or ObsLayout(len(state.arrays.node_type), state.spec.num_deployments, len(state.spec.node_types))
    split: dict[str, np.ndarray] = layout.split(encode_state(state, LIMITS, layout, dt))
    return split


def feature(obs: dict[str, np.ndarray], kind: str, row: int, name: str) -> float:
    """One feature by name."""
    names = {"nodes": NODE_FEATURES, "deployments": DEPLOYMENT_FEATURES, "node_types": NODE_TYPE_FEATURES}[kind]
    return float(obs[kind][row, names.index(name)])


def base() -> ClusterState:
    """Two plain nodes and a booting gold one; two replicas on node 0, one on node 1."""
    state = empty_state(small_spec())
    add_node(state, 0)
    add_node(state, 1)
    add_node(state, 2, 1, NodePhase.BOOTING)
    for n in (0, 0, 1):
        add_replica(state, ONE, n)
    state.arrays.deployment_ongoing[ONE] = 9.0
    return state


def test_node_features_by_hand() -> None:
    """Node 1: 3 of 4 GPUs free, 4 USD against a mean of 14/3, one replica that fits on node 0."""
    obs = parts(base())
    want = {
        "present": 1.0,
        "alive": 1.0,
        "fenced": 0.0,
        "releasable": 1.0,
        "free_gpu_frac": 0.75,
        "free_cpu_frac": 7 / 8,
        "free_memory_frac": 1.0,
        "price_rel": 4.0 / (14.0 / 3.0),
        "log_num_gpus": math.log(5.0),
        "log_num_replicas": math.log(2.0),
        "outgoing_frac": 0.0,
        "idle_frac": 0.0,
        "evacuable": 1.0,
        "log_moves_needed": math.log(2.0),
        # The replica's share of a 4 USD node is 1 USD/h: 30 s cold start and 2 % of an hour, over 4 USD.
        "coldstart_usd_rel": (30.0 / 3600.0 + 0.02) / 4.0,
        "occupied_frac": 0.25,
    }
    for name, value in want.items():
        assert feature(obs, "nodes", 1, name) == pytest.approx(value, rel=1e-5), name
    assert feature(obs, "nodes", 2, "alive") == 0.0
    assert (obs["nodes"][3:] == 0.0).all()


def test_deployment_and_global_features_by_hand() -> None:
    """Three replicas of two requests each meet nine: load 1.5, five wanted, start-up three intervals."""
    obs = parts(base(), dt=1.0)
    want = {
        "demand_gpu_frac": 0.25,
        "log_target": math.log(4.0),
        "log_running": math.log(4.0),
        "load": 1.5,
        "wanted_rel": 2.0 / 3.0,
        "log_startup": math.log(4.0),
        "cooldown_frac": 0.0,
        "calm": 1.0,
    }
    for name, value in want.items():
        assert feature(obs, "deployments", ONE, name) == pytest.approx(value, rel=1e-5), name
    values = dict(zip(GLOBAL_FEATURES, obs["global"].tolist(), strict=True))
    assert values["dt_intervals"] == 1.0
    assert values["booting_frac"] == pytest.approx(1 / 3)
    assert values["bound_frac"] == pytest.approx(3.0 / 14.0)  # three GPUs at 1 USD of 14 USD/h
    assert values["log_idle_timeout"] == pytest.approx(math.log(7.0))
    assert values["pack"] == 1.0


def test_a_move_shows() -> None:
    """Source fenced and leaving, destination incoming, in flight, cooldown not yet run."""
    state = with_move(base(), Move(2, 0), LIMITS)
    obs = parts(state)
    assert feature(obs, "nodes", 1, "fenced") == 1.0
    assert feature(obs, "nodes", 1, "outgoing_frac") == 1.0
    assert feature(obs, "nodes", 0, "incoming_frac") == pytest.approx(1 / 3)
    assert feature(obs, "deployments", ONE, "cooldown_frac") == 1.0
    assert obs["global"][GLOBAL_FEATURES.index("moves_in_flight_frac")] == 0.25
    assert obs["source_mask"][1, ONE] == 0.0


def test_node_type_features_by_hand() -> None:
    """Two of five plain nodes at 4 USD and one of two gold ones at 6 USD, boots of four intervals."""
    state = base()
    state.spec.arrays.type_is_spot[1] = True
    obs = parts(state)
    mean = 14.0 / 3.0
    want = {
        "present": (1.0, 1.0),
        "price_rel": (4.0 / mean, 6.0 / mean),
        "log_num_gpus": (math.log(5.0), math.log(3.0)),
        "log_boot": (math.log(5.0), math.log(5.0)),
        "spot": (0.0, 1.0),
        "room_frac": (3 / 5, 1 / 2),
    }
    assert tuple(want) == NODE_TYPE_FEATURES
    for name, values in want.items():
        for t, value in enumerate(values):
            assert feature(obs, "node_types", t, name) == pytest.approx(value, rel=1e-5), (name, t)
    assert feature(obs, "nodes", 2, "spot") == 1.0
    assert feature(obs, "nodes", 1, "spot") == 0.0


def test_a_node_that_drains_shows() -> None:
    """Neither alive nor a choice of any kind."""
    state = base()
    state.arrays.node_phase[1] = NodePhase.DRAINING
    obs = parts(state)
    assert [feature(obs, "nodes", 1, name) for name in ("present", "alive", "draining", "evacuable")] == [1, 0, 1, 0]
    assert obs["source_mask"][1].sum() == obs["destination_mask"][1].sum() == obs["evacuate_mask"][1] == 0.0


def test_masks_of_evacuations_and_new_nodes() -> None:
    """Both nodes can be emptied onto each other; new nodes are a choice where they are allowed, by labels."""
    state, limits = base(), LIMITS._replace(allow_new_nodes=True)
    assert parts(state)["evacuate_mask"].tolist() == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert parts(state)["new_node_mask"].sum() == 0.0
    layout = ObsLayout(5, 6, 2)
    obs = layout.split(encode_state(state, limits, layout))
    assert obs["new_node_mask"].tolist() == [[1.0, 1.0, 1.0, 1.0, 0.0, 1.0], [1.0] * 6]
    full = layout.split(encode_state(state, limits._replace(max_concurrent_moves=0), layout))
    assert full["evacuate_mask"].sum() == full["source_mask"].sum() == 0.0
    assert feature(full, "nodes", 1, "evacuable") == 1.0


def test_masks_and_occupancy() -> None:
    """Cells hold running replicas; a booting node takes none."""
    obs = parts(base())
    assert obs["occupancy"][:3, ONE].tolist() == [2.0, 1.0, 0.0]
    assert obs["source_mask"][:3, ONE].tolist() == [1.0, 1.0, 0.0]
    assert obs["destination_mask"][:3, ONE].tolist() == [1.0, 1.0, 0.0]


def test_padding_changes_nothing() -> None:
    """On 50 random states a larger layout holds the same numbers, and zeros beyond."""
    for seed in range(50):
        state = random_state(np.random.default_rng(seed))
        small, large = parts(state), parts(state, ObsLayout(9, 11, 4))
        assert (small["global"] == large["global"]).all()
        for key in small:
            corner = tuple(slice(0, size) for size in small[key].shape)
            padded = np.zeros_like(large[key])
            padded[corner] = small[key]
            assert (large[key] == padded).all()
            assert np.isfinite(large[key]).all()


def test_order_of_nodes_changes_the_order_only() -> None:
    """Nodes in reverse: the same rows in reverse, but for ties of the best-fit plan behind one feature."""
    reversed_rows = slice(None, None, -1)
    for seed in range(50):
        state = random_state(np.random.default_rng(seed))
        st, num_nodes = state.arrays, len(state.arrays.node_type)
        turned = {
            name: getattr(st, name)[reversed_rows].copy() for name in StateArrays._fields if name.startswith("node_")
        }
        turned["gpu_free"] = st.gpu_free[reversed_rows].copy()
        turned["replica_node"] = np.where(st.replica_node >= 0, num_nodes - 1 - st.replica_node, -1)
        other = ClusterState(spec=state.spec, now_s=state.now_s, arrays=st._replace(**turned))
        a, b = parts(state), parts(other)
        np.testing.assert_allclose(a["global"], b["global"], rtol=1e-5)
        tied = [NODE_FEATURES.index(n) for n in ("evacuable", "log_moves_needed", "coldstart_usd_rel")]
        rest = [i for i in range(len(NODE_FEATURES)) if i not in tied]
        np.testing.assert_allclose(a["nodes"][:, rest], b["nodes"][reversed_rows][:, rest], rtol=1e-5)
        for key in ("occupancy", "source_mask", "destination_mask"):
            np.testing.assert_array_equal(a[key], b[key][reversed_rows])


def test_the_state_is_not_changed() -> None:
    """Planning evacuations leaves the state as it was, bit by bit."""
    for seed in range(30):
        state = random_state(np.random.default_rng(seed))
        before = state.digest()
        parts(state)
        assert state.digest() == before


def test_the_head_costs_nothing() -> None:
    """The bound is set against the bill, and the head node is on nobody's bill: three USD of ten, not of fourteen."""
    state = base()
    state.arrays.node_is_head[1] = True
    obs = parts(state)
    assert obs["global"][GLOBAL_FEATURES.index("bound_frac")] == pytest.approx(3.0 / 10.0)
    assert feature(obs, "nodes", 1, "head") == 1.0
    assert obs["destination_mask"][1].sum() == 0.0
    assert obs["source_mask"][1].sum() == 0.0
