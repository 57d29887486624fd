"""Evolution of the timing: deterministic, resumable, and it finds a planted optimum."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from rayfold.envs.scenario import Scenario, load_scenario
from rayfold.policies.timing import Timing
from rayfold.training import timing_training
from rayfold.training.timing_training import Search, train_timing
from rayfold.training.workers import Workers

PLANTED = np.array([0.8, -1.5, 0.5, 0.0])


def _scenarios(*names: str) -> list[Scenario]:
    return [load_scenario(name, Path("traces"), synthetic=True).with_horizon(3600.0) for name in names]


def _numbers(rule: Timing) -> NDArray[np.float64]:
    return np.array([rule.bias, *rule.weights])


def test_finds_a_planted_optimum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bills grow with the distance from a rule; the luck of an episode is the same for all rules."""

    def bills(
        scenarios: Sequence[Scenario], rules: Sequence[Timing | str], seeds: Sequence[int], workers: Workers
    ) -> NDArray[np.float64]:
        luck = np.random.default_rng(list(seeds)).normal(100.0, 10.0, (len(scenarios) * len(seeds), 1))
        far = [1.0 if isinstance(r, str) else 0.5 + 0.1 * np.abs(_numbers(r) - PLANTED).sum() for r in rules]
        out: NDArray[np.float64] = luck * np.array(far)
        return out

    monkeypatch.setattr(timing_training, "_bills", bills)
    search = Search(generations=80)
    trained = train_timing(_scenarios("smoke", "low_scale"), search, tmp_path)
    assert np.abs(_numbers(trained.timing) - PLANTED).max() < 0.05
    assert trained.card.episodes == 80 * search.population * 2
    assert trained.card.metrics["mean"] == pytest.approx(-0.5, abs=0.02)


def test_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted after two generations and gone on: the same rule as in one go, and nothing is run twice."""
    scenarios, seen = _scenarios("smoke"), list[int]()
    whole = train_timing(scenarios, Search(generations=3, population=4), tmp_path / "a")

    def stop(generation: int, bill_frac: float) -> None:
        seen.append(generation)
        if generation == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_timing(scenarios, Search(generations=3, population=4), tmp_path / "b", on_generation=stop)
    run = timing_training._fitness
    ran: list[int] = []

    def counted(scenarios: Sequence[Scenario], rules: Sequence[Timing], seed: int, workers: Workers) -> list[float]:
        ran.append(seed)
        return run(scenarios, rules, seed, workers)

    monkeypatch.setattr(timing_training, "_fitness", counted)
    again = train_timing(scenarios, Search(generations=3, population=4), tmp_path / "b")
    assert ran == [2]
    assert again.timing == whole.timing
    assert again.card.metrics == whole.card.metrics


@pytest.mark.parametrize("damage", [b"", b"{", b'{"digest": 1}', b'{"digest": "other", "fitness": [[1.0]]}'])
def test_what_was_kept_by_other_code_is_not_used(tmp_path: Path, damage: bytes) -> None:
    """Nor is a damaged file."""
    (tmp_path / "generations.json").write_bytes(damage)
    assert timing_training._load(tmp_path / "generations.json", "mine") == []
