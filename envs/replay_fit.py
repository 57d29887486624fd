"""Times of a real cluster, measured from its event log: what the simulator draws start-up, drain and boot times from.

An event seen at a poll happened between it and the poll before: the middle is taken. Dims: D deployments, T node types.

Words: *lag*: from the moment a replica fits nowhere to the launch that the autoscaler shows; the simulator launches
at once, so its boot time holds the lag too. *Release*: from the end of a node's last replica to the end of the node.
"""

import dataclasses
import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from rayfold.envs.cluster import ClusterSpec, Interval
from rayfold.envs.event_log import EventLog, SeenReplica
from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase

__all__ = ["Fit", "Fitted", "fit_times", "fitted_state"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """One kind of duration; nan without a measurement."""

    count: int
    min_s: float
    mean_s: float
    max_s: float

    @staticmethod
    def of(values_s: list[float]) -> "Fitted":
        """Count, range and mean of measurements; what a late poll makes negative counts as 0."""
        if not values_s:
            return Fitted(count=0, min_s=math.nan, mean_s=math.nan, max_s=math.nan)
        values = np.maximum(0.0, values_s)
        return Fitted(
            count=len(values), min_s=float(values.min()), mean_s=float(values.mean()), max_s=float(values.max())
        )

    def interval(self, otherwise: Interval, plus_s: float = 0.0) -> Interval:
        """The uniform interval with the measured mean that reaches the nearer of the two extremes.

        Args:
            otherwise: Where nothing was measured.
            plus_s: Added to both ends.
        """
        if not self.count:
            return otherwise
        half = min(self.mean_s - self.min_s, self.max_s - self.mean_s)
        return Interval(max(0.0, self.mean_s - half + plus_s), self.mean_s + half + plus_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """All durations of one log."""

    startup: tuple[Fitted, ...]  # (D,) from the moment a replica has a place until it serves
    drain: tuple[Fitted, ...]  # (D,) from the order to stop until its resources are free
    boot: tuple[Fitted, ...]  # (T,) from launch to joining the cluster
    lag: Fitted
    release: Fitted


@dataclass(slots=True)
class _Life:
    """One replica over the log; times are the middle between two polls."""

    deployment_idx: int
    created_s: float
    node_id: str = ""
    running_s: float = math.nan
    stopping_s: float = math.nan
    gone_s: float = math.inf
    was_first: bool = False  # there at the first poll: its beginning was not seen


def _lives(log: EventLog) -> dict[str, _Life]:
    lives: dict[str, _Life] = {}
    before_s = log.polls[0].t_s
    seen: dict[str, SeenReplica] = {}
    for i, poll in enumerate(log.polls):
        middle_s = 0.5 * (before_s + poll.t_s)
        now = {r.replica_id: r for r in poll.replicas}
        for replica_id in seen.keys() - now.keys():
            lives[replica_id].gone_s = middle_s
        for replica_id, replica in now.items():
            fresh = _Life(replica.deployment_idx, replica.created_s, was_first=i == 0)
            life = lives.setdefault(replica_id, fresh)
            life.node_id = replica.node_id or life.node_id
            if replica.phase == ReplicaPhase.RUNNING and math.isnan(life.running_s):
                life.running_s = middle_s
            if replica.phase == ReplicaPhase.STOPPING and math.isnan(life.stopping_s):
                life.stopping_s = middle_s
        before_s, seen = poll.t_s, now
    return lives


@dataclass(slots=True)
class _NodeLife:
    type_name: str
    joined_s: float  # -inf = there at the first poll
    gone_s: float = math.inf


def _node_lives(log: EventLog) -> dict[str, _NodeLife]:
    nodes: dict[str, _NodeLife] = {}
    before_s = log.polls[0].t_s
    seen: set[str] = set()
    for i, poll in enumerate(log.polls):
        middle_s = 0.5 * (before_s + poll.t_s)
        now = {n.node_id: n.node_type for n in poll.nodes if n.phase == NodePhase.ALIVE}
        for node_id in seen - now.keys():
            nodes[node_id].gone_s = middle_s
        for node_id, type_name in now.items():
            nodes.setdefault(node_id, _NodeLife(type_name, -math.inf if i == 0 else middle_s))
        before_s, seen = poll.t_s, set(now)
    return nodes


def _placed_s(life: _Life, others: list[_Life], log: EventLog, nodes: dict[str, _NodeLife]) -> float:
    """When a replica could take its place: created, node there, and room beside the replicas created before it."""
    spec = log.first.spec
    node = nodes[life.node_id]
    types = {t.name: i for i, t in enumerate(spec.node_types)}
    capacity = spec.arrays.type_capacity[types[node.type_name]]
    demand = spec.arrays.demand
    older = [o for o in others if o.node_id == life.node_id and o is not life and o.created_s <= life.created_s]
    ready_s = max(life.created_s, node.joined_s)
    for at_s in sorted({ready_s, *(o.gone_s for o in older if o.gone_s > ready_s)}):
        held = sum((demand[o.deployment_idx] for o in older if o.gone_s > at_s), np.zeros(demand.shape[1]))
        if (held + demand[life.deployment_idx] <= capacity + 1e-6).all():
            return at_s
    return ready_s


def _launches_s(log: EventLog, type_name: str) -> list[float]:
    """Time of the k-th launch of a type: when the nodes that joined and those that boot first were more than k.

    A node may be shown as booting for some polls after it has joined, so only a count that never falls again counts.
    """
    joined: set[str] = {n.node_id for n in log.polls[0].nodes}
    count = 0
    levels = []
    for poll in log.polls:
        alive = {n.node_id for n in poll.nodes if n.phase == NodePhase.ALIVE and n.node_type == type_name}
        count += len(alive - joined)
        joined |= alive
        levels.append(count + sum(n.phase == NodePhase.BOOTING and n.node_type == type_name for n in poll.nodes))
    lasting = np.minimum.accumulate(np.array(levels)[::-1])[::-1]
    out: list[float] = []
    for (before, poll), level in zip(pairwise(log.polls), lasting[1:], strict=True):
        out += [0.5 * (before.t_s + poll.t_s)] * (int(level) - len(out))
    return out


def _fit_boots(
    log: EventLog, nodes: dict[str, _NodeLife], waits: list[tuple[float, float]]
) -> tuple[list[Fitted], Fitted]:
    """Boot times by type, and the lag; ``waits``: for each replica when it was created and when it got its place."""
    boots, lags = [], []
    for node_type in log.first.spec.node_types:
        joins = sorted(n.joined_s for n in nodes.values() if n.type_name == node_type.name and n.joined_s > -math.inf)
        launches = _launches_s(log, node_type.name)
        boots.append(Fitted.of([join - launch for launch, join in zip(launches, joins, strict=False)]))
        for launch in launches:
            waiting = [created for created, placed in waits if created <= launch < placed]
            if waiting:
                lags.append(launch - max(waiting))
    return boots, Fitted.of(lags)


def _release_times(lives: list[_Life], nodes: dict[str, _NodeLife]) -> list[float]:
    out = []
    for node_id, node in nodes.items():
        own = [life.gone_s for life in lives if life.node_id == node_id and life.gone_s <= node.gone_s]
        empty_s = max([node.joined_s, *own])
        if node.gone_s < math.inf and empty_s > -math.inf:
            out.append(node.gone_s - empty_s)
    return out


def fit_times(log: EventLog) -> Fit:
    """Measures every kind of duration.

    Args:
        log: Of a real run.
    """
    by_id, nodes = _lives(log), _node_lives(log)
    lives = list(by_id.values())
    num = len(log.header.deployments)
    startup: list[list[float]] = [[] for _ in range(num)]
    drain: list[list[float]] = [[] for _ in range(num)]
    waits = []
    for life in lives:
        if life.node_id in nodes and not life.was_first:
            placed_s = _placed_s(life, lives, log, nodes)
            waits.append((life.created_s, placed_s))
            if not math.isnan(life.running_s):
                startup[life.deployment_idx].append(life.running_s - placed_s)
        if not math.isnan(life.stopping_s) and life.gone_s < math.inf:
            drain[life.deployment_idx].append(life.gone_s - life.stopping_s)
    boots, lag = _fit_boots(log, nodes, waits)
    return Fit(
        startup=tuple(map(Fitted.of, startup)),
        drain=tuple(map(Fitted.of, drain)),
        boot=tuple(boots),
        lag=lag,
        release=Fitted.of(_release_times(lives, nodes)),
    )


def fitted_state(log: EventLog, fit: Fit) -> ClusterState:
    """The first state of a log, its spec with the fitted times; what was not measured stays as it is.

    Args:
        log: The log.
        fit: Of this log or of another run of the same cluster.
    """
    spec = log.first.spec
    lag_s = fit.lag.mean_s if fit.lag.count else 0.0
    node_types = tuple(
        dataclasses.replace(t, boot_s=f.interval(t.boot_s, lag_s))
        for t, f in zip(spec.node_types, fit.boot, strict=True)
    )
    deployments = tuple(
        dataclasses.replace(d, startup_s=up.interval(d.startup_s), drain_s=down.interval(d.drain_s))
        for d, up, down in zip(spec.deployments, fit.startup, fit.drain, strict=True)
    )
    idle_s = fit.release.mean_s if fit.release.count else log.header.idle_timeout_s
    settings = dataclasses.replace(spec.settings, idle_timeout_s=idle_s, substep_s=log.header.poll_s)
    new = ClusterSpec(node_types=node_types, deployments=deployments, settings=settings)
    return dataclasses.replace(log.first, spec=new)
