"""A state from a file: whatever the kernels would follow out of bounds is named, and true states pass."""

import math
from dataclasses import replace

import numpy as np
import pytest

from rayfold.envs.initial_state import initial_state
from rayfold.envs.scenario import Split, load_scenario
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase
from rayfold.envs.state_check import check_state
from rayfold.errors import InputError
from tests.envs.clusters import empty_state, random_state, small_spec


def good_state() -> ClusterState:
    """A cluster with nodes and replicas."""
    scenario = load_scenario("smoke")
    return initial_state(
        scenario.spec, scenario.sample(np.random.default_rng(0), Split.TRAIN), np.random.default_rng(0)
    )


def test_true_states_pass() -> None:
    """Simulated ones, random ones, one without rows."""
    check_state(good_state(), "f")
    for seed in range(30):
        check_state(random_state(np.random.default_rng(seed)), "f")
    check_state(empty_state(small_spec(), num_nodes=0, num_replicas=0), "f")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("node_type", 9),
        ("node_type", -1),
        ("node_phase", 7),
        ("node_phase", int(NodePhase.ABSENT)),
        ("replica_deployment", 3),
        ("replica_deployment", -1),
        ("replica_node", 10_000),
        ("replica_node", -2),
        ("replica_phase", -1),
        ("replica_peer", 99_999),
        ("replica_peer", 1),
        ("node_free", math.nan),
        ("node_free", -3.0),
        ("gpu_free", math.inf),
        ("replica_since_s", math.nan),
        ("deployment_target", -1),
        ("deployment_ongoing_slow", -1.0),
        ("deployment_ongoing_slow", math.inf),
    ],
)
def test_planted_faults_are_found(name: str, value: float) -> None:
    """One wrong number in row 0: named with its array and row, in one line."""
    state = good_state()
    assert state.arrays.replica_phase[0] == ReplicaPhase.RUNNING
    array = getattr(state.arrays, name).copy()
    array.reshape(-1)[0] = value
    with pytest.raises(InputError) as caught:
        check_state(replace(state, arrays=state.arrays._replace(**{name: array})), "file.npz")
    assert str(caught.value).startswith("file.npz: ")
    assert "[0" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_clock_must_be_a_time() -> None:
    """Not a number is no time."""
    with pytest.raises(InputError, match="now_s"):
        check_state(replace(good_state(), now_s=math.nan), "f")
