"""``rayfold/Compaction-v1`` keeps Gymnasium's contract and the decision process of its docstring."""

import pickle
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from rayfold.envs.compaction_env import CompactionEnv
from rayfold.envs.layout import schema_hash
from rayfold.envs.scenario import load_scenario
from rayfold.envs.vector_env import CompactionVectorEnv
from rayfold.errors import InputError


def make(scenario: str = "smoke", **more: Any) -> CompactionEnv:
    """The environment without wrappers."""
    env = gym.make("rayfold/Compaction-v1", scenario=scenario, synthetic=True, **more).unwrapped
    assert isinstance(env, CompactionEnv)
    return env


def masked_action(obs: dict[str, Any], rng: np.random.Generator) -> tuple[int, int]:
    """A random allowed move, or NOOP."""
    cells = np.argwhere(obs["source_mask"] > 0)
    if not len(cells) or rng.random() < 0.5:
        return 0, 0
    n, d = cells[rng.integers(len(cells))]
    others = [m for m in np.flatnonzero(obs["destination_mask"][:, d]) if m != n]
    return 1 + int(n) * obs["source_mask"].shape[1] + int(d), int(rng.choice(others))


@pytest.mark.parametrize("scenario", ["smoke", "low_scale", "two_node", "local_demo", "llm_api"])
def test_check_env_is_clean(scenario: str) -> None:
    """Gymnasium's own checker, with every warning fatal."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(make(scenario))


def rollout(env: CompactionEnv, seed: int, steps: int = 200) -> list[Any]:
    """Observations, rewards and infos of a random masked rollout."""
    obs, info = env.reset(seed=seed)
    rng, seen = np.random.default_rng(seed), [(obs, 0.0, False, info)]
    for _ in range(steps):
        obs, reward, terminated, truncated, info = env.step(np.array(masked_action(obs, rng)))
        seen.append((obs, reward, truncated, info))
        assert not terminated
        if truncated:
            break
    return seen


def test_same_seed_twice_is_bit_equal() -> None:
    """Two environments, one seed: every observation, reward and info is the same; another seed differs."""
    first, second, other = (rollout(make(), seed) for seed in (7, 7, 8))
    for a, b in zip(first, second, strict=True):
        assert a[1:] == b[1:]
        assert all((a[0][key] == b[0][key]).all() for key in a[0])
    assert [a[1] for a in first] != [a[1] for a in other]


def test_pickle_round_trip_goes_on_alike() -> None:
    """An environment sent to another process continues as it would have here."""
    env = make()
    env.reset(seed=3)
    copy = pickle.loads(pickle.dumps(env))
    for _ in range(20):
        a, b = env.step(np.array([0, 0])), copy.step(np.array([0, 0]))
        assert a[1] == b[1]
        assert all((a[0][key] == b[0][key]).all() for key in a[0])


def test_reward_is_minus_the_bill() -> None:
    """Step by step its terms, and over the episode the ledger, by another route."""
    env = make()
    seen = rollout(env, 11, steps=10_000)
    assert seen[-1][2]  # truncated at the horizon
    assert env.episode is not None
    ledger = env.episode.simulator.ledger()
    assert ledger.metrics()["moves"] > 5
    assert sum(step[1] for step in seen[1:]) == pytest.approx(-ledger.total_usd)
    for _, reward, _, info in seen[1:]:
        assert reward == pytest.approx(-(info["cost_usd"] + info["disruption_usd"] + info["unserved_usd"]))


def test_time_passes_on_noop_only() -> None:
    """A move takes no time and costs its disruption; NOOP takes one interval and costs nodes."""
    env = make()
    for step in rollout(env, 5)[1:]:
        obs, info = step[0], step[3]
        assert obs["global"][0] == (0.0 if info["num_moves"] else 1.0)
        if info["num_moves"]:
            assert info["dt_s"] == info["cost_usd"] == info["unserved_usd"] == 0.0
            assert info["disruption_usd"] > 0.0
        else:
            assert info["dt_s"] == env.scenario.spec.settings.decision_interval_s
            assert info["disruption_usd"] == 0.0
            assert info["cost_usd"] > 0.0


def test_masked_actions_are_moves_and_others_are_noop() -> None:
    """No action that the masks allow is refused; one that they forbid lets time pass like NOOP."""
    env = make()
    obs, _ = env.reset(seed=2)
    rng, num_moves = np.random.default_rng(2), 0
    for _ in range(150):
        action = masked_action(obs, rng)
        obs, _, _, truncated, info = env.step(np.array(action))
        assert info["num_moves"] == (action[0] > 0)
        num_moves += info["num_moves"]
        if truncated:
            break
    assert num_moves > 5
    forbidden = np.argwhere(obs["source_mask"] == 0)[0]
    action = 1 + forbidden[0] * obs["source_mask"].shape[1] + forbidden[1]
    copy = pickle.loads(pickle.dumps(env))
    if not truncated:
        assert env.step(np.array([action, 0]))[1] == copy.step(np.array([0, 0]))[1]


def test_render() -> None:
    """Text names every deployment and present node; the picture is an RGB array with something on it."""
    env = make(render_mode="ansi")
    env.reset(seed=0)
    text = env.render()
    assert isinstance(text, str)
    assert all(d.name in text for d in env.scenario.spec.deployments)
    assert env.episode is not None
    assert text.count("node ") == (env.episode.simulator.view.arrays.node_phase > 0).sum()
    env = make(render_mode="rgb_array")
    env.reset(seed=0)
    picture = env.render()
    assert isinstance(picture, np.ndarray)
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 5


def test_step_before_reset_and_bad_arguments() -> None:
    """Clear errors."""
    with pytest.raises(gym.error.ResetNeeded):
        make().step(np.array([0, 0]))
    with pytest.raises(InputError, match="no_such"):
        CompactionEnv("no_such")


def test_vector_env_of_one_equals_the_scalar_env() -> None:
    """Same actions, same seeds: observations and rewards agree, and truncation comes at the same step."""
    scenario = load_scenario("smoke")
    vector, scalar = CompactionVectorEnv([scenario], 1), make()
    flat, _ = vector.reset(seed=[9])
    rng_state = vector._rngs[0]
    assert rng_state is not None
    # The vector env draws the scenario before the episode; the scalar one has nothing to draw.
    scalar.reset(seed=0)
    scalar.episode = pickle.loads(pickle.dumps(vector.episodes[0]))
    obs, rng, truncated = vector.layout.split(flat[0]), np.random.default_rng(1), False
    while not truncated:
        action = masked_action(obs, rng)
        flat, reward, _, ends, _ = vector.step(np.array([action]))
        obs, scalar_reward, _, truncated, _ = scalar.step(np.array(action))
        assert reward[0] == scalar_reward
        assert bool(ends[0]) == truncated
        assert all((obs[key] == value).all() for key, value in vector.layout.split(flat[0]).items())


def test_vector_env_resets_on_the_next_step() -> None:
    """NEXT_STEP: the step after the end ignores its action, returns a first observation and reward 0."""
    env = CompactionVectorEnv([load_scenario("smoke").with_horizon(180.0)], 3, seed=4)
    env.reset()
    noop = np.zeros((3, 2), np.int64)
    interval_s = env.scenarios[0].spec.settings.decision_interval_s
    for _ in range(round(180.0 / interval_s)):
        _, reward, _, truncated, _ = env.step(noop)
        assert (reward < 0).all()
    assert truncated.all()
    ended = list(env.episodes)
    obs, reward, terminated, truncated, _ = env.step(noop)
    assert not terminated.any()
    assert not truncated.any()
    assert (reward == 0).all()
    assert all(a is not b for a, b in zip(ended, env.episodes, strict=True))
    assert (obs == np.stack([episode.encode(0.0) for episode in env.episodes])).all()


def test_normalised_reward_is_the_bill_in_units_of_the_first_tick() -> None:
    """The scale is the least that the episode's first tick costs, times ``reward_scale``."""
    scenario = load_scenario("smoke")
    plain = CompactionVectorEnv([scenario], 2, seed=1)
    scaled = CompactionVectorEnv([scenario], 2, seed=1, normalize=True, reward_scale=0.5, subtract_bound=True)
    plain.reset()
    scaled.reset()
    unit = np.array([episode.first_tick_usd for episode in plain.episodes])
    bound = np.array([episode.simulator.relaxed_bound_usd_per_h for episode in plain.episodes])
    noop = np.zeros((2, 2), np.int64)
    interval_h = scenario.spec.settings.decision_interval_s / 3600.0
    np.testing.assert_allclose(unit, np.maximum(bound, 0.0) * interval_h, rtol=0.5)
    reward, normalised = plain.step(noop)[1], scaled.step(noop)[1]
    spent = [episode.simulator.ledger().metrics()["relaxed_bound_usd"] for episode in plain.episodes]
    np.testing.assert_allclose(normalised, 0.5 * (reward + spent) / unit)


def test_schema_hash_follows_the_feature_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Renaming one feature makes another schema."""
    before = schema_hash()
    monkeypatch.setattr("rayfold.envs.layout.NODE_FEATURES", ("renamed",))
    assert schema_hash() != before
