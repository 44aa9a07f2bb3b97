"""How a solver ended, in one vocabulary for all solvers that compiled programs can return."""

from __future__ import annotations

import enum


class SolverStatus(enum.IntEnum):
    """How a solver ended; of several ends the largest is the worst."""

    CONVERGED = 0
    ON_BOUND = 1
    ITERATION_CAP = 2
    NON_FINITE = 3

    @property
    def message(self) -> str:
        """What to tell a user, as the end of a sentence: "the fit ..."."""
        return _MESSAGES[self]


_MESSAGES = {
    SolverStatus.CONVERGED: "converged",
    SolverStatus.ON_BOUND: "ended on a bound of its variables",
    SolverStatus.ITERATION_CAP: "stopped at its largest number of iterations before it converged",
    SolverStatus.NON_FINITE: "met a number that is not finite",
}
