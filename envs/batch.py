"""Many clusters stepped in one call: the kernels behind ``CompactionVectorEnv``.

Dims: B clusters, each of its own size; W rows of traffic before its first step, T rows after, D deployments.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.dynamics import Tally
from rayfold.envs.encoding import EncoderConstants, Parts, encode
from rayfold.envs.evacuation import Workspace
from rayfold.envs.hidden import CHANGES, NUM_ENDED, TOP, Constants, Hidden
from rayfold.envs.jit import inner, threaded
from rayfold.envs.layout import ObsLayout
from rayfold.envs.ledger import Entry
from rayfold.envs.process import ROW, act
from rayfold.envs.safety import Limits
from rayfold.envs.spec_arrays import SpecArrays
from rayfold.envs.state import StateArrays
from rayfold.envs.views import at, by_reference

__all__ = ["World", "encode_batch", "step_batch"]

_COST_USD, _DISRUPTION_USD = int(Entry.COST_USD), int(Entry.DISRUPTION_USD)
_UNSERVED_USD, _BASELINE_USD = int(Entry.UNSERVED_USD), int(Entry.RELAXED_BOUND_USD)


@by_reference(is_written=False)
class World(NamedTuple):
    """Everything that the process of one cluster reads and writes."""

    spec: SpecArrays
    st: StateArrays
    hidden: Hidden
    tally: Tally
    work: Workspace
    const: Constants
    limits: Limits
    encoder: EncoderConstants
    last: Parts  # the observation written last
    layout: ObsLayout
    steps_per_tick: int
    clock: NDArray[np.float64]  # (2,) see process.act
    ongoing: NDArray[np.float32]  # (W + T, D)
    window: NDArray[np.int64]  # (D,)
    tokens_per_ongoing_s: NDArray[np.float64]  # (D,)
    ledger: NDArray[np.float64]  # (len(Entry),)


@inner
def _encode(w: World, dt_intervals: float, out: Parts) -> None:
    top, changes = w.hidden.counters[TOP], w.hidden.counters[CHANGES]
    encode(w.spec, w.st, w.clock[0], w.limits, w.encoder, dt_intervals, top, changes, w.work, w.last, out)


@threaded
def step_batch(
    prototype: World,
    parts_prototype: Parts,
    worlds: NDArray[np.int64],
    parts: NDArray[np.int64],
    first: int,
    end: int,
    actions: NDArray[np.int64],
    is_skipped: NDArray[np.bool_],
    is_encoded: bool,
    bound_weight: float,
    scale: NDArray[np.float64],
    reward: NDArray[np.float64],
    truncated: NDArray[np.bool_],
) -> None:
    """One action in each of the clusters ``first`` to ``end``.

    Args:
        prototype: Any of the worlds.
        parts_prototype: Any of the observations.
        worlds: ``(B,)`` addresses of the rows of all worlds.
        parts: ``(B,)`` addresses of the rows of the observations, which are written.
        first: First cluster.
        end: After the last one.
        actions: ``(B, 2)``.
        is_skipped: ``(B,)`` clusters to leave alone.
        is_encoded: Whether to write the observations.
        bound_weight: Share of ``RELAXED_BOUND_USD`` to add to the reward.
        scale: ``(B,)`` reward per US dollar.
        reward: ``(B,)``, written.
        truncated: ``(B,)``, written.
    """
    for b in range(first, end):
        if is_skipped[b]:
            continue
        w: World = at(prototype, worlds[b])  # type: ignore[call-arg]  # numba gives the first one
        cost_usd, disruption_usd = w.ledger[_COST_USD], w.ledger[_DISRUPTION_USD]
        unserved_usd, baseline_usd = w.ledger[_UNSERVED_USD], w.ledger[_BASELINE_USD]
        moves = act(
            w.spec,
            w.st,
            w.hidden,
            w.tally,
            w.const,
            w.limits,
            w.layout,
            actions[b, 0],
            actions[b, 1],
            w.steps_per_tick,
            w.clock,
            w.ongoing,
            w.window,
            w.tokens_per_ongoing_s,
            w.work,
            w.ledger,
        )
        w.hidden.counters[NUM_ENDED] = 0  # nobody asks for single moves here
        # Term by term, as the scalar environment adds them up: the rewards are equal to the last bit.
        cost_usd, disruption_usd = w.ledger[_COST_USD] - cost_usd, w.ledger[_DISRUPTION_USD] - disruption_usd
        unserved_usd, baseline_usd = w.ledger[_UNSERVED_USD] - unserved_usd, w.ledger[_BASELINE_USD] - baseline_usd
        reward[b] = (bound_weight * baseline_usd - (cost_usd + disruption_usd + unserved_usd)) * scale[b]
        truncated[b] = w.ongoing.shape[0] - int(w.clock[ROW]) < w.steps_per_tick
        if is_encoded:
            dt_intervals = 0.0 if moves > 0 else 1.0
            out: Parts = at(parts_prototype, parts[b])
            _encode(w, dt_intervals, out)


@threaded
def encode_batch(
    prototype: World,
    parts_prototype: Parts,
    worlds: NDArray[np.int64],
    parts: NDArray[np.int64],
    is_skipped: NDArray[np.bool_],
) -> None:
    """Writes the first observation of an episode in each of the clusters that are not skipped."""
    for b in range(worlds.shape[0]):
        if not is_skipped[b]:
            w: World = at(prototype, worlds[b])  # type: ignore[call-arg]  # numba gives the first one
            out: Parts = at(parts_prototype, parts[b])
            _encode(w, 0.0, out)
