"""The ledger's derived figures, by hand, and the two routes by which an episode's figures can be had."""

import numpy as np
import pytest

from rayfold.envs.initial_state import initial_state
from rayfold.envs.ledger import Entry, Ledger
from rayfold.envs.safety import Limits
from rayfold.envs.simulator import Simulator
from tests.envs.clusters import constant_traffic, small_spec


def reading(**values: float) -> Ledger:
    """A ledger with these entries, by lower-case name."""
    array = Ledger.zeros()
    for name, value in values.items():
        array[Entry[name.upper()]] = value
    return Ledger(values=array)


def test_derived_figures_by_hand() -> None:
    """10 + 2 + 3 USD against a bound of 12 USD; 7200 tokens in two GPU hours."""
    ledger = reading(cost_usd=10.0, disruption_usd=2.0, unserved_usd=3.0, bound_usd=12.0, gpu_h=2.0, tokens=7200.0)
    assert ledger.total_usd == 15.0
    assert ledger.excess_frac == pytest.approx(0.25)
    assert ledger.tokens_per_gpu_s == pytest.approx(1.0)


def test_nothing_yet_is_zero_and_not_an_error() -> None:
    """Before time has passed there is no bound and no GPU hour to divide by."""
    assert set(reading().metrics().values()) == {0.0}


def test_metrics_name_every_entry_once() -> None:
    """Each entry under its own name, with a value of its own, beside the three derived figures."""
    values = {entry.name.lower(): 1.0 + entry for entry in Entry}
    metrics = reading(**values).metrics()
    assert {name: metrics[name] for name in values} == values
    assert set(metrics) - set(values) == {"total_usd", "excess_frac", "tokens_per_gpu_s"}
    assert sorted(int(entry) for entry in Entry) == list(range(len(Ledger.zeros())))


def test_a_reading_does_not_follow_the_simulator() -> None:
    """An hour of a steady cluster, by hand; a reading taken before stays what it was."""
    spec = small_spec()
    spec.arrays.min_replicas[:] = 0
    spec.arrays.type_max_nodes[:] = (5, 0)  # Ray's score would take two gold nodes
    num_steps = 720
    traffic = constant_traffic(spec, {"one": 6.0}, num_steps)
    rng = np.random.default_rng(0)
    sim = Simulator(initial_state(spec, traffic, rng), traffic, Limits(), rng)
    before = sim.ledger()
    sim.advance(num_steps)
    after = sim.ledger()
    assert before.total_usd == 0.0
    # Three replicas of one GPU on one node of four GPUs at 4 USD/h, 6 requests of 10 tokens/s each.
    want = {"cost_usd": 4.0, "bound_usd": 3.0, "relaxed_bound_usd": 3.0, "node_h": 1.0, "gpu_h": 4.0}
    want |= {"tokens": 216_000.0, "elapsed_s": 3600.0}
    metrics = after.metrics()
    for name, value in want.items():
        assert metrics.pop(name) == pytest.approx(value), name
    assert metrics.pop("total_usd") == pytest.approx(4.0)
    assert metrics.pop("excess_frac") == pytest.approx(1 / 3)
    assert metrics.pop("tokens_per_gpu_s") == pytest.approx(15.0)
    assert set(metrics.values()) == {0.0}
