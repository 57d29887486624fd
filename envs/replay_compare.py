"""How far a replay is from what really happened, as numbers over time and as a text.

Dims: P moments (of the real log), D deployments.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.cluster import ClusterSpec
from rayfold.envs.replay import Replay, Trajectory
from rayfold.envs.replay_fit import Fit, Fitted

__all__ = ["Agreement", "compare", "fit_text", "replay_text"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Errors of one replay; every mean is over time."""

    mean_nodes: float  # really alive
    node_error: float  # mean of |simulated - real| alive nodes
    node_error_by_type: tuple[float, ...]  # same, each node type by itself
    longest_node_gap_s: float  # longest time during which the numbers of nodes differed
    node_hours_ratio: float  # simulated / real
    replica_error: tuple[float, ...]  # (D,) mean of |simulated - real| serving replicas
    target_error: tuple[float, ...]  # (D,) mean of |simulated - real| targets
    longest_target_gap_s: float  # longest time during which any target differed
    placement_by_type: float  # share of serving replicas that agree in deployment and node type
    placement_by_node: float  # share that agree in deployment and matched node


def _held(trajectory: Trajectory, times_s: NDArray[np.float64]) -> NDArray[np.int64]:
    """``(P,)`` row of a trajectory in force at each time."""
    return np.maximum(0, np.searchsorted(trajectory.times_s, times_s + 1e-9, side="right") - 1)


def _longest_s(times_s: NDArray[np.float64], differs: NDArray[np.bool_]) -> float:
    """Longest time of unbroken difference; a moment counts until the next one."""
    longest = run = 0.0
    for is_off, length in zip(differs[:-1], np.diff(times_s), strict=True):
        run = run + float(length) if is_off else 0.0
        longest = max(longest, run)
    return longest


def _overlap(real: NDArray[np.int64], sim: NDArray[np.int64]) -> float:
    """Mean over time of ``sum(min) / max(sum)`` of counts ``(P, places, D)``; 1 where nothing serves in both."""
    both = np.minimum(real, sim).sum((1, 2))
    most = np.maximum(real.sum((1, 2)), sim.sum((1, 2)))
    return float(np.where(most > 0, both / np.maximum(most, 1), 1.0).mean())


def _by_type(trajectory: Trajectory, types: list[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Alive nodes ``(P, T)`` and serving replicas ``(P, T, D)`` by node type."""
    of_type = np.array([[slot[0] == t for slot in trajectory.slots] for t in types], np.int64)
    return trajectory.alive.astype(np.int64) @ of_type.T, np.einsum("psd,ts->ptd", trajectory.running, of_type)


def _aligned(real: Trajectory, sim: Trajectory) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Serving replicas ``(P, slots of either, D)`` of both."""
    slots = list(dict.fromkeys([*real.slots, *sim.slots]))
    out = []
    for trajectory in (real, sim):
        running = np.zeros((len(trajectory.running), len(slots), trajectory.running.shape[2]), np.int64)
        running[:, [slots.index(s) for s in trajectory.slots]] = trajectory.running
        out.append(running)
    return out[0], out[1]


def compare(real: Trajectory, sim: Trajectory) -> Agreement:
    """Compares at the moments of ``real`` that the simulation covers.

    Args:
        real: What happened.
        sim: The replay.
    """
    rows = np.flatnonzero(real.times_s <= sim.times_s[-1] + 1e-9)
    times_s, at = real.times_s[rows], _held(sim, real.times_s[rows])
    types = sorted({t for t, _ in (*real.slots, *sim.slots)})
    real_nodes, real_on_type = _by_type(real, types)
    sim_nodes, sim_on_type = _by_type(sim, types)
    real_nodes, sim_nodes = real_nodes[rows], sim_nodes[at]
    real_on_node, sim_on_node = _aligned(real, sim)
    real_targets, sim_targets = real.targets[rows], sim.targets[at]
    node_gap = sim_nodes.sum(1) - real_nodes.sum(1)
    running_gap = sim.running[at].sum(1) - real.running[rows].sum(1)
    return Agreement(
        mean_nodes=float(real_nodes.sum(1).mean()),
        node_error=float(np.abs(node_gap).mean()),
        node_error_by_type=tuple(np.abs(sim_nodes - real_nodes).mean(0).tolist()),
        longest_node_gap_s=_longest_s(times_s, node_gap != 0),
        node_hours_ratio=float(sim_nodes.sum() / real_nodes.sum()),
        replica_error=tuple(np.abs(running_gap).mean(0).tolist()),
        target_error=tuple(np.abs(sim_targets - real_targets).mean(0).tolist()),
        longest_target_gap_s=_longest_s(times_s, (sim_targets != real_targets).any(1)),
        placement_by_type=_overlap(real_on_type[rows], sim_on_type[at]),
        placement_by_node=_overlap(real_on_node[rows], sim_on_node[at]),
    )


def _line(what: str, f: Fitted) -> str:
    if not f.count:
        return f"  {what:<24} not seen"
    return f"  {what:<24} {f.mean_s:6.2f} s mean, {f.min_s:.2f} to {f.max_s:.2f}, {f.count} times"


def fit_text(spec: ClusterSpec, fit: Fit, idle_timeout_s: float) -> str:
    """The fitted times, one line each.

    Args:
        spec: Of the log.
        fit: The times.
        idle_timeout_s: The autoscaler's setting, told beside the release time.
    """
    keys = [d.key for d in spec.deployments]
    lines = ["fitted times"]
    lines += [_line(f"start-up of {k}", f) for k, f in zip(keys, fit.startup, strict=True)]
    lines += [_line(f"drain of {k}", f) for k, f in zip(keys, fit.drain, strict=True)]
    lines += [_line(f"boot of {t.name}", f) for t, f in zip(spec.node_types, fit.boot, strict=True)]
    lines += [_line("lag of a launch", fit.lag)]
    lines += [_line("release of an empty node", fit.release) + f" (time-out set to {idle_timeout_s:g} s)"]
    return "\n".join(lines)


def replay_text(spec: ClusterSpec, replays: list[Replay], agreements: list[Agreement]) -> str:
    """Mean and worst errors over replays with different draws.

    Args:
        spec: Of the log.
        replays: The replays.
        agreements: One for each.
    """

    def both(values: list[float], worst: float) -> str:
        return f"{np.mean(values):6.3f} (worst {worst:.3f})"

    def most(name: str) -> str:
        values = [float(getattr(a, name)) for a in agreements]
        return both(values, max(values))

    def least(name: str) -> str:
        values = [float(getattr(a, name)) for a in agreements]
        return both(values, min(values))

    lines = [f"{len(replays)} replays of {replays[0].trajectory.times_s[-1]:.0f} s"]
    lines += [f"  nodes alive, really      {agreements[0].mean_nodes:6.3f}"]
    lines += [
        f"  error of their number    {most('node_error')}",
        f"  longest difference, s    {most('longest_node_gap_s')}",
    ]
    lines += [f"  simulated / real hours   {most('node_hours_ratio')}"]
    for d, deployment in enumerate(spec.deployments):
        errors, targets = [a.replica_error[d] for a in agreements], [a.target_error[d] for a in agreements]
        lines += [f"  replicas of {deployment.key:<12} {both(errors, max(errors))}"]
        lines += [f"  target of {deployment.key:<14} {both(targets, max(targets))}"]
    lines += [f"  longest target gap, s    {most('longest_target_gap_s')}"]
    lines += [f"  placement by node type   {least('placement_by_type')}"]
    lines += [f"  placement by node        {least('placement_by_node')}"]
    moves = [(r.moves_as_recorded, r.moves_from_elsewhere, r.moves_skipped) for r in replays]
    lines += [f"  moves as recorded / from another node / skipped, by replay: {', '.join(map(str, moves))}"]
    return "\n".join(lines)
