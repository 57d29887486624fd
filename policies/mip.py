"""A mixed-integer program, written column by column and solved by HiGHS.

HiGHS (https://highs.dev, MIT; ``highspy`` 1.16) is used directly, since scipy's ``milp`` takes no starting point. One
thread and a fixed seed: a solve that ends before its time limit gives the same answer every time. To end one on every
machine at the same point its effort is limited, in the times that HiGHS asks whether to go on, which it does at set
points of its search, times columns: with 16 to 1752 columns that is some 35,000 a second on the machine it was seen on.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import highspy
import numpy as np
from numpy.typing import NDArray

__all__ = ["INFINITY", "Mip", "MipResult", "Term"]

INFINITY = float(highspy.kHighsInf)
Term = tuple[int, float]  # column and coefficient

_SEED = 0


class MipResult(NamedTuple):
    """Outcome of a solve."""

    values: NDArray[np.float64] | None  # (columns,) whole where asked for; None = none found
    objective: float  # of the values, inf if there are none
    bound: float  # no solution is below it
    is_optimal: bool  # proven within the gap asked for
    effort: int  # that it took


class Mip:
    """Minimise a linear cost over columns within bounds, subject to rows."""

    def __init__(self) -> None:
        self._cost: list[float] = []
        self._low: list[float] = []
        self._high: list[float] = []
        self._row_low: list[float] = []
        self._row_high: list[float] = []
        self._starts: list[int] = [0]
        self._columns: list[int] = []
        self._coefficients: list[float] = []
        self._start: dict[int, float] = {}

    def column(self, high: float, cost: float = 0.0, *, start: float | None = None) -> int:
        """Adds a whole number in ``[0, high]``.

        Args:
            high: Its upper bound.
            cost: Per unit.
            start: Its value in a solution that is known; a solve begins there if it is feasible.

        Returns:
            Its number.
        """
        self._cost.append(cost)
        self._low.append(0.0)
        self._high.append(high)
        if start is not None:
            self._start[len(self._cost) - 1] = start
        return len(self._cost) - 1

    def row(self, terms: Sequence[Term], *, low: float = -INFINITY, high: float = INFINITY) -> None:
        """Adds ``low <= sum of coefficient * column <= high``; no column twice."""
        self._columns += [c for c, _ in terms]
        self._coefficients += [a for _, a in terms]
        self._starts.append(len(self._columns))
        self._row_low.append(low)
        self._row_high.append(high)

    def solve(self, *, time_limit_s: float, max_effort: float = INFINITY, gap_frac: float = 1e-4) -> MipResult:
        """Solves it.

        Args:
            time_limit_s: Ends the search, with the best solution found until then.
            max_effort: Ends it too, at the same point on every machine; see above.
            gap_frac: Ends it too: distance of solution and bound, as share of the solution.
        """
        if not self._cost:
            return MipResult(np.zeros(0), 0.0, 0.0, True, 0)
        solver = highspy._core._Highs()  # highspy.Highs adds callbacks, and prints a banner to do so
        options = {"output_flag": False, "threads": 1, "random_seed": _SEED, "mip_rel_gap": gap_frac}
        for name, value in {**options, "time_limit": time_limit_s}.items():
            solver.setOptionValue(name, value)
        solver.passModel(self._lp())
        if self._start:
            columns = np.fromiter(self._start, np.int32, len(self._start))
            solver.setSolution(len(columns), columns, np.fromiter(self._start.values(), np.float64, len(columns)))
        effort = 0

        def may_go_on(kind: Any, message: str, seen: Any, answer: Any, unused: object) -> None:
            nonlocal effort
            effort += len(self._cost)
            answer.user_interrupt = effort > max_effort

        solver.setCallback(may_go_on, None)
        solver.startCallback(highspy.cb.HighsCallbackType.kCallbackMipInterrupt)
        solver.run()
        info, status = solver.getInfo(), solver.getModelStatus()
        is_optimal = status == highspy.HighsModelStatus.kOptimal
        if info.primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
            return MipResult(None, np.inf, float(info.mip_dual_bound), False, effort)
        values = np.array(solver.getSolution().col_value, np.float64).round()
        return MipResult(values, float(info.objective_function_value), float(info.mip_dual_bound), is_optimal, effort)

    def _lp(self) -> highspy.HighsLp:
        lp = highspy.HighsLp()
        lp.num_col_, lp.num_row_ = len(self._cost), len(self._row_low)
        lp.col_cost_, lp.col_lower_, lp.col_upper_ = (np.array(a) for a in (self._cost, self._low, self._high))
        lp.row_lower_, lp.row_upper_ = np.array(self._row_low), np.array(self._row_high)
        lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        lp.a_matrix_.start_ = np.array(self._starts, np.int32)
        lp.a_matrix_.index_ = np.array(self._columns, np.int32)
        lp.a_matrix_.value_ = np.array(self._coefficients)
        lp.integrality_ = [highspy.HighsVarType.kInteger] * len(self._cost)
        return lp
