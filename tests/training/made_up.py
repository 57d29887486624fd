"""Evaluations of which every figure is known."""

import numpy as np

from rayfold.envs.scenario import Split, load_scenario
from rayfold.training.evaluation import METRICS, EpisodeResult, Evaluation
from rayfold.training.report import COLUMNS
from rayfold.training.tick_record import Part

__all__ = ["made_up", "result"]


def result(**metrics: float) -> EpisodeResult:
    """An episode with figures made up; metrics not named are 0."""
    known = {
        metric: 0.0 for metric in (*METRICS, *(column[0] for column in COLUMNS), "refused_moves", "offered_request_s")
    }
    del known["closed_frac"]
    return EpisodeResult(
        metrics={**known, **metrics},
        parts_usd={part.value: 0.0 for part in Part},
        deployments={},
        time_h=np.array([0.0, 0.5, 1.0]),
        num_nodes=np.array([4, 3, 2]),
        bound_nodes=np.array([2, 2, 1]),
        episode_digest="",
    )


def made_up(results: dict[str, tuple[EpisodeResult, ...]]) -> Evaluation:
    """Of such episodes."""
    num_seeds = len(next(iter(results.values())))
    return Evaluation(
        scenario=load_scenario("smoke"), split=Split.VALIDATION, seeds=tuple(range(num_seeds)), results=results
    )
