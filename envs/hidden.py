"""What a simulation carries beside the state: what no decision may depend on, and scalars of its kernels.

Dims: N nodes, R replicas, D deployments, T node types, L moves whose end may be waiting to be read.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.cluster import ClusterSpec
from rayfold.envs.draws import new_stream
from rayfold.envs.jit import inner
from rayfold.envs.ledger import DeploymentEntry
from rayfold.envs.traffic import SLOW_MEAN_S
from rayfold.envs.views import by_reference

__all__ = ["LOG_CANCELLED", "LOG_DONE", "LOG_FAILED", "Constants", "Hidden", "constants_of", "end_move", "fresh_hidden"]

LOG_DONE, LOG_FAILED, LOG_CANCELLED = 0, 1, 2

NEXT_SERIAL, CURSOR, NUM_ENDED, TOP, CHANGES = range(5)  # in Hidden.counters


@by_reference(is_written=True)
class Hidden(NamedTuple):
    """What the simulator knows and no decision may depend on."""

    node_ready_s: NDArray[np.float64]  # (N,) end of boot
    node_notice_s: NDArray[np.float64]  # (N,) notice of its interruption, then what still runs stops; inf = never
    node_end_s: NDArray[np.float64]  # (N,) the interruption itself
    node_work_until_s: NDArray[np.float64]  # (N,) end of its non-Serve work, inf = has none that ends
    node_work_gpus: NDArray[np.int64]  # (N,) bit mask of the devices that work holds
    node_moves_out: NDArray[np.int64]  # (N,) moves away since its launch, those that failed left out
    released_s: NDArray[np.float64]  # (N,) last release of this row, -inf = none
    released_type: NDArray[np.int64]  # (N,) type it had
    released_moves: NDArray[np.int64]  # (N,) moves that emptied it, 0 once matched with a launch
    stockout_until_s: NDArray[np.float64]  # (T,) the type is out of stock until then, -inf = it is not
    replica_due_s: NDArray[np.float64]  # (R,) end of start-up or of draining
    replica_fails: NDArray[np.bool_]  # (R,) its start-up will end in a failure
    replica_serial: NDArray[np.int64]  # (R,) creation order
    replica_move: NDArray[np.int64]  # (R,) id of the move that this replica is the source of, -1 = none
    wish_since_s: NDArray[np.float64]  # (D,) replica autoscaler: see decide_target
    wish_direction: NDArray[np.int64]  # (D,)
    lookback_sum: NDArray[np.float64]  # (D,) of ongoing requests over the look-back period
    deployment_ledger: NDArray[np.float64]  # (len(DeploymentEntry), D) the bill's causes, deployment by deployment
    # (5,) next serial, spread cursor, moves in ended, replica rows in use at most, times that nodes or replicas changed
    counters: NDArray[np.int64]
    ended: NDArray[np.int64]  # (L, 2) id of a move that ended and how; emptied by the shell
    stream: NDArray[np.uint64]  # (1,) random numbers


@by_reference(is_written=False)
class Constants(NamedTuple):
    """Scalars of a simulation."""

    dt_s: float
    is_pack: bool
    idle_timeout_s: float
    unserved_factor: float
    move_frac: float
    disruption_scale: float
    fence_s: float
    slow_weight: float  # of one step in the ten-minute mean
    skips_quiet_steps: bool  # False = every rule is evaluated at every step: the same result, slower


def constants_of(spec: ClusterSpec, fence_s: float, *, skips_quiet_steps: bool = True) -> Constants:
    """The scalars of a cluster."""
    settings, prices = spec.settings, spec.settings.prices
    return Constants(
        dt_s=settings.substep_s,
        is_pack=spec.packs,
        idle_timeout_s=settings.idle_timeout_s,
        unserved_factor=prices.unserved_factor,
        move_frac=prices.move_frac,
        disruption_scale=prices.disruption_scale,
        fence_s=fence_s,
        slow_weight=-float(np.expm1(-settings.substep_s / SLOW_MEAN_S)),
        skips_quiet_steps=skips_quiet_steps,
    )


def fresh_hidden(spec: ClusterSpec, num_nodes: int, num_replicas: int, rng: np.random.Generator) -> Hidden:
    """Nothing has happened yet."""
    num_deployments = spec.num_deployments
    return Hidden(
        node_ready_s=np.full(num_nodes, np.inf),
        node_notice_s=np.full(num_nodes, np.inf),
        node_end_s=np.full(num_nodes, np.inf),
        node_work_until_s=np.full(num_nodes, np.inf),
        node_work_gpus=np.zeros(num_nodes, np.int64),
        node_moves_out=np.zeros(num_nodes, np.int64),
        released_s=np.full(num_nodes, -np.inf),
        released_type=np.full(num_nodes, -1, np.int64),
        released_moves=np.zeros(num_nodes, np.int64),
        stockout_until_s=np.full(len(spec.node_types), -np.inf),
        replica_due_s=np.full(num_replicas, np.inf),
        replica_fails=np.zeros(num_replicas, np.bool_),
        replica_serial=np.arange(num_replicas, dtype=np.int64),
        replica_move=np.full(num_replicas, -1, np.int64),
        wish_since_s=np.full(num_deployments, np.inf),
        wish_direction=np.zeros(num_deployments, np.int64),
        lookback_sum=np.zeros(num_deployments),
        deployment_ledger=np.zeros((len(DeploymentEntry), num_deployments)),
        counters=np.array([num_replicas, 0, 0, num_replicas, 0], np.int64),
        ended=np.zeros((num_replicas, 2), np.int64),
        stream=new_stream(rng),
    )


@inner
def end_move(hidden: Hidden, r: int, how: int) -> bool:
    """Notes that the move whose source is replica ``r`` has ended; False if ``r`` is the source of none."""
    move_id = hidden.replica_move[r]
    if move_id < 0:
        return False
    hidden.replica_move[r] = -1
    i = hidden.counters[NUM_ENDED]
    if i < hidden.ended.shape[0]:  # a shell that does not read them loses the oldest knowledge only
        hidden.ended[i, 0] = move_id
        hidden.ended[i, 1] = how
        hidden.counters[NUM_ENDED] = i + 1
    return True
