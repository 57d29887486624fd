"""Every policy on the validation days of every scenario: the README's table.

``python benchmarks/arena.py [--quick] [--scenarios ...] [--policies ...] [--prices 1] [--defaults] [--jobs 2]
[--out out/arena]`` runs ``rayfold evaluate`` scenario by scenario, with the shipped tuned settings, and writes
``OUT/<scenario>.json`` and ``.html`` folders, and ``OUT/table.md``. ``--prices 1,0.25,4`` does so at each of these
prices of disruption and unserved demand, ``--defaults`` takes every heuristic with its default settings too, and
``targets.py`` reads what came of it. What is done already is not done again. Needs the traces in ``$RAYFOLD_TRACES``
or ``./traces``.
"""

import argparse
import datetime
import json
import math
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rayfold.policies.by_name import HEURISTICS, LEARNED, NETWORK
from rayfold.policies.free_repacking import FreeRepacking
from rayfold.policies.settings import search_space
from rayfold.policies.tuned import tuned_settings
from rayfold.training.provenance import git_commit
from rayfold.training.report import write_atomically
from rayfold.training.standing import cheapest
from rayfold.training.sweep import with_settings
from rayfold.training.worlds import name_at_prices

SCENARIOS = (
    "llm_api",
    "llm_api_pack_groups",
    "slow_start",
    "mixed_fleet",
    "low_scale",
    "tight",
    "fractional",
    "spot",
    "busy_100",
    "thousand_nodes",
)
SEEDS, SEEDS_ELSEWHERE = 8, 4  # as the scenario is, and at other prices
# Generated traffic gives independent episodes, and those of small clusters are quick; those of large ones are not.
OTHER_SEEDS = {"tight": 64, "fractional": 64, "spot": 64, "busy_100": 2, "thousand_nodes": 2}
SHORT_HOURS = {"thousand_nodes": (1.0, 0.25)}  # whole and quick, where decisions cost the most
LEFT_OUT = {"thousand_nodes": {FreeRepacking.name}}  # packs 4000 replicas anew at every step: hours
QUICK_SEEDS, QUICK_HOURS = 2, 3.0
DEEDS = "moves, undone, unserved request-s"
ROOT = Path(__file__).resolve().parents[1]
COLUMNS = (
    ("total_usd", "bill USD", 1.0, 1),
    ("excess_frac", "excess %", 100.0, 1),
    ("closed_frac", "closed %", 100.0, 0),
    ("cost_usd", "nodes USD", 1.0, 1),
    ("moves", "moves", 1.0, 1),
    ("undone_moves", "undone", 1.0, 1),
    ("unserved_request_s", "unserved request-s", 1.0, 0),
    ("tokens_per_gpu_s", "tokens/GPU-s", 1.0, 1),
    ("decision_ms_p99", "decision ms p99", 1.0, 1),
)


def evaluate(scenario: str, prices: float, args: argparse.Namespace) -> dict[str, Any]:
    """Runs one scenario at one price and reads what came of it."""
    name = name_at_prices(scenario, prices)
    out = args.out / f"{name}.json"
    many = SEEDS if prices == 1.0 else SEEDS_ELSEWHERE
    seeds = args.seeds or (QUICK_SEEDS if args.quick else OTHER_SEEDS.get(scenario, many))
    policies = ",".join(policies_of(scenario, prices, args))
    command = [sys.executable, "-m", "rayfold", "evaluate", "--scenario", scenario, "--prices", str(prices)]
    command += ["--policies", policies, "--seeds", str(seeds), "--jobs", str(args.jobs)]
    command += ["--json", str(out), "--html", str(out.with_suffix(""))]
    hours = SHORT_HOURS.get(scenario, (math.inf, QUICK_HOURS))[args.quick]
    if math.isfinite(hours):
        command += ["--horizon-h", str(hours)]
    begun = time.monotonic()
    subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr, env={"OMP_NUM_THREADS": "1", **os.environ})
    sys.stderr.write(f"{name}: {time.monotonic() - begun:.0f} s\n")
    content: dict[str, Any] = json.loads(out.read_text())
    return content


def policies_of(scenario: str, prices: float, args: argparse.Namespace) -> list[str]:
    """What is played.

    ``rule()`` is a heuristic with its default settings. One that was not tuned for a price is played with the settings
    found at the scenario's own, which its name then tells.
    """
    policies = [name for name in args.policies.split(",") if name not in LEFT_OUT.get(scenario, ())]
    tunable = [name for name in policies if name in HEURISTICS and search_space(HEURISTICS[name].settings_type)]
    here, at_home = tuned_settings(name_at_prices(scenario, prices)), tuned_settings(scenario)
    told = {name: with_settings(name, at_home[name]) for name in tunable if name not in here and name in at_home}
    named = [told.get(name, name) for name in policies]
    return named + [f"{name}()" for name in tunable] if args.defaults else named


def rows(scenario: str, result: dict[str, Any]) -> list[str]:
    """Markdown: one policy per line, cheapest first, with the paired difference to ``none``."""
    seeds = len(result["seeds"])
    lines = [
        f"## {scenario}",
        "",
        f"{seeds} episodes of {result['horizon_s'] / 3600:g} h; differences are paired, with 95 % intervals.",
        "",
        f"| policy | {' | '.join(heading for _, heading, _, _ in COLUMNS)} | bill against none % |",
        f"|---|{'---|' * (len(COLUMNS) + 1)}",
    ]
    against = result["versus"].get("none", {})
    for name, metrics in sorted(result["policies"].items(), key=lambda item: item[1]["total_usd"]["mean"]):
        cells = [cell(metrics.get(metric), factor, digits) for metric, _, factor, digits in COLUMNS]
        lines.append(f"| {name} | {' | '.join(cells)} | {interval(against.get(name, {}).get('total_usd'), 100.0)} |")
    return [*lines, "", *verdict(result), ""]


def summary(results: dict[str, dict[str, Any]]) -> list[str]:
    """One line per scenario: bills against ``none``, learned against the strongest heuristic, and what they did."""
    shown = ("ray_serve", "patient", "karpenter", "exact", LEARNED, NETWORK, FreeRepacking.name)
    headings = ("scenario", "none USD", "strongest heuristic", *shown)
    lines = [
        "Bill against `none` in percent, paired, means over the episodes.",
        "",
        f"| {' | '.join(headings)} | learned against the strongest % | {DEEDS}: none | strongest | learned |",
        f"|---|{'---|' * (len(headings) + 3)}",
    ]
    for scenario, result in results.items():
        policies, against = result["policies"], result["versus"].get("none", {})

        def percent(name: str, against: dict[str, Any] = against) -> str:
            return f"{100.0 * against[name]['total_usd']['mean']:+.1f}" if name in against else "-"

        best = strongest(result)
        cells = [scenario, cell(policies.get("none", {}).get("total_usd"), 1.0, 1), f"{best} {percent(best)}"]
        cells += [percent(name) for name in shown]
        is_compared = best and LEARNED in policies
        cells.append(interval(result["versus"][best][LEARNED]["total_usd"] if is_compared else None, 100.0))
        cells += [deeds(policies.get(name)) for name in ("none", best, LEARNED)]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def strongest(result: dict[str, Any]) -> str:
    """The heuristic with the lowest mean bill."""
    played = [name for name in result["policies"] if base(name) in HEURISTICS]
    return cheapest(result, played) if played else ""


def verdict(result: dict[str, Any]) -> list[str]:
    """The strongest heuristic, and the learned policy beside it."""
    best = strongest(result)
    if not best:
        return []
    line = f"Strongest heuristic: `{best}`."
    if LEARNED in result["policies"]:
        difference = interval(result["versus"][best][LEARNED]["total_usd"], 100.0)
        line += f" The learned policy against it: {difference} % of the bill."
    return [line]


def base(name: str) -> str:
    """A heuristic's name without settings and placement."""
    return name.partition("(")[0].partition("@")[0]


def deeds(metrics: dict[str, Any] | None) -> str:
    """What a saving came with."""
    if metrics is None:
        return "-"
    return ", ".join(cell(metrics[name], 1.0, 0) for name in ("moves", "undone_moves", "unserved_request_s"))


def cell(value: dict[str, Any] | None, factor: float, digits: int) -> str:
    """A mean, or a dash where there is none."""
    if value is None or value["mean"] is None:
        return "-"
    return f"{value['mean'] * factor:,.{digits}f}"


def interval(value: dict[str, Any] | None, factor: float, digits: int = 1) -> str:
    """A mean with its interval."""
    if value is None or value["mean"] is None:
        return "-"
    text = f"{value['mean'] * factor:+.{digits}f}"
    if value["ci95"] is None:
        return text
    low, high = value["ci95"]
    return f"{text} [{low * factor:+.{digits}f}, {high * factor:+.{digits}f}]"


def main() -> None:
    """Runs, then writes and prints the tables."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK_SEEDS} episodes of at most {QUICK_HOURS:g} h each"
    )
    parser.add_argument("--scenarios", default=",".join(SCENARIOS))
    parser.add_argument("--policies", default=",".join([*HEURISTICS, FreeRepacking.name, LEARNED, NETWORK]))
    parser.add_argument("--prices", default="1", help="comma-separated; 4 = moves and unserved demand cost four times")
    parser.add_argument("--defaults", action="store_true", help="heuristics with their default settings too")
    others = ", ".join(f"of {name} {seeds}" for name, seeds in OTHER_SEEDS.items())
    parser.add_argument("--seeds", type=int, help=f"default {SEEDS}, at other prices {SEEDS_ELSEWHERE}, {others}")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "arena")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    made_by = f"Commit {git_commit()}, {datetime.date.today()}, {platform.machine()} with {os.cpu_count()} cores."
    prices = [float(factor) for factor in args.prices.split(",")]
    played = [evaluate(scenario, factor, args) for factor in prices for scenario in args.scenarios.split(",")]
    results = {result["scenario"]: result for result in played}
    lines = ["# Every policy on every scenario, validation days", "", made_by, "", *summary(results)]
    for scenario, result in results.items():
        lines += rows(scenario, result)
    write_atomically(args.out / "table.md", ("\n".join(lines) + "\n").encode())
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
