"""GPU devices: what is taken comes back, a device is never oversold, and two halves are not a whole."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st_

from rayfold.envs.devices import NO_DEVICES, can_take_gpus, release_gpus, take_gpus

DEMANDS = [Fraction(d).limit_denominator(10) for d in ("0", "1/10", "1/4", "1/3", "1/2", "3/4", "1", "2", "4")]
Book = list[tuple[int, Fraction]]  # replicas held: devices and demand


def exact_free(num_gpus: int, held: Book) -> list[Fraction]:
    """Free fraction per device by exact arithmetic over what is held: the second route."""
    free = [Fraction(1)] * num_gpus
    for mask, demand in held:
        for g in range(num_gpus):
            if (mask >> g) & 1:
                free[g] -= demand if demand < 1 else 1
    return free


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    num_gpus=st_.integers(1, 8),
    actions=st_.lists(st_.tuples(st_.booleans(), st_.sampled_from(DEMANDS), st_.integers(0, 50)), max_size=80),
)
def test_take_and_release_keep_the_books(num_gpus: int, actions: list[tuple[bool, Fraction, int]]) -> None:
    """After any sequence: each device is what exact arithmetic says, and all is free once everything is given back."""
    gpu_free = np.zeros((2, 8))
    gpu_free[1, :num_gpus] = 1.0
    held: Book = []
    for takes, demand, pick in actions:
        if takes:
            free = exact_free(num_gpus, held)
            fits = sum(f == 1 for f in free) >= demand if demand >= 1 else max(free) >= demand
            assert can_take_gpus(gpu_free, 1, float(demand)) is bool(fits)
            before = gpu_free.copy()
            mask = take_gpus(gpu_free, 1, float(demand))
            assert (mask != NO_DEVICES) is bool(fits)
            if not fits:
                np.testing.assert_array_equal(gpu_free, before)
                continue
            assert mask.bit_count() == (0 if demand == 0 else max(1, int(demand)))
            held.append((mask, demand))
        elif held:
            mask, demand = held.pop(pick % len(held))
            release_gpus(gpu_free, 1, mask, float(demand))
        want = [float(f) for f in exact_free(num_gpus, held)]
        assert min(want) >= 0.0
        np.testing.assert_allclose(gpu_free[1], want + [0.0] * (8 - num_gpus), atol=1e-9)
    for mask, demand in held:
        release_gpus(gpu_free, 1, mask, float(demand))
    np.testing.assert_allclose(gpu_free[1], [1.0] * num_gpus + [0.0] * (8 - num_gpus), atol=1e-9)
    assert (gpu_free[0] == 0.0).all()


@pytest.mark.parametrize(
    ("free", "demand", "mask", "left"),
    [
        ((0.5, 0.5), 1.0, NO_DEVICES, (0.5, 0.5)),
        ((0.5, 1.0), 1.0, 0b10, (0.5, 0.0)),
        ((1.0, 0.5), 0.5, 0b10, (1.0, 0.0)),  # the fullest device that still holds it
        ((1.0, 0.4), 0.5, 0b01, (0.5, 0.4)),
        ((0.5, 0.5), 0.5, 0b01, (0.0, 0.5)),
        ((1.0, 1.0), 2.0, 0b11, (0.0, 0.0)),
        ((1.0, 0.9), 2.0, NO_DEVICES, (1.0, 0.9)),
        ((0.0, 0.0), 0.0, 0, (0.0, 0.0)),
    ],
)
def test_by_hand(free: tuple[float, float], demand: float, mask: int, left: tuple[float, float]) -> None:
    """Which devices are taken; half and half free is not one."""
    gpu_free = np.array([free])
    assert take_gpus(gpu_free, 0, demand) == mask
    assert gpu_free[0].tolist() == pytest.approx(list(left))


def test_ten_tenths_fill_a_device() -> None:
    """Sums of 0.1 are inexact in floating point; ten of them still fit, an eleventh does not."""
    gpu_free = np.ones((1, 1))
    masks = [take_gpus(gpu_free, 0, 0.1) for _ in range(11)]
    assert masks == [1] * 10 + [NO_DEVICES]
    for _ in range(10):
        release_gpus(gpu_free, 0, 1, 0.1)
    assert take_gpus(gpu_free, 0, 1.0) == 1
