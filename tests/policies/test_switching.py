"""The switch: its features, its network, its file, and who leads when."""

import dataclasses
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from rayfold.envs.initial_state import initial_state
from rayfold.envs.scenario import Split, load_scenario
from rayfold.envs.simulator import Simulator
from rayfold.errors import InputError
from rayfold.policies.bundle import TrainingCard, load_bundle, save_bundle
from rayfold.policies.by_name import make_policy
from rayfold.policies.exact import Exact
from rayfold.policies.network import CompactionNet, NetworkConfig
from rayfold.policies.portfolio import MEMBERS, REFERENCE, make_member
from rayfold.policies.protocol import Policy
from rayfold.policies.rollout import roll_out
from rayfold.policies.switch_features import FEATURES, Memory
from rayfold.policies.switch_file import HEADER, WEIGHTS, Switch, SwitchCard
from rayfold.policies.switch_net import SwitchConfig, SwitchNet
from rayfold.policies.switching import PolicySwitching

NET = CompactionNet(NetworkConfig(dim=16, heads=2)).eval()
CARD = SwitchCard(scenarios=("smoke",), episodes=1, choices=2, seed=0)


def simulator(name: str = "smoke", horizon_s: float = 7200.0, seed: int = 0) -> Simulator:
    """At the start of an episode of a shipped scenario, with generated traffic."""
    scenario = load_scenario(name, None, synthetic=True).with_horizon(horizon_s)
    rngs = np.random.default_rng(seed).spawn(3)
    traffic = scenario.sample(rngs[0], Split.TRAIN)
    return Simulator(initial_state(scenario.spec, traffic, rngs[1]), traffic, scenario.limits, rngs[2])


def switch_that_says(relative: list[float], **config: Any) -> SwitchNet:
    """A network that expects the same of the members (the reference left out) whatever it sees."""
    net = SwitchNet(SwitchConfig(dim=4, ensemble=2, **config))
    with torch.no_grad():
        for one in net.nets:
            last = cast("torch.nn.Linear", cast("torch.nn.Sequential", one)[-1])
            last.weight.zero_()
            last.bias.copy_(torch.tensor(relative))
    return net.eval()


def others(**expected: float) -> list[float]:
    """Expectations for all but the reference; bad where not said."""
    return [expected.get(name, 0.1) for i, name in enumerate(MEMBERS) if i != REFERENCE]


@pytest.mark.parametrize("name", ["smoke", "spot", "mixed_fleet", "fractional", "llm_api_pack_groups"])
def test_features_are_finite_and_as_many_as_named(name: str) -> None:
    """Whatever the cluster, and whether or not something has been seen before."""
    sim = simulator(name, 1800.0)
    memory = Memory(sim.limits)
    unseen = memory.features(sim.view)
    roll_out(sim, make_member(2, sim.limits, NET), np.random.default_rng(0))
    memory.look(sim.view)
    for found in (unseen, memory.features(sim.view)):
        assert found.shape == (len(FEATURES),)
        assert found.dtype == np.float32
        assert np.isfinite(found).all()
        assert np.abs(found).max() <= 10.0


def test_features_of_a_cluster_by_hand() -> None:
    """Two equal nodes, one of them empty: half the bill is empty, and the shares are those of the one that is used."""
    sim = simulator("two_node", 600.0)
    state, memory = sim.state(), Memory(sim.limits)
    st, spec = state.arrays, state.spec.arrays
    found = dict(zip(FEATURES, memory.features(state), strict=True))
    present = st.node_phase != 0
    bill = spec.type_price_usd_per_h[st.node_type[present]].sum()
    empty = spec.type_price_usd_per_h[st.node_type[present & (st.node_num_held == 0)]].sum()
    assert found["empty_frac"] == pytest.approx(empty / bill)
    held = present & (st.node_num_held > 0)
    gpus = spec.type_capacity[st.node_type[held], 0]
    assert found["used_gpu"] == pytest.approx((gpus - st.node_free[held, 0]).sum() / gpus.sum())
    assert found["log_nodes"] == pytest.approx(np.log1p(present.sum()))
    assert found["history_h"] == 0.0
    assert found["mean_rel_1h"] == found["least_rel_3h"] == found["most_rel_1h"] == 1.0


def test_history_by_hand() -> None:
    """Targets that double after an hour: the hour's mean, extremes and slope are those of the samples."""
    sim = simulator("two_node", 600.0)
    state, memory = sim.state(), Memory(sim.limits)
    for i in range(19):  # 0 to 90 minutes, every five
        target = np.full_like(state.arrays.deployment_target, 1 if i < 13 else 2)
        now = dataclasses.replace(state, now_s=300.0 * i, arrays=state.arrays._replace(deployment_target=target))
        memory.look(now)
    found = dict(zip(FEATURES, memory.features(now), strict=True))
    assert found["history_h"] == pytest.approx(1.5)
    assert found["mean_rel_1h"] == pytest.approx((7 * 0.5 + 6 * 1.0) / 13)  # samples at 30, 35, ... 90 min
    assert found["least_rel_1h"] == pytest.approx(0.5)
    assert found["most_rel_1h"] == pytest.approx(1.0)
    assert found["slope_half_h"] == pytest.approx(0.5)  # at 60 min it was half of now
    assert found["mean_rel_3h"] == pytest.approx((13 * 0.5 + 6) / 19)


def test_reference_costs_itself_and_doubt_is_added() -> None:
    """The reference's column is 0; disagreement of the ensemble counts against a member."""
    net = switch_that_says(others(network=-0.05), doubt=1.0)
    with torch.no_grad():
        cast("torch.nn.Linear", cast("torch.nn.Sequential", net.nets[0])[-1]).bias.add_(0.02)
    found = net.pessimistic(torch.zeros(3, len(FEATURES)))
    assert found.shape == (3, len(MEMBERS))
    assert (found[:, REFERENCE] == 0.0).all()
    # Perceptrons say -0.03 and -0.05: mean -0.04, standard deviation 0.01.
    torch.testing.assert_close(found[:, MEMBERS.index("network")], torch.full((3,), -0.03))


def test_the_reference_leads_where_a_state_is_unlike_all_that_was_seen() -> None:
    """Some features beyond the range are bearable, more are not; the reference is expected to be itself."""
    net = switch_that_says(others(network=-0.05), max_outside=2)
    seen = torch.rand(100, len(FEATURES))
    net.know(seen)
    strange = seen[:2].clone()
    strange[0, :2], strange[1, :3] = 1.2, 1.2  # the range is 0 to 1, widened by a tenth
    assert net.num_outside(seen).sum() == 0
    assert net.num_outside(strange).tolist() == [2, 3]
    found = net.pessimistic(strange)
    assert found[0].argmin() == MEMBERS.index("network")
    assert found[1].argmin() == REFERENCE
    assert found[1, REFERENCE] == 0.0


@pytest.mark.parametrize(("gain", "leads"), [(0.05, "dearest_first"), (0.001, "exact")])
def test_who_is_better_by_a_margin_leads(gain: float, leads: str) -> None:
    """A member that is expected to save less than the margin does not take over."""
    sim = simulator()
    policy = PolicySwitching(switch_that_says(others(dearest_first=-gain), margin_frac=0.002), NET, sim.limits)
    plan = policy.plan(sim.state(), np.random.default_rng(0))
    assert MEMBERS[policy.leader] == leads
    assert plan.reason.startswith("dearest_first (-5.0% of exact's bill): " if leads != "exact" else "exact: ")


def test_without_anything_better_it_is_the_reference_move_by_move() -> None:
    """Two routes to one bill: the switch that never switches, and exact itself."""
    bills = []
    for make in (lambda s: Exact(s.limits), lambda s: PolicySwitching(switch_that_says(others()), NET, s.limits)):
        sim = simulator("low_scale", 7200.0)
        bills.append(roll_out(sim, make(sim), np.random.default_rng(0)).ledger.values)
    np.testing.assert_array_equal(bills[0], bills[1])


def test_a_leader_stays_for_its_dwell() -> None:
    """The network is asked once per half hour, whatever it would say in between."""
    sim = simulator()
    asked: list[float] = []
    net = switch_that_says(others(), dwell_s=1800.0)
    said = net.pessimistic

    def note(features: torch.Tensor) -> torch.Tensor:
        asked.append(sim.now_s)
        return said(features)

    net.pessimistic = note  # type: ignore[method-assign]
    policy = PolicySwitching(net, NET, sim.limits)
    roll_out(sim, policy, np.random.default_rng(0))
    assert len(asked) == 4
    assert np.diff(asked) == pytest.approx(1800.0)
    policy.reset()
    assert policy.leader == REFERENCE
    assert isinstance(policy, Policy)


def test_a_bundle_keeps_its_switch(tmp_path: Path) -> None:
    """Saved and loaded, it says the same; ``learned`` then switches; a bundle without one plays its network."""
    net = SwitchNet(SwitchConfig(dim=8, ensemble=3))
    net.scale.uniform_(0.5, 2.0)
    save_bundle(
        tmp_path / "b",
        NET,
        TrainingCard(scenarios=("smoke",), seed=0, steps=1, minutes=0.0),
        Switch(net=net, card=CARD),
    )
    loaded = load_bundle(tmp_path / "b").switch
    assert loaded is not None
    assert loaded.card == CARD
    features = torch.randn(5, len(FEATURES))
    torch.testing.assert_close(loaded.net(features), net.eval()(features), rtol=0.0, atol=0.0)
    limits = simulator().limits
    assert isinstance(make_policy("learned", limits, bundle=tmp_path / "b"), PolicySwitching)
    save_bundle(tmp_path / "b", NET, TrainingCard(scenarios=("smoke",), seed=0, steps=1, minutes=0.0))
    assert load_bundle(tmp_path / "b").switch is None


@pytest.mark.parametrize(
    "damage", ["no weights", "no header", "format", "members", "features", "config", "changed", "not JSON"]
)
def test_a_broken_switch_is_told_in_one_line(tmp_path: Path, damage: str) -> None:
    """Nothing is loaded in part."""
    card = TrainingCard(scenarios=("smoke",), seed=0, steps=1, minutes=0.0)
    save_bundle(tmp_path / "b", NET, card, Switch(net=SwitchNet(SwitchConfig(dim=4, ensemble=1)), card=CARD))
    header, weights = tmp_path / "b" / HEADER, tmp_path / "b" / WEIGHTS
    content = json.loads(header.read_text())
    if damage == "no weights":
        weights.unlink()
    elif damage == "no header":
        header.unlink()
    elif damage == "not JSON":
        header.write_text("{")
    elif damage == "changed":
        weights.write_bytes(weights.read_bytes()[:-4] + b"\x00\x00\x40\x40")
    else:
        content[damage] = {"format": 9, "members": ["exact"], "features": [], "config": {"dim": "x"}}[damage]
        header.write_text(json.dumps(content))
    with pytest.raises(InputError) as told:
        load_bundle(tmp_path / "b")
    assert "\n" not in str(told.value)
