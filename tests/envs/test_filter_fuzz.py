"""The safety filter on random states: it allows nothing that breaks an invariant, and refuses nothing without need."""

import numpy as np
import pytest

from rayfold.envs.moves import Move
from rayfold.envs.safety import Limits, Reason, check_move
from rayfold.envs.state import ClusterState, StateArrays
from rayfold.envs.state_check import check_state
from tests.filter_fuzz.facts import Facts, facts_of, random_spec
from tests.filter_fuzz.harness import NOW_S, fuzz, fuzz_cluster
from tests.filter_fuzz.invariants import Broken, broken_after, broken_by
from tests.filter_fuzz.world import Others, fill

LAX = Limits(max_concurrent_moves=5, deployment_cooldown_s=0.0, allow_new_nodes=True)


def test_no_invariant_is_broken() -> None:
    """Twenty thousand states, six arbitrary moves each: every reason occurs, many are allowed, none is wrong."""
    result = fuzz(20_000, seed=3)
    assert result.moves >= 110_000
    assert result.reasons[Reason.ALLOWED] > 1_000
    assert [reason.name for reason in Reason if not result.reasons[reason]] == []
    assert result.named()["broken"] == {broken.name.lower(): 0 for broken in Broken if broken}
    assert result.too_strict.sum() == 0, "refused, but nothing would be broken"


def _halved(facts: Facts, k: int) -> Facts:
    capacity = facts.capacity.copy()
    capacity[:, k] *= 0.5
    return facts._replace(capacity=capacity)


@pytest.mark.parametrize(
    ("broken", "truth"),
    [
        (Broken.OPT_OUT, lambda f: (f._replace(may_move=np.zeros_like(f.may_move)), LAX)),
        (Broken.COOLDOWN, lambda f: (f, LAX._replace(deployment_cooldown_s=150.0))),
        (Broken.IN_FLIGHT, lambda f: (f, LAX._replace(max_concurrent_moves=1))),
        (Broken.SOURCE, lambda f: (f._replace(min_nodes=f.min_nodes + 2), LAX)),
        (Broken.LABELS, lambda f: (f._replace(matches=np.zeros_like(f.matches)), LAX)),
        (Broken.RESOURCES, lambda f: (_halved(f, 1), LAX)),
        (Broken.RESOURCES, lambda f: (_halved(f, 2), LAX)),
        (Broken.PER_NODE, lambda f: (f._replace(max_per_node=np.ones_like(f.max_per_node)), LAX)),
        (Broken.NEW_NODE, lambda f: (f, LAX._replace(allow_new_nodes=False))),
        (Broken.NEW_NODE, lambda f: (f._replace(max_nodes=f.max_nodes - 2), LAX)),
    ],
)
def test_a_filter_that_is_too_lax_is_caught(broken: Broken, truth: object) -> None:
    """The filter is told of a cluster, or of limits, that are more generous than the truth."""
    counts = np.zeros(len(Broken), np.int64)
    for rng in np.random.default_rng(0).spawn(4):
        spec = random_spec(rng)
        facts, limits = truth(facts_of(spec))  # type: ignore[operator]  # one of the above
        counts += fuzz_cluster(spec, LAX, 1500, rng, facts=facts, true_limits=limits).broken
    assert counts[broken] > 0
    assert set(np.flatnonzero(counts)) <= {Broken.NONE, broken, Broken.BOOKS, Broken.DEVICES}


@pytest.mark.parametrize("fault", ["fence", "head", "opt_out", "devices", "books"])
def test_a_state_that_lies_is_caught(fault: str) -> None:
    """What the state does not tell the filter: a fence, a head, an opt-out, a device in use, missing room.

    The move is allowed on the state as the filter sees it, and named by the invariants on the state as it is.
    """
    rng, found = np.random.default_rng(5), 0
    for _ in range(300):
        state, others, facts = _random_state(rng)
        for move in (Move(r, n) for r in range(8) for n in range(6)):
            if not check_move(state, move, LAX).allowed:
                continue
            found += _is_caught(fault, facts, state.arrays.copy(), others, move)
            break
    assert found > 10


def _is_caught(fault: str, facts: Facts, st: StateArrays, others: Others, move: Move) -> bool:
    source, n = int(st.replica_node[move.replica_idx]), move.node_idx
    expected = {"fence": Broken.FENCE, "head": Broken.DESTINATION, "opt_out": Broken.OPT_OUT}.get(fault)
    if fault == "fence":
        st.node_fenced_until_s[n] = NOW_S + 1.0
    elif fault == "head":
        st.node_is_head[n] = True
    elif fault == "opt_out":
        st.node_is_opted_out[source] = True
    if expected is not None:
        return bool(broken_by(facts, st, others, NOW_S, LAX, *move) == expected)
    assert broken_after(facts, st, others, LAX, True) == Broken.NONE
    if fault == "books":
        st.node_free[n, 1] -= 0.5
        return bool(broken_after(facts, st, others, LAX, True) == Broken.BOOKS)
    others.devices[n, 0] += 1.5
    return bool(broken_after(facts, st, others, LAX, True) == Broken.DEVICES)


def _random_state(rng: np.random.Generator) -> tuple[ClusterState, Others, Facts]:
    spec = random_spec(rng)
    facts, st = facts_of(spec), StateArrays.empty(spec, 6, 24)
    others = Others(np.zeros((6, spec.max_gpus)))
    fill(facts, spec.arrays.sums_gpus, st, others, NOW_S, rng)
    return ClusterState(spec=spec, now_s=NOW_S, arrays=st), others, facts


def test_random_states_are_states() -> None:
    """They pass the check that saved states pass."""
    rng = np.random.default_rng(1)
    for _ in range(50):
        state, others, facts = _random_state(rng)
        check_state(state, "fuzz")
        assert broken_after(facts, state.arrays, others, LAX, True) == Broken.NONE
