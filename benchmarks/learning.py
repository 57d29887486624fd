"""What learning is worth, part by part, on validation days, and in worlds it was not trained for.

``python benchmarks/learning.py [--scenarios ...] [--parts ...] [--seeds 8] [--search 2] [--jobs 2] [--json F]`` runs,
on the same episodes, ``exact`` as tuned for the scenario (the reference of all figures) and with its defaults, the
bundle's leader, the same without doubt, each policy that it may choose, and, for the first ``--search`` seeds, two
kinds of search in the twin, which cost minutes per episode: the network with the best of 1, 4 and 8 of its plans and
the planner's, and parallel rollout (``--searches`` takes some of them). Free repacking stands beside them. Then leader,
network and ``exact`` where they see the state of the tick before, or no traffic; and the leader, ``exact`` and free
repacking with disruption and unserved demand at a quarter of their price and at four times it (``exact`` is tuned for
it where such settings ship), and with start-ups three times as long (``--world-seeds`` of each). ``azfunc.yaml`` is
traffic of another kind.
Ctrl-C ends it, and what is done is told. Scenarios of traces need them in ``$RAYFOLD_TRACES`` or ``./traces``.
"""

import argparse
import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from arena import interval

from rayfold.envs.futures import fit_traffic
from rayfold.envs.moves import Plan
from rayfold.envs.scenario import Scenario, Split, load_scenario
from rayfold.envs.state import ClusterState
from rayfold.policies.best_of_plans import BestOfPlans
from rayfold.policies.bundle import PolicyBundle, load_bundle
from rayfold.policies.by_name import LEARNED, NETWORK, policy_maker, shipped_bundle
from rayfold.policies.exact import Exact, ExactSettings
from rayfold.policies.free_repacking import FreeRepacking
from rayfold.policies.leader import Leader
from rayfold.policies.parallel_rollout import ParallelRollout, RolloutSettings
from rayfold.policies.portfolio import MEMBERS, make_member
from rayfold.policies.protocol import Policy
from rayfold.policies.rollout import Rearranger
from rayfold.training.bootstrap import mean_of, relative
from rayfold.training.episode_result import run_episode
from rayfold.training.policy_choice import PolicyChoice, tuned_for
from rayfold.training.provenance import git_commit
from rayfold.training.report import write_json
from rayfold.training.workers import Workers, run_all
from rayfold.training.worlds import at_prices, scaled

AZFUNC = str(Path(__file__).parent / "azfunc.yaml")
SCENARIOS = f"{AZFUNC},llm_api,llm_api_pack_groups,slow_start,low_scale,tight,fractional,spot"
REFERENCE, DEFAULT, NO_DOUBT = "exact, tuned", "exact", "learned, no doubt"
WORLDS: dict[str, Callable[[Scenario], Scenario]] = {
    "as it is": lambda scenario: scenario,
    "prices / 4": partial(at_prices, factor=0.25),
    "prices x 4": partial(at_prices, factor=4.0),
    "start-ups x 3": partial(scaled, startup=3.0),
}
BEST_OF = tuple(f"best_of_plans(num_plans={k})" for k in (1, 4, 8))
ROLLOUT = "rollout of 4"  # futures, of all policies of the portfolio
STALE, BLIND = "a tick late", "no traffic seen"
HANDICAPPED = (LEARNED, NETWORK, REFERENCE)
AGAINST, AS_HANDICAPPED = "against_tuned_exact", "against_tuned_exact_as_handicapped"
PARTS = ALONE, HANDICAPS, OTHER_WORLDS = ("alone", "handicaps", "worlds")
SHOWN = ("moves", "undone_moves", "unserved_request_s", "decision_ms_p99")


class Unit(NamedTuple):
    """One policy on one episode of one world."""

    scenario: str
    world: str
    variant: str
    seed: int


class Handicapped:
    """A policy that sees less than there is.

    Args:
        policy: Who decides.
        is_stale: It sees the state of the tick before; at first there is none, and nothing is done.
        is_blind: It sees no ongoing requests.
    """

    def __init__(self, policy: Policy, *, is_stale: bool = False, is_blind: bool = False) -> None:
        self._policy, self._is_stale, self._is_blind, self.name = policy, is_stale, is_blind, policy.name
        self.reset()

    def reset(self) -> None:
        """Nothing has been seen."""
        self._policy.reset()
        self._before: ClusterState | None = None

    def plan(self, state: ClusterState, rng: np.random.Generator) -> Plan:
        """The policy's, for what it sees."""
        seen = dataclasses.replace(state, arrays=state.arrays.copy())
        if self._is_blind:
            seen.arrays.deployment_ongoing[:] = seen.arrays.deployment_ongoing_slow[:] = 0.0
        shown, self._before = self._before if self._is_stale else seen, seen
        return self._policy.plan(shown, rng) if shown is not None else Plan(reason="nothing seen yet")


def policies(scenario: Scenario, bundle: Path) -> dict[str, Callable[[], Policy | Rearranger]]:
    """How each variant is made."""
    found, limits = load_bundle(bundle), scenario.limits
    tuned = ExactSettings(**tuned_for(scenario.name).get(Exact.name, {}))
    planning: dict[str, Callable[[], Policy]] = {REFERENCE: partial(Exact, limits, tuned)}
    for name in (DEFAULT, LEARNED, NETWORK, *_members(found)):
        planning[name] = partial(policy_maker(name, bundle=found), limits)
    made: dict[str, Callable[[], Policy | Rearranger]] = {FreeRepacking.name: FreeRepacking, **planning}
    if found.leader is not None:
        bold = dataclasses.replace(found.leader, leader=Leader(found.leader.leader.experience, doubt=0.0))
        without_doubt = dataclasses.replace(found, leader=bold)
        made[NO_DOUBT] = partial(policy_maker(LEARNED, bundle=without_doubt), limits)
    for name in HANDICAPPED:
        made[f"{name}, {STALE}"] = partial(_handicapped, planning[name], is_stale=True)
        made[f"{name}, {BLIND}"] = partial(_handicapped, planning[name], is_blind=True)
    made[ROLLOUT] = partial(_rollout, scenario, found)
    made.update({name: partial(_best_of, name, scenario, bundle) for name in BEST_OF})
    return made


def _best_of(name: str, scenario: Scenario, bundle: Path) -> Policy:
    policy = PolicyChoice(name=name, bundle=bundle).make(scenario)
    assert isinstance(policy, BestOfPlans)
    return policy


def _rollout(scenario: Scenario, bundle: PolicyBundle) -> Policy:
    members = [partial(make_member, k, scenario.limits, bundle.net) for k in range(len(MEMBERS))]
    return ParallelRollout(members, scenario.limits, fit_traffic(scenario, scenario.spec), RolloutSettings())


def _handicapped(make: Callable[[], Policy], **how: bool) -> Policy:
    return Handicapped(make(), **how)


def _members(bundle: PolicyBundle) -> tuple[str, ...]:
    leader = bundle.leader
    return (leader.card.reference, *leader.leader.experience.members) if leader is not None else ()


def run(shared: tuple[dict[str, Scenario], Path], unit: Unit) -> dict[str, float]:
    """The metrics of one unit."""
    scenarios, bundle = shared
    scenario = WORLDS[unit.world](scenarios[unit.scenario])
    policy = policies(scenario, bundle)[unit.variant]()
    return run_episode(scenario, policy, unit.seed, Split.VALIDATION).metrics


def units_of(args: argparse.Namespace) -> list[Unit]:
    """Everything that is to be run."""
    members = _members(load_bundle(args.bundle))
    alone = list(dict.fromkeys([REFERENCE, DEFAULT, LEARNED, NO_DOUBT, NETWORK, *members, FreeRepacking.name]))
    handicapped = [f"{name}, {how}" for name in HANDICAPPED for how in (STALE, BLIND)]
    in_other_worlds = (REFERENCE, DEFAULT, LEARNED, FreeRepacking.name)
    parts, units = args.parts.split(","), list[Unit]()
    as_it_is = alone if ALONE in parts else [REFERENCE]
    for scenario in args.scenarios.split(","):
        for seed in range(args.seeds):
            units += [Unit(scenario, "as it is", variant, seed) for variant in as_it_is]
            if seed < args.search:
                units += [Unit(scenario, "as it is", variant, seed) for variant in args.searches.split(",")]
            if seed < args.world_seeds and HANDICAPS in parts:
                units += [Unit(scenario, "as it is", variant, seed) for variant in handicapped]
            if seed < args.world_seeds and OTHER_WORLDS in parts:
                units += [Unit(scenario, w, v, seed) for w in list(WORLDS)[1:] for v in in_other_worlds]
    return units


def rows(done: dict[Unit, dict[str, float]]) -> list[dict[str, Any]]:
    """One row per scenario, world and variant: the bill against the reference's on the same episodes, and moves.

    Who is handicapped is told against the reference with the same handicap, too.
    """
    out = []
    for scenario, world, variant in dict.fromkeys((u.scenario, u.world, u.variant) for u in done):
        seeds = sorted(u.seed for u in done if (u.scenario, u.world, u.variant) == (scenario, world, variant))
        mine = [done[Unit(scenario, world, variant, seed)] for seed in seeds]
        bill = mean_of([m["total_usd"] for m in mine])
        handicap = next((how for how in (STALE, BLIND) if variant.endswith(how)), "")
        against = {}
        for column, reference in ((AGAINST, REFERENCE), (AS_HANDICAPPED, f"{REFERENCE}, {handicap}")):
            theirs = [done.get(Unit(scenario, world, reference, seed)) for seed in seeds]
            known = [metrics["total_usd"] for metrics in theirs if metrics is not None]
            against[column] = relative(bill, mean_of(known)).as_json() if len(known) == len(seeds) else None
        shown = {name: mean_of([m[name] for m in mine]).mean for name in SHOWN}
        row = {"scenario": Path(scenario).stem, "world": world, "variant": variant, "seeds": len(seeds)}
        out.append({**row, "total_usd": bill.mean, **against, **shown})
    return out


def table(found: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| scenario | world | variant | seeds | bill USD | against tuned exact % | with the same handicap % | "
        f"{' | '.join(SHOWN)} |",
        f"|---|---|---|---|---|---|---|{'---|' * len(SHOWN)}",
    ]
    for row in found:
        told = " | ".join(interval(row[column], 100.0, 2) for column in (AGAINST, AS_HANDICAPPED))
        shown = " | ".join(f"{row[name]:,.1f}" for name in SHOWN)
        names = " | ".join(str(row[name]) for name in ("scenario", "world", "variant", "seeds"))
        lines.append(f"| {names} | {row['total_usd']:,.1f} | {told} | {shown} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenarios", default=SCENARIOS)
    parser.add_argument("--parts", default=",".join(PARTS), help="what is played beside the reference")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--world-seeds", type=int, default=4, help="in the other worlds, and of handicaps")
    parser.add_argument("--search", type=int, default=0, help="seeds on which searches run too")
    parser.add_argument("--searches", default=",".join((*BEST_OF, ROLLOUT)))
    parser.add_argument("--horizon-h", type=float, default=12.0, help="longest episode")
    parser.add_argument("--bundle", type=Path, default=shipped_bundle())
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if unknown := set(args.parts.split(",")) - set(PARTS):
        parser.error(f"--parts: expected some of {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    if unknown := set(args.searches.split(",")) - {*BEST_OF, ROLLOUT}:
        parser.error(f"--searches: expected some of {', '.join((*BEST_OF, ROLLOUT))}, got {', '.join(sorted(unknown))}")
    traces = os.environ.get("RAYFOLD_TRACES", "traces")
    loaded = {name: load_scenario(name, Path(traces)) for name in args.scenarios.split(",")}
    scenarios = {name: s.with_horizon(min(s.horizon_s, 3600.0 * args.horizon_h)) for name, s in loaded.items()}
    begun, done, units = time.monotonic(), dict[Unit, dict[str, float]](), units_of(args)
    with contextlib.suppress(KeyboardInterrupt):  # what is done is told
        for unit, metrics in run_all(run, (scenarios, args.bundle), units, Workers(jobs=args.jobs)):
            done[unit] = metrics
            sys.stderr.write(f"\r{len(done)} of {len(units)} episodes, {time.monotonic() - begun:.0f} s ")
    references = {(unit.scenario, unit.world, unit.seed) for unit in done if unit.variant == REFERENCE}
    found = rows({u: done[u] for u in units if u in done and (u.scenario, u.world, u.seed) in references})
    sys.stdout.write(f"\nCommit {git_commit()}, {time.monotonic() - begun:.0f} s\n\n{table(found)}")
    if args.json:
        write_json(args.json, {"rows": found})


if __name__ == "__main__":
    main()
