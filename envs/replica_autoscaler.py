"""Serve's replica autoscaling rule, ported from ``ray.serve.autoscaling_policy`` (Ray 2.60).

``_core_replica_queue_length_policy``, ``_apply_scaling_factors``, ``_apply_delay_logic``, the rounding of
``GangSchedulingAutoscalingPolicy`` and the bounds, for one deployment at one moment.
"""

import math

from rayfold.envs.jit import inner, kernel

__all__ = ["DELAY_EPS_S", "decide_target", "wish_cuts"]

DELAY_EPS_S = 1e-6
_MARGIN = 1e-9  # of replicas, beyond every rounding error of the rule


@inner
def _desired(total_requests: float, running: int, target: int, target_ongoing: float, up: float, down: float) -> int:
    """Replicas wanted before delays and bounds."""
    if running == 0:
        return target
    wanted = running * (total_requests / (target_ongoing * running))
    delta = wanted - running
    scaled = math.ceil(running + (up if delta > 0 else down) * delta)
    if math.ceil(wanted) < running and scaled == running:
        scaled -= 1
    return int(scaled)


@kernel
def decide_target(
    now_s: float,
    total_requests: float,
    running: int,
    target: int,
    since_s: float,
    direction: int,
    target_ongoing: float,
    upscaling_factor: float,
    downscaling_factor: float,
    upscale_delay_s: float,
    downscale_delay_s: float,
    downscale_to_zero_delay_s: float,
    min_replicas: int,
    max_replicas: int,
    gang_size: int = 1,
) -> tuple[int, float, int]:
    """Next target of one deployment.

    Args:
        now_s: Clock.
        total_requests: Ongoing requests, mean of the look-back period.
        running: Running replicas.
        target: Present target.
        since_s: When the present wish to scale began, inf = no wish.
        direction: 1 = that wish is up, -1 = down, 0 = none.
        target_ongoing: ``target_ongoing_requests``.
        upscaling_factor: As in ``AutoscalingConfig``.
        downscaling_factor: As in ``AutoscalingConfig``.
        upscale_delay_s: As in ``AutoscalingConfig``.
        downscale_delay_s: As in ``AutoscalingConfig``.
        downscale_to_zero_delay_s: As in ``AutoscalingConfig``; its default there is ``downscale_delay_s``.
        min_replicas: Lower bound.
        max_replicas: Upper bound.
        gang_size: Replicas of a gang; targets are rounded up to whole gangs.

    Returns:
        ``(target, since_s, direction)`` to keep.
    """
    present = (
        1 if gang_size > 1 and min_replicas == 0 and target == gang_size else target
    )  # the last gang counts as one
    decision = present
    if running == 0 and total_requests > 0:
        decision = max(math.ceil(upscaling_factor), present)
    elif running > 0 or present == 0:  # Ray skips the delays otherwise
        desired = max(
            0, _desired(total_requests, running, present, target_ongoing, upscaling_factor, downscaling_factor)
        )
        if desired > present:
            if direction <= 0:
                direction, since_s = 1, now_s
            if now_s - since_s + DELAY_EPS_S >= upscale_delay_s:
                decision, direction, since_s = desired, 0, math.inf
        elif desired < present:
            if direction >= 0:
                direction, since_s = -1, now_s
            if now_s - since_s + DELAY_EPS_S >= (downscale_to_zero_delay_s if present == 1 else downscale_delay_s):
                decision = desired if present == 1 else max(1, desired)
                direction, since_s = 0, math.inf
        else:
            direction, since_s = 0, math.inf
    decision = -(-decision // gang_size) * gang_size
    return max(min_replicas, min(max_replicas, decision)), since_s, direction


@kernel
def wish_cuts(
    running: int,
    target: int,
    target_ongoing: float,
    upscaling_factor: float,
    downscaling_factor: float,
    min_replicas: int,
    max_replicas: int,
    gang_size: int = 1,
) -> tuple[float, float, float, float]:
    """What ``decide_target`` is going to wish, told from the requests alone: the arguments are those of the same names.

    Returns:
        Up to the first number of requests it wishes fewer replicas, from the second to the third as many, from the
        fourth on more, so that nothing but the wish changes before its delay is over. In between, and where a number
        is NaN, that would be hard to say.
    """
    hard = math.nan
    if gang_size > 1 or target < min_replicas or target > max_replicas:
        return hard, hard, hard, hard
    if running == 0:
        return hard, -math.inf, 0.0 if target == 0 else hard, hard
    if upscaling_factor != 1.0 or downscaling_factor != 1.0 or target == 0:
        return hard, hard, hard, hard
    margin = _MARGIN * (1 + max(running, target))
    # No requests ask for no replicas, exactly; any others for as many as the next whole number.
    down = 0.0 if target == 1 else target - 1 - margin
    return (
        down * target_ongoing,
        (target - 1 + margin) * target_ongoing,
        (target - margin) * target_ongoing,
        (target + margin) * target_ongoing,
    )
