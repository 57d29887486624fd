"""Where pending replicas go, in which order, and which replicas a downscale stops: beside ``DeploymentScheduler``."""

from typing import Any

import numpy as np
from ray.serve._private.deployment_scheduler import DeploymentDownscaleRequest

from rayfold.envs.placement import hold
from rayfold.envs.safety import Reason, capacity_reason
from rayfold.envs.state import ClusterState, ReplicaPhase
from tests.ray_oracle import ours
from tests.ray_oracle.clock import Clock
from tests.ray_oracle.scheduler import deployment_id, node_row, packing, replica_id, replica_row, request, scheduler_of
from tests.ray_oracle.states import random_cluster
from tests.ray_oracle.tally import Tally

__all__ = ["add_pending", "pack", "pack_shares", "rays_nodes", "replicas_to_stop"]

WHOLE = (0.0, 1.0, 2.0)
SHARES = (0.25, 0.375, 0.625, 1.0)  # exact in binary: Ray compares what is left without tolerance
HELD = (ReplicaPhase.RUNNING,) * 5 + (ReplicaPhase.STARTING, ReplicaPhase.STOPPING)


def _keep_limits(state: ClusterState) -> None:
    """No stopping replicas of deployments with a limit per node: Serve forgets them at once, the raylet does not."""
    st = state.arrays
    is_stopping = st.replica_phase == ReplicaPhase.STOPPING
    st.replica_phase[is_stopping & (state.spec.arrays.max_per_node[st.replica_deployment] > 0)] = ReplicaPhase.RUNNING


def add_pending(state: ClusterState, draw: np.random.Generator, of: list[int] | None = None) -> None:
    """Up to seven replicas wait, in order of deployments, each deployment's in order of creation."""
    st = state.arrays
    wanted = np.sort(draw.choice(of or range(state.spec.num_deployments), size=int(draw.integers(1, 8))))
    rows = np.flatnonzero(st.replica_phase == ReplicaPhase.EMPTY)[: len(wanted)]
    st.replica_deployment[rows], st.replica_phase[rows] = wanted[: len(rows)], ReplicaPhase.PENDING


def rays_nodes(state: ClusterState) -> dict[int, int]:
    """Node rows that Ray's ``schedule`` picks for the PENDING rows, in the order it picks them."""
    scheduler, chosen = scheduler_of(state), {}  # type: Any, dict[str, Any]
    upscales: dict[Any, list[Any]] = {}
    for r in map(int, np.flatnonzero(state.arrays.replica_phase == ReplicaPhase.PENDING)):
        replica = replica_id(state, r)
        asked = request(state, replica, int(state.arrays.replica_deployment[r]), chosen)
        upscales.setdefault(replica.deployment_id, []).append(asked)
    with packing(Clock(state.now_s)):
        scheduler.schedule(upscales, {})
    return {replica_row(r): node_row(s.node_id) for r, s in chosen.items() if hasattr(s, "node_id")}


def _pack(num_states: int, seed: int, gpus: tuple[float, ...]) -> Tally:
    mismatches, explained, decisions = [], 0, 0
    for i in range(num_states):
        draw = np.random.default_rng([seed, i])
        state = random_cluster(draw, gpus=gpus, phases=HELD)
        _keep_limits(state)
        add_pending(state, draw)
        before = ClusterState(spec=state.spec, now_s=state.now_s, arrays=state.arrays.copy())
        rays, own = rays_nodes(state), ours.place(state)
        decisions += int((before.arrays.replica_phase == ReplicaPhase.PENDING).sum())
        if rays == own:
            continue
        if _lacks_device(before, rays):
            explained += 1
        else:
            mismatches.append(f"seed {seed}, state {i}: ours {own}, Ray's {rays}")
    return Tally(num_states, decisions, tuple(mismatches), explained)


def _lacks_device(state: ClusterState, rays: dict[int, int]) -> bool:
    """Whether Ray, which adds up shares of devices, sends some replica to a node with no single device for it."""
    spec, st = state.spec.arrays, state.arrays
    for r, n in rays.items():
        if capacity_reason(spec, st, int(st.replica_deployment[r]), n) == Reason.NO_GPU_DEVICE:
            return True
        hold(spec, st, r, n)
    return False


def pack(num_states: int, seed: int) -> Tally:
    """Batches of pending replicas that ask for whole GPUs: nodes, order, ties, labels, limits per node."""
    return _pack(num_states, seed, WHOLE)


def pack_shares(num_states: int, seed: int) -> Tally:
    """The same with shares of devices."""
    return _pack(num_states, seed, SHARES)


def replicas_to_stop(num_states: int, seed: int) -> Tally:
    """``_get_replicas_to_stop`` by one to four replicas: which ones, ties included."""
    mismatches, decisions = [], 0
    for i in range(num_states):
        draw = np.random.default_rng([seed, i])
        state = random_cluster(draw)
        present = state.arrays.replica_deployment[state.arrays.replica_phase != ReplicaPhase.EMPTY]
        if not len(present):
            continue
        d = int(draw.choice(present))
        count = min(int(draw.integers(1, 5)), int((present == d).sum()))
        key = deployment_id(state.spec.deployments[d])
        asked = DeploymentDownscaleRequest(deployment_id=key, num_to_stop=count)
        with packing(Clock(state.now_s)):
            rays = scheduler_of(state).schedule({}, {key: asked})[key]
        own = ours.stop(state, d, count, np.arange(len(state.arrays.replica_phase)))
        decisions += 1
        if sorted(own) != sorted(replica_row(r.unique_id) for r in rays):
            mismatches.append(f"seed {seed}, state {i}: ours {sorted(own)}, Ray's {sorted(r.unique_id for r in rays)}")
    return Tally(num_states, decisions, tuple(mismatches))
