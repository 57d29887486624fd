"""Actions as kernels, each by a second route: single moves through the executor, time through ``advance``."""

import numpy as np
import pytest

from rayfold.envs.encoding import encode_state
from rayfold.envs.layout import NOOP, ObsLayout
from rayfold.envs.moves import Move
from rayfold.envs.safety import check_move, movable_replica, moves_in_flight
from rayfold.envs.simulator import Simulator
from rayfold.envs.state import ClusterState
from rayfold.policies.evacuations import evacuations, first_moves
from tests.envs.rich import LIMITS, layout_of, play_moves, rich_simulators

STEPS = 4  # of a tick


def pair_of(state: ClusterState, sim: Simulator, seed: int) -> list[Simulator]:
    """Two simulators that start from a state."""
    return [Simulator(state, sim.traffic, LIMITS, np.random.default_rng(seed)) for _ in range(2)]


def states(packs: bool, num: int, seed: int = 0) -> list[tuple[ClusterState, Simulator]]:
    """States on the way of a random play."""
    sim, rng = rich_simulators(seed, packs=packs, num_steps=400)[0], np.random.default_rng(seed)
    found: list[tuple[ClusterState, Simulator]] = []
    while len(found) < num and sim.num_steps_left > 10:
        play_moves([sim], rng)
        sim.advance(4)
        found.append((sim.state(), sim))
    return found


def assert_same(a: Simulator, b: Simulator) -> None:
    """State, clock, ledger and random numbers."""
    assert a.state().digest() == b.state().digest()
    np.testing.assert_array_equal(a.ledger().values, b.ledger().values)
    assert a._hidden.stream[0] == b._hidden.stream[0]


@pytest.mark.parametrize("packs", [False, True])
def test_an_evacuation_is_its_moves_one_by_one(packs: bool) -> None:
    """For every node that the mask offers: as many moves as there is room for, and the same world afterwards."""
    num_several = num_cut = 0
    for seed in range(4):
        for state, sim in states(packs, 60, seed):
            layout = layout_of(state.spec)
            obs = layout.split(encode_state(state, LIMITS, layout))
            by_node = {e.node_idx: e for e in evacuations(state, LIMITS)}
            room = LIMITS.max_concurrent_moves - moves_in_flight(state.arrays)
            assert set(np.flatnonzero(obs["evacuate_mask"])) == (set(by_node) if room > 0 else set())
            for n, chosen in by_node.items():
                a, b = pair_of(state, sim, seed)
                moves = first_moves(state, chosen, LIMITS, "").moves
                num_several, num_cut = num_several + (len(moves) > 1), num_cut + (0 < len(moves) < len(chosen.moves))
                started = a.act(layout, 1 + layout.num_cells + n, 0, STEPS)
                assert started == len(moves)
                for move in moves:
                    b.start(b.view, move)
                if not moves:
                    b.advance(STEPS)
                assert_same(a, b)
    assert num_several > 10


def test_single_moves_and_new_nodes() -> None:
    """Every cell and destination of some states, in a larger layout too: the executor's move, or a tick if refused."""
    num_moves = num_new = num_refused = 0
    for state, sim in states(False, 12, 5):
        st, spec = state.arrays, state.spec
        num_nodes, num_types = len(st.node_type), len(spec.node_types)
        rng, own = np.random.default_rng(0), layout_of(spec)
        sources = np.argwhere(own.split(encode_state(state, LIMITS, own))["source_mask"] > 0)
        for layout in (layout_of(spec), ObsLayout(num_nodes + 2, spec.num_deployments + 1, num_types + 1)):
            for _ in range(40):
                occupied = sources if len(sources) and rng.random() < 0.6 else np.argwhere(st.node_held > 0)
                n, d = occupied[rng.integers(len(occupied))] if len(occupied) else (0, 0)
                destination = int(rng.integers(layout.num_destinations))
                r = int(movable_replica(spec.arrays, st, state.now_s, LIMITS, n, d))
                is_new = destination >= layout.num_nodes
                to = num_nodes + destination - layout.num_nodes if is_new else destination
                if not is_new and destination >= num_nodes:
                    to = -1  # a padded row is no node
                allowed = r >= 0 and check_move(state, Move(r, to), LIMITS).allowed
                a, b = pair_of(state, sim, 1)
                assert a.act(layout, 1 + n * layout.num_deployments + d, destination, STEPS) == allowed
                if allowed:
                    b.start(b.view, Move(r, to))
                else:
                    b.advance(STEPS)
                assert_same(a, b)
                num_moves, num_new = num_moves + (allowed and not is_new), num_new + (allowed and is_new)
                num_refused += not allowed
    assert min(num_moves, num_new, num_refused) > 20


def test_what_is_no_choice_is_noop() -> None:
    """NOOP itself, cells of padded nodes and deployments, empty and padded nodes to evacuate: a tick passes."""
    state, sim = states(False, 1)[0]
    n, d, t = layout_of(state.spec)
    layout = ObsLayout(n + 2, d + 1, t + 1)
    empty = np.flatnonzero(state.arrays.node_num_held == 0)
    sources = [NOOP, 1 + (n + 1) * (d + 1), 1 + d, 1 + layout.num_cells + n, 1 + layout.num_cells + int(empty[0])]
    for source in sources:
        a, b = pair_of(state, sim, 0)
        assert a.act(layout, source, 0, STEPS) == 0
        b.advance(STEPS)
        assert_same(a, b)
    assert a.now_s == state.now_s + 5.0 * STEPS


def test_beyond_the_traffic() -> None:
    """A tick that the traffic does not cover is refused before anything is done."""
    sim = rich_simulators(0, packs=False, num_steps=3)[0]
    before = sim.state().digest()
    with pytest.raises(ValueError, match="num_steps must be <= 3"):
        sim.act(layout_of(sim.spec), NOOP, 0, 4)
    assert sim.state().digest() == before
