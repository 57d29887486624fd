"""Ten minutes on a real local cluster, recorded, and replayed in the simulator from the first snapshot.

``python benchmarks/replay_local.py [LOG]`` records to LOG (``out/replay/ten_minutes.jsonl.gz``) and compares;
``--replay`` compares a log that is there already.
"""

import argparse
import sys
from pathlib import Path

from rayfold.serving.replay_scenario import run_scenario, ten_minutes


def main() -> int:
    """Records, replays, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log", nargs="?", type=Path, default=Path("out/replay/ten_minutes.jsonl.gz"))
    parser.add_argument("--replay", action="store_true", help="do not record: compare the log that is there")
    args = parser.parse_args()
    if not args.replay:
        run_scenario(ten_minutes(), args.log, lambda line: print(line, flush=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
