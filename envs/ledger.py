"""What an episode has cost and done so far.

Every quantity of DESIGN §9 that the simulator knows, accumulated in one array so that kernels can write it.
"""

import enum
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["DeploymentEntry", "Entry", "Ledger"]


class Entry(enum.IntEnum):
    """Rows of the ledger array."""

    COST_USD = 0
    DISRUPTION_USD = 1
    UNSERVED_USD = 2
    BOUND_USD = 3  # lower bound on COST_USD
    NODE_H = 4
    GPU_H = 5  # GPU hours of nodes paid for
    COLD_START_GPU_H = 6  # of moves only
    UNSERVED_REPLICA_H = 7
    TOKENS = 8  # output tokens served
    MOVES = 9
    UNDONE_MOVES = 10
    CANCELLED_MOVES = 11
    NODES_LAUNCHED = 12
    NODES_RELEASED = 13
    ELAPSED_S = 14
    FAILED_MOVES = 15  # replacement failed, its node was lost or could not be had
    FAILED_STARTS = 16  # start-ups that ended in a failure, of moves or not
    NODES_INTERRUPTED = 17
    STOCKOUTS = 18
    UNSERVED_REQUEST_S = 19  # ongoing requests beyond what running replicas serve, times seconds
    RELAXED_BOUND_USD = 20  # a lower bound below BOUND_USD, which an observation tells: the baseline of rewards


class DeploymentEntry(enum.IntEnum):
    """Rows of the ledger that is kept per deployment."""

    REPLICA_H = 0  # hours of running replicas
    UNSERVED_REQUEST_S = 1
    MOVES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """One reading of the ledger, by name."""

    values: NDArray[np.float64]  # (len(Entry),)

    @staticmethod
    def zeros() -> NDArray[np.float64]:
        """A fresh array."""
        return np.zeros(len(Entry))

    def __getitem__(self, entry: Entry) -> float:
        return float(self.values[entry])

    @property
    def total_usd(self) -> float:
        """The whole bill: nodes, disruption, unserved demand."""
        return float(self.values[Entry.COST_USD] + self.values[Entry.DISRUPTION_USD] + self.values[Entry.UNSERVED_USD])

    @property
    def excess_frac(self) -> float:
        """Cost above the lower bound, as a share of the bound."""
        bound = self.values[Entry.BOUND_USD]
        return float((self.total_usd - bound) / bound) if bound > 0 else 0.0

    @property
    def tokens_per_gpu_s(self) -> float:
        """Output tokens served per second of GPU paid for."""
        gpu_h = self.values[Entry.GPU_H]
        return float(self.values[Entry.TOKENS] / (gpu_h * 3600.0)) if gpu_h > 0 else 0.0

    def metrics(self) -> dict[str, float]:
        """Every figure under the names used in reports and in ``info``."""
        return {
            "total_usd": self.total_usd,
            "excess_frac": self.excess_frac,
            "tokens_per_gpu_s": self.tokens_per_gpu_s,
            **{entry.name.lower(): self[entry] for entry in Entry},
        }
