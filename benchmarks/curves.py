"""The curves of a training run, as TensorBoard has them, in one picture.

``python benchmarks/curves.py runs/train --out docs/training.svg`` reads the event files of a run of ``rayfold train``;
one that was resumed has several.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rayfold.errors import InputError

CURVES = {
    "episode/total_usd": "bill of an episode, USD",
    "episode/excess_frac": "bill above the bound, share",
    "episode/moves": "moves of an episode",
    "learner/entropy": "entropy, nats",
    "learner/value_explained": "variance explained by the value",
    "learner/policy_loss": "policy loss",
}


def read(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values by curve, in order.

    Raises:
        InputError: The folder has no event files.
    """
    files = sorted(run_dir.glob("events.out.tfevents.*"))
    if not files:
        raise InputError(str(run_dir), "a run of rayfold train, with TensorBoard's event files", "none")
    found: dict[str, list[tuple[int, float]]] = {name: [] for name in CURVES}
    for file in files:
        events = EventAccumulator(str(file))
        events.Reload()
        for name in set(CURVES) & set(events.Tags()["scalars"]):
            found[name] += [(event.step, event.value) for event in events.Scalars(name)]
    return {name: sorted(points) for name, points in found.items()}


def main() -> None:
    """Reads and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    try:
        curves = read(args.run_dir)
    except InputError as err:
        parser.error(str(err))
    figure, axes = plt.subplots(2, 3, figsize=(12, 6), layout="constrained")
    for (name, points), axis in zip(curves.items(), axes.flat, strict=True):
        axis.plot([step for step, _ in points], [value for _, value in points], linewidth=1)
        axis.set(title=CURVES[name], xlabel="environment steps")
        axis.grid(alpha=0.3)
    figure.savefig(args.out, metadata={"Date": None} if args.out.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
