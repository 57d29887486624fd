"""The portfolio: the policies that take turns under ``PolicySwitching``, the reference first."""

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


def make_member(row: int, limits: Limits, net: CompactionNet) -> Policy:
    """A fresh member.

    Args:
        row: Of ``MEMBERS``.
        limits: What the safety filter allows.
        net: What ``network`` plays.
    """
    made: dict[str, type[Policy]] = {
        Exact.name: Exact,
        DearestFirst.name: DearestFirst,
        KarpenterBalanced.name: KarpenterBalanced,
        RayServe.name: RayServe,
        Finish.name: Finish,
    }
    name = MEMBERS[row]
    return made[name](limits) if name in made else LearnedPolicy(net, limits)  # type: ignore[call-arg]  # a protocol
