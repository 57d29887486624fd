"""When the exact planner begins: the rule by hand, the policy beside ``exact`` itself, and the file of a bundle."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from rayfold.envs.scenario import Split, load_scenario
from rayfold.envs.state import NodePhase, ReplicaPhase
from rayfold.errors import InputError
from rayfold.policies.bundle import load_bundle, save_bundle
from rayfold.policies.by_name import make_policy, shipped_bundle
from rayfold.policies.exact import Exact, ExactSettings
from rayfold.policies.timing import BASE_S, FEATURES, MEMORY_S, TimedExact, Timing, TimingFeatures
from rayfold.policies.timing_file import TimingCard, TrainedTiming
from rayfold.training.episode_result import run_episode
from tests.envs.clusters import add_replica
from tests.policies.test_exact_program import LIMITS, ONE, TWO, cluster

CALM = TimingFeatures(0.0, 0.0, 0.0)
CARD = TimingCard(scenarios=("smoke",), generations=1, episodes=6, seed=0)


def test_the_rule_by_hand() -> None:
    """300 s without weights; times e for a bias of one; short waits are none; an hour is about the longest."""
    assert Timing().quiet_s(CALM) == BASE_S
    assert Timing(1.0, (2.0, 0.0, -1.0)).quiet_s(TimingFeatures(-0.5, 9.0, 0.25)) == pytest.approx(
        BASE_S * math.exp(-0.25)
    )
    assert Timing(math.log(44.9 / BASE_S)).quiet_s(CALM) == 0.0
    assert Timing(math.log(45.1 / BASE_S)).quiet_s(CALM) == pytest.approx(45.1)
    assert Timing(50.0).quiet_s(CALM) == pytest.approx(BASE_S * math.exp(2.5))


def test_features_by_hand() -> None:
    """Two nodes at 4 USD, of which 3 of 8 GPUs are used: bound 1.5 of 8 USD; the head is not part of it."""
    state = cluster((0, (ONE, TWO)), (0, ()))
    spec = state.spec.arrays
    bound = float((spec.bound_usd_per_h[ONE] + spec.bound_usd_per_h[TWO]).max())
    bill = 2.0 * float(spec.type_price_usd_per_h[0])
    startup_s = float(spec.startup_s[[ONE, TWO]].mean())
    policy = TimedExact(Timing(), LIMITS)
    features = policy.features(state)
    assert features.waste == pytest.approx((1.0 - bound / bill - 0.2) / 0.1)
    assert features.log_startup == pytest.approx(math.log(startup_s / 120.0))
    assert features.busy == pytest.approx(0.4)  # half of the time, as long as nothing is known
    state.arrays.node_is_head[1] = True
    assert policy.features(state).waste == pytest.approx((1.0 - bound / (bill / 2.0) - 0.2) / 0.1)


def test_busy_fades_with_time_not_with_ticks() -> None:
    """An hour of calm leaves 1/e of it, in one look or in sixty; a booting node is busy, a replacement is not."""
    calm = cluster((0, (ONE, ONE)), (0, (ONE,)))
    for ticks in (1, 60):
        policy = TimedExact(Timing(), LIMITS)
        for i in range(ticks + 1):
            policy._look(dataclasses.replace(calm, now_s=MEMORY_S * i / ticks))
        assert policy._busy_frac == pytest.approx(0.5 / math.e)
    policy = TimedExact(Timing(), LIMITS)
    policy._look(calm)
    new = add_replica(calm, ONE, 1, phase=ReplicaPhase.STARTING)
    calm.arrays.replica_peer[new] = 0
    policy._look(dataclasses.replace(calm, now_s=calm.now_s + 60.0))
    assert policy._busy_frac < 0.5
    calm.arrays.node_phase[2], calm.arrays.node_type[2] = NodePhase.BOOTING, 0
    before = policy._busy_frac
    policy._look(dataclasses.replace(calm, now_s=calm.now_s + 120.0))
    assert policy._busy_frac > before


def test_without_weights_it_is_exact_with_that_wait() -> None:
    """Two routes: the same bill and the same moves, tick by tick, as ``exact(quiet_s=300)``."""
    scenario = load_scenario("low_scale", Path("traces"), synthetic=True)
    scenario = scenario.with_horizon(2 * 3600.0)
    fixed = Exact(scenario.limits, ExactSettings(quiet_s=BASE_S))
    for seed in range(2):
        one = run_episode(scenario, TimedExact(Timing(), scenario.limits), seed, Split.TRAIN).metrics
        two = run_episode(scenario, fixed, seed, Split.TRAIN).metrics
        assert {k: v for k, v in one.items() if "ms" not in k} == {k: v for k, v in two.items() if "ms" not in k}


def test_reset_forgets() -> None:
    """The same state after a busy hour and a reset: the same plan as that of a fresh policy."""
    state = cluster((0, (ONE, ONE)), (0, (ONE,)))
    policy = TimedExact(Timing(), LIMITS)
    new = add_replica(state, ONE, 1, phase=ReplicaPhase.STARTING)
    assert not policy.plan(state, np.random.default_rng(0)).moves
    state.arrays.replica_phase[new] = ReplicaPhase.RUNNING
    assert not policy.plan(state, np.random.default_rng(0)).moves
    policy.reset()
    fresh = TimedExact(Timing(), LIMITS).plan(state, np.random.default_rng(0))
    assert fresh.moves
    assert policy.plan(state, np.random.default_rng(0)) == fresh


def test_a_bundle_keeps_it(tmp_path: Path) -> None:
    """What is written is read; ``learned`` of such a bundle is the timed planner; a bundle without one has none."""
    shipped = load_bundle(shipped_bundle())
    trained = TrainedTiming(timing=Timing(0.1, (-1.0, 0.25, 1e-9)), card=CARD)
    save_bundle(tmp_path / "b", shipped.net, shipped.card, trained)
    assert load_bundle(tmp_path / "b").timing == trained
    policy = make_policy("learned", LIMITS, bundle=tmp_path / "b")
    assert isinstance(policy, TimedExact)
    assert (policy.timing, policy.name) == (trained.timing, "learned")
    save_bundle(tmp_path / "b", shipped.net, shipped.card)
    assert load_bundle(tmp_path / "b").timing is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": 9}, "format"),
        ({"features": [*FEATURES, "more"]}, "features"),
        ({"rule": {"bias": "x", "weights": [0, 0, 0]}}, "rule and training"),
        ({"rule": {"bias": 0.0, "weights": [0.0, 0.0]}}, "rule and training"),
        ({"rule": {"bias": math.nan, "weights": [0.0, 0.0, 0.0]}}, "finite"),
        ({"training": {}}, "rule and training"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, change: dict[str, object], told: str) -> None:
    """One line that names the file."""
    shipped = load_bundle(shipped_bundle())
    save_bundle(tmp_path / "b", shipped.net, shipped.card, TrainedTiming(timing=Timing(), card=CARD))
    file = tmp_path / "b" / "timing.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=told) as caught:
        load_bundle(tmp_path / "b")
    assert "timing.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_json_is_refused(tmp_path: Path) -> None:
    """Cut in the middle."""
    shipped = load_bundle(shipped_bundle())
    save_bundle(tmp_path / "b", shipped.net, shipped.card, TrainedTiming(timing=Timing(), card=CARD))
    file = tmp_path / "b" / "timing.json"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(InputError, match="JSON"):
        load_bundle(tmp_path / "b")
