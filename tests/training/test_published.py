"""Published figures: each by hand on made-up episodes."""

from dataclasses import replace

import numpy as np
import pytest

from rayfold.training.published import (
    instance_change_frac,
    low_scale_savings_frac,
    published,
    tokens_gain_frac,
)
from tests.training.made_up import made_up, result


def test_tokens_by_hand() -> None:
    """100 and 110 tokens per GPU-second: the published 10 %."""
    evaluation = made_up({"none": (result(tokens_per_gpu_s=100.0),), "p": (result(tokens_per_gpu_s=110.0),)})
    assert tokens_gain_frac(evaluation, "p") == pytest.approx(0.10)


def test_instances_by_hand() -> None:
    """Nodes in proportion to traffic: +11.2 % traffic is about +11.2 % nodes without, and a tenth fewer with."""
    traffic = np.linspace(1.0, 1.25, 6)
    none = tuple(result(offered_request_s=t, node_hours=t) for t in traffic)
    tenth = tuple(result(offered_request_s=t, node_hours=0.9 * t) for t in traffic)
    evaluation = made_up({"none": none, "p": tenth})
    assert instance_change_frac(evaluation, "none") == pytest.approx(0.112)
    assert instance_change_frac(evaluation, "p") == pytest.approx(0.9 * 1.112 - 1.0)


def test_instances_need_traffic_that_grows_so_much() -> None:
    """Where no episode has 11.2 % more than another nothing is said."""
    flat = tuple(result(offered_request_s=t, node_hours=1.0) for t in (1.0, 1.01, 1.02))
    assert np.isnan(instance_change_frac(made_up({"none": flat}), "none"))
    assert np.isnan(instance_change_frac(made_up({"none": flat[:2]}), "none"))


def test_low_scale_by_hand() -> None:
    """Of three ticks the last needs the fewest nodes: 2 without, 1 with, half is saved in the better episode."""
    none = result()
    better = replace(none, num_nodes=np.array([4, 3, 1]))
    evaluation = made_up({"none": (none, none), "p": (none, better)})
    assert low_scale_savings_frac(evaluation, "p").tolist() == [0.0, 0.5]
    assert low_scale_savings_frac(evaluation, "none").tolist() == [0.0, 0.0]
    assert [row["policies"]["p"] for row in published(evaluation)[2:]] == [0.5, 0.25]


def test_the_table_has_every_policy() -> None:
    """Null where a figure is not defined; without ``none`` there is no table."""
    rows = published(made_up({"none": (result(tokens_per_gpu_s=1.0),), "p": (result(tokens_per_gpu_s=1.5),)}))
    assert [row["published_frac"] for row in rows] == [0.10, -0.037, 0.50, 0.50]
    assert [row["policies"]["p"] for row in rows] == [0.5, None, 0.0, 0.0]
    assert published(made_up({"p": (result(),)})) == []
