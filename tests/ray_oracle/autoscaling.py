"""Targets of the replica autoscaler beside Ray's whole ``DeploymentAutoscalingState``.

Ray gets what routers and replicas would report, keeps it, averages it over the look-back period, asks its default
policy with all delays and factors, and applies the bounds.
"""

import random
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from ray.serve import autoscaling_policy
from ray.serve._private import autoscaling_state
from ray.serve._private.autoscaling_state import DeploymentAutoscalingState
from ray.serve._private.common import (
    RUNNING_REQUESTS_KEY,
    DeploymentHandleSource,
    DeploymentID,
    HandleMetricReport,
    ReplicaID,
)
from ray.serve._private.metrics_utils import InMemoryMetricsStore
from ray.serve.config import AutoscalingConfig

from rayfold.envs.replica_autoscaler import decide_target
from tests.ray_oracle import ours
from tests.ray_oracle.clock import Clock
from tests.ray_oracle.tally import Tally

__all__ = ["decisions", "gang_decisions", "look_back", "look_back_from_idle", "random_config"]

ID = DeploymentID(name="d", app_name="a")
STEPS = 50
Rule = Callable[..., tuple[int, float, int]]


def random_config(rng: random.Random, look_back_s: float = 30.0, gang_size: int = 1) -> AutoscalingConfig:
    """Every setting of the default policy, the deprecated factors included; bounds are whole gangs."""
    low, high = rng.choice([0, 0, 1, 2]), rng.randint(3, 12)
    legacy: dict[str, Any] = {
        "smoothing_factor": rng.choice([0.5, 1.5]),
        "upscale_smoothing_factor": rng.choice([None, 0.7]),
    }
    factors: dict[str, Any] = {
        "upscaling_factor": rng.choice([None, 0.3, 2.0]),
        "downscaling_factor": rng.choice([None, 0.3, 2.0]),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of settings that Ray deprecates and still obeys
        return AutoscalingConfig(
            min_replicas=low * gang_size,
            max_replicas=high * gang_size,
            initial_replicas=rng.choice([None, rng.randint(low, high) * gang_size]),
            target_ongoing_requests=rng.choice([0.5, 1, 2, 7.5]),
            upscale_delay_s=rng.choice([0, 5, 30]),
            downscale_delay_s=rng.choice([0, 10, 60]),
            downscale_to_zero_delay_s=rng.choice([None, 0, 5, 90]),
            look_back_period_s=look_back_s,
            metrics_interval_s=min(10.0, look_back_s / 2),
            **(legacy if rng.random() < 0.3 else {}),
            **(factors if rng.random() < 0.7 else {}),
        )


class RaysAutoscaler:
    """Ray's state of one deployment, on a clock of ours."""

    def __init__(self, config: AutoscalingConfig, gang_size: int = 1) -> None:
        self.state = DeploymentAutoscalingState(ID)
        gang = SimpleNamespace(gang_size=gang_size) if gang_size > 1 else None
        settings = SimpleNamespace(autoscaling_config=config, gang_scheduling_config=gang)
        info: Any = SimpleNamespace(deployment_config=settings, target_capacity=None, target_capacity_direction=None)
        self.target: int = self.state.register(info, 0)

    def report(self, now_s: float, handle: str, queued: list[Any], running: dict[Any, list[Any]]) -> None:
        """A router reports the requests that it has queued and those that it has at each replica."""
        self.state.record_request_metrics_for_handle(
            HandleMetricReport(
                deployment_id=ID,
                handle_id=handle,
                actor_id="",
                handle_source=DeploymentHandleSource.UNKNOWN,
                queued_requests=queued,
                metrics={RUNNING_REQUESTS_KEY: running},
                timestamp=now_s,
            )
        )

    def decide(self, num_running: int) -> tuple[int, float]:
        """Next target, and the requests it is made for."""
        self.state.update_running_replica_ids([ReplicaID(str(r), ID) for r in range(num_running)])
        total = self.state.get_total_num_requests()
        self.target = self.state.get_decision_num_replicas(self.target)
        return self.target, total


class OurAutoscaler:
    """The port, with what it keeps between decisions."""

    def __init__(self, config: AutoscalingConfig, target: int, rule: Rule, gang_size: int = 1) -> None:
        self._config, self._rule, self._gang_size = config, rule, gang_size
        self._kept: tuple[int, float, int] = (target, np.inf, 0)

    def decide(self, now_s: float, total: float, num_running: int) -> int:
        """Next target."""
        c = self._config
        to_zero_s = c.downscale_delay_s if c.downscale_to_zero_delay_s is None else c.downscale_to_zero_delay_s
        factors = (c.get_upscaling_factor(), c.get_downscaling_factor())
        delays = (c.upscale_delay_s, c.downscale_delay_s, to_zero_s)
        bounds = (c.min_replicas, c.max_replicas)
        self._kept = self._rule(
            now_s,
            total,
            num_running,
            *self._kept,
            c.get_target_ongoing_requests(),
            *factors,
            *delays,
            *bounds,
            self._gang_size,
        )
        return self._kept[0]


def _reads(clock: Clock) -> Any:
    return clock.read_by(autoscaling_policy, autoscaling_state)


def decisions(num_states: int, seed: int, rule: Rule = decide_target) -> Tally:
    """Random days of ``STEPS`` decisions with uneven steps, idle stretches, ramps and replicas that start late."""
    return _decisions(num_states, seed, rule, (1,))


def gang_decisions(num_states: int, seed: int, rule: Rule = decide_target) -> Tally:
    """The same for gangs of two to four replicas."""
    return _decisions(num_states, seed, rule, (2, 3, 4))


def _decisions(num_states: int, seed: int, rule: Rule, gang_sizes: tuple[int, ...]) -> Tally:
    mismatches, changes = [], 0
    for i in range(max(1, num_states // STEPS)):
        rng, clock = random.Random(f"{seed} {i}"), Clock()
        with _reads(clock):
            size = rng.choice(gang_sizes)
            config = random_config(rng, gang_size=size)
            rays = RaysAutoscaler(config, size)
            own, total = OurAutoscaler(config, rays.target, rule, size), 5.0
            for step in range(STEPS):
                clock.now_s += rng.choice([0.1, 0.5, 5.0, 10.0, 60.0])
                if rng.random() < 0.25:
                    total = rng.choice([0.0, float(rng.randint(0, 60)), rng.uniform(0, 60)])
                before = rays.target
                num_running = rng.choice([before, before, before, max(0, before - 3 * size), before + size, 0])
                rays.report(clock.now_s - 0.05, "h", [SimpleNamespace(timestamp=clock.now_s - 0.05, value=total)], {})
                target, seen = rays.decide(num_running)
                changes += target != before
                got = own.decide(clock.now_s, seen, num_running)
                if got != target:
                    mismatches.append(f"seed {seed}, day {i}, step {step}: ours {got}, Ray's {target}")
                    break
    assert mismatches or num_states < 20 * STEPS or changes > num_states / 20, f"{changes} changes"
    return Tally(num_states // STEPS * STEPS, num_states // STEPS * STEPS, tuple(mismatches))


class _Router:
    """Records what it sees and reports the look-back period, as Ray's routers do."""

    def __init__(self, name: str, rng: random.Random, num_replicas: int) -> None:
        store: Any = InMemoryMetricsStore
        self._name, self._rng, self._store = name, rng, store()
        self._keys = ["queued", *(ReplicaID(str(r), ID).to_full_id_str() for r in range(num_replicas))]

    def record(self, now_s: float, total: int) -> None:
        """``total`` requests are here, queued or at some replica."""
        counts = dict.fromkeys(self._keys, 0)
        for _ in range(total):
            counts[self._rng.choice(self._keys)] += 1
        self._store.add_metrics_point({key: float(n) for key, n in counts.items()}, now_s)

    def report(self, now_s: float, look_back_s: float, rays: RaysAutoscaler) -> None:
        """A moment before ``now_s``, so that the sample taken just one period ago is still in it."""
        self._store.prune_keys_and_compact_data(now_s - 1e-3 - look_back_s)
        data = dict(self._store.data)
        rays.report(now_s, self._name, data.pop("queued", []), data)


def look_back(num_states: int, seed: int) -> Tally:
    """The mean over the look-back period, from what one to three routers report of a fixed set of replicas.

    There is always a request somewhere: Ray starts its mean with the first one in the period (``explained_by``).
    """
    return _look_back(num_states, seed, low=1)


def look_back_from_idle(num_states: int, seed: int) -> Tally:
    """The same with idle stretches: where a period begins idle, Ray's mean is that from the first request on."""
    return _look_back(num_states, seed, low=0)


def _look_back(num_states: int, seed: int, low: int) -> Tally:
    mismatches, explained = [], 0
    for i in range(max(1, num_states // STEPS)):
        rng, clock = random.Random(f"{seed} {i}"), Clock()
        step_s, window, num_running = rng.choice([1.0, 5.0, 10.0]), rng.randint(2, 8), rng.randint(1, 4)
        loads = [rng.randint(low, 8) if rng.random() < 0.7 else rng.randint(low, 60) for _ in range(STEPS)]
        for start in range(0, STEPS, 10) if low == 0 else ():
            num_idle = rng.randint(0, 8)
            loads[start : start + num_idle] = [0] * num_idle
        means = ours.look_back_means(np.array(loads, np.float64), step_s=step_s, look_back_s=step_s * window)
        with _reads(clock):
            config = random_config(rng, step_s * window)
            rays = RaysAutoscaler(config)
            own = OurAutoscaler(config, rays.target, decide_target)
            routers = [_Router(f"h{k}", rng, num_running) for k in range(rng.randint(1, 3))]
            for step, load in enumerate(loads):
                share = load // len(routers)
                for k, router in enumerate(routers):
                    router.record(clock.now_s, load - share * (len(routers) - 1) if k == 0 else share)
                clock.now_s += step_s
                for router in routers:
                    router.report(clock.now_s, step_s * window, rays)
                target, total = rays.decide(num_running)
                period = np.trim_zeros(np.array(loads[max(0, step + 1 - window) : step + 1], np.float64), "f")
                expected = float(period.mean()) if len(period) else 0.0
                if step < window - 1:
                    means[step] = expected  # no full period yet, and different views of what was before
                got = own.decide(clock.now_s, expected, num_running)
                explained += abs(expected - means[step]) > 1e-9
                if got != target or abs(total - expected) > 1e-9:
                    mismatches.append(
                        f"seed {seed}, day {i}, step {step}: ours {got} for {expected}, Ray's {target} for {total}"
                    )
                    break
    return Tally(num_states // STEPS * STEPS, num_states // STEPS * STEPS, tuple(mismatches), explained)
