"""The search for masks: a problem in, masks of the asked areas out.

Nothing here knows Captum, files or plots. `Problem` says what a mask is worth, a
`Solver` finds the best one it can, a `Solution` is what it found. `driver` holds the
one loop; a solver is one file that says how a search starts and what a step is, and one
entry of `SOLVERS`, by which the command line knows it.
"""

from __future__ import annotations

from collections.abc import Callable

from captum_extremal.solvers.channel_descent import ChannelDescent
from captum_extremal.solvers.driver import Run, Solver, StepwiseSolver
from captum_extremal.solvers.forward_search import SearchSolver
from captum_extremal.solvers.gradient import GradientSolver
from captum_extremal.solvers.level_set import LevelSetSolver
from captum_extremal.solvers.problem import Problem, Solution
from captum_extremal.solvers.restarts import Restarts
from captum_extremal.solvers.swaps import SwapSolver

ChannelSolver = SwapSolver
"""The same solver by its first name."""

SOLVERS: dict[str, Callable[..., StepwiseSolver]] = {
    "level-set": LevelSetSolver,
    "search": SearchSolver,
    "gradient": GradientSolver,
}
"""Solvers for pictures by name, the default first."""

__all__ = [
    "SOLVERS",
    "ChannelDescent",
    "ChannelSolver",
    "GradientSolver",
    "LevelSetSolver",
    "Problem",
    "Restarts",
    "Run",
    "SearchSolver",
    "Solution",
    "Solver",
    "StepwiseSolver",
    "SwapSolver",
]
