"""The limit of effort: the same end of a search, whatever the clock says."""

import numpy as np
import pytest

from rayfold.policies.mip import INFINITY, Mip


def bin_packing(seed: int, num_items: int = 40) -> Mip:
    """Items of 20 to 60 in as few bins of 100 as can be; not solved within seconds."""
    rng, mip = np.random.default_rng(seed), Mip()
    opened = [mip.column(1.0, 1.0 + 0.01 * j) for j in range(num_items)]
    placed = [[mip.column(1.0) for _ in opened] for _ in range(num_items)]
    size = rng.integers(20, 60, num_items)
    for item in placed:
        mip.row([(column, 1.0) for column in item], low=1.0, high=1.0)
    for j, bin_ in enumerate(opened):
        mip.row([(placed[i][j], float(size[i])) for i in range(num_items)] + [(bin_, -100.0)], high=0.0)
    return mip


@pytest.mark.parametrize("max_effort", [20_000.0, 60_000.0])
def test_a_search_ends_at_the_same_point(max_effort: float) -> None:
    """Twice the same columns, bound and effort, far from the time limit; beyond the limit by a few questions."""
    first, again = (bin_packing(0, 20).solve(time_limit_s=300.0, max_effort=max_effort) for _ in range(2))
    assert first.values is not None
    assert again.values is not None
    assert not first.is_optimal
    assert first.values.tolist() == again.values.tolist()
    assert first[1:] == again[1:]
    assert max_effort < first.effort <= max_effort + 10 * (20 + 20 * 20)


def test_more_effort_is_no_worse() -> None:
    """And without a limit a small one is solved."""
    found = [bin_packing(1, 10).solve(time_limit_s=60.0, max_effort=e) for e in (1000.0, 4000.0, INFINITY)]
    assert found[0].objective >= found[1].objective >= found[2].objective
    assert found[2].is_optimal


def test_no_effort_at_all() -> None:
    """The first question ends it; what is found until then may be nothing."""
    found = bin_packing(0).solve(time_limit_s=60.0, max_effort=0.0)
    assert not found.is_optimal
    assert found.effort == 40 + 40 * 40
