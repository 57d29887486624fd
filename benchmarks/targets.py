"""What the shipped bundle was to reach, row by row, from what ``arena.py`` has played on validation days.

``python benchmarks/arena.py --prices 1,0.25,4 --defaults [--out out/arena]`` and then
``python benchmarks/targets.py [--arena out/arena]``, which takes a second, prints Markdown. Every row names what the
bundle has most to fear of: the reference whose interval reaches the furthest against it. A scenario that was not played
is left out. ``exact`` is no heuristic here but the planner, and stands by itself where a target asks for heuristics.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from rayfold.envs.scenario import Split
from rayfold.policies.by_name import HEURISTICS, LEARNED
from rayfold.policies.exact import Exact
from rayfold.policies.settings import search_space
from rayfold.training.standing import Standing, cheapest, closed_share, dominated_by, hardest, standing
from rayfold.training.worlds import name_and_prices

NONE = "none"
UNIT, DEAR = 1.0, 4.0
PRICES = (0.25, UNIT, DEAR)
QUICK_MS = 1000.0
MET, MISSED, IN_THE_MEAN, WITHIN_NOISE = "met", "**missed**", "in the mean", "within noise"
Results = dict[tuple[str, float], dict[str, Any]]


def load(folder: Path) -> Results:
    """By scenario and price."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        if LEARNED in result.get("policies", {}) and result["split"] == Split.VALIDATION:
            found[name_and_prices(result["scenario"])] = result
    return found


def rules(result: dict[str, Any], *, are_tuned: bool, with_planner: bool) -> list[str]:
    """Heuristics that were played, with tuned settings or with their defaults; one without settings is both."""
    names = []
    for name in result["policies"]:
        rule = name.partition("(")[0]
        if rule not in HEURISTICS or rule == NONE or (rule == Exact.name and not with_planner):
            continue
        is_default = name.endswith("()")
        if not search_space(HEURISTICS[rule].settings_type) or is_default != are_tuned:
            names.append(name)
    return names


def told(found: Standing) -> str:
    """``karpenter -3.1 [-4.0, -2.2]``, percent of the reference's bill."""
    return f"`{found.against}` {100 * found.mean:+.2f} [{100 * found.low:+.2f}, {100 * found.high:+.2f}]"


def lower(found: Standing) -> str:
    """Lower, clear of zero."""
    return MET if found.is_lower else IN_THE_MEAN if found.mean < 0.0 else MISSED


def not_higher(found: Standing) -> str:
    """Not dearer; or dearer in the mean, but not clear of zero."""
    return MISSED if found.is_higher else WITHIN_NOISE if found.mean > 0.0 else MET


def beats(results: Results, *, are_tuned: bool) -> list[str]:
    """The two targets of all scenarios: one line each, a column per price."""
    heading = "Tuned for the scenario and price: never worse" if are_tuned else "Default settings: lower, clear of zero"
    columns = [f"prices x {price:g}" for price in PRICES]
    lines = [f"## {heading}", "", f"| scenario | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    means: dict[float, list[float]] = {price: [] for price in PRICES}
    for scenario in dict.fromkeys(name for name, _ in results):
        cells = []
        for price in PRICES:
            result = results.get((scenario, price))
            if result is None:
                cells.append("-")
                continue
            references = rules(result, are_tuned=are_tuned, with_planner=are_tuned)
            if not references:
                cells.append("-")
                continue
            found = hardest(result, LEARNED, references)
            means[price].append(standing(result, LEARNED, cheapest(result, references)).mean)
            cells.append(f"{told(found)} {not_higher(found) if are_tuned else lower(found)}")
        lines.append(f"| {scenario} | {' | '.join(cells)} |")
    averages = [f"{100 * float(np.mean(means[p])):+.2f}" if means[p] else "-" for p in PRICES]
    return [*lines, f"| mean against the strongest | {' | '.join(averages)} |", ""]


def single(results: Results) -> list[str]:
    """The targets of single scenarios."""
    rows = []
    for scenario in ("slow_start", "tight", "llm_api"):
        for result in played(results, scenario, DEAR):
            for name in strongest(result):
                share, found = closed_share(result, LEARNED, name), standing(result, LEARNED, name)
                verdict = MISSED if not share >= 0.5 else MET if found.is_lower else IN_THE_MEAN
                rows.append(
                    (f"half of the gap, prices x {DEAR:g}", scenario, f"{100 * share:.0f} %, {told(found)}", verdict)
                )
    wanted = [("mixed_fleet", 0.03), ("spot", 0.03), ("llm_api_pack_groups", 0.15), ("low_scale", 0.40)]
    for scenario, least_frac in wanted:
        for result in played(results, scenario, UNIT):
            for name in strongest(result) if least_frac < 0.1 else (NONE,):
                found = standing(result, LEARNED, name)
                enough = found.is_lower and found.mean <= -least_frac
                rows.append((f"{100 * least_frac:.0f} % lower", scenario, told(found), MET if enough else MISSED))
    for result in played(results, "low_scale", UNIT):
        for figure in result["published"]:
            if "low scale" in figure["what"]:
                saved = figure["policies"][LEARNED]
                what = f"`none` {-100 * saved:+.2f} ({figure['what']})"
                rows.append(("40 % lower", "low_scale, A scaled down", what, MET if saved >= 0.4 else MISSED))
    for scenario in ("busy_100", "thousand_nodes"):
        for result in played(results, scenario, UNIT):
            names = rules(result, are_tuned=True, with_planner=True)
            quick = [n for n in names if result["policies"][n]["decision_ms_p99"]["mean"] <= QUICK_MS]
            found = hardest(result, LEARNED, quick)
            rows.append((f"not worse than {len(quick)} rules that take 1 s", scenario, told(found), not_higher(found)))
    lines = ["## Single scenarios", "", "| target | scenario | measured % | |", "|---|---|---|---|"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows), ""]


def played(results: Results, scenario: str, price: float) -> list[dict[str, Any]]:
    """The one result, if there is one and heuristics are in it."""
    result = results.get((scenario, price))
    return [result] if result is not None and rules(result, are_tuned=True, with_planner=False) else []


def strongest(result: dict[str, Any]) -> tuple[str, ...]:
    """The tuned heuristic with the lowest mean bill, and the tuned planner."""
    planner = next(n for n in rules(result, are_tuned=True, with_planner=True) if n.partition("(")[0] == Exact.name)
    return strongest_rule(result), planner


def strongest_rule(result: dict[str, Any]) -> str:
    """The tuned heuristic, planner left out, with the lowest mean bill."""
    return cheapest(result, rules(result, are_tuned=True, with_planner=False))


def deeds(results: Results) -> list[str]:
    """What each saving came with, and which settings pay less for nodes and for moves and unserved demand."""
    lines = ["## What it came with", "", "| scenario | prices x | moves | undone | unserved request-s | undone % | |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for (scenario, price), result in results.items():
        metrics = result["policies"][LEARNED]
        moves, undone, unserved = (float(metrics[m]["mean"]) for m in ("moves", "undone_moves", "unserved_request_s"))
        share = 100.0 * undone / moves if moves else 0.0
        names = [name for name in result["policies"] if name.partition("(")[0] in HEURISTICS]
        dominators = dominated_by(result, LEARNED, names)
        by = "dominated by " + ", ".join(f"`{n}`" for n in dominators) if dominators else "not dominated"
        lines.append(f"| {scenario} | {price:g} | {moves:.1f} | {undone:.1f} | {unserved:,.0f} | {share:.0f} | {by} |")
    return [*lines, ""]


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    root = Path(__file__).resolve().parents[1]
    parser.add_argument("--arena", type=Path, default=root / "out" / "arena")
    results = load(parser.parse_args().arena)
    lines = [*beats(results, are_tuned=False), *beats(results, are_tuned=True), *single(results), *deeds(results)]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
