"""Semi-MDP advantages: discount ``gamma ** dt`` per transition, where ``dt`` is 0 on a move and 1 on NOOP.

With a plain per-step discount a free move discounts all future cost, and the agent learns to move for nothing
(RLLIB_NOTES Q3). ``dt`` of a transition is read from the observation it leads to, so no extra column is needed.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray
from ray.rllib.connectors.common.numpy_to_tensor import NumpyToTensor
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.connectors.learner import GeneralAdvantageEstimation
from ray.rllib.core.columns import Columns
from ray.rllib.evaluation.postprocessing import Postprocessing
from ray.rllib.utils.numpy import convert_to_numpy

from rayfold.envs.layout import DT_INDEX
from rayfold.training.input_baseline import TRAFFIC_TICK, without_input
from rayfold.training.trust_region import TrustRegionPPOLearner

__all__ = ["INPUT_EXPLAINED", "SMDPPPOLearner", "SemiMDPAdvantage", "smdp_advantages"]

INPUT_EXPLAINED = "input_explained"  # name of the metric: share of the advantages' variance that is the traffic's


@njit(cache=True)
def smdp_advantages(
    values: NDArray[np.float32],
    rewards: NDArray[np.float32],
    terminated: NDArray[np.bool_],
    truncated: NDArray[np.bool_],
    is_step: NDArray[np.bool_],
    dt: NDArray[np.float32],
    gamma: float,
    lambda_: float,
) -> NDArray[np.float32]:
    """Generalised advantage estimates over concatenated episode chunks.

    Each chunk of length L has L + 1 rows: its steps, then one artificial row with the value to bootstrap from.

    Args:
        values: ``(M,)`` V(s_t).
        rewards: ``(M,)``.
        terminated: ``(M,)`` no state follows this step.
        truncated: ``(M,)`` the last step of a chunk, with a state that follows.
        is_step: ``(M,)`` False on the artificial rows.
        dt: ``(M,)`` decision intervals from s_t to s_{t+1}.
        gamma: Discount per decision interval.
        lambda_: Decay per step, whatever its dt.

    Returns:
        ``(M,)`` float32, 0 on the artificial rows.
    """
    advantages = np.zeros(values.shape[0], np.float32)
    running = 0.0
    for t in range(values.shape[0] - 1, -1, -1):
        if not is_step[t]:
            running = 0.0
            continue
        discount = 0.0 if terminated[t] else gamma ** dt[t]
        delta = rewards[t] - values[t]
        if not terminated[t]:
            delta += discount * values[t + 1]
        carried = 0.0 if truncated[t] else discount * lambda_ * running
        running = delta + carried
        advantages[t] = running
    return advantages


def _floats(column: Any) -> NDArray[np.float32]:
    return np.asarray(convert_to_numpy(column), np.float32)


class SemiMDPAdvantage(ConnectorV2):
    """Takes the place of RLlib's ``GeneralAdvantageEstimation`` at the end of the learner pipeline.

    Args:
        gamma: Discount per decision interval.
        lambda_: Decay per step.
    """

    def __init__(self, *args: Any, gamma: float, lambda_: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gamma, self.lambda_ = gamma, lambda_
        self._to_tensor: Any = None

    def __call__(
        self, *, rl_module: Any, episodes: Any, batch: dict[str, Any], metrics: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Adds ADVANTAGES (standardised over real steps) and VALUE_TARGETS to each module's batch.

        Where the batch tells whose traffic each step met, the advantages are those without its part.
        """
        for module_id, columns in batch.items():
            predicted = rl_module[module_id].unwrapped().compute_values(columns)  # of several learners it is wrapped
            values = _floats(predicted)
            is_step = _floats(columns[Columns.LOSS_MASK]) > 0
            elapsed = _floats(columns[Columns.OBS])[:, DT_INDEX]
            advantages = smdp_advantages(
                values,
                _floats(columns[Columns.REWARDS]),
                _floats(columns[Columns.TERMINATEDS]) > 0,
                _floats(columns[Columns.TRUNCATEDS]) > 0,
                is_step,
                np.append(elapsed[1:], np.float32(0.0)),
                self.gamma,
                self.lambda_,
            )
            targets = advantages + values
            if TRAFFIC_TICK in columns:
                traffic_tick: Any = convert_to_numpy(columns[TRAFFIC_TICK], reduce_type=False)  # whole 64-bit ids
                advantages, explained = without_input(advantages, is_step, traffic_tick)
                if metrics is not None:
                    metrics.log_value((module_id, INPUT_EXPLAINED), explained, window=1)
            real = advantages[is_step]
            advantages = (advantages - real.mean()) / max(1e-4, real.std())
            if self._to_tensor is None:
                self._to_tensor = NumpyToTensor(as_learner_connector=True, device=predicted.device)
            new = {Postprocessing.ADVANTAGES: advantages, Postprocessing.VALUE_TARGETS: targets}
            tensors = self._to_tensor(rl_module=rl_module, episodes=episodes, batch={module_id: new})
            columns.update(tensors[module_id])
        return batch


class SMDPPPOLearner(TrustRegionPPOLearner):
    """PPO with semi-MDP advantages.

    Connector pieces given in the configuration come *before* RLlib's own, so GAE is exchanged after the build.
    """

    def build(self) -> None:
        """Builds the learner and exchanges its advantage estimator."""
        super().build()
        config: Any = self.config
        pipeline: Any = self._learner_connector
        pipeline.remove(GeneralAdvantageEstimation)
        pipeline.append(SemiMDPAdvantage(gamma=config.gamma, lambda_=config.lambda_))
