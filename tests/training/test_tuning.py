"""Tuning: what is drawn, what is best, the budget, and that an interrupted search goes on."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from rayfold.envs.safety import Limits
from rayfold.envs.scenario import Scenario, Split, load_scenario
from rayfold.errors import InputError
from rayfold.policies.best_fit import BestFit
from rayfold.policies.by_name import HEURISTICS, Heuristic
from rayfold.policies.none import NoMoves
from rayfold.policies.protocol import Policy
from rayfold.policies.settings import between, one_of, search_space
from rayfold.policies.tuned import TunedPolicy, read_tuned
from rayfold.training import tuning
from rayfold.training.evaluation import run_episode
from rayfold.training.ray_session import ray_session
from rayfold.training.tuning import Budget, mean_total_usd, tune_heuristic, write_tuned


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ToySettings:
    """One field of each kind."""

    wait_s: float = between(60.0, 1.0, 1000.0, is_log=True)
    share: float = between(0.5, 0.0, 1.0)
    num_nodes: int = between(1, 1, 4)
    num_moves: int = between(2, 1, 64, is_log=True)
    does_move: bool = one_of(False, False, True)


def make_toy(limits: Limits, settings: ToySettings) -> Policy:
    """Best fit, or nothing."""
    return BestFit(limits) if settings.does_move else NoMoves()


TOY = Heuristic(make_toy, ToySettings)


@pytest.fixture(scope="module")
def smoke() -> Scenario:
    """Generated traffic."""
    return load_scenario("smoke", None, synthetic=True).with_horizon(1800.0)


def found(**changes: object) -> TunedPolicy:
    """One result, as a search would hand it over."""
    values = {
        "settings": {"wait_s": 90.0},
        "total_usd": 9.0,
        "default_total_usd": 10.0,
        "num_samples": 4,
        "num_seeds": 1,
        "horizon_s": 1800.0,
        "search_seed": 0,
        "command": "rayfold tune",
        "git_commit": "",
        "date": "2026-01-31",
    }
    return TunedPolicy.model_validate({**values, **changes})


def test_the_objective_is_the_mean_bill_of_training_days(smoke: Scenario) -> None:
    """By another route, for both settings of the toy."""
    for does_move, policy in ((True, BestFit(smoke.limits)), (False, NoMoves())):
        bills = [run_episode(smoke, policy, seed, Split.TRAIN).metrics["total_usd"] for seed in range(2)]
        assert mean_total_usd(smoke, TOY, {"does_move": does_move}, 2) == pytest.approx(np.mean(bills))


def test_what_is_drawn_lies_in_the_ranges() -> None:
    """Ends included for whole numbers; the logarithmic ones spread over the orders of magnitude."""
    domains = {name: tuning._domain(TOY, name, allowed) for name, allowed in search_space(ToySettings).items()}
    drawn = {name: [domain.sample() for _ in range(400)] for name, domain in domains.items()}
    assert set(drawn["num_nodes"]) == {1, 2, 3, 4}
    assert set(drawn["does_move"]) == {False, True}
    assert 1 <= min(drawn["num_moves"]) < 4 < 32 < max(drawn["num_moves"]) <= 64
    assert 1.0 <= min(drawn["wait_s"]) < 10.0 < 100.0 < max(drawn["wait_s"]) <= 1000.0
    assert 0.2 < np.mean(np.array(drawn["wait_s"]) < 10.0) < 0.5
    assert 0.4 < np.mean(drawn["share"]) < 0.6


@pytest.mark.cluster
def test_a_search_and_its_continuation(smoke: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never worse than the defaults; the same call again runs no trial; another budget is refused."""
    budget, trials = Budget(num_samples=3, num_seeds=1, search_seed=3), []
    rule = HEURISTICS["patient"]
    with ray_session(1):
        first = tune_heuristic(smoke, "patient", rule, budget, tmp_path, lambda: trials.append(1))
        again = tune_heuristic(smoke, "patient", rule, budget, tmp_path, lambda: trials.append(1))
        with pytest.raises(InputError, match="another search"):
            tune_heuristic(smoke, "patient", rule, dataclasses.replace(budget, num_samples=4), tmp_path)
    assert len(trials) == 3
    assert first.settings == again.settings
    assert first.total_usd == again.total_usd <= first.default_total_usd
    assert first.default_total_usd == pytest.approx(mean_total_usd(smoke, rule, {}, 1), abs=1e-3)
    assert (first.num_samples, first.num_seeds, first.search_seed) == (3, 1, 3)


def test_nothing_to_tune_is_refused(smoke: Scenario, tmp_path: Path) -> None:
    """Before anything is started or written."""
    with pytest.raises(InputError, match="heuristics with settings"):
        tune_heuristic(smoke, "none", HEURISTICS["none"], Budget(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_results_are_added_to_the_file(smoke: Scenario, tmp_path: Path) -> None:
    """A heuristic found again is replaced; a file of another scenario is left as it is."""
    path = tmp_path / "tuned" / "smoke.yaml"
    write_tuned(path, smoke, {"patient": found()})
    write_tuned(path, smoke, {"patient": found(total_usd=8.5)})
    file = read_tuned(path)
    assert (file.scenario, file.traffic) == ("smoke", smoke.traffic_name)
    assert file.policies == {"patient": found(total_usd=8.5)}
    before = path.read_bytes()
    with pytest.raises(InputError, match="low_scale"):
        write_tuned(path, load_scenario("low_scale", None, synthetic=True), {"patient": found()})
    assert path.read_bytes() == before
