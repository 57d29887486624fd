"""Units: run once, kept, never stale; the same figures here and as Ray tasks."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import rayfold
from rayfold.envs.scenario import Scenario, Split, load_scenario
from rayfold.errors import InputError
from rayfold.policies.best_of_plans import BestOfPlans, SearchSettings
from rayfold.policies.by_name import shipped_bundle
from rayfold.training import unit_store, units
from rayfold.training.audit import check_causal
from rayfold.training.evaluation import Evaluation
from rayfold.training.policy_choice import PolicyChoice
from rayfold.training.unit_store import UnitStore, scenario_digest, unit_key
from rayfold.training.units import Unit, evaluate_units
from rayfold.training.workers import HERE, Workers

POLICIES = (PolicyChoice(name="none"), PolicyChoice(name="best_fit"))


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What is really run."""
    told: list[tuple[str, int]] = []
    run = units._run

    def note(shared: tuple[Scenario, Split], unit: Unit) -> object:
        told.append((unit.policy.name, unit.seed))
        return run(shared, unit)

    monkeypatch.setattr(units, "_run", note)
    return told


def evaluated(
    folder: Path | None,
    *,
    workers: Workers = HERE,
    policies: tuple[PolicyChoice, ...] = POLICIES,
    scenario: Scenario | None = None,
    on_unit: Callable[[Unit], None] = lambda unit: None,
) -> Evaluation:
    """Two seeds of ten minutes."""
    scenario = scenario or load_scenario("smoke").with_horizon(600.0)
    store = UnitStore(folder)
    return evaluate_units(scenario, policies, (3, 4), Split.VALIDATION, store=store, workers=workers, on_unit=on_unit)


def figures(evaluation: Evaluation) -> dict[str, list[dict[str, float]]]:
    """Every metric but the times."""
    return {
        name: [{k: v for k, v in e.metrics.items() if not k.startswith("decision_ms")} for e in episodes]
        for name, episodes in evaluation.results.items()
    }


def test_what_is_done_is_not_run_again(tmp_path: Path, ran: list[tuple[str, int]]) -> None:
    """The second run only reads, and says the same to the last digit, recordings included."""
    first = evaluated(tmp_path)
    assert ran == [("none", 3), ("best_fit", 3), ("none", 4), ("best_fit", 4)]
    ran.clear()
    again = evaluated(tmp_path)
    assert ran == []
    assert again.to_json() == first.to_json()
    assert again.results["none"][0].recording == first.results["none"][0].recording is not None
    assert again.results["none"][1].recording is None


def test_an_interrupted_run_goes_on(tmp_path: Path, ran: list[tuple[str, int]]) -> None:
    """Ctrl-C after the third unit: three are kept, and only the fourth is run later."""

    def interrupt(unit: Unit) -> None:
        if len(ran) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluated(tmp_path, on_unit=interrupt)
    assert len(list(tmp_path.iterdir())) == 3
    ran.clear()
    whole = evaluated(tmp_path)
    assert ran == [("best_fit", 4)]
    assert figures(whole) == figures(evaluated(None))


def test_a_damaged_file_is_run_again(tmp_path: Path, ran: list[tuple[str, int]]) -> None:
    """Cut short, or holding another's content under its name."""
    evaluated(tmp_path)
    one, two, *_ = sorted(tmp_path.iterdir())
    one.write_bytes(one.read_bytes()[:-20])
    content = json.loads(two.read_text())
    two.write_text(json.dumps({**content, "key": "another"}))
    ran.clear()
    evaluated(tmp_path)
    assert len(ran) == 2


def test_nothing_stale_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Another cluster, limit, traffic, length, seed, split, setting, bundle, or other code is another key."""
    scenario = load_scenario("smoke")
    spec = scenario.spec
    dearer = replace(spec, node_types=(replace(spec.node_types[0], price_usd_per_h=9.0), *spec.node_types[1:]))
    scenarios = [
        scenario,
        replace(scenario, spec=dearer),
        replace(scenario, limits=scenario.limits._replace(fence_s=601.0)),
        replace(scenario, requests=scenario.requests._replace(service_s=scenario.requests.service_s * 1.1)),
        scenario.with_horizon(600.0),
    ]
    tuned = {"best_fit": {"a": 1}}
    copied = tmp_path / "bundle"
    copied.mkdir()
    for file in shipped_bundle().iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    choices = [
        *(PolicyChoice(name=name) for name in ("none", "best_fit", "best_fit@spread", "patient(wait_s=60)", "learned")),
        PolicyChoice(name="best_fit", tuned=tuned),
        PolicyChoice(name="none+best_fit"),
        PolicyChoice(name="none+best_fit", tuned=tuned),
    ]
    digests = [scenario_digest(s) for s in scenarios]
    keys = [unit_key(d, Split.TRAIN, choices[0], 1, is_recorded=False) for d in digests]
    keys += [unit_key(digests[0], Split.TRAIN, choice, 1, is_recorded=False) for choice in choices[1:]]
    keys += [
        unit_key(digests[0], Split.VALIDATION, choices[0], 1, is_recorded=False),
        unit_key(digests[0], Split.TRAIN, choices[0], 2, is_recorded=False),
        unit_key(digests[0], Split.TRAIN, choices[0], 1, is_recorded=True),
    ]
    own = [PolicyChoice(name=name, bundle=copied) for name in ("learned", "exact(quiet_s=75)+network")]
    before = [choice.digest() for choice in own]
    (copied / "weights.safetensors").write_bytes(b"others")
    assert all(choice.digest() != digest for choice, digest in zip(own, before, strict=True))
    monkeypatch.setattr(unit_store, "code_digest", lambda: "another")
    keys.append(unit_key(digests[0], Split.TRAIN, choices[0], 1, is_recorded=False))
    assert len(set(keys)) == len(keys)
    assert scenario_digest(load_scenario("smoke")) == digests[0]


def test_free_repacking_is_a_column_like_others() -> None:
    """It moves nothing and pays for no move, meets the same episodes, and is what ``closed_frac`` 1 means."""
    policies = tuple(PolicyChoice(name=name) for name in ("none", "best_fit", "free_repacking"))
    evaluation = evaluated(None, policies=policies, scenario=load_scenario("smoke"))
    figures = evaluation.summary()
    free = figures["free_repacking"]
    assert free["moves"].mean == free["disruption_usd"].mean == free["refused_moves"].mean == 0.0
    assert free["closed_frac"].mean == 1.0
    assert free["node_hours"].mean < figures["none"]["node_hours"].mean
    closed = figures["best_fit"]["closed_frac"].mean
    bills = {name: metrics["total_usd"].mean for name, metrics in figures.items()}
    by_hand = (bills["none"] - bills["best_fit"]) / (bills["none"] - bills["free_repacking"])
    assert 0.0 < closed == pytest.approx(by_hand)


def test_best_of_plans_is_a_column_like_others() -> None:
    """With settings, of the shipped bundle, on the same episodes; its decisions know nothing of the future."""
    name = "best_of_plans(num_plans=2,num_futures=2,horizon_s=600)"
    scenario, choice = load_scenario("smoke").with_horizon(1800.0), PolicyChoice(name=name)
    figures = evaluated(None, policies=(PolicyChoice(name="none"), choice), scenario=scenario).summary()
    assert figures[name]["refused_moves"].mean == 0.0
    policy = choice.make(scenario)
    assert isinstance(policy, BestOfPlans)
    assert policy.settings == SearchSettings(num_plans=2, num_futures=2, horizon_s=600.0)

    def make(sim: object) -> BestOfPlans:
        policy.reset()
        return policy

    check_causal(make, scenario, 0)
    with pytest.raises(InputError, match="--policies best_of_plans: num_plans: expected 1 to 64, got 0"):
        PolicyChoice(name="best_of_plans(num_plans=0)").make(scenario)


def test_code_digest_sees_every_room_that_decides() -> None:
    """Kernels, policies and the books are in it."""
    root = Path(str(rayfold.__file__)).parent
    found = {str(p.relative_to(root)) for pattern in unit_store._CODE for p in root.glob(pattern)}
    assert {
        "envs/dynamics.py",
        "policies/best_fit.py",
        "training/episode_result.py",
        "training/tick_record.py",
    } <= found
    assert "training/replay_record.py" in found


@pytest.mark.cluster
def test_ray_tasks_give_the_same(tmp_path: Path) -> None:
    """Two processes and none: equal figures, and each unit is told of once."""
    told: list[Unit] = []
    remote = evaluated(tmp_path, workers=Workers(jobs=2), on_unit=told.append)
    assert len(told) == 4
    assert figures(remote) == figures(evaluated(None))
    assert len(list(tmp_path.iterdir())) == 4
