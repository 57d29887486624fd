"""Training of the leader (``policies/leader.py``): every candidate leads whole episodes of the training days.

All of them play the same episodes, so that luck with the traffic cancels; two of three episodes are in other worlds
(``worlds.vary``). The candidate that is best over all scenarios (the single best solver of algorithm selection) becomes
the reference that leads in doubt. What is played is kept, candidate by candidate, and found again when the same command
is given again. What leading is worth is told on episodes that were left out, and on scenarios that were.
"""

import datetime
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_solve, cholesky
from scipy.optimize import minimize

from rayfold.envs.safety import Limits
from rayfold.envs.scenario import Scenario, Split
from rayfold.envs.simulator import Simulator
from rayfold.errors import InputError
from rayfold.policies.bundle import PolicyBundle
from rayfold.policies.by_name import needs_bundle, policy_maker
from rayfold.policies.leader import REFERENCE, WORTH_LIMIT, Experience, Kernel, Leader, covariance, scale_of
from rayfold.policies.leader_file import LeaderCard, TrainedLeader
from rayfold.policies.rollout import roll_out
from rayfold.policies.weights import packed
from rayfold.policies.world_features import WORLD_FEATURES, world_features
from rayfold.training.episode_result import begin_episode
from rayfold.training.provenance import git_commit, portable_command
from rayfold.training.report import write_atomically
from rayfold.training.unit_store import code_digest, scenario_digest
from rayfold.training.workers import HERE, Workers, run_all
from rayfold.training.worlds import PRICE_SCALES, at_prices, vary

__all__ = ["CANDIDATES", "FOLDS", "PLANNER", "Lesson", "fit_leader", "price_lessons", "train_leader"]

PLANNER = "exact(quiet_s=75,quiet_frac=0.01,min_saving_frac=0.25)"
CANDIDATES = ("network", PLANNER)  # others added nothing (docs/learning.md, 14)
FOLDS = 5
_BOUNDS = ((0.002, 0.2), (0.3, 10.0), (0.002, 0.2))  # of a kernel
_PRIOR = Kernel(0.03, 2.0, 0.03)  # median of a log-normal each: few episodes of few scenarios fit anything
_PRIOR_SPREAD = 0.3
AS_IT_IS, _FIRST_OF_PRICES = 3, 3 * 333


class Lesson(NamedTuple):
    """Episodes of a scenario."""

    scenario: Scenario  # with the horizon to use
    seeds: tuple[int, ...]  # every ``AS_IT_IS``th number is an episode in the scenario as it is
    group: str = ""  # see ``counts_as``

    @property
    def counts_as(self) -> str:
        """Name of the scenario that its episodes count to: its group, else its own."""
        return self.group or self.scenario.name


def price_lessons(scenario: Scenario, count: int) -> tuple[Lesson, ...]:
    """Episodes in the scenario as it is but for the price of disruption and unserved demand.

    Args:
        scenario: With the horizon to use.
        count: Episodes at each of ``PRICE_SCALES``, of other traffic than those of any lesson with seeds from 0 on.
    """
    seeds = tuple(range(_FIRST_OF_PRICES, _FIRST_OF_PRICES + AS_IT_IS * count, AS_IT_IS))
    return tuple(Lesson(at_prices(scenario, factor), seeds, scenario.name) for factor in PRICE_SCALES) if count else ()


class _Unit(NamedTuple):
    scenario: Scenario
    seed: int
    candidate: str


class _Seen(NamedTuple):
    """One candidate on one episode."""

    world: list[float]  # (D,) mean over the hours
    bill_usd: float


class _Played(NamedTuple):
    """All candidates on all episodes."""

    names: tuple[str, ...]  # of the K candidates
    worlds: NDArray[np.float64]  # (N, K, D) as each of them found them: who leads changes which nodes are there
    bills: NDArray[np.float64]  # (N, K) US dollars
    groups: NDArray[np.str_]  # (N,) scenario


def train_leader(
    lessons: Sequence[Lesson],
    bundle: PolicyBundle,
    run_dir: Path,
    *,
    candidates: Sequence[str] = CANDIDATES,
    seed: int = 0,
    workers: Workers = HERE,
    on_unit: Callable[[str, int], None] = lambda candidate, seed: None,
) -> TrainedLeader:
    """Plays what has not been played yet, and fits.

    Args:
        lessons: What to learn from, on the training days.
        bundle: Whose network is among the candidates.
        run_dir: Its folder ``episodes`` holds what is done.
        candidates: Names as in ``by_name``, at least two.
        seed: Of the folds.
        workers: Where episodes run.
        on_unit: Called with candidate and seed after each episode of each, those found in the folder too.

    The card's metrics: the bill against the reference, minus 1. ``SCENARIO`` on episodes left out (``FOLDS`` folds),
    ``new/SCENARIO`` where the whole scenario was, ``best/SCENARIO`` of the candidate that is best there on these
    episodes.

    Raises:
        InputError: Too few episodes for what is held out, or a candidate that there is not.
    """
    if sum(len(lesson.seeds) for lesson in lessons) < FOLDS:
        raise InputError("--episodes", f"at least {FOLDS} together: a part is held out", "fewer")
    for name in candidates:
        policy_maker(name, bundle=bundle)
    played = _play_all(lessons, bundle, run_dir / "episodes", candidates, workers, on_unit)
    reference, leader = fit_leader(played)
    card = LeaderCard(
        scenarios=tuple(dict.fromkeys(lesson.counts_as for lesson in lessons)),
        episodes=len(played.bills),
        seed=seed,
        reference=reference,
        command=portable_command(),
        created_utc=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        git_commit=git_commit(),
        metrics=_metrics(played, played.names.index(reference), np.random.default_rng(seed)),
    )
    return TrainedLeader(leader=leader, card=card)


def _play_all(
    lessons: Sequence[Lesson],
    bundle: PolicyBundle,
    folder: Path,
    candidates: Sequence[str],
    workers: Workers,
    on_unit: Callable[[str, int], None],
) -> _Played:
    # Scenario by scenario in turns, so that an interrupted run has learned of all of them.
    most = max(len(lesson.seeds) for lesson in lessons)
    episodes = [(x, x.seeds[i]) for i in range(most) for x in lessons if i < len(x.seeds)]
    units = [_Unit(lesson.scenario, seed, name) for lesson, seed in episodes for name in candidates]
    base = hashlib.sha256(packed(bundle.net)).hexdigest()
    digests = {id(lesson.scenario): scenario_digest(lesson.scenario) for lesson in lessons}
    files = [folder / f"{_key(digests[id(u.scenario)], base, u.candidate, u.seed)}.json" for u in units]
    done = {i: seen for i, file in enumerate(files) if (seen := _load(file)) is not None}
    for i in done:
        on_unit(units[i].candidate, units[i].seed)
    work = [(i, unit) for i, unit in enumerate(units) if i not in done]
    for (i, unit), seen in run_all(_play, bundle, work, workers):
        write_atomically(files[i], json.dumps(seen._asdict()).encode())
        done[i] = seen
        on_unit(unit.candidate, unit.seed)
    count = len(candidates)
    return _Played(
        names=tuple(candidates),
        worlds=np.array([done[i].world for i in range(len(units))]).reshape(len(episodes), count, -1),
        bills=np.array([done[i].bill_usd for i in range(len(units))]).reshape(-1, count),
        groups=np.array([lesson.counts_as for lesson, _ in episodes]),
    )


def fit_leader(played: _Played) -> tuple[str, Leader]:
    """The candidate that leads in doubt, and a leader that knows when another one should.

    Args:
        played: At least one episode.
    """
    groups = [played.groups == name for name in np.unique(played.groups)]
    in_mean = np.mean([played.bills[rows].sum(0) / played.bills[rows].sum(0).min() for rows in groups], axis=0)
    row = int(in_mean.argmin())
    members = tuple(name for name in played.names if name != played.names[row])
    worth = np.delete(played.bills, row, axis=1) / played.bills[:, [row]] - 1.0
    worlds = played.worlds[:, row]  # as they are seen while it leads, which in doubt it does
    mean, spread = scale_of(worlds)
    known, clipped = (worlds - mean) / spread, np.clip(worth, -WORTH_LIMIT, WORTH_LIMIT)
    kernels = tuple(_fit_kernel(known, clipped[:, k]) for k in range(len(members)))
    return played.names[row], Leader(Experience(members=members, worlds=worlds, worth=worth, kernels=kernels))


def _fit_kernel(known: NDArray[np.float64], y: NDArray[np.float64]) -> Kernel:
    """Most likely a posteriori."""
    prior = np.log(np.array(_PRIOR))

    def loss(logs: NDArray[np.float64]) -> float:
        kernel = Kernel(*np.exp(logs))
        noisy = covariance(known, known, kernel) + kernel.noise_frac**2 * np.eye(len(y))
        try:
            lower = cholesky(noisy, lower=True)
        except LinAlgError:
            return 1e9
        likelihood = -0.5 * y @ cho_solve((lower, True), y) - np.log(np.diag(lower)).sum()
        return float(0.5 * (((logs - prior) / _PRIOR_SPREAD) ** 2).sum() - likelihood)

    found = minimize(loss, prior, method="L-BFGS-B", bounds=np.log(np.array(_BOUNDS)))
    return Kernel(*(float(x) for x in np.exp(found.x)))


def _metrics(played: _Played, reference: int, rng: np.random.Generator) -> dict[str, float]:
    fold, names = rng.permutation(np.arange(len(played.groups)) % FOLDS), list(dict.fromkeys(played.groups.tolist()))
    parts = {"": _led_bills(played, [fold == f for f in range(FOLDS)])}
    if len(names) > 1:
        parts["new/"] = _led_bills(played, [played.groups == name for name in names])
    out = {}
    for name in names:
        rows = played.groups == name
        bills = played.bills[rows].sum(0)
        out.update({part + name: float(led[rows].sum() / bills[reference] - 1.0) for part, led in parts.items()})
        out[f"best/{name}"] = float(bills.min() / bills[reference] - 1.0)
    means = {part: float(np.mean([out[part + name] for name in names])) for part in (*parts, "best/")}
    out.update({f"{part}mean": mean for part, mean in means.items()})
    return {name: round(value, 6) + 0.0 for name, value in out.items()}  # + 0.0: no -0.0


def _led_bills(played: _Played, left_out: Sequence[NDArray[np.bool_]]) -> NDArray[np.float64]:
    """``(N,)`` US dollars of whoever is chosen by a leader that has not seen the episode."""
    out = np.zeros(len(played.bills))
    for rows in left_out:
        known = _Played(played.names, played.worlds[~rows], played.bills[~rows], played.groups[~rows])
        reference, leader = fit_leader(known)
        for i in np.flatnonzero(rows):
            row, _ = leader.choose(played.worlds[i, played.names.index(reference)])
            name = reference if row == REFERENCE else leader.experience.members[row]
            out[i] = played.bills[i, played.names.index(name)]
    return out


class _Looking:
    """A recorder that keeps the world's features of every hour."""

    def __init__(self, limits: Limits, hour_ticks: int) -> None:
        self._limits, self._hour_ticks = limits, max(1, hour_ticks)
        self.ticks, self.seen = 0, list[NDArray[np.float64]]()

    def decided(self, sim: Simulator) -> None:
        """Looks before anything has moved."""
        if self.ticks % self._hour_ticks == 0:
            self.seen.append(world_features(sim.view, self._limits))
        self.ticks += 1

    def passed(self, sim: Simulator) -> None:
        """Nothing to remember."""


def _play(bundle: PolicyBundle, work: tuple[int, _Unit]) -> _Seen:
    _, unit = work
    episode_rng, policy_rng, world_rng = np.random.default_rng(unit.seed).spawn(3)
    scenario = vary(unit.scenario, world_rng) if unit.seed % AS_IT_IS else unit.scenario
    sim, _ = begin_episode(scenario, Split.TRAIN, episode_rng)
    looking = _Looking(scenario.limits, round(3600.0 / scenario.spec.settings.decision_interval_s))
    policy = policy_maker(unit.candidate, bundle=bundle)(scenario.limits)
    done = roll_out(sim, policy, policy_rng, recorder=looking)
    return _Seen([float(x) for x in np.mean(looking.seen, axis=0)], float(done.ledger.total_usd))


def _key(scenario: str, base: str, candidate: str, seed: int) -> str:
    """A candidate that asks no network need not play again for another one."""
    parts = [code_digest(), scenario, base if needs_bundle(candidate) else "", candidate, list(WORLD_FEATURES), seed]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:40]


def _load(path: Path) -> _Seen | None:
    """What was kept; None if there is nothing, or the file is damaged."""
    try:
        found = json.loads(path.read_bytes())
        return _Seen([float(x) for x in found["world"]], float(found["bill_usd"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
