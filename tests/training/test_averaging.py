"""The average of weights, by hand and through a file."""

from pathlib import Path

import pytest
import torch

from rayfold.policies.network import CompactionNet, NetworkConfig
from rayfold.training.averaging import WeightAverage


def constant(value: float) -> CompactionNet:
    """Every weight is the same."""
    net = CompactionNet(NetworkConfig(dim=4, heads=1))
    with torch.no_grad():
        for weight in net.parameters():
            weight.fill_(value)
    return net


def only_weight(net: CompactionNet) -> float:
    """Of a network whose weights are all the same."""
    (value,) = {float(x) for weight in net.state_dict().values() for x in weight.flatten()}
    return value


def test_by_hand() -> None:
    """Shares 1, 4/5, 4/6: 1, then 1 + 0.8 * 1 = 1.8, then 1.8 + 2/3 * 1.2 = 2.6; what it began with does not count."""
    average = WeightAverage(constant(100.0))
    seen = []
    for value in (1.0, 2.0, 3.0):
        average.add(constant(value))
        seen.append(only_weight(average.net()))
    assert seen == pytest.approx([1.0, 1.8, 2.6])


def test_it_reaches_back_over_a_fifth_of_the_run() -> None:
    """Of weights that grow evenly, it lies a fifth of the way behind the last ones, however many there were."""
    for count in (200, 1000):
        average = WeightAverage(constant(0.0))
        for k in range(count):
            average.add(constant((k + 1) / count))
        assert only_weight(average.net()) == pytest.approx(0.8, abs=0.01)


def test_it_gives_copies() -> None:
    """Nothing that was given out or taken in changes with it."""
    first = constant(1.0)
    average = WeightAverage(first)
    average.add(constant(2.0))
    given = average.net()
    average.add(constant(5.0))
    assert (only_weight(first), only_weight(given)) == (1.0, 2.0)


def test_through_a_file_it_goes_on_alike(tmp_path: Path) -> None:
    """As if it had not been interrupted."""
    whole = WeightAverage(constant(0.0))
    for value in (1.0, 2.0):
        whole.add(constant(value))
    whole.save(tmp_path / "average.safetensors")
    resumed = WeightAverage(constant(7.0))
    resumed.load(tmp_path / "average.safetensors", 2)
    for average in (whole, resumed):
        average.add(constant(3.0))
    assert only_weight(resumed.net()) == only_weight(whole.net()) == pytest.approx(2.6)
