"""Training of the leader: what is measured, what is learned from it, and how it goes on."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from rayfold.envs.scenario import Scenario, Split, load_scenario
from rayfold.errors import InputError
from rayfold.policies.bundle import PolicyBundle, load_bundle
from rayfold.policies.by_name import make_policy, shipped_bundle
from rayfold.policies.leader import REFERENCE
from rayfold.policies.network import CompactionNet, NetworkConfig
from rayfold.policies.world_features import WORLD_FEATURES
from rayfold.training import leader_training
from rayfold.training.episode_result import run_episode
from rayfold.training.leader_training import FOLDS, Lesson, fit_leader, price_lessons, train_leader
from rayfold.training.worlds import at_prices

DIM = len(WORLD_FEATURES)
CANDIDATES = ("none", "dearest_first", "network")


@pytest.fixture(scope="module")
def bundle() -> PolicyBundle:
    """The shipped one."""
    return load_bundle(shipped_bundle())


def smoke(name: str = "smoke") -> Scenario:
    """A small scenario with generated traffic."""
    return load_scenario(name, None, synthetic=True).with_horizon(1800.0)


@pytest.mark.parametrize("name", CANDIDATES)
def test_candidates_play_the_same_episode(bundle: PolicyBundle, name: str) -> None:
    """Two routes to a bill: what is learned from, and an evaluation of that seed; every third world is as it is."""
    scenario = smoke()
    seen = leader_training._play(bundle, (0, leader_training._Unit(scenario, 3, name)))
    policy = make_policy(name, scenario.limits, bundle=shipped_bundle())
    alone = run_episode(scenario, policy, 3, Split.TRAIN).metrics["total_usd"]
    assert seen.bill_usd == pytest.approx(alone, rel=1e-12)
    assert len(seen.world) == DIM


def planted(num_episodes: int, rng: np.random.Generator, shift: float = 0.0) -> leader_training._Played:
    """Where one feature is positive the first costs a twentieth less than the second, else more; the third is luck.

    In half of the episodes, which are another scenario, another feature is larger by ``shift``. So it is as the second
    finds them, which leads; the others find something else.
    """
    worlds, bills = np.zeros((num_episodes, DIM)), 100.0 + rng.normal(scale=2.0, size=(num_episodes, 3))
    worlds[:, 6] = rng.choice([-1.0, 1.0], num_episodes) + rng.normal(scale=0.1, size=num_episodes)
    is_y = np.arange(num_episodes) >= num_episodes // 2
    worlds[is_y, 1] = shift
    bills[:, 0] += np.where(worlds[:, 6] > 0.0, -5.0, 8.0)
    bills[:, 2] += 2.0
    found = np.stack([rng.normal(size=worlds.shape), worlds, rng.normal(size=worlds.shape)], axis=1)
    return leader_training._Played(("a", "b", "c"), found, bills, np.where(is_y, "y", "x"))


def test_a_planted_rule_is_learned() -> None:
    """On worlds that were not seen; the candidate that differs by chance alone is not followed."""
    reference, leader = fit_leader(planted(80, np.random.default_rng(0)))
    assert reference == "b"
    assert leader.experience.members == ("a", "c")
    fresh = planted(40, np.random.default_rng(1))
    worlds = fresh.worlds[:, fresh.names.index("b")]
    rows = np.array([leader.choose(world)[0] for world in worlds])
    np.testing.assert_array_equal(rows, np.where(worlds[:, 6] > 0.0, 0, REFERENCE))


def test_scenarios_weigh_alike_for_the_reference() -> None:
    """Many episodes of one, or its larger bills, do not decide who is best over all."""
    bills = np.array([[1000.0, 1020.0]] * 9 + [[10.0, 5.0]])
    groups = np.array(["many"] * 9 + ["one"])
    reference, _ = fit_leader(leader_training._Played(("a", "b"), np.zeros((10, 2, DIM)), bills, groups))
    assert reference == "b"


def test_noise_is_not_followed() -> None:
    """Where candidates differ by chance alone, the measure on other episodes does not pretend to gain."""
    rng = np.random.default_rng(2)
    worlds, bills = rng.normal(size=(100, 4, DIM)), 100.0 * (1.0 + rng.normal(scale=0.03, size=(100, 4)))
    worlds[..., 0] = 0.0  # all of one kind
    played = leader_training._Played(("a", "b", "c", "d"), worlds, bills, np.repeat(["x", "y"], 50))
    reference = played.names.index(fit_leader(played)[0])
    metrics = leader_training._metrics(played, reference, rng)
    assert metrics["mean"] > -0.004
    assert metrics["best/mean"] <= 0.0


def test_metrics_are_of_episodes_left_out() -> None:
    """A planted rule is worth what it gives; a scenario that is all new, and unlike the other, is worth nothing."""
    metrics = leader_training._metrics(planted(80, np.random.default_rng(3), 20.0), 1, np.random.default_rng(0))
    assert metrics["x"] < -0.015
    assert metrics["y"] < -0.015
    assert [metrics["new/x"], metrics["new/y"]] == pytest.approx([0.0, 0.0], abs=1e-9)
    assert metrics["mean"] == pytest.approx((metrics["x"] + metrics["y"]) / 2)


def test_training_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundle: PolicyBundle
) -> None:
    """What is played is not played again; damaged files are; a candidate that is new is played on the same episodes."""
    lessons = [Lesson(smoke(), (0, 1, 2)), Lesson(smoke("low_scale"), (0, 1))]
    played: list[leader_training._Unit] = []
    play = leader_training._play

    def note(shared: PolicyBundle, work: tuple[int, leader_training._Unit]) -> leader_training._Seen:
        played.append(work[1])
        if len(played) == 3:
            raise KeyboardInterrupt
        return play(shared, work)

    monkeypatch.setattr(leader_training, "_play", note)
    with pytest.raises(KeyboardInterrupt):
        train_leader(lessons, bundle, tmp_path, candidates=CANDIDATES[:2])
    kept = sorted((tmp_path / "episodes").iterdir())
    assert len(kept) == 2
    kept[0].write_bytes(kept[0].read_bytes()[:20])
    told: list[tuple[str, int]] = []
    first = train_leader(lessons, bundle, tmp_path, candidates=CANDIDATES[:2], on_unit=lambda *what: told.append(what))
    assert len(played) == 3 + 9
    assert sorted(told) == sorted((name, seed) for name in CANDIDATES[:2] for seed in (0, 1, 2, 0, 1))
    assert (first.card.episodes, first.card.scenarios) == (5, ("smoke", "low_scale"))
    again = train_leader(lessons, bundle, tmp_path, candidates=CANDIDATES[:2])
    assert len(played) == 3 + 9
    np.testing.assert_array_equal(again.leader.experience.worth, first.leader.experience.worth)
    assert again.leader.experience.kernels == first.leader.experience.kernels
    assert again.card.metrics == first.card.metrics
    train_leader(lessons, bundle, tmp_path, candidates=CANDIDATES)
    assert [unit.candidate for unit in played[12:]] == [CANDIDATES[2]] * 5
    other = dataclasses.replace(bundle, net=CompactionNet(NetworkConfig(dim=8, heads=1)).eval())
    train_leader(lessons, other, tmp_path, candidates=CANDIDATES)
    assert [unit.candidate for unit in played[17:]] == [CANDIDATES[2]] * 5  # the others ask no network


def test_price_lessons_are_the_scenario_at_other_prices(bundle: PolicyBundle) -> None:
    """Their bills are those of an evaluation at that price; none is in a drawn world, and all count to the scenario."""
    scenario = smoke()
    lessons = price_lessons(scenario, 2)
    assert [lesson.group for lesson in lessons] == ["smoke", "smoke"]
    assert price_lessons(scenario, 0) == ()
    for lesson, factor in zip(lessons, (0.25, 4.0), strict=True):
        for seed in lesson.seeds:
            unit = leader_training._Unit(lesson.scenario, seed, "exact")
            bill_usd = leader_training._play(bundle, (0, unit)).bill_usd
            world = at_prices(scenario, factor)
            alone = run_episode(world, make_policy("exact", world.limits), seed, Split.TRAIN).metrics["total_usd"]
            assert bill_usd == pytest.approx(alone)
    assert len({seed for lesson in lessons for seed in lesson.seeds}) == 2


def test_what_cannot_be_is_told_before_anything_is_played(tmp_path: Path, bundle: PolicyBundle) -> None:
    """Too few episodes; a candidate that there is not."""
    with pytest.raises(InputError, match=f"at least {FOLDS}"):
        train_leader([Lesson(smoke(), (0,))], bundle, tmp_path)
    with pytest.raises(InputError, match="no_such"):
        train_leader([Lesson(smoke(), tuple(range(FOLDS)))], bundle, tmp_path, candidates=("network", "no_such"))
    assert not list(tmp_path.iterdir())
