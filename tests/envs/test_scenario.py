"""Scenarios: what is shipped, how episodes are drawn from it, and where days are split."""

import csv
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from rayfold.envs.cluster import PlacementGroupStrategy
from rayfold.envs.initial_state import initial_state
from rayfold.envs.scenario import Scenario, Split, load_scenario
from rayfold.envs.scenario_file import shipped_scenarios
from rayfold.envs.simulator import Simulator
from rayfold.envs.state import NodePhase
from rayfold.envs.traffic import SLOW_MEAN_S
from rayfold.errors import InputError

SHARED_TRACES = Path(os.environ.get("RAYFOLD_TRACES", Path(__file__).parents[3] / "shared" / "traces"))
needs_traces = pytest.mark.skipif(
    not (SHARED_TRACES / "servegen_m-large_600s.csv.gz").is_file(), reason=f"no development traces in {SHARED_TRACES}"
)
HEADER = "t_s,series_id,requests,input_tokens,output_tokens\n"
DAY_BINS = 24  # of an hour


def _trace_scenario(folder: Path, horizon_s: int = 86400) -> Scenario:
    """One deployment on a 14-day trace whose rate in bin b is b + 1 requests per second, services of 1 s."""
    rows = [f"{3600 * b},s,{3600 * (b + 1)},1,{3600 * (b + 1) * 10}\n" for b in range(14 * DAY_BINS)]
    (folder / "ramp_3600s.csv").write_text(HEADER + "".join(rows))
    (folder / "ramp.yaml").write_text(
        f"""
description: A ramp.
horizon_s: {horizon_s}
settings: {{substep_s: 60, decision_interval_s: 600}}
traffic: {{traces: [ramp_3600s.csv]}}
node_types: [{{name: n, resources: {{GPU: 1}}, price_usd_per_h: 1}}]
deployments:
  - name: d
    shape: {{bundles: [{{GPU: 1}}]}}
    requests: {{series: s, ttft_s: 0.5, tpot_s: 0.05, burstiness_cv: 1, generator: {{kind: steady, mean_rps: 5}}}}
"""
    )
    return load_scenario(folder / "ramp.yaml")


@pytest.mark.parametrize("name", shipped_scenarios())
def test_shipped_scenarios_load_and_sample_without_traces(name: str) -> None:
    """Each has a description, works on generated traffic alone and fits its own cluster."""
    scenario = load_scenario(name, synthetic=True)
    spec = scenario.spec
    assert scenario.name == name
    assert scenario.description.endswith(".")
    assert scenario.is_synthetic
    assert scenario.traffic_name == "generated"
    spans = spec.arrays.can_span[:, None] & spec.arrays.bundle_fits_type
    assert (spec.arrays.fits_type | spans).any(1).all()
    traffic = scenario.sample(np.random.default_rng(0), Split.TRAIN)
    num_steps = round(scenario.horizon_s / spec.settings.substep_s)
    assert traffic.num_steps == num_steps
    assert traffic.ongoing.shape == (traffic.num_before + num_steps, spec.num_deployments)
    assert traffic.num_before >= traffic.window.max()
    assert np.isfinite(traffic.ongoing).all()
    assert (traffic.ongoing >= 0).all()
    assert (traffic.ongoing.mean(0) > 0).any()


def test_the_issues_scenarios_are_shipped() -> None:
    """By name."""
    assert {"llm_api", "local_demo", "low_scale", "smoke", "two_node"} <= set(shipped_scenarios())


@pytest.mark.parametrize("split", list(Split))
@pytest.mark.parametrize("name", ["smoke", "llm_api"])
def test_same_seed_same_traffic(name: str, split: Split) -> None:
    """Bit-equal from equal generators; the split changes the stream; one draw is taken from the generator."""
    scenario = load_scenario(name, synthetic=True).with_horizon(3600.0)
    rngs = [np.random.default_rng(5), np.random.default_rng(5)]
    a, b = (scenario.sample(rng, split) for rng in rngs)
    np.testing.assert_array_equal(a.ongoing, b.ongoing)
    assert rngs[0].integers(2**63) == rngs[1].integers(2**63)
    other = Split.VALIDATION if split is Split.TRAIN else Split.TRAIN
    assert not np.array_equal(a.ongoing, scenario.sample(np.random.default_rng(5), other).ongoing)
    assert not np.array_equal(a.ongoing, scenario.sample(np.random.default_rng(6), split).ongoing)


@pytest.mark.parametrize(("split", "first_day"), [(Split.TRAIN, 0), (Split.VALIDATION, 7)])
def test_episodes_stay_within_their_days(tmp_path: Path, split: Split, first_day: int) -> None:
    """On a trace whose rate tells the bin, every episode is a run of whole bins within its split's days."""
    scenario = _trace_scenario(tmp_path)
    firsts = []
    for seed in range(60):
        traffic = scenario.sample(np.random.default_rng(seed), split)
        assert traffic.num_steps == 1440
        hourly = (
            traffic.ongoing[traffic.num_before :, 0].reshape(24, 60).mean(1)
        )  # about the bin number + 1, +- sqrt(338 / 60)
        first = round(float(np.mean(hourly - np.arange(24))) - 1)
        np.testing.assert_allclose(hourly, first + 1 + np.arange(24), atol=5 * np.sqrt(400 / 60))
        firsts.append(first)
    low, high = first_day * DAY_BINS, (first_day + 7) * DAY_BINS - 24
    assert low - 2 <= min(firsts) <= low + 30
    assert high - 30 <= max(firsts) <= high + 2


def test_source_draws_whole_bins_of_its_split(tmp_path: Path) -> None:
    """The exact rates: consecutive, and never across the border at day 7."""
    source = _trace_scenario(tmp_path).source
    for split, bins in ((Split.TRAIN, range(168)), (Split.VALIDATION, range(168, 336))):
        seen = set()
        for seed in range(300):
            drawn = source.rates(np.random.default_rng(seed), split, 6.5 * 86400.0)
            rates = drawn.rates_rps[:, 0]
            assert drawn.start_s == (rates[0] - 1) * 3600.0 % 86400.0  # the rate tells the hour of the trace
            assert (np.diff(rates) == 1.0).all()
            assert len(rates) == 156
            seen.add(int(rates[0]) - 1)
            assert int(rates[-1]) - 1 in bins
        assert seen == set(bins[: 168 - 156 + 1])


def test_trace_tells_tokens_and_service_time(tmp_path: Path) -> None:
    """Ten tokens a request in the trace: 0.5 + 10 * 0.05 = 1 s of service."""
    requests = _trace_scenario(tmp_path).requests
    np.testing.assert_allclose(requests.tokens_per_request, [10.0])
    np.testing.assert_allclose(requests.service_s, [1.0])


def test_with_horizon(tmp_path: Path) -> None:
    """Shorter episodes keep all else; a length that cannot be is refused."""
    scenario = _trace_scenario(tmp_path)
    short = scenario.with_horizon(1200.0)
    assert short.horizon_s == 1200.0
    assert short.spec is scenario.spec
    assert short.sample(np.random.default_rng(0), Split.TRAIN).num_steps == 20
    for bad in (0.0, -600.0, 900.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="multiple of the decision interval 600 s"):
            scenario.with_horizon(bad)
    with pytest.raises(InputError, match="at most 604800 s"):
        scenario.with_horizon(8 * 86400.0)


def test_pickled_scenario_draws_the_same(tmp_path: Path) -> None:
    """RLlib sends scenarios to its workers: a copy draws equal traffic."""
    for scenario in (_trace_scenario(tmp_path), load_scenario("smoke")):
        copy = pickle.loads(pickle.dumps(scenario))
        a, b = (s.sample(np.random.default_rng(1), Split.TRAIN) for s in (scenario, copy))
        np.testing.assert_array_equal(a.ongoing, b.ongoing)


def _fleet(scenario: Scenario, split: Split, seed: int) -> tuple[float, int, int]:
    """Mean, smallest and largest number of nodes in an episode without moves."""
    rng = np.random.default_rng(seed)
    traffic = scenario.sample(rng, split)
    sim = Simulator(initial_state(scenario.spec, traffic, rng), traffic, scenario.limits, rng)
    counts = []
    while sim.num_steps_left >= 12:
        sim.advance(12)
        counts.append(int((sim.view.arrays.node_phase != NodePhase.ABSENT).sum()))
    return float(np.mean(counts)), min(counts), max(counts)


@pytest.mark.parametrize(
    ("synthetic", "split"),
    [
        (True, Split.TRAIN),
        pytest.param(False, Split.TRAIN, marks=needs_traces),
        pytest.param(False, Split.VALIDATION, marks=needs_traces),
    ],
)
def test_llm_api_fleet_has_the_intended_size(synthetic: bool, split: Split) -> None:
    """About 10 to 16 nodes with a visible swing, and room below the largest number."""
    scenario = load_scenario("llm_api", None if synthetic else SHARED_TRACES, synthetic=synthetic)
    for seed in range(3):
        mean, low, high = _fleet(scenario, split, seed)
        assert 9 <= mean <= 17
        assert high - low >= 1
        assert high < scenario.spec.max_nodes


@needs_traces
def test_llm_api_uses_the_24_series_and_the_listed_prices() -> None:
    """Every series of the scenario list, every price and size as in ``instances.csv``."""
    scenario = load_scenario("llm_api", SHARED_TRACES)
    assert not scenario.is_synthetic
    assert "servegen_m-large_600s.csv.gz" in scenario.traffic_name
    with (SHARED_TRACES / "scenario_dev24_week1.csv").open() as f:
        wanted = {row["series_id"]: float(row["mean_rps"]) for row in csv.DictReader(f)}
    text = (Path(__file__).parents[2] / "envs" / "scenarios" / "llm_api.yaml").read_text()
    used = [line.split(": ")[1] for line in text.splitlines() if line.strip().startswith("series:")]
    scales = [float(line.split(": ")[1]) for line in text.splitlines() if line.strip().startswith("scale:")]
    assert set(used) == set(wanted)
    assert len(used) == scenario.spec.num_deployments == 24
    rates = scenario.source.rates(np.random.default_rng(0), Split.TRAIN, 7 * 86400.0).rates_rps.mean(0)
    np.testing.assert_allclose(rates, [wanted[s] * k for s, k in zip(used, scales, strict=True)], rtol=0.01)
    with (SHARED_TRACES / "instances.csv").open() as f:
        listed = {row["name"]: row for row in csv.DictReader(f)}
    for node_type in scenario.spec.node_types:
        row = listed[node_type.name]
        assert node_type.price_usd_per_h == float(row["on_demand_usd_h"])
        assert node_type.resources == {
            "GPU": float(row["gpu_count"]),
            "CPU": float(row["vcpu"]),
            "memory_gib": float(row["memory_gib"]),
        }


def test_llm_api_mixes_replica_sizes() -> None:
    """1 to 8 GPUs, mostly small, STRICT_PACK groups and H100-only models; Serve packs, and not with PACK groups."""
    spec = load_scenario("llm_api", synthetic=True).spec
    gpus = [int(d.shape.total("GPU")) for d in spec.deployments]
    assert set(gpus) == {1, 2, 4, 8}
    assert gpus.count(1) > len(gpus) / 2
    strategies = {d.shape.strategy for d in spec.deployments}
    assert strategies == {PlacementGroupStrategy.NONE, PlacementGroupStrategy.STRICT_PACK}
    assert spec.packs
    groups = load_scenario("llm_api_pack_groups", synthetic=True).spec
    assert {d.shape.strategy for d in groups.deployments} == {PlacementGroupStrategy.PACK}
    assert not groups.packs
    h100_only = [d for d in spec.deployments if d.label_selector]
    assert 0 < len(h100_only) <= 4


@pytest.mark.parametrize("seed", range(8))
def test_two_node_leaves_one_replica_alone(seed: int) -> None:
    """After three minutes, without moves, one node holds three replicas and the other one, whatever the seed."""
    scenario = load_scenario("two_node")
    rng = np.random.default_rng(seed)
    traffic = scenario.sample(rng, Split.TRAIN)
    sim = Simulator(initial_state(scenario.spec, traffic, rng), traffic, scenario.limits, rng)
    sim.advance(60)
    seen = []
    while sim.num_steps_left >= 12:
        sim.advance(12)
        nodes = sim.view.arrays.replica_node
        seen.append(tuple(sorted(np.bincount(nodes[nodes >= 0], minlength=2).tolist())))
    assert set(seen) == {(1, 3)}


@pytest.mark.parametrize("seed", range(4))
def test_low_scale_scales_a_down(seed: int) -> None:
    """A is busy, then quiet: its replicas go from more than five to one, B and C keep theirs."""
    scenario = load_scenario("low_scale")
    traffic = scenario.sample(np.random.default_rng(seed), Split.TRAIN)
    level = traffic.slow_mean(scenario.spec.settings.substep_s)
    weight = 1.0 - np.exp(-scenario.spec.settings.substep_s / SLOW_MEAN_S)
    slow = [level := level + weight * (row - level) for row in traffic.ongoing[traffic.num_before :]]
    wanted = np.ceil(np.array(slow) / scenario.spec.arrays.target_ongoing)
    assert wanted[0, 0] > 5
    assert wanted[:, 0].min() == 1
    assert (np.ptp(wanted[:, 1:], axis=0) <= 1).all()


@pytest.mark.parametrize("name", ["low_scale", "smoke", "local_demo"])
def test_compaction_has_something_to_do(name: str) -> None:
    """Without moves, half of the episodes or more pay for a node that is not needed, a tenth of the time or longer."""
    scenario = load_scenario(name)
    gpus = scenario.spec.arrays.demand[:, 0]
    num_wasteful = 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        traffic = scenario.sample(rng, Split.TRAIN)
        sim = Simulator(initial_state(scenario.spec, traffic, rng), traffic, scenario.limits, rng)
        wasteful = []
        while sim.num_steps_left >= 12:
            sim.advance(12)
            st = sim.view.arrays
            needed = np.ceil(gpus[st.replica_deployment[st.replica_deployment >= 0]].sum() / 4)
            wasteful.append(len(np.unique(st.replica_node[st.replica_node >= 0])) > needed)
        num_wasteful += np.mean(wasteful) >= 0.1
    assert num_wasteful >= 4
