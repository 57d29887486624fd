"""The decision process: actions stand for moves, refused ones for NOOP, and luck does not depend on the policy."""

import numpy as np
import pytest

from rayfold.envs.episode import Episode, Outcome, scenario_layout
from rayfold.envs.layout import NOOP, ObsLayout
from rayfold.envs.ledger import Entry
from rayfold.envs.moves import Move
from rayfold.envs.safety import check_move
from rayfold.envs.scenario import Scenario, Split, load_scenario


@pytest.fixture(scope="module")
def smoke() -> Scenario:
    """The smallest shipped scenario, with generated traffic."""
    return load_scenario("smoke", synthetic=True)


def begin(scenario: Scenario, seed: int = 0, layout: ObsLayout | None = None) -> Episode:
    """A training episode."""
    return Episode(scenario, layout or scenario_layout(scenario), Split.TRAIN, np.random.default_rng(seed))


def allowed(episode: Episode) -> list[Move]:
    """Every move that the filter allows now."""
    view = episode.simulator.view
    rows = range(len(view.arrays.replica_phase))
    moves = [Move(r, n) for r in rows for n in range(len(view.arrays.node_type))]
    return [move for move in moves if check_move(view, move, episode.limits).allowed]


def play(episode: Episode, rng: np.random.Generator) -> list[Outcome]:
    """To the end, with at most one random allowed move before each NOOP."""
    outcomes: list[Outcome] = []
    while not (outcomes and outcomes[-1].truncated):
        moves = allowed(episode)
        if moves and rng.random() < 0.5:
            outcomes.append(episode.act(*episode.to_action(moves[rng.integers(len(moves))])))
        outcomes.append(episode.act(NOOP, 0))
    return outcomes


@pytest.mark.parametrize("layout", [None, ObsLayout(40, 9, 2)])
def test_action_and_move_are_inverse(smoke: Scenario, layout: ObsLayout | None) -> None:
    """``to_move(to_action(m))`` is ``m`` but for the replica within its cell, also in a padded layout."""
    episode, num_moves = begin(smoke, layout=layout), 0
    for _ in range(20):
        st = episode.simulator.view.arrays
        for move in allowed(episode):
            back = episode.to_move(*episode.to_action(move))
            assert back is not None
            assert back.node_idx == move.node_idx
            assert st.replica_node[back.replica_idx] == st.replica_node[move.replica_idx]
            assert st.replica_deployment[back.replica_idx] == st.replica_deployment[move.replica_idx]
            num_moves += 1
        episode.act(NOOP, 0)
    assert num_moves > 20


def test_every_action_agrees_with_the_filter(smoke: Scenario) -> None:
    """Of all (source, destination) pairs, padding included, just those of allowed moves stand for one."""
    layout = ObsLayout(smoke.spec.max_nodes + 2, smoke.spec.num_deployments + 1, 2)
    episode, num_moves = begin(smoke, layout=layout), 0
    for _ in range(8):
        moves = {episode.to_action(move) for move in allowed(episode)}
        pairs = [(s, n) for s in range(1, 1 + layout.num_cells) for n in range(layout.num_destinations)]
        assert {pair for pair in pairs if episode.to_move(*pair) is not None} == moves
        num_moves += len(moves)
        episode.act(NOOP, 0)
    assert num_moves > 5


def test_a_refused_action_is_noop(smoke: Scenario) -> None:
    """Two episodes of one seed: refused moves in one, NOOP in the other, same outcomes and same states."""
    layout = scenario_layout(smoke)
    first, second = begin(smoke), begin(smoke)
    num_refused = 0
    for source in range(1, 1 + layout.num_cells):
        n = (source - 1) // layout.num_deployments  # a move to the node itself is never allowed
        assert first.to_move(source, n) is None
        outcome = first.act(source, n)
        assert outcome == second.act(NOOP, 0)
        assert not outcome.num_moves
        assert outcome.dt_intervals == 1.0
        assert first.simulator.view.digest() == second.simulator.view.digest()
        num_refused += 1
        if outcome.truncated:
            break
    assert num_refused > 5


def test_outcomes_add_up_to_the_ledger(smoke: Scenario) -> None:
    """Rewards, their terms, elapsed intervals and moves, by two routes; the end comes at the horizon."""
    episode = begin(smoke, 3)
    begun_s = episode.simulator.now_s
    outcomes = play(episode, np.random.default_rng(3))
    ledger = episode.simulator.ledger()
    for term in ("cost_usd", "disruption_usd", "unserved_usd", "bound_usd"):
        assert sum(getattr(o, term) for o in outcomes) == pytest.approx(ledger[Entry[term.upper()]]), term
    assert sum(o.reward_usd for o in outcomes) == pytest.approx(-ledger.total_usd)
    assert sum(o.num_moves for o in outcomes) == ledger[Entry.MOVES] > 0
    assert ledger[Entry.ELAPSED_S] == episode.simulator.now_s - begun_s == smoke.horizon_s
    interval_s = smoke.spec.settings.decision_interval_s
    assert sum(o.dt_intervals for o in outcomes) == smoke.horizon_s / interval_s
    assert [o.truncated for o in outcomes].count(True) == 1
    with pytest.raises(ValueError, match="num_steps"):
        episode.act(NOOP, 0)


def test_traffic_and_start_do_not_depend_on_the_policy(smoke: Scenario) -> None:
    """A policy that moves and one that does not meet the same load; another seed brings another."""
    idle, busy, other = begin(smoke, 5), begin(smoke, 5), begin(smoke, 6)
    assert idle.simulator.view.digest() == busy.simulator.view.digest() != other.simulator.view.digest()
    play(busy, np.random.default_rng(1))
    np.testing.assert_array_equal(idle.simulator.traffic.ongoing, busy.simulator.traffic.ongoing)
    assert (idle.simulator.traffic.ongoing != other.simulator.traffic.ongoing).any()


def test_the_next_episode_does_not_depend_on_the_policy_of_this_one(smoke: Scenario) -> None:
    """Two generators of one seed: the second episode starts alike, whatever was done in the first."""
    seconds = []
    for is_busy in (False, True):
        rng = np.random.default_rng(7)
        first = Episode(smoke, scenario_layout(smoke), Split.TRAIN, rng)
        if is_busy:
            play(first, np.random.default_rng(1))
        seconds.append(Episode(smoke, scenario_layout(smoke), Split.TRAIN, rng))
    idle, busy = (episode.simulator for episode in seconds)
    assert idle.view.digest() == busy.view.digest()
    np.testing.assert_array_equal(idle.traffic.ongoing, busy.traffic.ongoing)


def test_a_split_has_days_of_its_own(smoke: Scenario) -> None:
    """Training and validation traffic of one seed differ."""
    layout = scenario_layout(smoke)
    episodes = [Episode(smoke, layout, split, np.random.default_rng(0)) for split in Split]
    loads = {episode.simulator.traffic.ongoing.tobytes() for episode in episodes}
    assert len(loads) == len(Split) >= 2


@pytest.mark.parametrize("scenario", ["smoke", "low_scale", "two_node"])
def test_first_tick_by_another_route(scenario: str) -> None:
    """What the first interval costs at least: shares of nodes for the dearest resource, and one whole node."""
    loaded = load_scenario(scenario, synthetic=True)
    episode = begin(loaded)
    spec, st = loaded.spec, episode.simulator.view.arrays

    def resource_usd_per_h(k: int) -> float:
        total = 0.0
        for d in st.replica_deployment[st.replica_phase > 0]:
            fitting = [t for i, t in enumerate(spec.node_types) if spec.arrays.fits_type[d, i]]
            if (demand := spec.deployments[d].shape.total(spec.resource_names[k])) > 0:
                total += demand * min(t.price_usd_per_h / t.resources[spec.resource_names[k]] for t in fitting)
        return total

    hourly = max(resource_usd_per_h(k) for k in range(len(spec.resource_names)))
    (price,) = (t.price_usd_per_h for t in spec.node_types)
    assert episode.first_tick_usd == pytest.approx(max(hourly, price) * spec.settings.decision_interval_s / 3600.0)


def test_layout_holds_the_largest_of_several() -> None:
    """Most nodes of one scenario, most deployments of another."""
    scenarios = [load_scenario(name, synthetic=True) for name in ("smoke", "low_scale", "two_node")]
    sizes = [scenario_layout(s) for s in scenarios]
    assert len(set(sizes)) > 1
    assert scenario_layout(*scenarios) == ObsLayout(*(max(s[i] for s in sizes) for i in range(3)))


def test_padding_does_not_change_the_world(smoke: Scenario) -> None:
    """An episode in a large layout: same outcomes for the same moves, same numbers in the observation's corner."""
    small, large = begin(smoke, 2), begin(smoke, 2, ObsLayout(30, 8, 3))
    rng = np.random.default_rng(2)
    for _ in range(30):
        moves = allowed(small)
        move = moves[rng.integers(len(moves))] if moves and rng.random() < 0.5 else None
        actions = [e.to_action(move) if move else (NOOP, 0) for e in (small, large)]
        outcome = small.act(*actions[0])
        assert large.act(*actions[1]) == outcome
        a, b = (e.layout.split(e.encode(outcome.dt_intervals)) for e in (small, large))
        np.testing.assert_array_equal(a["global"], b["global"])
        for key in ("nodes", "occupancy", "source_mask", "destination_mask"):
            rows, columns = a[key].shape
            np.testing.assert_array_equal(a[key], b[key][:rows, :columns])


def test_a_long_wait_is_so_many_waits(smoke: Scenario) -> None:
    """NOOP of three intervals is three of one: the state, the bill and the end, but one step of the process."""
    layout = scenario_layout(smoke)
    short, long = (Episode(smoke, layout, Split.TRAIN, np.random.default_rng(2), wait_intervals=k) for k in (1, 3))
    is_over = False
    while not is_over:
        waits = [short.act(NOOP, 0) for _ in range(3)]
        wait = long.act(NOOP, 0)
        assert short.simulator.state().digest() == long.simulator.state().digest()
        assert wait.reward_usd == pytest.approx(sum(w.reward_usd for w in waits))
        assert wait.dt_intervals == 1.0
        assert wait.truncated == waits[-1].truncated
        is_over = wait.truncated
