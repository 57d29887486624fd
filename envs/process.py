"""One action of the decision process (DESIGN §5) as a kernel: the scalar and the vector environment share it.

Dims: N, D, T of the state; the action is given in the padded numbering of ``layout.py``.
"""

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.dynamics import Tally, launch_move, step
from rayfold.envs.evacuation import Workspace, plan_evacuation, prepare
from rayfold.envs.hidden import TOP, Constants, Hidden
from rayfold.envs.jit import inner, kernel
from rayfold.envs.layout import ObsLayout
from rayfold.envs.safety import Limits, movable_replica, move_masks, move_reason, moves_in_flight
from rayfold.envs.spec_arrays import SpecArrays
from rayfold.envs.state import StateArrays

__all__ = ["act", "cell_move"]

# Of Clock.
NOW_S, ROW = 0, 1


@kernel
def cell_move(
    spec: SpecArrays,
    st: StateArrays,
    now_s: float,
    limits: Limits,
    layout: ObsLayout,
    source: int,
    destination: int,
    top: int = -1,
) -> tuple[int, int]:
    """The move of a single replica that an action stands for.

    Args:
        spec: Static description.
        st: State.
        now_s: Its clock.
        limits: What the safety filter allows.
        layout: Of the action.
        source: First stage, a cell: ``1 + n * D + d``.
        destination: Second stage.
        top: No replica row from here on is in use, -1 = any may be.

    Returns:
        Replica row and destination as in ``Move``; the row is -1 for what the filter refuses.
    """
    n, d = divmod(source - 1, layout.num_deployments)
    num_nodes = st.node_type.shape[0]
    if n >= num_nodes or d >= spec.demand.shape[0]:
        return -1, -1
    to = destination
    if destination >= layout.num_nodes:
        to = num_nodes + destination - layout.num_nodes
    elif destination >= num_nodes:
        return -1, -1
    r = movable_replica(spec, st, now_s, limits, n, d, top)
    if r < 0 or move_reason(spec, st, now_s, limits, r, to, top) != 0:
        return -1, -1
    return r, to


@inner
def _evacuate(
    spec: SpecArrays,
    st: StateArrays,
    hidden: Hidden,
    const: Constants,
    limits: Limits,
    now_s: float,
    n: int,
    work: Workspace,
    ledger: NDArray[np.float64],
) -> int:
    """Starts as many moves of the evacuation of ``n`` as may be in flight at once; returns how many."""
    if n >= st.node_type.shape[0] or st.node_num_held[n] == 0:
        return 0
    shape = (st.node_type.shape[0], spec.demand.shape[0])
    source, destination = np.empty(shape, np.float32), np.empty(shape, np.float32)
    new_node = np.empty((spec.type_capacity.shape[0], shape[1]), np.float32)
    move_masks(spec, st, now_s, limits, source, destination, new_node)
    prepare(spec, st, now_s, limits, work)
    count = plan_evacuation(spec, st, destination, n, work)
    room = limits.max_concurrent_moves - moves_in_flight(st)
    started, first = 0, work.begin[n]
    for i in range(first, first + min(count, room)):
        r, to = work.rows[i], work.destination[i]
        if move_reason(spec, st, now_s, limits, r, to) == 0:
            started += int(launch_move(spec, st, hidden, const, now_s, r, to, ledger) >= 0)
    return started


@kernel
def act(
    spec: SpecArrays,
    st: StateArrays,
    hidden: Hidden,
    tally: Tally,
    const: Constants,
    limits: Limits,
    layout: ObsLayout,
    source: int,
    destination: int,
    num_steps: int,
    clock: NDArray[np.float64],
    ongoing: NDArray[np.float32],
    window: NDArray[np.int64],
    tokens_per_ongoing_s: NDArray[np.float64],
    work: Workspace,
    ledger: NDArray[np.float64],
) -> int:
    """One action; one that the filter refuses is NOOP.

    Args:
        spec: Static description.
        st: State, written.
        hidden: Hidden state, written.
        tally: Written.
        const: Scalars of the simulation.
        limits: What the safety filter allows.
        layout: Of the action.
        source: First stage.
        destination: Second stage.
        num_steps: Simulator steps of one tick.
        clock: ``(2,)`` present time and next row of ``ongoing``, written.
        ongoing: See ``dynamics.step``.
        window: See ``dynamics.step``.
        tokens_per_ongoing_s: See ``dynamics.step``.
        work: Memory, written.
        ledger: Written.

    Returns:
        Moves started; 0 = NOOP, a tick has passed.
    """
    started = 0
    if source > layout.num_nodes * layout.num_deployments:
        n = source - 1 - layout.num_nodes * layout.num_deployments
        started = _evacuate(spec, st, hidden, const, limits, clock[NOW_S], n, work, ledger)
    elif source > 0:
        r, to = cell_move(spec, st, clock[NOW_S], limits, layout, source, destination, hidden.counters[TOP])
        if r >= 0:
            started = int(launch_move(spec, st, hidden, const, clock[NOW_S], r, to, ledger) >= 0)
    if started == 0:
        clock[NOW_S] = step(
            spec,
            st,
            hidden,
            tally,
            clock[NOW_S],
            num_steps,
            ongoing,
            int(clock[ROW]),
            window,
            tokens_per_ongoing_s,
            const,
            ledger,
        )
        clock[ROW] += num_steps
    return started
