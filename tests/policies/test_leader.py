"""The leader: what it expects, who leads when, its file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rayfold.envs.initial_state import initial_state
from rayfold.envs.safety import Limits
from rayfold.envs.scenario import Split, load_scenario
from rayfold.envs.simulator import Simulator
from rayfold.envs.state import NodePhase, ReplicaPhase
from rayfold.errors import InputError
from rayfold.policies.bundle import TrainingCard, load_bundle, save_bundle
from rayfold.policies.by_name import make_policy
from rayfold.policies.dearest_first import DearestFirst
from rayfold.policies.exact import Exact
from rayfold.policies.leader import REFERENCE, Experience, Kernel, Leader
from rayfold.policies.leader_file import HEADER, LeaderCard, TrainedLeader
from rayfold.policies.led import DWELL_S, Led
from rayfold.policies.network import CompactionNet, NetworkConfig
from rayfold.policies.none import NoMoves
from rayfold.policies.protocol import Policy
from rayfold.policies.rollout import roll_out
from rayfold.policies.world_features import WORLD_FEATURES, world_features

NET = CompactionNet(NetworkConfig(dim=16, heads=2)).eval()
NET_CARD = TrainingCard(scenarios=("smoke",), seed=0, steps=1, minutes=0.0)
CARD = LeaderCard(scenarios=("smoke",), episodes=2, seed=0, reference="exact")
DIM = len(WORLD_FEATURES)


def simulator(name: str = "smoke", horizon_s: float = 7200.0) -> Simulator:
    """At the start of an episode of a shipped scenario, with generated traffic."""
    scenario = load_scenario(name, None, synthetic=True).with_horizon(horizon_s)
    rngs = np.random.default_rng(0).spawn(3)
    traffic = scenario.sample(rngs[0], Split.TRAIN)
    return Simulator(initial_state(scenario.spec, traffic, rngs[1]), traffic, scenario.limits, rngs[2])


def leader_that_says(worth: float, world: NDArray[np.float64], doubt: float = 1.0) -> Leader:
    """It has seen ``dearest_first`` cost so much more than the reference in many episodes of one world."""
    seen = Experience(
        members=("dearest_first",),
        worlds=np.tile(world, (50, 1)),
        worth=np.full((50, 1), worth),
        kernels=(Kernel(signal_frac=0.05, length=1.0, noise_frac=0.01),),
    )
    return Leader(seen, doubt)


def test_expectation_equals_the_textbook() -> None:
    """Two routes: solves with the Cholesky factor here, the plain inverse of Rasmussen and Williams (2.25, 2.26)."""
    rng = np.random.default_rng(0)
    worlds, worth = rng.normal(size=(12, DIM)), rng.normal(scale=0.05, size=(12, 2))
    worlds[:, 0] = np.arange(12) % 2  # of two kinds
    kernels = (Kernel(0.05, 2.0, 0.02), Kernel(0.1, 4.0, 0.01))
    leader = Leader(Experience(members=("a", "b"), worlds=worlds, worth=worth, kernels=kernels))
    new = rng.normal(size=DIM)
    new[0] = 1.0
    mean, std = leader.expected(new)
    x, known = (new - worlds.mean(0)) / worlds.std(0), (worlds - worlds.mean(0)) / worlds.std(0)
    for k, (signal, length, noise) in enumerate(kernels):

        def near_to(x: NDArray[np.float64], signal: float = signal, length: float = length) -> NDArray[np.float64]:
            return np.array(
                [np.isclose(a[0], x[0]) * signal**2 * np.exp(-((a - x) @ (a - x)) / 2 / length**2) for a in known]
            )

        covariance, near = np.array([near_to(b) for b in known]), near_to(x)
        inverse = np.linalg.inv(covariance + noise**2 * np.eye(12))
        assert mean[k] == pytest.approx(near @ inverse @ np.clip(worth[:, k], -0.15, 0.15))
        assert std[k] ** 2 == pytest.approx(signal**2 - near @ inverse @ near)


def test_far_from_all_that_was_seen_the_reference_leads() -> None:
    """There nothing is expected, and everything is in doubt; near it, a gain larger than the doubt leads."""
    world = np.zeros(DIM)
    leader = leader_that_says(-0.03, world)
    row, expected = leader.choose(world)
    assert row == 0
    assert expected == pytest.approx(-0.03, abs=0.001)
    far = world + 5.0
    far[0] = world[0]
    assert leader.choose(far) == (REFERENCE, 0.0)
    mean, std = leader.expected(far)
    assert mean[0] == pytest.approx(0.0, abs=1e-4)
    assert std[0] == pytest.approx(0.05, abs=1e-4)
    assert leader_that_says(-0.0005, world).choose(world)[0] == REFERENCE, "less than it is in doubt about"
    assert leader_that_says(+0.03, world).choose(world)[0] == REFERENCE


def test_worlds_in_which_moves_launch_nodes_are_another_kind() -> None:
    """What is known of clusters without launches is not expected of one that is like them in all else."""
    assert WORLD_FEATURES[0] == "new_nodes"
    world = np.zeros(DIM)
    leader, launches = leader_that_says(-0.03, world), world.copy()
    launches[0] = 1.0
    assert leader.choose(world)[0] == 0
    assert leader.choose(launches) == (REFERENCE, 0.0)
    assert leader.expected(launches)[1][0] == pytest.approx(0.05)


def test_one_monstrous_bill_does_not_outweigh_the_others() -> None:
    """Beyond the limit worth is clipped: ten gains of a twentieth against a bill that was ten times as high."""
    worth = np.full((11, 1), -0.05)
    worth[0] = 9.0
    kernels = (Kernel(0.05, 1.0, 0.05),)
    leader = Leader(Experience(members=("a",), worlds=np.zeros((11, DIM)), worth=worth, kernels=kernels))
    assert leader.expected(np.zeros(DIM))[0][0] < -0.02


@pytest.mark.parametrize("name", ["smoke", "spot", "mixed_fleet", "fractional", "llm_api_pack_groups"])
def test_features_are_finite_and_as_many_as_named(name: str) -> None:
    """Whatever the cluster."""
    sim = simulator(name, 1800.0)
    found = world_features(sim.view, sim.limits)
    assert found.shape == (DIM,)
    assert found.dtype == np.float64
    assert np.isfinite(found).all()


def test_features_of_a_cluster_by_hand() -> None:
    """One node type, one deployment of plain replicas of one GPU; and groups, which are told as such."""
    sim = simulator("two_node", 600.0)
    found = dict(zip(WORLD_FEATURES, world_features(sim.view, sim.limits), strict=True))
    spec = sim.spec
    assert found["log_node_types"] == pytest.approx(np.log(2.0))
    assert found["log_price_spread"] == 0.0
    (startup,) = {d.startup_s.min_s + d.startup_s.max_s for d in spec.deployments}
    assert found["log_startup"] == pytest.approx(np.log1p(startup / 2.0))
    assert found["group_frac"] == found["immovable_frac"] == 0.0
    groups = simulator("llm_api_pack_groups", 1800.0)
    told = dict(zip(WORLD_FEATURES, world_features(groups.view, groups.limits), strict=True))
    st = groups.view.arrays
    running = st.replica_deployment[st.replica_phase == ReplicaPhase.RUNNING]
    sizes = np.array([len(d.shape.bundles) for d in groups.spec.deployments])[running]
    assert told["group_frac"] == pytest.approx((sizes > 1).mean())
    assert told["group_frac"] > 0.0


def led(sim: Simulator, leader: Leader) -> Led:
    """``dearest_first`` if the leader says so, else nobody moves anything."""
    return Led(leader, [DearestFirst], lambda limits: NoMoves(), sim.limits)


def test_who_is_chosen_leads_move_by_move() -> None:
    """Two routes to one bill: the chosen member alone, and led; in doubt the reference alone."""
    world = world_features(simulator().view, simulator().limits)
    for worth, alone in ((-0.03, DearestFirst(simulator().limits)), (0.03, NoMoves())):
        sims = simulator(), simulator()
        policy = led(sims[0], leader_that_says(worth, world))
        assert isinstance(policy, Policy)
        bills = [
            roll_out(sim, p, np.random.default_rng(0)).ledger.values
            for sim, p in zip(sims, (policy, alone), strict=True)
        ]
        np.testing.assert_array_equal(bills[0], bills[1])
        assert type(policy.member) is type(alone)


def test_reason_tells_who_leads_and_why() -> None:
    """The name, and what the bill is expected to be against the reference's; the reference's own reason stays."""
    sim = simulator()
    world = world_features(sim.view, sim.limits)
    plan = led(sim, leader_that_says(-0.03, world)).plan(sim.state(), np.random.default_rng(0))
    assert plan.reason.startswith("dearest_first (bill expected -3.0%): ")
    plan = led(sim, leader_that_says(0.03, world)).plan(sim.state(), np.random.default_rng(0))
    assert "expected" not in plan.reason


def test_reference_leads_where_there_are_more_nodes_than_were_learned_from() -> None:
    """Whatever the leader expects; heads do not count, nodes that boot do."""
    sim = simulator()
    leader, state = leader_that_says(-0.03, world_features(sim.view, sim.limits)), sim.state()
    st = state.arrays
    is_there = st.node_phase != NodePhase.ABSENT
    st.node_phase[int(np.flatnonzero(is_there & ~st.node_is_head)[-1])] = NodePhase.BOOTING
    num_nodes = int((is_there & ~st.node_is_head).sum())
    assert num_nodes > 1
    for most_nodes, expected in ((num_nodes, DearestFirst), (num_nodes - 1, NoMoves)):
        policy = Led(leader, [DearestFirst], lambda limits: NoMoves(), sim.limits, most_nodes=most_nodes)
        policy.plan(state, np.random.default_rng(0))
        assert type(policy.member) is expected


def test_leader_is_asked_about_the_mean_of_twelve_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    """In training it knows means over episodes; an odd hour is no other kind of cluster. A reset forgets them."""
    sim = simulator(horizon_s=14.0 * DWELL_S)
    leader = leader_that_says(-0.03, world_features(sim.view, sim.limits))
    looks, asked = iter(range(100)), list[float]()

    def look(state: object, limits: object) -> NDArray[np.float64]:
        return np.full(DIM, float(next(looks)))

    def note(world: NDArray[np.float64]) -> tuple[int, float]:
        asked.append(float(world[0]))
        return REFERENCE, 0.0

    monkeypatch.setattr("rayfold.policies.led.world_features", look)
    leader.choose = note  # type: ignore[method-assign]
    policy = led(sim, leader)
    roll_out(sim, policy, np.random.default_rng(0))
    policy.reset()
    policy.plan(simulator().state(), np.random.default_rng(0))
    assert asked == [*(k / 2 for k in range(12)), 6.5, 7.5, 14.0]


def test_leader_is_asked_once_an_hour() -> None:
    """Whatever it would say in between; after a reset at once."""
    sim = simulator(horizon_s=3.0 * DWELL_S)
    leader = leader_that_says(-0.03, world_features(sim.view, sim.limits))
    asked: list[float] = []
    choose = leader.choose

    def note(world: NDArray[np.float64]) -> tuple[int, float]:
        asked.append(sim.now_s)
        return choose(world)

    leader.choose = note  # type: ignore[method-assign]
    policy = led(sim, leader)
    roll_out(sim, policy, np.random.default_rng(0))
    assert np.diff(asked) == pytest.approx(DWELL_S)
    assert len(asked) == 3
    policy.reset()
    assert type(policy.member) is NoMoves
    policy.plan(simulator().state(), np.random.default_rng(0))
    assert len(asked) == 4


def trained(members: tuple[str, ...] = ("network", "exact+dearest_first")) -> TrainedLeader:
    """A leader with random experience."""
    rng = np.random.default_rng(0)
    worth = rng.normal(scale=0.05, size=(7, len(members)))
    kernels = (Kernel(0.05, 2.0, 0.02),) * len(members)
    seen = Experience(members=members, worlds=rng.normal(size=(7, DIM)), worth=worth, kernels=kernels)
    return TrainedLeader(leader=Leader(seen), card=CARD)


def test_a_bundle_keeps_its_leader(tmp_path: Path) -> None:
    """Saved and loaded, it says the same; ``learned`` is then led; a bundle without one plays its network."""
    made = trained()
    save_bundle(tmp_path / "b", NET, NET_CARD, leader=made)
    loaded = load_bundle(tmp_path / "b").leader
    assert loaded is not None
    assert loaded.card == CARD
    world = np.random.default_rng(1).normal(size=DIM)
    np.testing.assert_allclose(loaded.leader.expected(world), made.leader.expected(world), atol=1e-5)
    policy = make_policy("learned", Limits(), bundle=tmp_path / "b")
    assert isinstance(policy, Led)
    assert policy.name == "learned"
    assert isinstance(policy.member, Exact), "the card's reference"
    save_bundle(tmp_path / "b", NET, NET_CARD)
    assert load_bundle(tmp_path / "b").leader is None


def test_a_member_that_there_is_not_is_told(tmp_path: Path) -> None:
    """When the policy is made, in one line."""
    save_bundle(tmp_path / "b", NET, NET_CARD, leader=trained(("network", "no_such")))
    with pytest.raises(InputError, match="no_such"):
        make_policy("learned", Limits(), bundle=tmp_path / "b")


@pytest.mark.parametrize(
    "damage", ["format", "features", "members", "kernels", "kernel of 0", "worlds", "worth", "NaN", "doubt", "not JSON"]
)
def test_a_broken_leader_is_told_in_one_line(tmp_path: Path, damage: str) -> None:
    """Nothing is loaded in part."""
    save_bundle(tmp_path / "b", NET, NET_CARD, leader=trained())
    header = tmp_path / "b" / HEADER
    content = json.loads(header.read_text())
    flat = {"signal_frac": 0.0, "length": 1.0, "noise_frac": 0.1}
    wrong: dict[str, dict[str, Any]] = {
        "format": {"format": 9},
        "features": {"features": []},
        "members": {"members": ["network"]},
        "kernels": {"kernels": [{"length": 1.0}] * 2},
        "kernel of 0": {"kernels": [flat, flat]},
        "worlds": {"worlds": [[0.0]]},
        "worth": {"worth": [["x", 1.0]]},
        "NaN": {"worth": [[float("nan"), 0.0]] * 7},
        "doubt": {"doubt": "much"},
        "not JSON": {},
    }
    header.write_text("{" if damage == "not JSON" else json.dumps({**content, **wrong[damage]}))
    with pytest.raises(InputError) as told:
        load_bundle(tmp_path / "b")
    assert "\n" not in str(told.value)
