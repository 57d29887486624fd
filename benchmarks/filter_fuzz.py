"""Fuzzes the safety filter: random states of random clusters, arbitrary moves, invariants written without it.

python benchmarks/filter_fuzz.py [--states 1000000] [--seed 1] [--json out/filter_fuzz.json]
"""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the invariants live with the tests

from rayfold.cli_checks import check_output
from rayfold.training.report import write_atomically
from tests.filter_fuzz.harness import fuzz


def main() -> None:
    """Prints the counts; exit code 1 if a move that breaks an invariant was allowed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--states", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file for the counts")
    args = parser.parse_args()
    check_output("--json", args.json)
    fuzz(1, args.seed)  # compiles
    started_s = time.perf_counter()
    result = fuzz(args.states, args.seed)
    counts = {"seed": args.seed, "seconds": round(time.perf_counter() - started_s, 1), **result.named()}
    text = json.dumps(counts, indent=1) + "\n"
    sys.stdout.write(text)
    if args.json:
        write_atomically(args.json, text.encode())
    if result.violations:
        raise SystemExit("the filter allowed a move that breaks an invariant")


if __name__ == "__main__":
    main()
