"""The bill tick by tick: a second route to every total, in which a tick that is missing shows."""

from dataclasses import replace

import numpy as np
import pytest

from rayfold.envs.scenario import Split, load_scenario
from rayfold.envs.simulator import Simulator
from rayfold.policies.best_fit import BestFit
from rayfold.policies.none import NoMoves
from rayfold.policies.rollout import roll_out
from rayfold.training import episode_result
from rayfold.training.episode_result import run_episode
from rayfold.training.tick_record import Part, TickRecorder


@pytest.mark.parametrize("seed", [3, 5])
def test_parts_add_up_to_the_bill(seed: int) -> None:
    """Bound, idle nodes, fragmentation, moves and unserved demand are the whole bill, none of it counted twice."""
    scenario = load_scenario("smoke")
    episode = run_episode(scenario, BestFit(scenario.limits), seed, Split.VALIDATION)
    parts, metrics = episode.parts_usd, episode.metrics
    assert sum(parts.values()) == pytest.approx(metrics["total_usd"])
    assert parts[Part.BOUND] == pytest.approx(metrics["bound_usd"])
    assert parts[Part.MOVES] == pytest.approx(metrics["disruption_usd"])
    assert parts[Part.UNSERVED] == pytest.approx(metrics["unserved_usd"])
    assert parts[Part.IDLE] + parts[Part.FRAGMENTATION] == pytest.approx(metrics["cost_usd"] - metrics["bound_usd"])
    assert parts[Part.IDLE] >= 0.0


def test_compaction_turns_fragmentation_into_idle_nodes() -> None:
    """Without moves no node of ``smoke`` is ever empty; best fit empties some, which idle until they are released."""
    scenario = load_scenario("smoke")
    none, best_fit = (run_episode(scenario, p, 3, Split.VALIDATION) for p in (NoMoves(), BestFit(scenario.limits)))
    assert best_fit.parts_usd[Part.FRAGMENTATION] < none.parts_usd[Part.FRAGMENTATION]
    assert best_fit.parts_usd[Part.IDLE] > none.parts_usd[Part.IDLE] == 0.0


def test_never_fewer_nodes_than_the_bound_while_all_run() -> None:
    """Fewest nodes is a bound wherever no replica waits for a node."""
    scenario = load_scenario("smoke")
    episode = run_episode(scenario, BestFit(scenario.limits), 3, Split.VALIDATION, is_recorded=True)
    assert episode.recording is not None
    waits = np.array(episode.recording["pending"]) > 0
    assert (~waits).sum() > 30
    assert (episode.bound_nodes <= episode.num_nodes)[~waits].all()
    assert episode.bound_nodes.min() >= 1


class Forgetful(TickRecorder):
    """A planted fault: the last tick is dropped."""

    def passed(self, sim: Simulator) -> None:
        """Books all but the last."""
        if sim.num_steps_left > 0:
            super().passed(sim)


class Late(TickRecorder):
    """A planted fault: the last tick is booked, but at what the ledger said before it."""

    def passed(self, sim: Simulator) -> None:
        """Books the last one as if it had cost nothing."""
        if sim.num_steps_left > 0:
            super().passed(sim)
        else:
            self._ticks.append([0.0] * len(Part))
            self._rates.append((0.0, 0.0))


@pytest.mark.parametrize(("planted", "said"), [(Forgetful, "59 were recorded"), (Late, "add up to")])
def test_a_dropped_tick_is_caught(planted: type[TickRecorder], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a tick that is missing nor one that is empty passes."""
    monkeypatch.setattr(episode_result, "TickRecorder", planted)
    with pytest.raises(RuntimeError, match=said):
        run_episode(load_scenario("smoke"), NoMoves(), 3, Split.VALIDATION)


def test_a_ledger_that_drops_the_last_tick_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other way round: the total was read a tick too early."""

    def early(sim: Simulator, *args: object, **kwargs: object) -> object:
        done = roll_out(sim, *args, **kwargs)  # type: ignore[arg-type]  # handed through
        values = done.ledger.values - done.ledger.values / len(done.time_s)
        return replace(done, ledger=replace(done.ledger, values=values))

    monkeypatch.setattr(episode_result, "roll_out", early)
    with pytest.raises(RuntimeError, match="60 ticks of 60 s were expected"):
        run_episode(load_scenario("smoke"), NoMoves(), 3, Split.VALIDATION)
