"""Several policies in order of precedence."""

import numpy as np

from rayfold.envs.moves import Move, Plan
from rayfold.envs.safety import Limits
from rayfold.envs.state import ClusterState
from rayfold.envs.transition import with_move
from rayfold.policies.by_name import make_policy
from rayfold.policies.chained import Chained
from tests.serving.deciders import two_nodes


class Fixed:
    """Always the same plan."""

    def __init__(self, name: str, *moves: Move) -> None:
        self.name, self._moves = name, moves
        self.asked = self.resets = 0

    def reset(self) -> None:
        """Counted."""
        self.resets += 1

    def plan(self, state: ClusterState, rng: np.random.Generator) -> Plan:
        """Counted too."""
        self.asked += 1
        return Plan(moves=self._moves, reason=f"{self.name} says")


def test_the_first_that_begins_something_decides() -> None:
    """The later ones are not even asked; where none begins anything, the first one's reason is told."""
    a, b, c = Fixed("a"), Fixed("b", Move(0, 1)), Fixed("c", Move(1, 0))
    chain = Chained([a, b, c])
    assert chain.name == "a+b+c"
    plan = chain.plan(two_nodes(), np.random.default_rng(0))
    assert (plan.moves, plan.reason) == ((Move(0, 1),), "b says")
    assert (a.asked, b.asked, c.asked) == (1, 1, 0)
    assert Chained([a, Fixed("d")]).plan(two_nodes(), np.random.default_rng(0)).reason == "a says"
    chain.reset()
    assert (a.resets, b.resets, c.resets) == (1, 1, 1)


def test_later_ones_wait_for_moves_under_way() -> None:
    """What the first one has begun is its own to finish."""
    state = with_move(two_nodes(), Move(0, 1), Limits())
    first, second = Fixed("a"), Fixed("b", Move(1, 0))
    assert Chained([first, second]).plan(state, np.random.default_rng(0)).moves == ()
    assert second.asked == 0


def test_names_make_chains() -> None:
    """Also with settings, whose signs are not mistaken for it."""
    chain = make_policy("exact(look_ahead_s=1e+3)+network+none", Limits())
    assert chain.name == "exact+network+none"
    assert isinstance(chain, Chained)
