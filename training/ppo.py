"""``train``: warm start from a heuristic or from a bundle, then PPO, then a policy bundle.

One run is one folder: ``train.json``, ``checkpoints/``, ``progress.jsonl``, TensorBoard event files, ``bundle/``.
"""

import contextlib
import dataclasses
import datetime
import functools
import json
import logging
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

from rayfold.envs.episode import scenario_layout
from rayfold.envs.layout import ObsLayout
from rayfold.envs.scenario import Scenario, Split
from rayfold.errors import InputError
from rayfold.policies.bundle import PolicyBundle, TrainingCard, load_bundle, save_bundle
from rayfold.policies.by_name import HEURISTICS, NETWORK, make_policy, policy_maker, shipped_bundle
from rayfold.policies.learned import LearnedPolicy
from rayfold.policies.network import CompactionNet
from rayfold.training.averaging import WeightAverage
from rayfold.training.checkpoints import RunPosition, newest_checkpoint, restore_newest, save_checkpoint
from rayfold.training.days import days_of
from rayfold.training.evaluation import run_episode
from rayfold.training.imitation import Demonstrations, ImitationConfig, demonstrate, imitate
from rayfold.training.ppo_setup import build_ppo, load_net, policy_net
from rayfold.training.progress import Phase, Progress
from rayfold.training.provenance import git_commit, package_versions, portable_command
from rayfold.training.ray_session import ray_session
from rayfold.training.smdp import INPUT_EXPLAINED
from rayfold.training.trackers import Log, tracked
from rayfold.training.train_config import TrainConfig, load_train_config, save_train_config
from rayfold.training.trust_region import WAIT_KL
from rayfold.training.workers import Workers, run_all

__all__ = ["TrainResult", "train"]

log = logging.getLogger(__name__)

NUM_CANDIDATES = 4  # averages kept for the final choice, evenly over the call, besides first and last weights
WARM_START_SHARE = 0.25  # of stop_minutes, at most
EVALUATION_SEED = 1_000_000_007  # added to the run's seed: episodes that training does not draw


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What a run left behind."""

    bundle_dir: Path
    checkpoint: Path
    position: RunPosition  # as the checkpoint holds it
    chosen: str  # which weights are in the bundle: "warm_start", "average_<steps>", "average" or "last"
    evaluation_excess_frac: dict[str, float]  # mean bill above the lower bound, per candidate
    interrupted: bool


def train(config: TrainConfig, on_progress: Callable[[Progress], None] = lambda progress: None) -> TrainResult:
    """Trains a policy and writes its bundle.

    The first Ctrl-C ends the run early but in order, with checkpoint and bundle; a second one at once.

    Args:
        config: The run.
        on_progress: Called after every iteration.

    Returns:
        Where the results are.

    Raises:
        InputError: A setting, scenario or trace is wrong, or there is nothing to resume.
    """
    config.check()
    if config.resume:
        config = load_train_config(config)
        newest_checkpoint(config.run_dir)
    net, is_to_start = None, bool(config.warm_start) and not config.resume
    if is_to_start and config.warm_start.partition("(")[0] not in HEURISTICS:
        start = _start_of(config)
        net, card = start.net, start.card
        told = [", ".join(card.scenarios), f"{card.steps:,} steps", f"commit {card.git_commit or 'unknown'}"]
        if card.warm_start:
            told.append(f"after {card.warm_start}")
        name = Path(config.warm_start).name  # no path: a bundle goes to others
        config = dataclasses.replace(config, network=net.config, origin=f"{name} ({'; '.join(told)})")
    elif is_to_start:
        policy_maker(config.warm_start, where="--warm-start")  # is refused now, if it is
    scenarios = config.load_scenarios()
    config.run_dir.mkdir(parents=True, exist_ok=True)
    save_train_config(config)
    torch.set_num_threads(1)  # two threads on a shared machine stall in each other's way (RLLIB_NOTES Q6)
    num_cpus = max(2, len(config.ray_bundles))
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("run_dir", "traces_dir", "address")}
    with (
        tracked(config.trackers, config.tracker_project, config.run_dir, settings) as logs,
        ray_session(num_cpus, config.address),
        _stop_on_interrupt() as stop,
        _Journal(config, on_progress, logs) as journal,
    ):
        return _Run(config, scenarios, stop, journal, net).run()


@contextlib.contextmanager
def _stop_on_interrupt() -> Iterator[threading.Event]:
    """The first SIGINT sets the event; after it the signal has its usual effect again."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = signal.getsignal(signal.SIGINT)

    def ask(number: int, frame: Any) -> None:
        stop.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, previous)


class _Journal:
    """Every reading goes to ``progress.jsonl``, TensorBoard, the trackers and the caller."""

    def __init__(self, config: TrainConfig, on_progress: Callable[[Progress], None], logs: Sequence[Log]) -> None:
        self._on_progress, self._logs = on_progress, logs
        self._writer: Any = SummaryWriter(str(config.run_dir))
        self._lines = (config.run_dir / "progress.jsonl").open("a")

    def __enter__(self) -> "_Journal":
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.close()
        self._lines.close()

    def write(self, progress: Progress) -> None:
        """Records one reading."""
        record = {k: None if v != v else v for k, v in dataclasses.asdict(progress).items()}
        self._lines.write(json.dumps(record) + "\n")
        self._lines.flush()
        if progress.phase is Phase.PPO:
            figures = {
                "episode/return": progress.episode_return,
                "episode/total_usd": progress.total_usd,
                "episode/moves": progress.moves,
                "speed/steps_per_s": progress.steps_per_s,
            }
            figures.update(progress.metrics)
            for name, value in figures.items():
                self._writer.add_scalar(name, value, progress.steps)
            for tell in self._logs:
                tell(figures, progress.steps)
        self._on_progress(progress)


class _Run:
    """One call of ``train``, from the warm start to the bundle."""

    def __init__(
        self,
        config: TrainConfig,
        scenarios: list[Scenario],
        stop: threading.Event,
        journal: _Journal,
        net: CompactionNet | None,
    ) -> None:
        self.config, self.scenarios, self.stop, self.journal = config, scenarios, stop, journal
        self.net = net  # of the bundle to go on from
        self.layout: ObsLayout = scenario_layout(*map(config.worlds.largest, scenarios))
        self.begun_s = time.monotonic()
        self.before = RunPosition()
        self.steps, self.iterations = 0, 0
        self.candidates: dict[str, CompactionNet] = {}
        self.workers = Workers(jobs=max(1, config.num_env_runners))  # of what RLlib's own runners do not play
        self.git_commit = git_commit()  # now: the checkout may have moved on by the end

    @property
    def elapsed_s(self) -> float:
        """Wall time of this call."""
        return time.monotonic() - self.begun_s

    @property
    def position(self) -> RunPosition:
        """Earlier calls included."""
        minutes = self.before.minutes + self.elapsed_s / 60.0
        return RunPosition(steps=self.steps, minutes=minutes, iterations=self.iterations)

    def done_frac(self) -> float:
        """Share of this call that is done, by time or by steps, whichever is more."""
        minutes, steps = self.config.stop_minutes, self.config.stop_steps
        by_time = self.elapsed_s / (60.0 * minutes) if minutes else 0.0
        by_steps = (self.steps - self.before.steps) / max(1, steps - self.before.steps) if steps else 0.0
        return min(1.0, max(by_time, by_steps))

    def run(self) -> TrainResult:
        """Warm start, PPO, choice, bundle."""
        torch.manual_seed(self.config.seed)
        net = None if self.config.resume else self._warm_start()
        algorithm = build_ppo(self.config, self.scenarios, self.layout)
        average = WeightAverage(policy_net(algorithm) if net is None else net)
        try:
            if self.config.resume:
                self.before = restore_newest(algorithm, self.config.run_dir, average)
                self.steps, self.iterations = self.before.steps, self.before.iterations
            elif net is not None:
                load_net(algorithm, net)
                self.candidates["warm_start"] = net.eval()
            self._improve(algorithm, average)
            position = self.position
            checkpoint = save_checkpoint(algorithm, self.config.run_dir, position, average)
            self.candidates["average"], self.candidates["last"] = average.net(), policy_net(algorithm)
        finally:
            algorithm.stop()  # type: ignore[no-untyped-call]
        chosen, excesses = self._choose()
        bundle_dir = self.config.run_dir / "bundle"
        save_bundle(bundle_dir, self.candidates[chosen], self._card(excesses[chosen] if excesses else None))
        self._report(Phase.DONE)
        return TrainResult(
            bundle_dir=bundle_dir,
            checkpoint=checkpoint,
            position=position,
            chosen=chosen,
            evaluation_excess_frac=excesses,
            interrupted=self.stop.is_set(),
        )

    def _report(self, phase: Phase, **figures: Any) -> None:
        done = 1.0 if phase is Phase.DONE else self.done_frac()
        record = Progress(phase=phase, elapsed_s=self.elapsed_s, done_frac=done, steps=self.steps, **figures)
        self.journal.write(record)

    def _warm_start(self) -> CompactionNet | None:
        if self.net is not None or not self.config.warm_start:
            return self.net
        config, minutes = self.config, self.config.stop_minutes
        settings = ImitationConfig(
            num_steps=config.warm_start_steps,
            gamma=config.gamma,
            reward_scale=config.reward_scale,
            max_s=60.0 * minutes * WARM_START_SHARE / config.warm_start_rounds if minutes else float("inf"),
        )
        rng, teacher = np.random.default_rng(config.seed), functools.partial(make_policy, config.warm_start)
        net, rounds = None, list[Demonstrations]()

        def on_progress(done_frac: float, metrics: dict[str, float]) -> None:
            self._report(Phase.IMITATE, metrics={f"imitation/{name}": value for name, value in metrics.items()})

        for _ in range(config.warm_start_rounds):
            self._report(Phase.DEMONSTRATE)
            rounds.append(
                demonstrate(
                    self.scenarios,
                    self.layout,
                    teacher,
                    rng,
                    settings,
                    self.stop.is_set,
                    vary=config.worlds,
                    student=net,
                    workers=self.workers,
                )
            )
            net = CompactionNet(config.network)
            imitate(
                net,
                self.layout,
                Demonstrations.joined(rounds),
                settings,
                seed=config.seed,
                on_progress=on_progress,
                should_stop=self.stop.is_set,
            )
            net.eval()
            if self.stop.is_set():
                break
        return net

    def _improve(self, algorithm: Any, average: WeightAverage) -> None:
        """PPO until the stopping rule or an interrupt; a checkpoint now and then."""
        saved_s, next_candidate = self.elapsed_s, 1
        while self.done_frac() < 1.0 and not self.stop.is_set():
            begun_s, steps_before = self.elapsed_s, self.steps
            result = algorithm.train()
            sampled, learned = result["env_runners"], result["learners"]["default_policy"]
            # A fresh algorithm counts from 0, a restored one goes on.
            self.steps = int(sampled["num_env_steps_sampled_lifetime"])
            self.iterations += 1
            average.add(policy_net(algorithm))
            speed = (self.steps - steps_before) / max(1e-9, self.elapsed_s - begun_s)
            self._report(
                Phase.PPO,
                steps_per_s=speed,
                episode_return=float(sampled.get("episode_return_mean", float("nan"))),
                total_usd=float(sampled.get("total_usd", float("nan"))),
                moves=float(sampled.get("moves", float("nan"))),
                metrics=_figures(sampled, learned),
            )
            # The mean return of an iteration says more of its episodes than of its weights, so it chooses nothing.
            if self.done_frac() >= next_candidate / NUM_CANDIDATES and next_candidate < NUM_CANDIDATES:
                self.candidates[f"average_{self.steps}"] = average.net()
                next_candidate = int(self.done_frac() * NUM_CANDIDATES) + 1
            if self.elapsed_s - saved_s > self.config.checkpoint_every_s:
                save_checkpoint(algorithm, self.config.run_dir, self.position, average)
                saved_s = self.elapsed_s

    def _choose(self) -> tuple[str, dict[str, float]]:
        """The candidate with the best mean reward on episodes of the train split that were not trained on."""
        episodes = self.config.evaluation_episodes
        if episodes <= 0:
            return "last", {}
        excesses: dict[str, float] = {}
        scenarios = dict(zip(self.config.scenarios, self.config.load_scenarios(evaluation=True), strict=True))
        times = Counter(self.config.scenarios)  # one that is given twice is played once and counts twice
        self._report(Phase.EVALUATE)
        for name, net in self.candidates.items():
            seeds = range(EVALUATION_SEED + self.config.seed, EVALUATION_SEED + self.config.seed + episodes)
            work = [(scenario, seed, times[given]) for given, scenario in scenarios.items() for seed in seeds]
            played = run_all(_excess_frac, net, work, self.workers)
            excesses[name] = float(np.mean(sorted(frac for (*_, count), frac in played for _ in range(count))))
            self._report(Phase.EVALUATE, metrics={f"evaluation/excess_frac/{name}": excesses[name]})
        return max(excesses, key=lambda name: -np.sign(self.config.reward_scale) * excesses[name]), excesses

    def _card(self, excess_frac: float | None) -> TrainingCard:
        return TrainingCard(
            scenarios=tuple(s.name for s in self.scenarios),
            seed=self.config.seed,
            steps=self.position.steps,
            minutes=self.position.minutes,
            warm_start=self.config.origin or self.config.warm_start,
            traffic={s.name: days_of(s, Split.TRAIN) for s in self.scenarios},
            command=portable_command(),
            created_utc=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            git_commit=self.git_commit,
            versions=package_versions(),
            metrics={} if excess_frac is None else {"evaluation/excess_frac": excess_frac},
        )


def _start_of(config: TrainConfig) -> PolicyBundle:
    """The bundle to go on from; ``network`` is the shipped one.

    Raises:
        InputError: There is none, or it cannot be used.
    """
    folder = shipped_bundle() if config.warm_start == NETWORK else Path(config.warm_start)
    if not folder.is_dir():
        known = ", ".join([*HEURISTICS, NETWORK])
        raise InputError("--warm-start", f"{known}, or the directory of a bundle", config.warm_start)
    return load_bundle(folder)


def _excess_frac(net: CompactionNet, work: tuple[Scenario, int, int]) -> float:
    """The network's bill above the lower bound in one episode of the train split."""
    scenario, seed, _ = work
    return run_episode(scenario, LearnedPolicy(net, scenario.limits), seed, Split.TRAIN).metrics["excess_frac"]


def _figures(sampled: dict[str, Any], learned: dict[str, Any]) -> dict[str, float]:
    """The other metrics, as ``group/name``."""
    names = {
        "learner/policy_loss": (learned, "policy_loss"),
        "learner/value_loss": (learned, "vf_loss"),
        "learner/value_explained": (learned, "vf_explained_var"),
        "learner/entropy": (learned, "entropy"),
        "learner/wait_kl": (learned, WAIT_KL),
        "learner/input_explained": (learned, INPUT_EXPLAINED),
        "learner/total_loss": (learned, "total_loss"),
        "episode/excess_frac": (sampled, "excess_frac"),
        "episode/undone_moves": (sampled, "undone_moves"),
        "episode/node_h": (sampled, "node_h"),
        "episode/length": (sampled, "episode_len_mean"),
    }
    return {name: float(group[key]) for name, (group, key) in names.items() if key in group}
