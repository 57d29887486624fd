"""Random numbers of the kernels: the published generator, and the distributions they are turned into."""

import math

import numpy as np
import pytest

from rayfold.envs.draws import exponential, new_stream, uniform, unit

# First outputs of SplitMix64 for two seeds, as published with the reference implementation and in Rosetta Code.
KNOWN = {
    0: (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F),
    1234567: (6457827717110365317, 3203168211198807973, 9817491932198370423),
}


@pytest.mark.parametrize("seed", KNOWN)
def test_it_is_splitmix64(seed: int) -> None:
    """The 53 highest bits of the published outputs."""
    stream = np.array([seed], np.uint64)
    assert [unit(stream) for _ in range(3)] == [(z >> 11) * 2.0**-53 for z in KNOWN[seed]]


def test_streams_come_from_the_generator() -> None:
    """Equal seeds, equal streams; one draw is taken each time."""
    a, b = (np.random.default_rng(3) for _ in range(2))
    assert new_stream(a).tolist() == new_stream(b).tolist()
    assert new_stream(a).tolist() != new_stream(np.random.default_rng(3)).tolist()


def test_uniform_and_exponential() -> None:
    """Within bounds, with the mean and spread they should have; an interval without length is its end."""
    stream = new_stream(np.random.default_rng(0))
    draws = np.array([uniform(stream, 2.0, 5.0) for _ in range(20_000)])
    assert 2.0 <= draws.min() < 2.01
    assert 4.99 < draws.max() < 5.0
    assert draws.mean() == pytest.approx(3.5, abs=4 * 3.0 / math.sqrt(12 * 20_000))
    assert uniform(stream, 7.0, 7.0) == 7.0
    waits = np.array([exponential(stream, 40.0) for _ in range(20_000)])
    assert waits.min() >= 0.0
    assert waits.mean() == pytest.approx(40.0, abs=4 * 40.0 / math.sqrt(20_000))
    assert np.median(waits) == pytest.approx(40.0 * math.log(2.0), rel=0.05)
