"""Where the money goes, tick by tick: what the ledger says in total, split by what could have saved it.

A second route to the bill: it is read from the ledger as time passes, so that ``check_books`` can tell a figure in
which a tick is missing.
"""

import enum
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.ledger import Entry, Ledger
from rayfold.envs.simulator import Simulator
from rayfold.envs.state import NodePhase, ReplicaPhase

__all__ = ["Part", "TickRecord", "TickRecorder", "check_books", "idle_usd_per_h", "least_nodes"]


class Part(enum.StrEnum):
    """What a dollar was paid for."""

    BOUND = "bound"  # the least that nodes for these replicas can cost
    IDLE = "idle"  # nodes paid for that hold nothing, those that boot included
    FRAGMENTATION = "fragmentation"  # above the bound on nodes that hold something; negative while replicas wait
    MOVES = "moves"  # cold starts and fixed price of moves
    UNSERVED = "unserved"


class TickRecord(NamedTuple):
    """All ticks of an episode. Dims: P parts in the order of ``Part``, ticks."""

    usd: NDArray[np.float64]  # (P, ticks)
    bound_nodes: NDArray[np.int64]  # (ticks,) see ``least_nodes``
    cost_usd_per_h: NDArray[np.float64]  # (ticks,) mean over the tick
    bound_usd_per_h: NDArray[np.float64]  # (ticks,) mean over the tick


class TickRecorder:
    """A ``Recorder`` of the bill. Idle nodes are counted at both ends of a tick and taken to change evenly."""

    def __init__(self) -> None:
        self._ticks: list[list[float]] = []
        self._bound_nodes: list[int] = []
        self._rates: list[tuple[float, float]] = []
        self._before = Ledger(values=Ledger.zeros())
        self._idle_usd_per_h = 0.0

    def decided(self, sim: Simulator) -> None:
        """Notes which nodes are empty now."""
        self._idle_usd_per_h = idle_usd_per_h(sim)
        self._bound_nodes.append(least_nodes(sim))

    def passed(self, sim: Simulator) -> None:
        """Books the tick."""
        ledger = sim.ledger()
        spent = ledger.values - self._before.values
        hours = spent[Entry.ELAPSED_S] / 3600.0
        cost_usd, bound_usd = spent[Entry.COST_USD], spent[Entry.BOUND_USD]
        idle_usd = min(cost_usd, 0.5 * (self._idle_usd_per_h + idle_usd_per_h(sim)) * hours)
        fragmentation_usd = cost_usd - bound_usd - idle_usd
        self._ticks.append(
            [bound_usd, idle_usd, fragmentation_usd, spent[Entry.DISRUPTION_USD], spent[Entry.UNSERVED_USD]]
        )
        self._rates.append((cost_usd / hours, bound_usd / hours))
        self._before = ledger

    def record(self) -> TickRecord:
        """What was booked."""
        rates = np.array(self._rates).reshape(-1, 2)
        return TickRecord(
            usd=np.array(self._ticks).reshape(-1, len(Part)).T,
            bound_nodes=np.array(self._bound_nodes, np.int64),
            cost_usd_per_h=rates[:, 0],
            bound_usd_per_h=rates[:, 1],
        )


def idle_usd_per_h(sim: Simulator) -> float:
    """Price of the nodes that hold neither replicas nor other work."""
    st = sim.view.arrays
    is_idle = (st.node_phase != NodePhase.ABSENT) & (st.node_num_held == 0) & ~st.node_others.any(axis=1)
    return float(sim.spec.arrays.type_price_usd_per_h[st.node_type[is_idle]].sum())


def least_nodes(sim: Simulator) -> int:
    """Fewest nodes that could hold the replicas that run, start or wait, if all were of the roomiest type."""
    st, spec = sim.view.arrays, sim.spec.arrays
    is_live = (st.replica_phase >= ReplicaPhase.PENDING) & (st.replica_phase <= ReplicaPhase.RUNNING)
    is_replacement = (st.replica_peer >= 0) & (st.replica_phase != ReplicaPhase.RUNNING)
    needed = spec.demand[st.replica_deployment[is_live & ~is_replacement]].sum(axis=0)
    room = spec.type_capacity.max(axis=0)
    shares = np.divide(needed, room, out=np.zeros_like(needed), where=room > 0)
    return math.ceil(float(shares.max(initial=0.0)) - 1e-9)


def check_books(ledger: Ledger, record: TickRecord, num_ticks: int, interval_s: float) -> None:
    """Compares the ledger with the sum over ticks.

    Args:
        ledger: At the end of the episode.
        record: Of the same episode.
        num_ticks: Ticks the episode has.
        interval_s: Length of a tick.

    Raises:
        RuntimeError: They differ: a tick is missing or was counted twice.
    """
    if record.usd.shape[1] != num_ticks or abs(ledger[Entry.ELAPSED_S] - num_ticks * interval_s) > 1e-6:
        raise RuntimeError(
            f"{num_ticks} ticks of {interval_s:g} s were expected, "
            f"{record.usd.shape[1]} were recorded and {ledger[Entry.ELAPSED_S]:g} s are in the ledger"
        )
    recorded_usd = float(record.usd.sum())
    if not math.isclose(recorded_usd, ledger.total_usd, rel_tol=1e-9, abs_tol=1e-6):
        raise RuntimeError(f"the ledger says {ledger.total_usd:.6f} USD, its ticks add up to {recorded_usd:.6f}")
