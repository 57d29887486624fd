"""``TrainConfig``: everything that decides how a training run goes; saved as ``train.json`` in the run's folder."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from rayfold.envs.scenario import Scenario, load_scenario
from rayfold.errors import InputError
from rayfold.policies.network import NetworkConfig
from rayfold.training.trackers import Tracker
from rayfold.training.worlds import Worlds

__all__ = ["CONFIG_FILE", "TrainConfig", "load_train_config", "save_train_config"]

CONFIG_FILE = "train.json"
MOST_NODES = 4096  # in a world drawn by size: every observation of a run is padded to the largest

_OF_THIS_RUN = (
    "run_dir",
    "stop_minutes",
    "stop_steps",
    "resume",
    "address",
    "num_env_runners",
    "num_learners",
    "num_gpus_per_learner",
    "trackers",
    "tracker_project",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """One training run."""

    run_dir: Path  # checkpoints, event files, progress and the bundle go here
    scenarios: tuple[str, ...] = ("llm_api",)  # shipped names or YAML paths; each episode draws one
    vary_worlds: bool = False  # each episode in a world drawn by ``worlds.vary``, else as the scenario is
    num_nodes: tuple[int, int] | None = None  # each episode in a cluster of a size drawn from these; None = its own
    traces_dir: Path | None = None
    synthetic: bool = False  # generated traffic instead of traces
    seed: int = 0
    stop_minutes: float | None = 3.0  # wall time of this call, the warm start's included
    stop_steps: int | None = None  # environment steps of PPO, those before a resume included
    resume: bool = False  # go on from the newest checkpoint in run_dir, with the settings saved there
    # A heuristic to imitate first, with its settings in brackets; a bundle to go on from ("network" is the shipped
    # one); or empty.
    warm_start: str = "dearest_first"
    origin: str = ""  # of a warm start from a bundle: what that was trained on; ``train`` fills it in
    warm_start_steps: int = 16_000  # that the heuristic shows, in each round
    warm_start_rounds: int = 1  # more: DAgger, see imitation.py
    network: NetworkConfig = field(default_factory=NetworkConfig)
    horizon_s: float | None = 14_400.0  # longest episode; None = the scenario's own
    num_envs: int = 32  # per env runner
    wait_intervals: int = 1  # decision intervals that NOOP passes in PPO; what is trained may decide in each of them
    min_p: float = 0.0  # moves that PPO does not try, see CompactionNet.act
    min_act_p: float = 0.0
    group_size: int = 4  # environments that play the same episodes, for the input-dependent baseline; 1 = none do
    batch_steps: int = 4096  # environment steps per PPO iteration
    minibatch: int = 512
    epochs: int = 3
    lr: float = 3e-4
    gamma: float = 0.99  # per decision interval
    semi_mdp: bool = True  # discount by the time that passes; otherwise PPO discounts each step, moves included
    lambda_: float = 0.95
    entropy_coeff: float = 0.002
    wait_kl_coeff: float = 0.1  # weight of the trust region, see trust_region.py; 0 = PPO's clip alone
    reward_scale: float = 0.2  # of the reward in units of an episode's own first tick, see CompactionVectorEnv
    checkpoint_every_s: float = 60.0
    evaluation_episodes: int = 4  # for the choice of the weights that go into the bundle
    # Longest one of these: short ones tell how scattered replicas are gathered, not how well they are kept together.
    evaluation_horizon_s: float = 43_200.0
    address: str = ""  # of a running Ray cluster to train on; empty = a Ray of this process's own
    num_env_runners: int = 0  # 0 = sample in this process; also how many Ray tasks demonstrate and evaluate
    num_learners: int = 0  # 0 = learn in this process
    num_gpus_per_learner: float = 0.0
    trackers: tuple[Tracker, ...] = ()  # told of the figures beside TensorBoard
    tracker_project: str = "rayfold"

    @property
    def worlds(self) -> Worlds:
        """What an episode of training is played in."""
        return Worlds(varies=self.vary_worlds, num_nodes=self.num_nodes)

    @property
    def ray_bundles(self) -> list[dict[str, float]]:
        """Logical resources of Ray by process: this one, env runners, learners.

        As ``Algorithm.default_resource_request`` of RLlib 2.60 has it.
        """
        gpus = {"GPU": self.num_gpus_per_learner} if self.num_gpus_per_learner else {}
        this = {"CPU": 1.0} if self.num_learners else {"CPU": 1.0, **gpus}
        return [this, *[{"CPU": 1.0}] * self.num_env_runners, *[gpus or {"CPU": 1.0}] * self.num_learners]

    def load_scenarios(self, *, evaluation: bool = False) -> list[Scenario]:
        """The scenarios, with the horizon to train or to evaluate on."""
        longest_s = self.evaluation_horizon_s if evaluation else self.horizon_s
        loaded = {
            name: load_scenario(name, self.traces_dir, synthetic=self.synthetic)
            for name in dict.fromkeys(self.scenarios)
        }
        given = [loaded[name] for name in self.scenarios]
        return [s if longest_s is None else s.with_horizon(min(longest_s, s.horizon_s)) for s in given]

    def check(self) -> None:
        """Refuses settings that cannot work.

        Raises:
            InputError: Names the flag.
        """
        if self.stop_minutes is None and self.stop_steps is None:
            raise InputError("--stop-minutes, --stop-steps", "at least one of them", "none")
        for flag, value in (("--stop-minutes", self.stop_minutes), ("--stop-steps", self.stop_steps)):
            if value is not None and not value > 0:
                raise InputError(flag, "a positive number", value)
        if self.address.startswith("ray://"):
            raise InputError("--address", "HOST:PORT or auto: a cluster that this machine is a node of", self.address)
        if not self.scenarios:
            raise InputError("--scenario", "at least one scenario", "none")
        for flag, count, least in (
            ("--num-env-runners", self.num_env_runners, 0),
            ("--num-learners", self.num_learners, 0),
            ("--num-envs", self.num_envs, 1),
            ("--group-size", self.group_size, 1),
            ("--warm-start-steps", self.warm_start_steps, 1),
            ("--warm-start-rounds", self.warm_start_rounds, 1),
            ("--wait-intervals", self.wait_intervals, 1),
        ):
            if count < least:
                raise InputError(flag, f"{least} or more", count)
        if self.num_nodes is not None and not 1 <= self.num_nodes[0] <= self.num_nodes[1] <= MOST_NODES:
            given = "-".join(map(str, self.num_nodes))
            raise InputError("--num-nodes", f"LEAST-MOST, from 1 to {MOST_NODES}", given)
        for flag, share in (("--min-p", self.min_p), ("--min-act-p", self.min_act_p)):
            if not 0.0 <= share < 1.0:
                raise InputError(flag, "a share from 0 to 1", share)


def save_train_config(config: TrainConfig) -> None:
    """Writes ``train.json`` into the run's folder."""
    data = TypeAdapter(TrainConfig).dump_json(config, indent=2)
    (config.run_dir / CONFIG_FILE).write_bytes(data + b"\n")


def load_train_config(config: TrainConfig) -> TrainConfig:
    """The settings saved in ``config.run_dir``, with this call's stopping rule and workers.

    Raises:
        InputError: There is no such run, or its file is broken.
    """
    path = config.run_dir / CONFIG_FILE
    try:
        saved = TypeAdapter(TrainConfig).validate_json(path.read_bytes())
    except OSError:
        raise InputError(str(path), "the settings of a training run to resume", "no such file") from None
    except ValidationError as err:
        first = err.errors()[0]
        where = f"{path}: {'.'.join(map(str, first['loc']))}"
        raise InputError(where, "settings of a training run", first["msg"]) from err
    return dataclasses.replace(saved, **{name: getattr(config, name) for name in _OF_THIS_RUN})
