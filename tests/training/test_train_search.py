"""Search over settings of training: what is kept, that it goes on, and that its recipe is what it found."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from ray.rllib.algorithms.ppo import PPO, PPOConfig

from rayfold.errors import InputError
from rayfold.policies.bundle import load_bundle
from rayfold.policies.network import NetworkConfig
from rayfold.training.ppo import train
from rayfold.training.ray_session import ray_session
from rayfold.training.recipe import load_recipe
from rayfold.training.train_config import TrainConfig
from rayfold.training.train_search import SPACE, BestTraining, search_training, write_recipe


def small(run_dir: Path, **changes: Any) -> TrainConfig:
    """A run of seconds."""
    settings: dict[str, Any] = {
        "run_dir": run_dir,
        "scenarios": ("smoke",),
        "synthetic": True,
        "stop_minutes": None,
        "stop_steps": 256,
        "warm_start": "",
        "network": NetworkConfig(dim=16, heads=2),
        "num_envs": 8,
        "batch_steps": 128,
        "minibatch": 64,
        "evaluation_episodes": 1,
    }
    return TrainConfig(**(settings | changes))


@pytest.mark.parametrize(
    "flags",
    [
        {"num_env_runners": runners, "num_learners": learners, "num_gpus_per_learner": gpus}
        for runners in (0, 2)
        for learners in (0, 2)
        for gpus in (0.0, 0.5, 1.0)
    ],
    ids=str,
)
def test_a_trial_reserves_what_rllib_asks_for(tmp_path: Path, flags: dict[str, Any]) -> None:
    """RLlib's own sum, for a run with these flags."""
    settings: Any = PPOConfig()  # type: ignore[no-untyped-call]
    settings = settings.environment("CartPole-v1").env_runners(num_env_runners=flags["num_env_runners"])
    settings = settings.learners(**{name: value for name, value in flags.items() if name != "num_env_runners"})
    theirs: Any = PPO.default_resource_request(settings)
    assert theirs.bundles == small(tmp_path, **flags).ray_bundles


@pytest.mark.cluster
def test_a_search_and_its_continuation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never worse than the settings given, which train as without a search; a second call runs nothing.

    A scenario's relative path is found by runs, which Tune starts elsewhere.
    """
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_text("extends: smoke\n")
    config, trials = small(Path("search"), scenarios=("my.yaml",)), list[int]()
    with ray_session(2):
        first = search_training(config, 2, on_trial=lambda: trials.append(1))
        again = search_training(config, 2, on_trial=lambda: trials.append(1))
        with pytest.raises(InputError, match="another search"):
            search_training(dataclasses.replace(config, num_envs=4), 2)
    assert len(trials) == 2
    assert again == first
    assert first.excess_frac <= first.default_excess_frac
    assert set(first.settings) == set(SPACE)
    plain = train(small(tmp_path / "plain", scenarios=("my.yaml",)))
    assert first.default_excess_frac == plain.evaluation_excess_frac[plain.chosen]
    assert load_bundle(first.bundle).card.metrics["evaluation/excess_frac"] == first.excess_frac


@pytest.mark.cluster
def test_a_trial_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    """Cut off in the middle, it does not begin anew: the bundle's steps are counted from the checkpoint's."""
    config = small(tmp_path, checkpoint_every_s=0.0)
    with ray_session(2):
        found = search_training(config, 1)
        run_dir = found.bundle.parent
        # As if the machine had died after the first checkpoint: Tune has noted no result.
        for state in (tmp_path / "training").glob("experiment_state-*.json"):
            content = json.loads(state.read_text())
            content["trial_data"] = [[_as_pending(trial), rest] for trial, rest in content["trial_data"]]
            state.write_text(json.dumps(content))
        again = search_training(config, 1)
    assert again.bundle == found.bundle
    lines = [json.loads(line) for line in (run_dir / "progress.jsonl").read_text().splitlines()]
    assert [line["phase"] for line in lines].count("done") == 2
    assert [line["steps"] for line in lines] == sorted(line["steps"] for line in lines)
    assert load_bundle(again.bundle).card.steps == load_bundle(found.bundle).card.steps


def _as_pending(trial: str) -> str:
    content = json.loads(trial)
    content["status"] = "PENDING"
    return json.dumps(content)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"evaluation_episodes": 0}, "--evaluation-episodes"),
        ({"stop_steps": None, "stop_minutes": 1.0}, "--stop-steps"),
    ],
)
def test_runs_must_be_comparable(tmp_path: Path, changes: dict[str, Any], where: str) -> None:
    """Of one length, and judged by episodes; else nothing is written."""
    with pytest.raises(InputError, match=where):
        search_training(small(tmp_path / "run", **changes), 2)
    assert not (tmp_path / "run").exists()


def test_the_recipe_is_what_was_found(tmp_path: Path) -> None:
    """Flags of ``rayfold train``, those at their defaults left out, numbers to four digits."""
    config = small(tmp_path, vary_worlds=True, num_nodes=(4, 64), warm_start="network", scenarios=("smoke", "tight"))
    settings = {"lr": 0.000123456, "min_p": 0.2, "group_size": 4}
    write_recipe(tmp_path / "best.yaml", config, BestTraining(settings, 0.1, 0.2, tmp_path))
    assert load_recipe(str(tmp_path / "best.yaml"))["train"] == [
        {
            "scenario": "smoke,tight",
            "lr": 0.0001235,
            "min-p": 0.2,
            "vary-worlds": True,
            "warm-start": "network",
            "stop-steps": 256,
            "batch-steps": 128,
            "num-envs": 8,
            "evaluation-episodes": 1,
            "horizon-h": 4.0,
            "num-nodes": "4-64",
        }
    ]
