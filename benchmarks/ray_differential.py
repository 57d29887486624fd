"""Compares the ports with Ray's own classes and prints the table of ``docs/simulator.md``.

python benchmarks/ray_differential.py --states 20000 [--seed 1] [--json out/ray_differential.json]
"""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the comparisons live with the tests

import ray

from tests.ray_oracle.table import COMPARISONS, row_of


def main() -> None:
    """Runs every comparison on so many states and prints one row each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--states", type=int, default=20_000, help="random states per rule")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    rows = []
    print("| Rule | Ray class | States | Decisions | Mismatches |\n|---|---|---|---|---|")
    for comparison in COMPARISONS:
        started = time.perf_counter()
        tally = comparison.run(args.states, args.seed)
        print(row_of(comparison, tally), flush=True)
        rows.append(
            {
                "rule": comparison.rule,
                "ray_class": comparison.ray_class,
                "states": tally.num_states,
                "decisions": tally.num_decisions,
                "mismatches": len(tally.mismatches),
                "explained": tally.num_explained,
                "seconds": round(time.perf_counter() - started, 2),
            }
        )
        for line in tally.mismatches[:5]:
            print(line, file=sys.stderr)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        partial = args.json.with_suffix(".part")
        partial.write_text(json.dumps({"ray": ray.__version__, "seed": args.seed, "rows": rows}, indent=1) + "\n")
        partial.replace(args.json)
    if any(row["mismatches"] for row in rows):
        raise SystemExit("some decisions differ without an explanation")


if __name__ == "__main__":
    main()
