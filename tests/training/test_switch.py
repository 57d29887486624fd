"""Labels of the switch, its fit, and how training goes on."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from rayfold.envs.scenario import Scenario, Split, load_scenario
from rayfold.policies.bundle import PolicyBundle, TrainingCard
from rayfold.policies.network import CompactionNet, NetworkConfig
from rayfold.policies.portfolio import MEMBERS, make_member
from rayfold.policies.rollout import roll_out
from rayfold.policies.switch_features import FEATURES
from rayfold.policies.switch_net import SwitchConfig
from rayfold.training import switch_training
from rayfold.training.episode_result import begin_episode
from rayfold.training.switch_fit import FOLDS, fit_switch, followed_frac, relative_bills
from rayfold.training.switch_labels import Labels, join_labels, label_episode, vary
from rayfold.training.switch_training import Lesson, train_switch

NET = CompactionNet(NetworkConfig(dim=16, heads=2)).eval()
BUNDLE = PolicyBundle(net=NET, card=TrainingCard(scenarios=("smoke",), seed=0, steps=1, minutes=0.0))
CONFIG = SwitchConfig(dim=8, ensemble=2, dwell_s=1200.0, horizon_s=2400.0)


def smoke(horizon_s: float = 3600.0) -> Scenario:
    """The small scenario with generated traffic."""
    return load_scenario("smoke", None, synthetic=True).with_horizon(horizon_s)


@pytest.mark.parametrize("name", ["dearest_first", "finish", "exact"])
def test_the_first_choice_costs_what_the_episode_does(name: str) -> None:
    """Two routes: a fork at the start that is led to the end, and the member alone on that episode."""
    scenario, seed, row = smoke(), 3, MEMBERS.index(name)  # the world of every third seed is not varied
    labels = label_episode(scenario, NET, dataclasses.replace(CONFIG, horizon_s=scenario.horizon_s), seed)
    sim, _ = begin_episode(scenario, Split.TRAIN, np.random.default_rng(seed).spawn(4)[0])
    alone = roll_out(sim, make_member(row, scenario.limits, NET), np.random.default_rng(0)).ledger.total_usd
    assert labels.bill_usd[0, row] == pytest.approx(alone, rel=1e-12)


def test_labels_have_a_choice_per_dwell_and_are_repeatable() -> None:
    """Choices as long as half a horizon is left; the same seed gives the same labels."""
    one, two = (label_episode(smoke(), NET, CONFIG, seed=1) for _ in range(2))
    assert len(one.features) == 3  # at 0, 20 and 40 of 60 minutes, with 20 to come
    assert one.features.shape == (3, len(FEATURES))
    assert (one.bill_usd > 0.0).all()
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)


def test_worlds_vary_in_what_they_should() -> None:
    """Start-ups and prices change, each in about half of the worlds; the rest of the cluster stays."""
    scenario = smoke()
    worlds = [vary(scenario, np.random.default_rng(seed)) for seed in range(200)]
    before = scenario.spec.deployments[0].startup_s
    factors = np.array([w.spec.deployments[0].startup_s.min_s / before.min_s for w in worlds])
    scales = np.array([w.spec.settings.prices.unserved_factor for w in worlds])
    scales /= scenario.spec.settings.prices.unserved_factor
    assert 0.35 < (factors == 1.0).mean() < 0.65
    assert factors.min() >= 0.5
    assert factors.max() <= 3.0
    assert set(scales) == {0.25, 1.0, 4.0}
    assert all(w.spec.node_types == scenario.spec.node_types and w.limits == scenario.limits for w in worlds)


def planted(num_episodes: int, rng: np.random.Generator) -> Labels:
    """Where one feature is positive the second member costs a tenth less than the reference, else a tenth more."""
    parts = []
    for _ in range(num_episodes):
        features = rng.normal(size=(20, len(FEATURES))).astype(np.float32)
        bills = np.full((20, len(MEMBERS)), 100.0) + rng.normal(scale=0.5, size=(20, len(MEMBERS)))
        bills[:, 1] += np.where(features[:, 7] > 0.0, -10.0, 10.0)
        parts.append(Labels(features, bills, np.zeros(20, np.int64)))
    return join_labels(parts)


def test_a_planted_rule_is_learned_and_measured_on_other_episodes() -> None:
    """Nothing can gain but by the rule: always or never following the member is worth nothing."""
    labels = planted(40, np.random.default_rng(0))
    told: list[int] = []
    fit = fit_switch(labels, SwitchConfig(dim=16, ensemble=3), 0, told.append)
    assert told == list(range(FOLDS + 1))
    assert abs(fit.metrics["best_member"]) < 0.02
    assert fit.metrics["oracle"] < -0.045
    assert fit.metrics["switched"] < 0.5 * fit.metrics["oracle"]
    fresh = planted(10, np.random.default_rng(1))
    with torch.inference_mode():
        expected = fit.net.pessimistic(torch.from_numpy(fresh.features)).numpy()
    assert followed_frac(relative_bills(fresh), expected, 0.002) < -0.03


def test_noise_is_not_followed() -> None:
    """Where members differ by chance alone, the measure on other episodes does not pretend to gain."""
    rng = np.random.default_rng(2)
    features = rng.normal(size=(400, len(FEATURES))).astype(np.float32)
    bills = 100.0 + rng.normal(scale=2.0, size=(400, len(MEMBERS)))
    fit = fit_switch(Labels(features, bills, np.arange(400) // 20), SwitchConfig(dim=8, ensemble=3), 0)
    assert fit.metrics["oracle"] < -0.01
    assert abs(fit.metrics["switched"]) < 0.004


def test_followed_by_hand() -> None:
    """The member of least expectation leads if it beats the reference by the margin."""
    relative = np.zeros((3, len(MEMBERS)))
    relative[:, 1] = [-0.1, 0.3, 0.5]
    expected = np.zeros((3, len(MEMBERS)))
    expected[:, 1] = [-0.05, -0.001, 0.2]  # followed, within the margin, not better
    assert followed_frac(relative, expected, 0.002) == pytest.approx(-0.1 / 3)
    assert followed_frac(relative, expected, 0.0) == pytest.approx((-0.1 + 0.3) / 3)


def test_training_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is labelled is not labelled again; damaged files are; the result is that of one run."""
    lessons = [Lesson(scenario=smoke(), seeds=tuple(range(FOLDS)))]
    labelled: list[int] = []
    label = label_episode

    def note(scenario: Scenario, net: CompactionNet, config: SwitchConfig, seed: int) -> Labels:
        labelled.append(seed)
        if len(labelled) == 3:
            raise KeyboardInterrupt
        return label(scenario, net, config, seed)

    monkeypatch.setattr(switch_training, "label_episode", note)
    with pytest.raises(KeyboardInterrupt):
        train_switch(lessons, BUNDLE, CONFIG, tmp_path, seed=0)
    kept = sorted((tmp_path / "labels").iterdir())
    assert len(kept) == 2
    kept[0].write_bytes(kept[0].read_bytes()[:100])
    told: list[tuple[str, int]] = []
    first = train_switch(lessons, BUNDLE, CONFIG, tmp_path, seed=0, on_episode=lambda *what: told.append(what))
    assert len(labelled) == 3 + FOLDS - 1
    assert sorted(told) == [("smoke", seed) for seed in range(FOLDS)]
    assert first.card.episodes == FOLDS
    assert first.card.choices == 3 * FOLDS
    again = train_switch(lessons, BUNDLE, CONFIG, tmp_path, seed=0)
    assert len(labelled) == 3 + FOLDS - 1
    for name, tensor in first.net.state_dict().items():
        torch.testing.assert_close(tensor, again.net.state_dict()[name], rtol=0.0, atol=0.0)
