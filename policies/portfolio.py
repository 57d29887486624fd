"""The portfolio: the policies that take turns under ``ParallelRollout``, the reference first."""

from collections.abc import Callable

from rayfold.envs.safety import Limits
from rayfold.policies.dearest_first import DearestFirst
from rayfold.policies.exact import Exact
from rayfold.policies.finish import Finish
from rayfold.policies.karpenter import KarpenterBalanced
from rayfold.policies.learned import LearnedPolicy
from rayfold.policies.network import CompactionNet
from rayfold.policies.protocol import Policy
from rayfold.policies.ray_serve import RayServe

__all__ = ["MEMBERS", "REFERENCE", "make_member"]

REFERENCE = 0  # row of ``exact``: what leads when nothing is known to be better
MEMBERS = (Exact.name, "network", DearestFirst.name, KarpenterBalanced.name, RayServe.name, Finish.name)


def make_member(row: int, limits: Limits, net: CompactionNet, num_candidates: int = 0) -> Policy:
    """A fresh member.

    Args:
        row: Of ``MEMBERS``.
        limits: What the safety filter allows.
        net: What ``network`` plays.
        num_candidates: How many candidates its plans list.
    """
    makers: dict[str, Callable[[Limits], Policy]] = {
        Exact.name: Exact,
        DearestFirst.name: DearestFirst,
        KarpenterBalanced.name: KarpenterBalanced,
        RayServe.name: RayServe,
        Finish.name: Finish,
    }
    make = makers.get(MEMBERS[row])
    return make(limits) if make else LearnedPolicy(net, limits, num_candidates=num_candidates)
