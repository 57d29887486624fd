"""Everything at once: interruptions, failures, groups, other work, moves. Nothing is lost or counted twice."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st_

from rayfold.envs.ledger import Entry
from rayfold.envs.moves import MovePhase
from rayfold.envs.node_life import GRACEFUL_SHUTDOWN_S
from rayfold.envs.placement import member_node
from rayfold.envs.simulator import Simulator
from rayfold.envs.state import NodePhase, ReplicaPhase
from tests.envs.conservation import check_simulator, holdings
from tests.envs.rich import play_moves, rich_simulators

NUM_STEPS = 150


def nodes_of(sim: Simulator, r: int) -> set[int]:
    """Nodes that replica ``r`` is on."""
    return {part[0] for part in holdings(sim.state(), r)}


def never_comes(sim: Simulator) -> np.ndarray:
    """Nodes that were asked for though the cloud has none: ``(N,)``."""
    hidden = sim._hidden
    is_booting: np.ndarray = sim.view.arrays.node_phase == NodePhase.BOOTING
    return is_booting & (hidden.node_end_s <= hidden.node_ready_s)


def live_counts(sim: Simulator) -> np.ndarray:
    """Replicas that count against the target: ``(D,)``. A replacement does not."""
    st = sim.view.arrays
    waits = np.isin(st.replica_phase, (ReplicaPhase.PENDING, ReplicaPhase.STARTING)) & (st.replica_peer < 0)
    live = waits | (st.replica_phase == ReplicaPhase.RUNNING)
    return np.bincount(st.replica_deployment[live], minlength=sim.spec.num_deployments)


def check_who_stopped_serving(sim: Simulator) -> Counter[str]:
    """One step: whoever serves no longer has a replacement that does, was scaled away, or lost its node.

    On a node that drains another one's replacement will do, and what is left stops before the end.

    Returns:
        How many of each.
    """
    before, hidden = sim.state().arrays, sim._hidden
    serial, ends_s = hidden.replica_serial.copy(), hidden.node_end_s.copy()
    nodes = {int(r): nodes_of(sim, int(r)) for r in np.flatnonzero(before.replica_phase == ReplicaPhase.RUNNING)}
    sim.advance(1)
    after, why, scaled = sim.view.arrays, Counter[str](), np.zeros(sim.spec.num_deployments, np.int64)

    def serves(r: int) -> bool:
        return bool(after.replica_phase[r] == ReplicaPhase.RUNNING and hidden.replica_serial[r] == serial[r])

    is_new = after.replica_phase == ReplicaPhase.RUNNING
    is_new[[r for r in nodes if serves(r)]] = False
    fresh = np.bincount(after.replica_deployment[is_new], minlength=sim.spec.num_deployments)
    drains = (before.node_phase == NodePhase.DRAINING) | (after.node_phase == NodePhase.DRAINING)
    for r, on in nodes.items():
        if serves(r):
            continue
        d, replacement = int(before.replica_deployment[r]), int(before.replica_peer[r])
        if any(drains[n] and ends_s[n] - GRACEFUL_SHUTDOWN_S <= sim.now_s for n in on):
            why["lost"] += 1
        elif (replacement >= 0 and serves(replacement)) or (drains[list(on)].any() and fresh[d] > 0):
            why["replaced"] += 1
            fresh[d] -= 1
        else:
            why["scaled"] += 1
            scaled[d] += 1
    assert (scaled <= np.maximum(0, before.deployment_target - after.deployment_target)).all()
    return why


@pytest.mark.parametrize("packs", [False, True])
@settings(max_examples=12, deadline=None, derandomize=True)
@given(seed=st_.integers(0, 10**6), is_tight=st_.booleans())
def test_nothing_is_lost_or_counted_twice(packs: bool, seed: int, is_tight: bool) -> None:
    """After every step: one phase each, resources by a recount, who serves, dollars, moves and nodes add up."""
    sim = rich_simulators(seed, packs=packs, num_steps=NUM_STEPS, is_tight=is_tight)[0]
    rng, spec = np.random.default_rng(seed), sim.spec.arrays
    cost_usd, first_nodes = 0.0, int((sim.view.arrays.node_phase != NodePhase.ABSENT).sum())
    for _ in range(NUM_STEPS):
        play_moves([sim], rng)
        check_simulator(sim)
        st, ledger = sim.view.arrays, sim.ledger()
        paid = (st.node_phase != NodePhase.ABSENT) & ~never_comes(sim)
        cost_usd += float(spec.type_price_usd_per_h[st.node_type[paid]].sum()) * 5.0 / 3600.0
        check_who_stopped_serving(sim)
        check_simulator(sim)
        st, ledger = sim.view.arrays, sim.ledger()
        np.testing.assert_array_equal(live_counts(sim), st.deployment_target)
        assert ledger[Entry.COST_USD] == pytest.approx(cost_usd)
        ends = Counter(sim._ended.values())
        assert ledger[Entry.CANCELLED_MOVES] == ends[MovePhase.CANCELLED]
        assert ledger[Entry.FAILED_MOVES] == ends[MovePhase.FAILED]
        assert ledger[Entry.MOVES] == ends.total() + (sim._hidden.replica_move >= 0).sum()
        present = int((st.node_phase != NodePhase.ABSENT).sum()) - int(never_comes(sim).sum())
        gone = ledger[Entry.NODES_RELEASED] + ledger[Entry.NODES_INTERRUPTED]
        assert present == first_nodes + ledger[Entry.NODES_LAUNCHED] - gone
        draining = np.flatnonzero(st.node_phase == NodePhase.DRAINING)
        for r in np.flatnonzero(st.replica_phase == ReplicaPhase.STARTING):
            size = spec.gang_size[st.replica_deployment[r]]
            assert not {member_node(spec, st, int(r), j) for j in range(size)} & set(draining.tolist())
    assert sim.ledger()[Entry.ELAPSED_S] == NUM_STEPS * 5.0


def test_everything_does_happen() -> None:
    """The property above is about something: over a few seeds each event comes many times."""
    total, why, spanning, shared = Counter[str](), Counter[str](), 0, 0
    for seed in range(6):
        sim = rich_simulators(seed, packs=False, num_steps=NUM_STEPS)[0]
        rng = np.random.default_rng(seed)
        for _ in range(NUM_STEPS):
            play_moves([sim], rng)
            why += check_who_stopped_serving(sim)
            spanning += bool(sim.view.arrays.replica_spans.any())
            shared += bool((sim.view.arrays.node_others > 0).any())
        total += Counter({e.name: int(sim.ledger()[e]) for e in Entry})
        total += Counter({f"ended_{phase}": count for phase, count in Counter(sim._ended.values()).items()})
    assert min(why["lost"], why["replaced"], why["scaled"]) > 10
    assert min(spanning, shared) > 100
    events = ("MOVES", "CANCELLED_MOVES", "FAILED_MOVES", "FAILED_STARTS", "NODES_INTERRUPTED", "STOCKOUTS")
    assert min(total[name] for name in events) > 5, total
    assert total["ended_done"] > 20, total


@pytest.mark.parametrize("packs", [False, True])
@pytest.mark.parametrize("is_tight", [False, True])
def test_quiet_steps_may_be_skipped(packs: bool, is_tight: bool) -> None:
    """Two routes to one future, bit by bit: only what has changed is evaluated, or everything at every step."""
    for seed in range(5):
        sims = rich_simulators(seed, packs=packs, num_steps=400, is_tight=is_tight)
        rng = np.random.default_rng(seed)
        while sims[0].num_steps_left:
            play_moves(sims, rng)
            count = min(int(rng.integers(1, 13)), sims[0].num_steps_left)
            for sim in sims:
                sim.advance(count)
            assert sims[0].state().digest() == sims[1].state().digest(), (seed, sims[0].now_s)
            np.testing.assert_array_equal(sims[0].ledger().values, sims[1].ledger().values)
            assert sims[0]._hidden.stream[0] == sims[1]._hidden.stream[0]
            assert sims[0]._ended == sims[1]._ended
