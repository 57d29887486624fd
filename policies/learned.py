"""``LearnedPolicy``: a trained network as a ``Policy``. One plan is one tick of the decision process."""

import numpy as np
import torch

from rayfold.envs.encoding import encode_state
from rayfold.envs.layout import NOOP, ObsLayout
from rayfold.envs.moves import Candidate, Move, Plan
from rayfold.envs.process import cell_move
from rayfold.envs.safety import Limits, moves_in_flight
from rayfold.envs.state import ClusterState
from rayfold.envs.transition import with_move
from rayfold.policies.evacuations import evacuations, first_moves, moves_price_usd
from rayfold.policies.network import CompactionNet

__all__ = ["MIN_P", "LearnedPolicy"]

# Moves with less than this share of the likeliest one's probability are not made; chosen on training days
# (docs/learning.md, 11).
MIN_P = 0.2


class LearnedPolicy:
    """Takes moves from the network until it says NOOP or the safety filter allows no more.

    After each move the network sees the state as it is with that move begun, just as in training. It is
    size-agnostic: the observation has the state's own size, whatever was trained on.

    Args:
        net: The network, in eval mode.
        limits: What the safety filter allows; gives the masks.
        greedy: Take the likeliest action instead of sampling one.
        num_candidates: How many of the likeliest first actions a plan lists; they cost time.
        name: Name in reports.
    """

    def __init__(
        self,
        net: CompactionNet,
        limits: Limits,
        *,
        greedy: bool = False,
        num_candidates: int = 0,
        name: str = "learned",
    ) -> None:
        self.net, self.limits, self.greedy, self.name = net, limits, greedy, name
        self._num_candidates = num_candidates
        self._is_first_tick = True

    def reset(self) -> None:
        """The next tick is the first of an episode."""
        self._is_first_tick = True

    def plan(self, state: ClusterState, rng: np.random.Generator) -> Plan:
        """Moves of this tick, scored by their log-probability."""
        layout = ObsLayout(len(state.arrays.node_type), state.spec.num_deployments, len(state.spec.node_types))
        if 0 in layout:
            return Plan(reason="there is nothing to move")
        dt_intervals = 0.0 if self._is_first_tick else 1.0
        self._is_first_tick = False
        generator = torch.Generator().manual_seed(int(rng.integers(2**63 - 1)))
        moves: list[Move] = []
        scores: list[float] = []
        p_noop = 1.0
        candidates = self._candidates(state, layout, dt_intervals) if self._num_candidates else ()
        while True:
            if moves_in_flight(state.arrays) >= self.limits.max_concurrent_moves:
                p_noop = 1.0  # nothing else is allowed, and at a thousand nodes it takes 15 ms to be told so
                break
            source, destination, logp, p_noop = self._choose(state, layout, dt_intervals, generator)
            begun = self._moves(state, layout, source, destination)
            if not begun:
                break
            for move in begun:
                moves.append(move)
                scores.append(logp)
                state = with_move(state, move, self.limits)
            layout = layout._replace(num_nodes=len(state.arrays.node_type))  # a new node may need a row of its own
            dt_intervals = 0.0
        reason = f"{len(moves)} moves, then waits with probability {p_noop:.2f}"
        return Plan(moves=tuple(moves), scores=tuple(scores), reason=reason, candidates=candidates)

    def _moves(self, state: ClusterState, layout: ObsLayout, source: int, destination: int) -> tuple[Move, ...]:
        """The moves that an action stands for; none for NOOP and for what the filter refuses."""
        spec, st, now_s = state.spec.arrays, state.arrays, state.now_s
        if source > layout.num_cells:
            n = source - 1 - layout.num_cells
            chosen = evacuations(state, self.limits, n)
            return first_moves(state, chosen[0], self.limits, "").moves if chosen else ()
        if source == NOOP:
            return ()
        row, to = cell_move(spec, st, now_s, self.limits, layout, source, destination)
        return (Move(int(row), int(to)),) if row >= 0 else ()

    def _candidates(self, state: ClusterState, layout: ObsLayout, dt_intervals: float) -> tuple[Candidate, ...]:
        """The likeliest first actions, scored by log-probability; of a cell with its likeliest destination."""
        obs = layout.split(torch.from_numpy(encode_state(state, self.limits, layout, dt_intervals)).unsqueeze(0))
        with torch.inference_mode():
            encoding = self.net.encode(obs)
            logp = self.net.source_logits(obs, encoding)[0].log_softmax(-1)
            best = logp.topk(min(self._num_candidates, len(logp)))
            found = []
            for score, source in zip(best.values, best.indices, strict=True):
                to = int(self.net.destination_logits(obs, encoding, source.unsqueeze(0))[0].argmax())
                moves = self._moves(state, layout, int(source), to)
                if moves or source == NOOP:
                    reason = f"probability {float(score.exp()):.3f}" + ("" if moves else ": wait")
                    price_usd = moves_price_usd(state, moves)
                    found.append(Candidate(moves=moves, score=float(score), price_usd=price_usd, reason=reason))
        return tuple(found)

    def _choose(
        self, state: ClusterState, layout: ObsLayout, dt_intervals: float, generator: torch.Generator
    ) -> tuple[int, int, float, float]:
        """Source, destination, log-probability of both, and the probability of NOOP."""
        obs = torch.from_numpy(encode_state(state, self.limits, layout, dt_intervals)).unsqueeze(0)
        with torch.inference_mode():
            choice = self.net.act(layout.split(obs), greedy=self.greedy, min_p=MIN_P, generator=generator)
        source, destination = choice.actions[0].tolist()
        return source, destination, float(choice.logp[0]), float(choice.noop_logp[0].exp())
