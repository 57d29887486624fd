"""Random states by the million: each gets arbitrary moves, and what the filter allows is made and looked at."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.cluster import ClusterSpec
from rayfold.envs.jit import inner, kernel
from rayfold.envs.safety import Limits, Reason, move_reason
from rayfold.envs.spec_arrays import SpecArrays
from rayfold.envs.state import StateArrays
from rayfold.envs.transition import begin_move
from tests.filter_fuzz.facts import Facts, facts_of, random_spec
from tests.filter_fuzz.invariants import Broken, broken_after, broken_by
from tests.filter_fuzz.world import Others, fill

__all__ = ["FuzzResult", "fuzz", "fuzz_cluster"]

NOW_S = 1e6
_NUM_NODES, _NUM_REPLICAS = 6, 24
_STATES_PER_CLUSTER = 500
_NO_DEVICE = int(Reason.NO_GPU_DEVICE)
_NUM_BROKEN, _NUM_REASONS = len(Broken), len(Reason)


class FuzzResult(NamedTuple):
    """Counts."""

    states: int
    moves: int
    reasons: NDArray[np.int64]  # (reasons,) verdicts of the filter
    broken: NDArray[np.int64]  # (invariants,) allowed moves that break one; the first entry: that break none
    too_strict: NDArray[np.int64]  # (reasons,) refused moves that would break nothing, whatever the devices

    def plus(self, other: "FuzzResult") -> "FuzzResult":
        """Both together."""
        return FuzzResult(
            self.states + other.states,
            self.moves + other.moves,
            self.reasons + other.reasons,
            self.broken + other.broken,
            self.too_strict + other.too_strict,
        )

    @property
    def violations(self) -> int:
        """Allowed moves that break an invariant."""
        return int(self.broken[1:].sum())

    def named(self) -> dict[str, object]:
        """JSON values."""
        return {
            "states": self.states,
            "moves": self.moves,
            "allowed": int(self.reasons[0]),
            "violations": self.violations,
            "too_strict": int(self.too_strict.sum()),
            "reasons": {reason.name.lower(): int(self.reasons[reason]) for reason in Reason},
            "broken": {broken.name.lower(): int(self.broken[broken]) for broken in Broken if broken},
        }


@inner
def _arbitrary(num: int, extra: int, rng: np.random.Generator) -> int:
    """A row, one beside the array, or any number at all."""
    luck = rng.random()
    if luck < 0.02:
        return int(rng.integers(-(2**62), 2**62))
    return int(rng.integers(-2, num + extra + 2)) if luck < 0.3 else int(rng.integers(0, num))


@kernel
def _run(
    spec: SpecArrays,
    told: Facts,
    facts: Facts,
    st: StateArrays,
    others: Others,
    limits: Limits,
    true_limits: Limits,
    num_states: int,
    moves_per_state: int,
    rng: np.random.Generator,
    reasons: NDArray[np.int64],
    broken: NDArray[np.int64],
    too_strict: NDArray[np.int64],
) -> None:
    """Counts into the last three.

    The filter goes by ``told`` and ``limits``, the invariants by ``facts`` and ``true_limits``.
    """
    for _ in range(num_states):
        fill(told, spec.sums_gpus, st, others, NOW_S, rng)
        for _ in range(moves_per_state):
            # Most of the rows at the end are unused.
            r = _arbitrary(st.replica_phase.shape[0] // (3 if rng.random() < 0.8 else 1), 0, rng)
            n = _arbitrary(st.node_type.shape[0], facts.capacity.shape[0], rng)
            reason = move_reason(spec, st, NOW_S, limits, r, n)
            found = broken_by(facts, st, others, NOW_S, true_limits, r, n)
            reasons[reason] += 1
            if reason != 0:
                if found == 0 and reason != _NO_DEVICE:
                    too_strict[reason] += 1
                continue
            if found == 0:
                begin_move(spec, st, NOW_S, limits.fence_s, r, n)
                found = broken_after(facts, st, others, true_limits, False)
            broken[found] += 1
            if found != 0:
                break


def fuzz_cluster(
    spec: ClusterSpec,
    limits: Limits,
    num_states: int,
    rng: np.random.Generator,
    *,
    moves_per_state: int = 6,
    facts: Facts | None = None,
    true_limits: Limits | None = None,
) -> FuzzResult:
    """Random states of one cluster.

    Args:
        spec: What the filter is told.
        limits: What the filter is told to allow.
        num_states: How many.
        rng: Randomness.
        moves_per_state: Arbitrary moves on each, one after the other.
        facts: What is true of the cluster; what the filter is told if None.
        true_limits: What may be allowed; what the filter is told if None.
    """
    st = StateArrays.empty(spec, _NUM_NODES, _NUM_REPLICAS)
    counts = [np.zeros(num, np.int64) for num in (_NUM_REASONS, _NUM_BROKEN, _NUM_REASONS)]
    others = Others(np.zeros((_NUM_NODES, spec.max_gpus)))
    told = facts_of(spec)
    truth, allowed = facts or told, true_limits or limits
    _run(spec.arrays, told, truth, st, others, limits, allowed, num_states, moves_per_state, rng, *counts)
    return FuzzResult(num_states, int(counts[0].sum()), *counts)


def fuzz(num_states: int, seed: int) -> FuzzResult:
    """Random states of random clusters under random limits."""
    total = FuzzResult(0, 0, *(np.zeros(num, np.int64) for num in (_NUM_REASONS, _NUM_BROKEN, _NUM_REASONS)))
    for rng in np.random.default_rng(seed).spawn(-(-num_states // _STATES_PER_CLUSTER)):
        limits = Limits(
            max_concurrent_moves=int(rng.integers(0, 6)),
            deployment_cooldown_s=float(rng.choice([0.0, 120.0])),
            fence_s=float(rng.choice([0.0, 600.0])),
            use_unreleasable_nodes=bool(rng.random() < 0.3),
            allow_new_nodes=bool(rng.random() < 0.3),
        )
        num = min(_STATES_PER_CLUSTER, num_states - total.states)
        total = total.plus(fuzz_cluster(random_spec(rng), limits, num, rng))
    return total
