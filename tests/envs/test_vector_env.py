"""The vector environment: every row is an episode of its own, and equal to the scalar environment."""

import pickle
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from rayfold.envs.compaction_env import CompactionEnv
from rayfold.envs.episode import Episode
from rayfold.envs.layout import GLOBAL_FEATURES, ObsLayout
from rayfold.envs.ledger import Entry
from rayfold.envs.scenario import Scenario, load_scenario
from rayfold.envs.state import NodePhase
from rayfold.envs.vector_env import CompactionVectorEnv
from rayfold.training.worlds import scaled, vary


@pytest.fixture(scope="module")
def scenarios() -> list[Scenario]:
    """Two of different size and length, with generated traffic."""
    smoke, low = (load_scenario(name, synthetic=True) for name in ("smoke", "low_scale"))
    intervals_s = [s.spec.settings.decision_interval_s for s in (smoke, low)]
    return [smoke.with_horizon(8 * intervals_s[0]), low.with_horizon(13 * intervals_s[1])]


def choose(env: CompactionVectorEnv, obs: np.ndarray, rngs: list[np.random.Generator]) -> np.ndarray:
    """A random allowed move or NOOP per row, each row with a generator of its own."""
    actions = np.zeros((env.num_envs, 2), np.int64)
    for b, rng in enumerate(rngs):
        parts = env.layout.split(obs[b])
        cells = np.argwhere(parts["source_mask"] > 0)
        if len(cells) and rng.random() < 0.5:
            n, d = cells[rng.integers(len(cells))]
            others = [m for m in np.flatnonzero(parts["destination_mask"][:, d]) if m != n]
            actions[b] = 1 + n * env.layout.num_deployments + d, rng.choice(others)
    return actions


def play(env: CompactionVectorEnv, seeds: list[int], num_steps: int = 60) -> list[tuple[Any, ...]]:
    """Observation, reward and end of every step after a reset with one seed per row."""
    obs, _ = env.reset(seed=list(seeds))
    rngs, seen = [np.random.default_rng(seed) for seed in seeds], [(obs, np.zeros(env.num_envs), env._ended.copy())]
    for _ in range(num_steps):
        obs, reward, terminated, truncated, _ = env.step(choose(env, obs, rngs))
        assert not terminated.any()
        seen.append((obs, reward, truncated))
    return seen


def assert_equal(a: list[tuple[Any, ...]], b: list[tuple[Any, ...]], row: int | slice = slice(None)) -> None:
    """``a`` is bit by bit the given rows of ``b``."""
    for step_a, step_b in zip(a, b, strict=True):
        for array_a, array_b in zip(step_a, step_b, strict=True):
            np.testing.assert_array_equal(array_a, array_b[row])


def test_rows_are_episodes_of_their_own(scenarios: list[Scenario]) -> None:
    """Three rows over several episodes of both scenarios equal three environments of one row each."""
    seeds = [1, 2, 3]
    together = play(CompactionVectorEnv(scenarios, 3), seeds)
    for b, seed in enumerate(seeds):
        assert_equal(play(CompactionVectorEnv(scenarios, 1), [seed]), together, slice(b, b + 1))
    ends = np.array([step[2] for step in together])
    assert (ends.sum(0) >= 2).all()
    assert (ends.any(1) & ~ends.all(1)).any()  # some row ended while others went on


def test_one_row_equals_the_scalar_env(scenarios: list[Scenario]) -> None:
    """Built from equal generators: observations, rewards and the end agree in every step."""
    vector, scalar = CompactionVectorEnv(scenarios[:1], 1), CompactionEnv(scenarios[0])
    flat, _ = vector.reset(seed=[9])
    rng = np.random.default_rng(9)
    rng.integers(1)  # the vector env has drawn the scenario
    scalar.np_random = rng
    obs, _ = scalar.reset()
    rngs, truncated, num_moves = [np.random.default_rng(0)], False, 0
    while not truncated:
        for key, part in vector.layout.split(flat[0]).items():
            np.testing.assert_array_equal(part, obs[key])
        actions = choose(vector, flat, rngs)
        flat, reward, _, ends, _ = vector.step(actions)
        obs, scalar_reward, _, truncated, info = scalar.step(actions[0])
        assert reward[0] == scalar_reward
        assert ends[0] == truncated
        num_moves += info["num_moves"]
    assert num_moves > 0


def test_each_row_resets_in_the_step_after_its_own_end(scenarios: list[Scenario]) -> None:
    """NEXT_STEP: after an end comes a first observation with reward 0, whatever the action; others are not touched."""
    env = CompactionVectorEnv(scenarios, 4, seed=0)
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    obs, _ = env.reset()
    rng, ended, num_resets = np.random.default_rng(0), np.zeros(4, np.bool_), 0
    for _ in range(60):
        before = list(env.episodes)
        actions = env.action_space.sample() if rng.random() < 0.3 else np.zeros((4, 2), np.int64)
        obs, reward, _, truncated, _ = env.step(actions)
        for b in range(4):
            assert (env.episodes[b] is not before[b]) == ended[b]
            if ended[b]:
                num_resets += 1
                assert reward[b] == 0.0
                assert not truncated[b]
                assert env.episodes[b].simulator.now_s == env.episodes[b].simulator.traffic.start_s
                np.testing.assert_array_equal(obs[b], env.episodes[b].encode(0.0))
            else:
                assert reward[b] < 0.0
        ended = truncated
    assert num_resets >= 8


def test_reset_right_after_an_end_starts_episodes_that_run(scenarios: list[Scenario]) -> None:
    """The first step after ``reset`` is a step, not the automatic reset that was due."""
    env = CompactionVectorEnv(scenarios[:1], 2, seed=0)
    env.reset()
    noop, ended = np.zeros((2, 2), np.int64), np.zeros(2, np.bool_)
    while not ended.all():
        ended = env.step(noop)[3]
    env.reset()
    episodes = list(env.episodes)
    assert (env.step(noop)[1] < 0.0).all()
    assert all(a is b for a, b in zip(env.episodes, episodes, strict=True))


def test_seeds(scenarios: list[Scenario]) -> None:
    """One seed, one batch of different rows; a reset without a seed goes on to other episodes."""

    def first(env: CompactionVectorEnv, seed: int | None = None) -> np.ndarray:
        return env.reset(seed=seed)[0]

    env, twin = CompactionVectorEnv(scenarios, 4, seed=1), CompactionVectorEnv(scenarios, 4, seed=1)
    obs = first(env)
    np.testing.assert_array_equal(obs, first(twin))
    assert len(np.unique(obs, axis=0)) == 4
    again = first(env)
    assert (again != obs).any()
    np.testing.assert_array_equal(again, first(twin))
    np.testing.assert_array_equal(first(env, 5), first(twin, 5))
    assert (first(env, 5) != first(twin, 6)).any()


def test_a_group_plays_the_same_episodes(scenarios: list[Scenario]) -> None:
    """Three groups of two, the second of each making moves: world and traffic are equal over several episodes.

    An id stands for one of them, and never comes again.
    """

    def told(episode: Episode) -> tuple[Any, ...]:
        """What an episode's traffic, world and first placement are."""
        sim = episode.simulator
        prices = episode.scenario.spec.settings.prices
        return episode.scenario.name, prices, sim.traffic.ongoing.tobytes(), episode.limits

    env = CompactionVectorEnv(scenarios, 6, vary=vary, group_size=2)
    obs = env.reset(seed=3)[0]
    np.testing.assert_array_equal(obs[::2], obs[1::2])
    assert len(np.unique(obs, axis=0)) == 3
    rng, is_apart = np.random.default_rng(0), False
    begun = [{int(i): told(episode)} for i, episode in zip(env.traffic_ids, env.episodes, strict=True)]
    for _ in range(80):
        actions = choose(env, obs, [rng] * 6)
        actions[::2] = 0
        obs = env.step(actions)[0]
        for b, (i, episode) in enumerate(zip(env.traffic_ids, env.episodes, strict=True)):
            begun[b].setdefault(int(i), told(episode))
        is_apart |= any((obs[2 * g] != obs[2 * g + 1]).any() for g in range(3))
    assert is_apart
    for waiting, moving in zip(begun[::2], begun[1::2], strict=True):
        together = min(len(waiting), len(moving))
        assert together > 2
        assert list(waiting.items())[:together] == list(moving.items())[:together]
    told_of = [what for waiting in begun[::2] for what in waiting.values()]
    assert len(set(told_of)) == len(told_of) == len({i for waiting in begun[::2] for i in waiting})


def test_waits_of_several_intervals(scenarios: list[Scenario]) -> None:
    """One step of a NOOP of two intervals gives what two steps of one give, and ends with them."""
    one, two = (CompactionVectorEnv(scenarios[:1], 2, wait_intervals=k) for k in (1, 2))
    one.reset(seed=1)
    two.reset(seed=1)
    waits = np.zeros((2, 2), np.int64)
    for k in range(4):
        first, second, both = one.step(waits), one.step(waits), two.step(waits)
        np.testing.assert_array_equal(second[0], both[0])
        np.testing.assert_allclose(first[1] + second[1], both[1])
        np.testing.assert_array_equal(second[3], both[3])
        assert second[3].all() == (k == 3)


def test_groups_of_one_are_the_rows_of_a_seed(scenarios: list[Scenario]) -> None:
    """The first of each group is the row that the same seed gives without groups; a last group may be smaller."""
    alone, grouped = CompactionVectorEnv(scenarios, 3), CompactionVectorEnv(scenarios, 8, group_size=3)
    np.testing.assert_array_equal(alone.reset(seed=4)[0], grouped.reset(seed=4)[0][::3])


def test_spaces_hold_what_is_exchanged(scenarios: list[Scenario]) -> None:
    """Batched observations and sampled actions belong to the spaces, over many random steps."""
    env = CompactionVectorEnv(scenarios, 2, seed=3)
    env.action_space.seed(3)
    obs, _ = env.reset()
    for _ in range(40):
        assert env.observation_space.contains(obs)
        assert all(env.single_observation_space.contains(row) for row in obs)
        obs, *_ = env.step(env.action_space.sample())
    obs, *_ = env.step([np.array([0, 0]), np.array([0, 0])])  # type: ignore[arg-type]  # RLlib passes a list
    assert env.observation_space.contains(obs)


def test_pickle_round_trip_goes_on_alike(scenarios: list[Scenario]) -> None:
    """A copy in another process continues through ends and resets as the original does."""
    env = CompactionVectorEnv(scenarios, 2, seed=4, normalize=True)
    env.reset()
    copy = pickle.loads(pickle.dumps(env))
    noop = np.zeros((2, 2), np.int64)
    for _ in range(30):
        for a, b in zip(env.step(noop)[:4], copy.step(noop)[:4], strict=True):
            np.testing.assert_array_equal(a, b)


def test_scaled_rewards_by_the_ledger(scenarios: list[Scenario]) -> None:
    """Over an episode: scale times (relaxed bound - cost), over what the first tick of the row's own episode costs."""
    env = CompactionVectorEnv(scenarios, 3, seed=2, normalize=True, reward_scale=0.5, subtract_bound=True)
    plain = CompactionVectorEnv(scenarios, 3, seed=2)
    obs, _ = env.reset()
    plain.reset()
    rngs = [np.random.default_rng(b) for b in range(3)]
    total, usd = np.zeros(3), np.zeros(3)
    ended = np.zeros(3, np.bool_)
    while not ended.any():
        actions = choose(env, obs, rngs)
        obs, reward, _, ended, _ = env.step(actions)
        total += reward
        usd += plain.step(actions)[1]
    for b, episode in enumerate(env.episodes):
        ledger = episode.simulator.ledger()
        excess_usd = ledger.total_usd - ledger.metrics()["relaxed_bound_usd"]
        assert usd[b] == pytest.approx(-ledger.total_usd)
        assert total[b] == pytest.approx(-0.5 * excess_usd / episode.first_tick_usd)
    assert len({episode.first_tick_usd for episode in env.episodes}) > 1


def test_an_observation_tells_the_baseline(scenarios: list[Scenario]) -> None:
    """The bound that rewards are measured against is the share of the node bill that every observation has."""
    env = CompactionVectorEnv(scenarios, 3, seed=3)
    obs, _ = env.reset()
    rngs, shares = [np.random.default_rng(b) for b in range(3)], []
    for _ in range(40):
        for seen, episode in zip(obs, env.episodes, strict=True):
            sim = episode.simulator
            st, price = sim.view.arrays, sim.spec.arrays.type_price_usd_per_h
            bill_usd_per_h = price[st.node_type[st.node_phase != NodePhase.ABSENT]].sum()
            expected = min(1.0, sim.relaxed_bound_usd_per_h / bill_usd_per_h) if bill_usd_per_h > 0.0 else 1.0
            assert seen[GLOBAL_FEATURES.index("bound_frac")] == pytest.approx(expected, rel=1e-5)
            shares.append(expected)
        obs = env.step(choose(env, obs, rngs))[0]
    assert min(shares) < max(shares)


def test_each_episode_draws_a_world(scenarios: list[Scenario]) -> None:
    """Another one after its end, and from the same seeds the same ones."""

    def worlds() -> list[list[float]]:
        env = CompactionVectorEnv(scenarios[:1], 4, vary=lambda s, rng: scaled(s, prices=1.0 + rng.random()))
        env.reset(seed=5)
        seen = []
        for _ in range(20):  # of episodes of eight ticks
            seen.append([e.simulator.spec.settings.prices.unserved_factor for e in env.episodes])
            env.step(np.zeros((4, 2), np.int64))
        return seen

    seen = worlds()
    assert len(set(seen[0])) == 4
    assert all(len({row[b] for row in seen}) == 3 for b in range(4))
    assert seen == worlds()


def test_the_world_is_what_is_paid(scenarios: list[Scenario]) -> None:
    """Where nothing moves, a price three times as high costs three times as much."""

    def unserved_usd(factor: float) -> float:
        env = CompactionVectorEnv(scenarios[:1], 4, vary=lambda s, rng: scaled(s, prices=factor))
        env.reset(seed=5)
        for _ in range(7):
            env.step(np.zeros((4, 2), np.int64))
        return sum(e.simulator.ledger()[Entry.UNSERVED_USD] for e in env.episodes)

    assert unserved_usd(1.0) > 0.0
    assert unserved_usd(3.0) == pytest.approx(3.0 * unserved_usd(1.0))


def test_horizon_shortens_and_never_lengthens(scenarios: list[Scenario]) -> None:
    """A longest episode in seconds applies where the scenario's own is longer."""
    own_s = [s.horizon_s for s in scenarios]
    bound_s = 10 * scenarios[1].spec.settings.decision_interval_s
    env = CompactionVectorEnv(scenarios, 1, horizon_s=bound_s)
    assert [s.horizon_s for s in env.scenarios] == [min(bound_s, s) for s in own_s]
    assert [s.horizon_s for s in env.scenarios] != own_s


def test_a_layout_that_is_too_small_is_refused(scenarios: list[Scenario]) -> None:
    """Kernels do not check bounds, so a row too few would be written elsewhere."""
    smoke = scenarios[0]
    n, d = smoke.spec.max_nodes, smoke.spec.num_deployments
    t = len(smoke.spec.node_types)
    for layout in (ObsLayout(n - 1, d, t), ObsLayout(n, d - 1, t), ObsLayout(n, d, t - 1)):
        with pytest.raises(ValueError, match="layout"):
            CompactionVectorEnv([smoke], 1, layout=layout, seed=0)
