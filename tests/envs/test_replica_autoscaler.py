"""Serve's replica autoscaling rule by hand, and beside Ray's public policy with a check that can fail.

``test_ray_rules.py`` runs the same rule beside Ray's core policy on uneven clocks.
"""

import itertools
import math
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from ray.serve import autoscaling_policy
from ray.serve._private.common import DeploymentID
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from rayfold.envs.replica_autoscaler import decide_target, wish_cuts

FOREVER_S = math.inf
ID = DeploymentID(name="d", app_name="a")
Rule = Callable[..., tuple[int, float, int]]
PORT: Rule = decide_target  # its long signature is given by position and by loops here


class Kept(NamedTuple):
    """What the rule keeps between decisions."""

    target: int
    since_s: float = FOREVER_S
    direction: int = 0


def decide(now_s: float, total: float, running: int, kept: Kept, **more: float) -> Kept:
    """One decision; unless told otherwise 2 requests a replica, 10 s up, 20 s down, also to zero, 0 to 8 replicas."""
    values = {"ongoing": 2.0, "up": 1.0, "down": 1.0, "up_s": 10.0, "down_s": 20.0, "zero_s": 20.0, "low": 0, "high": 8}
    values |= more
    return Kept(*PORT(now_s, total, running, *kept, *values.values()))


@pytest.mark.parametrize(
    ("running", "total", "more", "want"),
    [
        (4, 13.0, {}, 7),  # 6.5
        (4, 13.0, {"up": 0.5}, 6),  # 4 + 1.25
        (4, 13.0, {"up": 2.0, "high": 20}, 9),
        (4, 13.0, {"up": 2.0}, 8),  # bound
        (4, 13.0, {"ongoing": 6.5}, 2),
        (4, 3.0, {}, 2),  # 1.5
        (4, 3.0, {"down": 0.5}, 3),  # 4 - 1.25
        (4, 3.0, {"down": 0.3}, 3),  # 4 - 0.75 is 4 again, so one less
        (4, 7.0, {"down": 0.3}, 4),  # 3.5 is 4 replicas: nothing is stuck
        (4, 0.0, {}, 1),  # never from above 1 to 0
        (4, 0.0, {"low": 3}, 3),
        (4, 8.0, {}, 4),
    ],
)
def test_wanted_by_hand(running: int, total: float, more: dict[str, float], want: int) -> None:
    """Load, factors and bounds, without delays."""
    kept = decide(50.0, total, running, Kept(running), up_s=0.0, down_s=0.0, **more)
    assert kept == Kept(want)


def test_a_wish_up_waits() -> None:
    """Wished at 100 s, done at 110 s and not before, and then a new wish starts anew."""
    kept = Kept(2)
    for now_s, want in (
        (100.0, Kept(2, 100.0, 1)),
        (109.0, Kept(2, 100.0, 1)),
        (110.0, Kept(4)),
        (111.0, Kept(4, 111.0, -1)),  # the two new ones are still starting: two running want only 3
    ):
        kept = decide(now_s, 8.0 if now_s < 111.0 else 6.0, 2, kept)
        assert kept == want, now_s


def test_a_wish_that_turns_round_or_is_met_starts_anew() -> None:
    """Down at 100 s, up at 105 s, met at 108 s, down at 110 s: the last counts from 110 s."""
    kept = Kept(3)
    for now_s, total, want in (
        (100.0, 2.0, Kept(3, 100.0, -1)),
        (105.0, 9.0, Kept(3, 105.0, 1)),
        (108.0, 6.0, Kept(3)),
        (110.0, 2.0, Kept(3, 110.0, -1)),
        (129.0, 2.0, Kept(3, 110.0, -1)),
        (130.0, 2.0, Kept(1)),
    ):
        kept = decide(now_s, total, 3, kept)
        assert kept == want, now_s


def test_to_zero_by_way_of_one() -> None:
    """Without requests three replicas become one after the delay, none after a second one."""
    kept, seen = Kept(3), []
    for now_s in (0.0, 10.0, 20.0, 30.0, 40.0):
        kept = decide(now_s, 0.0, kept.target, kept)
        seen.append(kept.target)
    assert seen == [3, 3, 1, 1, 1]
    for now_s in (50.0, 60.0):
        kept = decide(now_s, 0.0, kept.target, kept)
    assert kept == Kept(0)
    assert decide(70.0, 0.0, 0, kept) == Kept(0)
    assert decide(70.0, 0.0, 0, Kept(0, 65.0, 1)) == Kept(0)  # a wish from before the last one stopped is over


def test_the_last_replica_has_a_delay_of_its_own() -> None:
    """Three become one after 20 s; the last one stops 35 s after that wish began, not 20 s."""
    kept = Kept(3)
    seen: dict[int, float] = {}
    for now_s in range(0, 80, 5):
        kept = decide(float(now_s), 0.0, kept.target, kept, zero_s=35.0)
        seen.setdefault(kept.target, now_s)
    assert seen == {3: 0, 1: 20, 0: 60}


@pytest.mark.parametrize(("up", "target", "want"), [(1.0, 0, 1), (2.5, 0, 3), (0.2, 0, 1), (1.0, 5, 5), (20.0, 0, 8)])
def test_from_zero_at_once(up: float, target: int, want: int) -> None:
    """A request without a replica starts them without delay; what was wished before is kept, as Ray keeps it."""
    assert decide(100.0, 0.5, 0, Kept(target, 95.0, -1), up=up) == Kept(want, 95.0, -1)


def test_replicas_still_starting_keep_their_target() -> None:
    """None runs and none is asked for: the target stays, and a bound that has risen is met at once."""
    assert decide(100.0, 0.0, 0, Kept(4, 90.0, -1)) == Kept(4, 90.0, -1)
    assert decide(100.0, 0.0, 0, Kept(4, 90.0, -1), low=6) == Kept(6, 90.0, -1)


def test_a_delay_is_not_missed_by_a_rounding_error() -> None:
    """0.3 s after 0.1 s are 0.19999999999999998 s; that is a delay of 0.2 s."""
    assert 0.3 - 0.1 < 0.2
    assert decide(0.3, 8.0, 2, Kept(2, 0.1, 1), up_s=0.2).target == 4


class Step(NamedTuple):
    """What both sides see at one decision, beside the target that each has kept."""

    now_s: float
    total: float
    lag: int  # replicas of the target that do not run yet


def random_case(seed: int) -> tuple[AutoscalingConfig, list[Step]]:
    """A configuration, and 60 decisions with idle stretches, ramps and slow starts."""
    rng = random.Random(seed)
    low = rng.choice([0, 0, 1, 2])
    config = AutoscalingConfig(
        min_replicas=low,
        max_replicas=rng.randint(3, 12),
        target_ongoing_requests=rng.choice([1, 2, 7.5]),
        upscale_delay_s=rng.choice([0, 5, 30]),
        downscale_delay_s=rng.choice([10, 20, 60]),
        upscaling_factor=rng.choice([0.5, 1.0, 2.0]),
        downscaling_factor=rng.choice([0.3, 1.0]),
        downscale_to_zero_delay_s=rng.choice([None, None, 10, 45]),
    )
    now_s, total, steps = 1000.0, 5.0, []
    for _ in range(60):
        now_s += rng.choice([0.5, 5.0, 10.0])
        if rng.random() < 0.2:
            total = rng.choice([0.0, rng.uniform(0, 60)])
        steps.append(Step(now_s, total, rng.choice([0, 0, 1, 3])))
    return config, steps


def rays_targets(config: AutoscalingConfig, steps: list[Step]) -> list[int]:
    """Targets by Ray's public policy, bounded as ``DeploymentAutoscalingState`` bounds them."""
    policy = autoscaling_policy._apply_autoscaling_config(autoscaling_policy.replica_queue_length_autoscaling_policy)
    target, state, targets = config.min_replicas, {}, []  # type: int, dict[str, Any], list[int]
    for step in steps:
        context = AutoscalingContext(
            deployment_id=ID,
            deployment_name=ID.name,
            app_name=ID.app_name,
            current_num_replicas=max(0, target - step.lag),
            target_num_replicas=target,
            running_replicas=[],
            total_num_requests=step.total,
            total_queued_requests=None,
            aggregated_metrics=None,
            raw_metrics=None,
            capacity_adjusted_min_replicas=config.min_replicas,
            capacity_adjusted_max_replicas=config.max_replicas,
            policy_state=state,
            last_scale_up_time=None,
            last_scale_down_time=None,
            current_time=step.now_s,
            config=config,
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(autoscaling_policy, "time", SimpleNamespace(time=lambda now_s=step.now_s: now_s))
            decided, state = policy(context)
        target = max(config.min_replicas, min(config.max_replicas, decided))
        targets.append(target)
    return targets


def our_targets(config: AutoscalingConfig, steps: list[Step], rule: Rule = PORT) -> list[int]:
    """The same by the port, or by another rule."""
    kept, targets = Kept(config.min_replicas), []
    to_zero_s = config.downscale_to_zero_delay_s
    for step in steps:
        kept = Kept(
            *rule(
                step.now_s,
                step.total,
                max(0, kept.target - step.lag),
                *kept,
                config.get_target_ongoing_requests(),
                config.get_upscaling_factor(),
                config.get_downscaling_factor(),
                config.upscale_delay_s,
                config.downscale_delay_s,
                config.downscale_delay_s if to_zero_s is None else to_zero_s,
                config.min_replicas,
                config.max_replicas,
            )
        )
        targets.append(kept.target)
    return targets


def test_targets_are_those_of_rays_public_policy() -> None:
    """On 200 random days, and these days do scale up, down, to zero and from zero."""
    up = down = to_zero = from_zero = 0
    for seed in range(200):
        config, steps = random_case(seed)
        targets = our_targets(config, steps)
        assert targets == rays_targets(config, steps), seed
        for a, b in itertools.pairwise(targets):
            up, down = up + (b > a > 0), down + (0 < b < a)
            to_zero, from_zero = to_zero + (b == 0 < a), from_zero + (a == 0 < b)
    assert min(up, down) > 200
    assert min(to_zero, from_zero) > 20


def _delays_swapped(*a: Any) -> tuple[int, float, int]:
    return PORT(*a[:9], a[10], a[9], *a[11:])


def _factors_ignored(*a: Any) -> tuple[int, float, int]:
    return PORT(*a[:7], 1.0, 1.0, *a[9:])


def _wish_forgotten(*a: Any) -> tuple[int, float, int]:
    return PORT(*a[:5], 0, *a[6:])


def _straight_to_zero(*a: Any) -> tuple[int, float, int]:
    target, since_s, direction = PORT(*a)
    return (0 if a[1] == 0 and target == 1 < a[3] and a[12] == 0 else target), since_s, direction


def _one_delay_for_all(*a: Any) -> tuple[int, float, int]:
    return PORT(*a[:11], a[10], *a[12:])


def _late_from_zero(*a: Any) -> tuple[int, float, int]:
    return (0, a[4], a[5]) if a[2] == a[3] == 0 and a[9] > 0 else PORT(*a)


@pytest.mark.parametrize(
    "rule",
    [_delays_swapped, _factors_ignored, _wish_forgotten, _straight_to_zero, _one_delay_for_all, _late_from_zero],
)
def test_the_comparison_can_fail(rule: Rule) -> None:
    """Each planted fault gives other targets than Ray on some of the days."""
    differing = 0
    for seed in range(60):
        config, steps = random_case(seed)
        differing += our_targets(config, steps, rule) != rays_targets(config, steps)
    assert differing > 0


def test_cuts_tell_what_the_rule_wishes() -> None:
    """Second route: between the cuts the rule itself gives just that wish, and before its delay the same target.

    Requests lie on whole replicas, a hair beside them, and anywhere. Where the cuts say nothing little is left out.
    """
    rng, said, asked, later_s = random.Random(0), 0, 0, 1e9
    for _ in range(20_000):
        low, high = rng.choice([0, 1, 2]), rng.choice([3, 9, 40])
        target = rng.randint(low, high)
        running = rng.choice([0, target, rng.randint(0, high)])
        ongoing, up, down = rng.choice([0.3, 1.0, 2.0, 7.7]), rng.choice([1.0, 1.0, 1.5]), rng.choice([1.0, 1.0, 0.5])
        whole = rng.randint(0, high + 2) * ongoing
        total = max(0.0, rng.choice([whole, whole + 1e-14, whole - 1e-14, whole * (1 + 1e-6), rng.uniform(0, whole)]))
        kept = rng.choice([Kept(target), Kept(target, 3.0, 1), Kept(target, 3.0, -1)])
        cuts = wish_cuts(running, target, ongoing, up, down, low, high)
        want = None
        if total <= cuts[0]:
            want = Kept(target, 3.0 if kept.direction == -1 else 50.0, -1)
        elif cuts[1] <= total <= cuts[2]:
            want = Kept(target)
        elif total >= cuts[3]:
            want = Kept(target, 3.0 if kept.direction == 1 else 50.0, 1)
        is_plain = up == down == 1.0 and running == target > 0
        asked += is_plain
        said += is_plain and want is not None
        if want is not None:
            delays = {"up_s": later_s, "down_s": later_s, "zero_s": later_s}
            got = decide(50.0, total, running, kept, ongoing=ongoing, up=up, down=down, low=low, high=high, **delays)
            assert got == want, (total, running, kept, ongoing)
    assert said > 0.5 * asked > 1000  # the rest lies within a hair of a whole number
    assert all(math.isnan(cut) for cut in wish_cuts(4, 4, 2.0, 1.0, 1.0, 0, 8, 2))  # a gang: left to the rule
