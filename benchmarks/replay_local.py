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


def report(path: Path, fit_path: Path, num_seeds: int) -> str:
    """Fit and errors of a log, as text; the times are fitted from the log at ``fit_path``."""
    log = read_log(path)
    fit, real = fit_times(read_log(fit_path)), real_trajectory(log)
    spec, state = log.first.spec, fitted_state(log, fit)
    begun = sum(m.phase == "starting" for m in log.moves)
    done = sum(m.phase == "done" for m in log.moves)
    parts = [f"{log.header.title}: {log.duration_s:.0f} s, {len(log.polls)} polls, {begun} moves begun, {done} done"]
    parts.append(fit_text(spec, fit, log.header.idle_timeout_s))
    for name, as_recorded in (("load without the dips of Serve's own making", False), ("load as recorded", True)):
        seeds = map(np.random.default_rng, range(num_seeds))
        replays = [replay_log(log, state, rng, as_recorded=as_recorded) for rng in seeds]
        agreements = [compare(real, r.trajectory) for r in replays]
        parts.append(f"{name}: {replay_text(spec, replays, agreements)}")
    return "\n\n".join(parts)


def main() -> int:
    """Records, replays, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log", nargs="?", type=Path, default=Path("out/replay/ten_minutes.jsonl.gz"))
    parser.add_argument("--replay", action="store_true", help="do not record: compare the log that is there")
    parser.add_argument("--seeds", type=int, default=20, help="replays with different draws")
    parser.add_argument("--fit", type=Path, help="log of another run to fit the times from")
    args = parser.parse_args()
    if not args.replay:
        run_scenario(ten_minutes(), args.log, lambda line: print(line, flush=True))
    print(report(args.log, args.fit or args.log, args.seeds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
