"""The search for masks: a problem in, masks of the asked areas out.

Nothing here knows Captum, files or plots. `Problem` says what a mask is worth,
a `Solver` finds the best one it can, a `Solution` is what it found.
"""

from __future__ import annotations

from captum_extremal.solvers.channel_descent import ChannelDescent
from captum_extremal.solvers.forward_search import SearchSolver
from captum_extremal.solvers.gradient import GradientSolver
from captum_extremal.solvers.level_set import LevelSetSolver
from captum_extremal.solvers.problem import Problem, Solution, Solver
from captum_extremal.solvers.swaps import ChannelSolver

__all__ = [
    "ChannelDescent",
    "ChannelSolver",
    "GradientSolver",
    "LevelSetSolver",
    "Problem",
    "SearchSolver",
    "Solution",
    "Solver",
]
