"""Rules ported from Ray Serve, beside Ray's own classes on random states: the comparisons of ``tests/ray_oracle``.

``tests/policies/test_ray_serve.py`` does the same for compaction, ``test_node_autoscaler.py`` for launches.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.strategies import integers

from rayfold.envs.placement import let_go
from rayfold.envs.replica_autoscaler import decide_target
from rayfold.envs.state import ClusterState, ReplicaPhase
from tests.ray_oracle import autoscaling, draining, gangs, ours, placement
from tests.ray_oracle.table import COMPARISONS
from tests.ray_oracle.tally import Comparison

SEED = 202
PORT: autoscaling.Rule = decide_target


@pytest.mark.parametrize("comparison", COMPARISONS, ids=lambda c: c.run.__name__)
def test_every_row_of_the_table_on_other_seeds(comparison: Comparison) -> None:
    """Eight seeds that hypothesis chooses, sixty states each: nothing differs without the reason that the row names."""

    @settings(max_examples=8, deadline=None, derandomize=True, database=None)
    @given(seed=integers(0, 2**32 - 1))
    def agrees(seed: int) -> None:
        tally = comparison.run(60, seed)
        assert tally.mismatches == ()
        assert bool(comparison.explained_by) or tally.num_explained == 0

    agrees()


def test_placement_is_rays() -> None:
    """1,000 batches of pending replicas: nodes, order, ties, labels, limits per node."""
    assert placement.pack(1000, SEED).mismatches == ()


def test_placement_with_shares_of_devices_is_rays_where_a_device_has_room() -> None:
    """1,500 batches; only where Ray adds up shares of several devices does the port go elsewhere, and that happens."""
    tally = placement.pack_shares(1500, SEED)
    assert tally.mismatches == ()
    assert 0 < tally.num_explained < 0.1 * tally.num_states


def test_replicas_to_stop_are_rays() -> None:
    """1,500 downscales by one to four replicas: the same ones, ties included."""
    assert placement.replicas_to_stop(1500, SEED).mismatches == ()


def test_targets_are_rays() -> None:
    """200 days of 50 decisions under all settings of the default policy."""
    assert autoscaling.decisions(10_000, SEED).mismatches == ()


def test_the_look_back_mean_is_rays() -> None:
    """60 days of reports by up to three routers: the same mean, to the last bit that matters, and the same targets."""
    assert autoscaling.look_back(3000, SEED).mismatches == ()


def test_a_period_that_begins_idle_is_shorter_to_ray() -> None:
    """Ray's mean starts with the first request of the period: known, and nothing else differs."""
    tally = autoscaling.look_back_from_idle(3000, SEED)
    assert tally.mismatches == ()
    assert tally.num_explained > 300


def _swapped(*a: Any) -> tuple[int, float, int]:
    return PORT(*a[:9], a[10], a[9], *a[11:])


def _one_delay_for_all(*a: Any) -> tuple[int, float, int]:
    return PORT(*a[:11], a[10], *a[12:])


def _no_factors(*a: Any) -> tuple[int, float, int]:
    return PORT(*a[:7], 1.0, 1.0, *a[9:])


def _forgetful(*a: Any) -> tuple[int, float, int]:
    return PORT(*a[:4], math.inf, 0, *a[6:])


def _unbounded(*a: Any) -> tuple[int, float, int]:
    return PORT(*a[:12], 0, 1000, *a[14:])


@pytest.mark.parametrize("rule", [_swapped, _one_delay_for_all, _no_factors, _forgetful, _unbounded])
def test_the_comparison_of_targets_can_fail(rule: autoscaling.Rule) -> None:
    """Each planted fault gives another target than Ray's somewhere."""
    assert autoscaling.decisions(2000, SEED, rule).mismatches != ()


def test_the_comparison_of_nodes_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Placed in order of rows in place of size, some replicas go elsewhere."""

    def one_by_one(state: ClusterState) -> dict[int, int]:
        st, chosen = state.arrays, {}  # type: Any, dict[int, int]
        waiting = [int(r) for r in np.flatnonzero(st.replica_phase == ReplicaPhase.PENDING)]
        st.replica_phase[waiting] = ReplicaPhase.EMPTY
        for r in waiting:
            st.replica_phase[r] = ReplicaPhase.PENDING
            chosen |= place(state)
        return chosen

    place = ours.place
    monkeypatch.setattr(ours, "place", one_by_one)
    assert placement.pack(300, SEED).mismatches != ()


def test_the_comparison_of_stops_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest of all in place of the newest on the emptiest node: seen."""

    def newest(state: ClusterState, d: int, count: int, serial: Any) -> list[int]:
        rows = np.flatnonzero(state.arrays.replica_deployment == d)[::-1][:count].tolist()
        for r in rows:
            let_go(state.spec.arrays, state.arrays, r, state.now_s)
        return [int(r) for r in rows]

    monkeypatch.setattr(ours, "stop", newest)
    assert placement.replicas_to_stop(300, SEED).mismatches != ()


def test_gangs_are_rays() -> None:
    """600 states with gangs on one node and on several: what is stopped, what is placed beside them, what stays."""
    for run in (gangs.gangs_to_stop, gangs.beside_gangs, gangs.node_without_gang):
        assert run(600, SEED).mismatches == ()


def test_targets_of_gangs_are_rays() -> None:
    """100 days of 50 decisions, in whole gangs."""
    assert autoscaling.gang_decisions(5000, SEED).mismatches == ()


def _in_gangs(*a: Any) -> tuple[int, float, int]:
    size = a[14]
    target, *wish = PORT(
        a[0], a[1], a[2] // size, a[3] // size, *a[4:6], a[6] * size, *a[7:12], a[12] // size, a[13] // size
    )
    return target * size, *wish


@pytest.mark.parametrize("rule", [_in_gangs, _unbounded])
def test_the_comparison_of_targets_of_gangs_can_fail(rule: autoscaling.Rule) -> None:
    """To take a gang for a replica gives other targets: Serve's wish is for replicas, and rounded up last."""
    assert autoscaling.gang_decisions(2000, SEED, rule).mismatches != ()


def test_the_comparison_of_gangs_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gang that counts as one replica, on the node of its first member, is seen in what stops."""

    def as_one(state: ClusterState, *a: Any) -> list[int]:
        state.spec.arrays.gang_size[:] = 1
        return stop(state, *a)

    stop = ours.stop
    monkeypatch.setattr(ours, "stop", as_one)
    assert gangs.gangs_to_stop(300, SEED).mismatches != ()


def test_nodes_that_drain_are_rays() -> None:
    """500 batches beside draining nodes, and 700 updates of clusters with notices: nodes, stops, replacements."""
    assert draining.placement(500, SEED).mismatches == ()
    assert draining.migrations(700, SEED).mismatches == ()


def _all_at_once(look: draining.Look) -> draining.Look:
    return look._replace(end_s=np.where(np.isfinite(look.end_s), look.state.now_s + 60.0, np.inf))


def _one_more(look: draining.Look) -> draining.Look:
    return look._replace(target=look.target + 1)


def _no_notice(look: draining.Look) -> draining.Look:
    return look._replace(notice_s=np.full_like(look.notice_s, np.inf))


@pytest.mark.parametrize("fault", [_all_at_once, _one_more, _no_notice])
def test_the_comparison_of_nodes_that_drain_can_fail(
    fault: Callable[[draining.Look], draining.Look], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deadlines that are not told apart, another target, a notice that is not heard: each is seen."""
    decide = draining.our_outcome
    monkeypatch.setattr(draining, "our_outcome", lambda look: decide(fault(look)))
    assert draining.migrations(200, SEED).mismatches != ()
