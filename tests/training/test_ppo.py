"""A training run from start to bundle: resume, Ctrl-C, files; and the batched runner against RLlib's own."""

import itertools
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.connectors.learner import GeneralAdvantageEstimation
from ray.rllib.core.columns import Columns

from rayfold.envs.episode import scenario_layout
from rayfold.envs.scenario import Scenario
from rayfold.errors import InputError
from rayfold.policies.bundle import TrainingCard, load_bundle, save_bundle
from rayfold.policies.by_name import NETWORK, shipped_bundle
from rayfold.policies.network import CompactionNet, NetworkConfig
from rayfold.training import ppo
from rayfold.training.averaging import WeightAverage
from rayfold.training.checkpoints import FOLDER, POSITION, newest_checkpoint, restore_newest
from rayfold.training.env_runner import BatchedEnvRunner
from rayfold.training.ppo import train
from rayfold.training.ppo_setup import build_ppo, load_net, policy_net
from rayfold.training.progress import Phase, Progress
from rayfold.training.provenance import portable_command
from rayfold.training.ray_session import ray_session
from rayfold.training.smdp import SemiMDPAdvantage
from rayfold.training.train_config import CONFIG_FILE, TrainConfig, load_train_config, save_train_config

EPISODE_FIGURES = ("num_episodes_lifetime", "episode_return_mean", "episode_return_min")


def small(run_dir: Path, **changes: Any) -> TrainConfig:
    """A run of seconds."""
    settings: dict[str, Any] = {
        "run_dir": run_dir,
        "scenarios": ("smoke",),
        "stop_minutes": None,
        "stop_steps": 600,
        "warm_start_steps": 200,
        "network": NetworkConfig(dim=16, heads=2),
        "num_envs": 8,
        "batch_steps": 256,
        "minibatch": 64,
        "evaluation_episodes": 1,
        "checkpoint_every_s": 0.0,
    }
    return TrainConfig(**(settings | changes))


@pytest.mark.cluster
def test_batched_runner_trains_as_rllibs_own(tmp_path: Path) -> None:
    """With one seed the losses of three iterations are bit-equal, over the ends of episodes."""
    config = small(tmp_path, group_size=1)  # RLlib's own runner does not tell whose traffic a step met
    scenarios = config.load_scenarios()
    losses, episodes = [], []
    with ray_session(2):
        for runner in (None, BatchedEnvRunner):
            algorithm = build_ppo(config, scenarios, scenario_layout(*scenarios), env_runner_cls=runner)
            rows = []
            for _ in range(3):
                result = algorithm.train()  # type: ignore[no-untyped-call]
                learned = result["learners"]["default_policy"]
                rows.append([float(learned[k]) for k in ("policy_loss", "vf_loss", "entropy", "total_loss")])
            losses.append(rows)
            episodes.append([float(result["env_runners"][k]) for k in EPISODE_FIGURES])
            algorithm.stop()  # type: ignore[no-untyped-call]
    assert losses[0] == losses[1]
    assert losses[0][0] != losses[0][1]
    np.testing.assert_allclose(episodes[0], episodes[1])  # their sums run in another order
    assert episodes[0][0] >= 8
    # Lengths are checked against the ledger instead (a NOOP per tick, and a step for the moves of each action): the
    # stock runner's mean length came out 2 steps higher on the same episodes.
    batched = {name: float(result["env_runners"][name]) for name in ("episode_len_mean", "moves")}
    most = scenarios[0].limits.max_concurrent_moves  # of one evacuation
    assert 60 + batched["moves"] / most <= batched["episode_len_mean"] <= 60 + batched["moves"]


@pytest.mark.cluster
@pytest.mark.parametrize(("semi_mdp", "expected"), [(True, SemiMDPAdvantage), (False, GeneralAdvantageEstimation)])
def test_the_discount_is_chosen(tmp_path: Path, semi_mdp: bool, expected: type) -> None:
    """One estimator of advantages, the last piece of the learner's pipeline."""
    config = small(tmp_path, semi_mdp=semi_mdp)
    scenarios = config.load_scenarios()
    with ray_session(2):
        algorithm: Any = build_ppo(config, scenarios, scenario_layout(*scenarios))
        learner = algorithm.learner_group._learner
        pieces = [type(piece) for piece in learner._learner_connector.connectors]
        algorithm.stop()
    assert pieces[-1] is expected
    assert sum(piece in (SemiMDPAdvantage, GeneralAdvantageEstimation) for piece in pieces) == 1


@pytest.mark.cluster
def test_loaded_weights_reach_learner_and_runner(tmp_path: Path) -> None:
    """After ``load_net`` both the copy that learns and the copy that samples are the given net."""
    config = small(tmp_path)
    scenarios = config.load_scenarios()
    torch.manual_seed(123)
    net = CompactionNet(config.network)
    with ray_session(2):
        algorithm: Any = build_ppo(config, scenarios, scenario_layout(*scenarios))
        load_net(algorithm, net)
        learner = algorithm.learner_group._learner.module["default_policy"].net.state_dict()
        sampler = policy_net(algorithm).state_dict()
        chunks = algorithm.env_runner.sample(num_timesteps=64, explore=True)
        for name, tensor in net.state_dict().items():
            assert torch.equal(tensor, learner[name])
            assert torch.equal(tensor, sampler[name])
        obs = torch.from_numpy(np.concatenate([chunk.get_observations(slice(0, len(chunk))) for chunk in chunks]))
        actions = torch.from_numpy(np.concatenate([chunk.get_actions() for chunk in chunks]))
        logp = np.concatenate([chunk.get_extra_model_outputs(Columns.ACTION_LOGP) for chunk in chunks])
        with torch.no_grad():
            batch = {Columns.OBS: obs, Columns.ACTIONS: actions}
            module = algorithm.learner_group._learner.module["default_policy"]
            out = module.forward_train(batch)
        distribution = module.get_train_action_dist_cls().from_logits(out[Columns.ACTION_DIST_INPUTS])
        np.testing.assert_allclose(distribution.logp(actions), logp, atol=1e-5)
        algorithm.stop()


@pytest.mark.cluster
def test_a_remote_env_runner_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an env runner in a process of its own, and multi-scenario padding, a run goes through.

    RLlib's own minute for each sample, here a millisecond, does not end it.
    """
    init: Any = AlgorithmConfig.__init__

    def hurried(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.sample_timeout_s = 0.001

    monkeypatch.setattr(AlgorithmConfig, "__init__", hurried)
    scenarios = ("smoke", "two_node")
    result = train(small(tmp_path, num_env_runners=1, warm_start="", scenarios=scenarios, evaluation_episodes=0))
    assert result.position.steps >= 600
    assert load_bundle(result.bundle_dir).card.scenarios == scenarios


@pytest.mark.cluster
def test_clusters_of_many_sizes_train_one_network(tmp_path: Path) -> None:
    """Warm start and PPO play in clusters of drawn sizes, larger ones than the scenario's; the choice in its own."""
    config = small(tmp_path, num_nodes=(4, 24))
    assert max(s.spec.max_nodes for s in config.load_scenarios()) < 24
    result = train(config)
    assert result.position.steps >= 600
    assert load_train_config(config).num_nodes == (4, 24)  # a resumed run goes on as it was


@pytest.mark.cluster
def test_weights_are_chosen_on_longer_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as told, but no longer than the scenario is; the bundle has the weights whose mean bill is least."""
    played: list[float] = []

    def excess_frac(net: CompactionNet, work: tuple[Scenario, int, int]) -> float:
        played.append(work[0].horizon_s)
        return 1.0 / len(played)

    monkeypatch.setattr(ppo, "_excess_frac", excess_frac)
    for longest_s, expected_s in ((2700.0, 2700.0), (43_200.0, 3600.0)):
        played.clear()
        run_dir = tmp_path / f"{longest_s:g}"
        result = train(small(run_dir, horizon_s=1800.0, evaluation_horizon_s=longest_s, warm_start=""))
        assert set(played) == {expected_s}
        assert result.chosen == min(result.evaluation_excess_frac, key=lambda name: result.evaluation_excess_frac[name])
        assert len(played) == len(result.evaluation_excess_frac) > 1


@pytest.mark.cluster
def test_a_scenario_given_twice_is_played_once_and_counts_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: (1 + 1 + 4) / 3."""
    played: list[str] = []

    def excess_frac(net: CompactionNet, work: tuple[Scenario, int, int]) -> float:
        played.append(work[0].name)
        return {"smoke": 1.0, "two_node": 4.0}[work[0].name]

    monkeypatch.setattr(ppo, "_excess_frac", excess_frac)
    result = train(small(tmp_path, scenarios=("smoke", "two_node", "smoke"), warm_start=""))
    assert set(result.evaluation_excess_frac.values()) == {2.0}
    assert played == ["smoke", "two_node"] * len(result.evaluation_excess_frac)


@pytest.mark.cluster
def test_run_then_resume(tmp_path: Path) -> None:
    """A run leaves bundle, two checkpoints, event files and readings; resuming goes on where it ended."""
    readings: list[Progress] = []
    first = train(small(tmp_path), readings.append)
    assert 600 <= first.position.steps < 600 + 2 * 256
    assert not first.interrupted
    assert set(first.evaluation_excess_frac) >= {"warm_start", "last"}
    card = load_bundle(first.bundle_dir).card
    assert (card.scenarios, card.steps, card.warm_start) == (("smoke",), first.position.steps, "dearest_first")
    assert card.traffic == {"smoke": "generated"}
    assert card.command == portable_command()
    assert [phase for phase, _ in itertools.groupby(r.phase for r in readings)] == [
        Phase.DEMONSTRATE,
        Phase.IMITATE,
        Phase.PPO,
        Phase.EVALUATE,
        Phase.DONE,
    ]
    last = [r for r in readings if r.phase is Phase.PPO][-1]
    assert last.total_usd > 0
    assert last.moves >= 0
    assert last.episode_return < 0
    told = {name: value for r in readings if r.phase is Phase.EVALUATE for name, value in r.metrics.items()}
    assert told == {f"evaluation/excess_frac/{name}": e for name, e in first.evaluation_excess_frac.items()}
    lines = (tmp_path / "progress.jsonl").read_text().splitlines()
    assert len(lines) == len(readings)
    assert json.loads(lines[-1])["phase"] == "done"
    assert any(path.stat().st_size > 500 for path in tmp_path.glob("events.out.tfevents.*"))
    assert len(list((tmp_path / FOLDER).iterdir())) == 2

    second = train(small(tmp_path, resume=True, stop_steps=1200, warm_start="nonsense", num_envs=3))
    assert 1200 <= second.position.steps < 1200 + 2 * 256
    assert second.position.iterations > first.position.iterations
    assert second.position.minutes > first.position.minutes
    assert load_bundle(second.bundle_dir).card.steps == second.position.steps
    assert newest_checkpoint(tmp_path) == second.checkpoint


@pytest.mark.cluster
def test_one_seed_makes_one_bundle(tmp_path: Path) -> None:
    """On one thread, bit for bit, warm start, PPO and choice included; another seed makes another one."""
    made = {}
    for name, seed in (("first", 3), ("again", 3), ("other", 4)):
        result = train(small(tmp_path / name, seed=seed, stop_steps=300))
        made[name] = (result.chosen, (result.bundle_dir / "weights.safetensors").read_bytes())
    assert made["first"] == made["again"]
    assert made["first"][1] != made["other"][1]


@pytest.mark.cluster
def test_resume_restores_the_weights(tmp_path: Path) -> None:
    """The weights after the checkpoint is loaded are those it was saved with."""
    config = small(tmp_path, warm_start="", evaluation_episodes=0)
    result = train(config)
    saved = load_bundle(result.bundle_dir).net.state_dict()
    scenarios = config.load_scenarios()
    with ray_session(2):
        algorithm = build_ppo(config, scenarios, scenario_layout(*scenarios))
        fresh = policy_net(algorithm).state_dict()
        average = WeightAverage(policy_net(algorithm))
        assert restore_newest(algorithm, tmp_path, average).steps == result.position.steps
        restored = policy_net(algorithm).state_dict()
        algorithm.stop()  # type: ignore[no-untyped-call]
    assert any(not torch.equal(fresh[name], saved[name]) for name in saved)
    assert all(torch.equal(restored[name], saved[name]) for name in saved)


@pytest.mark.cluster
@pytest.mark.parametrize("phase", [Phase.IMITATE, Phase.PPO])
def test_ctrl_c_saves_and_returns(tmp_path: Path, phase: Phase) -> None:
    """One SIGINT during the warm start or PPO ends the run in order: checkpoint, bundle, ``interrupted``."""
    assert threading.current_thread() is threading.main_thread()
    sent: list[Progress] = []
    handler = signal.getsignal(signal.SIGINT)

    def interrupt(progress: Progress) -> None:
        if progress.phase is phase and not sent:
            sent.append(progress)
            os.kill(os.getpid(), signal.SIGINT)

    result = train(small(tmp_path, stop_steps=10**9), interrupt)
    assert sent
    assert result.interrupted
    assert signal.getsignal(signal.SIGINT) is handler
    assert load_bundle(result.bundle_dir).card.steps == result.position.steps
    assert newest_checkpoint(tmp_path) == result.checkpoint


@pytest.mark.cluster
@pytest.mark.parametrize("is_shipped", [False, True])
def test_a_bundle_can_be_gone_on_from(tmp_path: Path, is_shipped: bool) -> None:
    """PPO begins with its weights, whatever its width, and the card says whose they were, without the folder's path."""
    name = NETWORK if is_shipped else str(tmp_path / "old")
    if not is_shipped:
        torch.manual_seed(7)
        net = CompactionNet(NetworkConfig(dim=24, heads=3)).eval()
        card = TrainingCard(scenarios=("smoke",), seed=0, steps=1, minutes=0.0, warm_start="best_fit")
        save_bundle(tmp_path / "old", net, card)
    old = load_bundle(shipped_bundle() if is_shipped else tmp_path / "old")
    result = train(small(tmp_path / "run", warm_start=name, lr=1e-12, stop_steps=256))
    assert set(result.evaluation_excess_frac) >= {"warm_start", "average", "last"}
    found = load_bundle(result.bundle_dir)
    told = f"{Path(name).name} ({', '.join(old.card.scenarios)}; {old.card.steps:,} steps; commit "
    assert found.card.warm_start.startswith(told)
    assert found.card.warm_start.endswith(f"; after {old.card.warm_start})")
    assert found.net.config == old.net.config
    for weight, tensor in old.net.state_dict().items():
        torch.testing.assert_close(found.net.state_dict()[weight], tensor, atol=1e-6, rtol=0.0)


def test_resume_without_a_run_is_refused(tmp_path: Path) -> None:
    """No such folder, no checkpoint, broken settings: each says which file it misses. Ray is not started."""
    with pytest.raises(InputError, match=r"train\.json: expected the settings .* no such file"):
        train(small(tmp_path / "nothing", resume=True))
    (tmp_path / CONFIG_FILE).write_text('{"run_dir": ')
    with pytest.raises(InputError, match=r"train\.json.*expected settings of a training run"):
        train(small(tmp_path, resume=True))
    save_train_config(small(tmp_path))
    with pytest.raises(InputError, match="checkpoints: expected a checkpoint to resume from, got none"):
        train(small(tmp_path, resume=True))
    (tmp_path / FOLDER / ".partial").mkdir(parents=True)
    (tmp_path / FOLDER / "000000000100").mkdir()
    with pytest.raises(InputError, match="a checkpoint to resume from"):
        train(small(tmp_path, resume=True))


@pytest.mark.cluster
def test_a_broken_checkpoint_is_refused(tmp_path: Path) -> None:
    """A checkpoint whose content is gone is named."""
    save_train_config(small(tmp_path))
    broken = tmp_path / FOLDER / "000000000100"
    (broken / "algorithm").mkdir(parents=True)
    (broken / POSITION).write_text('{"steps": 100, "minutes": 1.0, "iterations": 1}')
    with pytest.raises(InputError, match="000000000100: expected a complete checkpoint"):
        train(small(tmp_path, resume=True))


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"stop_steps": None}, "--stop-minutes, --stop-steps"),
        ({"stop_minutes": 0.0}, "--stop-minutes"),
        ({"stop_minutes": float("nan")}, "--stop-minutes"),
        ({"stop_steps": -1}, "--stop-steps"),
        ({"scenarios": ()}, "--scenario"),
        ({"num_env_runners": -1}, "--num-env-runners"),
        ({"num_nodes": (0, 8)}, "--num-nodes"),
        ({"num_nodes": (8, 4)}, "--num-nodes"),
        ({"num_nodes": (8, 40_960)}, "--num-nodes"),
        ({"warm_start": "nonsense"}, "--warm-start"),
        ({"scenarios": ("nonsense",)}, "nonsense"),
    ],
)
def test_bad_settings_are_refused(tmp_path: Path, changes: dict[str, Any], where: str) -> None:
    """Each names its flag, before Ray or a folder is made."""
    with pytest.raises(InputError, match=where):
        train(small(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()
