"""Ten minutes on a real local cluster, recorded, and replayed in the simulator from the first snapshot.

``python benchmarks/replay_local.py [LOG]`` records to LOG (``out/replay/ten_minutes.jsonl.gz``) and compares;
``--replay`` compares a log that is there already.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from rayfold.envs.event_log import read_log
from rayfold.envs.replay import real_trajectory, replay_log
from rayfold.envs.replay_compare import compare, fit_text, replay_text
from rayfold.envs.replay_fit import fit_times, fitted_state
from rayfold.serving.replay_scenario import run_scenario, ten_minutes


def report(path: Path, num_seeds: int) -> str:
    """Fit and errors of a log, as text."""
    log = read_log(path)
    fit, real = fit_times(log), real_trajectory(log)
    state = fitted_state(log, fit)
    replays = [replay_log(log, state, np.random.default_rng(seed)) for seed in range(num_seeds)]
    agreements = [compare(real, r.trajectory) for r in replays]
    spec = log.first.spec
    begun = sum(m.phase == "starting" for m in log.moves)
    done = sum(m.phase == "done" for m in log.moves)
    head = f"{log.header.title}: {log.duration_s:.0f} s, {len(log.polls)} polls, {begun} moves begun, {done} done"
    return "\n".join([head, fit_text(spec, fit, log.header.idle_timeout_s), replay_text(spec, replays, agreements)])


def main() -> int:
    """Records, replays, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log", nargs="?", type=Path, default=Path("out/replay/ten_minutes.jsonl.gz"))
    parser.add_argument("--replay", action="store_true", help="do not record: compare the log that is there")
    parser.add_argument("--seeds", type=int, default=20, help="replays with different draws")
    args = parser.parse_args()
    if not args.replay:
        run_scenario(ten_minutes(), args.log, lambda line: print(line, flush=True))
    print(report(args.log, args.seeds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
