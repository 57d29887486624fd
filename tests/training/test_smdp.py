"""Semi-MDP advantages against RLlib's own and against numbers computed by hand."""

import numpy as np
import pytest
from numpy.typing import NDArray
from ray.rllib.utils.postprocessing.value_predictions import compute_value_targets

from rayfold.envs.layout import DT_INDEX, ObsLayout
from rayfold.training.imitation import discounted_returns
from rayfold.training.smdp import smdp_advantages


def chunks(rng: np.random.Generator, lengths: list[int]) -> tuple[NDArray[np.float32], ...]:
    """Random values and rewards, flags as RLlib sets them: some chunks terminate, the others are truncated."""
    size = sum(lengths) + len(lengths)
    values, rewards = rng.normal(size=(2, size)).astype(np.float32)
    terminated, truncated, is_step = np.zeros((3, size), np.float32)
    end = 0
    for i, length in enumerate(lengths):
        is_step[end : end + length] = 1
        (terminated if i % 3 == 0 else truncated)[end + length - 1] = 1
        end += length + 1
    rewards[is_step == 0] = 0
    return values, rewards, terminated, truncated, is_step


@pytest.mark.parametrize("lambda_", [0.0, 0.9, 1.0])
def test_with_dt_one_it_is_rllibs_gae(lambda_: float) -> None:
    """With dt = 1 everywhere the advantages are those of RLlib on every real step."""
    values, rewards, terminated, truncated, is_step = chunks(np.random.default_rng(0), [5, 1, 7, 3, 1, 4])
    ours = smdp_advantages(
        values, rewards, terminated > 0, truncated > 0, is_step > 0, np.ones_like(values), 0.95, lambda_
    )
    targets = compute_value_targets(values, rewards, terminated, truncated, 0.95, lambda_)
    real = is_step > 0
    np.testing.assert_allclose(ours[real], (targets - values)[real], rtol=1e-5, atol=1e-5)
    assert (ours[~real] == 0).all()


def test_with_dt_zero_it_is_not() -> None:
    """The comparison above can fail: other dt, other advantages."""
    values, rewards, terminated, truncated, is_step = chunks(np.random.default_rng(0), [5, 7])
    flags = (terminated > 0, truncated > 0, is_step > 0)
    one = smdp_advantages(values, rewards, *flags, np.ones_like(values), 0.95, 0.9)
    zero = smdp_advantages(values, rewards, *flags, np.zeros_like(values), 0.95, 0.9)
    assert np.abs(one - zero).max() > 0.01


def test_by_hand() -> None:
    """Move, NOOP, NOOP, cut: gamma applies to the NOOPs only.

    gamma = 0.5, lambda = 0.5, V = 1 2 3 | 4, r = -1 -2 -3, dt = 0 1 1.
    delta_2 = -3 + 0.5 * 4 - 3 = -4;  delta_1 = -2 + 0.5 * 3 - 2 = -2.5;  delta_0 = -1 + 1 * 2 - 1 = 0.
    A_2 = -4;  A_1 = -2.5 + 0.5 * 0.5 * -4 = -3.5;  A_0 = 0 + 1 * 0.5 * -3.5 = -1.75.
    """
    got = smdp_advantages(
        np.array([1, 2, 3, 4], np.float32),
        np.array([-1, -2, -3, 0], np.float32),
        np.zeros(4, np.bool_),
        np.array([False, False, True, False]),
        np.array([True, True, True, False]),
        np.array([0, 1, 1, 0], np.float32),
        0.5,
        0.5,
    )
    np.testing.assert_allclose(got, [-1.75, -3.5, -4.0, 0.0])


def test_a_useless_free_move_gains_nothing() -> None:
    """With true values, putting free moves before a NOOP leaves the advantage at 0; a plain discount rewards them."""
    gamma = 0.9
    value = -1.0 / (1.0 - gamma)  # every NOOP costs 1, for ever
    values = np.full(4, value, np.float32)
    rewards = np.array([0, 0, -1, 0], np.float32)
    truncated, is_step = np.array([False, False, True, False]), np.array([True, True, True, False])
    none = np.zeros(4, np.bool_)
    semi = smdp_advantages(values, rewards, none, truncated, is_step, np.array([0, 0, 1, 0], np.float32), gamma, 0.95)
    plain = smdp_advantages(values, rewards, none, truncated, is_step, np.ones(4, np.float32), gamma, 0.95)
    np.testing.assert_allclose(semi, 0.0, atol=1e-5)
    assert plain[0] > 0.9


def test_dt_is_read_from_where_the_layout_has_it() -> None:
    """The index in the flat observation is that of ``global[dt_intervals]`` for any layout."""
    layout = ObsLayout(3, 2, 1)
    flat = np.arange(layout.size, dtype=np.float32)
    assert layout.split(flat)["global"][0] == flat[DT_INDEX]


def test_discounted_returns_by_hand() -> None:
    """Returns of the warm start: dt = 0 1 1, gamma = 0.5; the last has too little time left to count."""
    got = discounted_returns(np.array([-1.0, -2.0, -4.0]), np.array([0.0, 1.0, 1.0]), 0.5, min_left=1.5)
    np.testing.assert_allclose(got, [-5.0, -4.0, np.nan])
