"""Trackers: real clients of W&B and MLflow, offline; and a run outlives a service that has gone."""

import logging
from collections.abc import Mapping
from pathlib import Path

import pytest

from rayfold.errors import InputError
from rayfold.training import trackers
from rayfold.training.trackers import Tracker, tracked, trackers_of, tune_callbacks


def test_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each once; an unknown one, and one whose package is missing, is told."""
    assert trackers_of(("mlflow", "wandb", "mlflow")) == (Tracker.MLFLOW, Tracker.WANDB)
    with pytest.raises(InputError, match="expected wandb or mlflow, got comet"):
        trackers_of(("comet",))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install wandb"):
        trackers_of(("wandb",))


def test_mlflow_has_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its own files: value and step of every figure, and the settings."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    with tracked((Tracker.MLFLOW,), "compaction", tmp_path / "run7", {"lr": 0.5}) as logs:
        for steps, usd in ((10, 3.0), (20, 2.5)):
            for tell in logs:
                tell({"episode/total_usd": usd}, steps)
    (figures,) = (tmp_path / "store").glob("*/*/metrics/episode/total_usd")
    assert [line.split()[1:] for line in figures.read_text().splitlines()] == [["3.0", "10"], ["2.5", "20"]]
    (lr,) = (tmp_path / "store").glob("*/*/params/lr")
    assert lr.read_text() == "0.5"
    (name,) = (tmp_path / "store").glob("*/*/tags/mlflow.runName")
    assert name.read_text() == "run7"


def test_wandb_has_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline it writes a file to be sent later, in the run's folder."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    (tmp_path / "run7").mkdir()
    with tracked((Tracker.WANDB,), "compaction", tmp_path / "run7", {"lr": 0.5}) as logs:
        for tell in logs:
            tell({"episode/total_usd": 3.25}, 10)
    (kept,) = (tmp_path / "run7" / "wandb").glob("offline-run-*/*.wandb")
    assert b"total_usd" in kept.read_bytes()


def test_nobody_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B without a key; no run begins then."""
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with (
        pytest.raises(InputError, match="--tracker wandb: expected a service that takes the run") as caught,
        tracked((Tracker.WANDB,), "compaction", tmp_path, {}),
    ):
        pytest.fail("it began")
    assert "\n" not in str(caught.value)


def test_a_service_that_goes_is_asked_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told once; the others still get theirs, and the run goes on to its end."""
    seen, asked = list[float](), list[int]()

    def gone(figures: Mapping[str, float], steps: int) -> None:
        asked.append(steps)
        raise ConnectionError("gone")

    def end() -> None:
        raise ConnectionError("gone too")

    ends = {Tracker.WANDB: (gone, end), Tracker.MLFLOW: (lambda figures, _: seen.append(figures["a"]), lambda: None)}
    for tracker, pair in ends.items():
        monkeypatch.setitem(trackers._OPEN, tracker, lambda *_, pair=pair: pair)
    with caplog.at_level(logging.WARNING), tracked(tuple(Tracker), "p", tmp_path, {}) as logs:
        for steps in (1, 2):
            for tell in logs:
                tell({"a": float(steps)}, steps)
    assert (asked, seen) == ([1], [1.0, 2.0])
    assert [record.getMessage() for record in caplog.records] == [
        "wandb takes no more figures: ConnectionError: gone",
        "wandb did not end its run: ConnectionError: gone too",
    ]


def test_tune_has_rays_callbacks() -> None:
    """One per tracker, of Ray's own classes."""
    made = tune_callbacks(tuple(Tracker), "compaction")
    assert [type(callback).__name__ for callback in made] == ["WandbLoggerCallback", "MLflowLoggerCallback"]
    assert made[0].project == made[1].experiment_name == "compaction"
