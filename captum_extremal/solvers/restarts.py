"""`Restarts`: a solver from several seeds; of each mask the best is delivered.

Eq. 2 has a maximum, a search has luck. How far several searches agree says how much of
an answer is luck, see `captum_extremal.results.stability.Stability`.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_extremal._base.checks import check_bool, check_count, check_method
from captum_extremal.masks.edges import binary
from captum_extremal.solvers.driver import Solver
from captum_extremal.solvers.problem import Masks, Problem, Solution

_JUDGED = (0.05, 0.1, 0.2)  # areas by which rankings are compared


@dataclass(frozen=True)
class Restarts:
    """A solver several times, each from another seed; of each mask the best.

    The result then holds a ``stability``: the scores of all runs, how far their masks
    overlap and their a*. The first run is that of the solver alone with the same seed.

    Args:
        solver: What is repeated. Its ``time_limit`` is that of each run.
        runs: How often. Time grows with it, and so do the masks in memory.
        together: Take all masks of an image from one run, as nested masks must be: the
            one that is best on average, of rankings at 5, 10 and 20 %.

    Raises:
        TypeError: If ``solver`` cannot solve or ``runs`` is no whole number.
        ValueError: If ``runs`` is below 1, or another seed changes nothing.

    Example:
        >>> from captum_extremal import ExtremalPerturbation, LevelSetSolver
        >>> solver = Restarts(LevelSetSolver(iterations=10), runs=2)
        >>> def top(x):
        ...     return x[:, 0, :8].mean((1, 2))
        >>> method = ExtremalPerturbation(top, "fade", solver)
        >>> result = method.optimize(torch.ones(1, 1, 32, 32), areas=0.25)
        >>> result.stability.scores.shape
        torch.Size([2, 1, 1])
        >>> bool((result.scores >= result.stability.scores).all())
        True
    """

    solver: Solver
    runs: int = 3
    together: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.solver, type):
            raise TypeError("solver must be a solver, got a class")
        check_method("solver", self.solver, "solve")
        check_count("runs", self.runs)
        check_bool("together", self.together)
        if not self.uses_seed:
            name = type(self.solver).__name__
            raise ValueError(f"solver must use its seed, got {name}, which does not")

    @property
    def needs_gradient(self) -> bool:
        """Whether the model must be differentiable."""
        return bool(getattr(self.solver, "needs_gradient", True))

    @property
    def uses_seed(self) -> bool:
        """Whether another seed gives other masks."""
        return bool(getattr(self.solver, "uses_seed", True))

    @property
    def total_steps(self) -> int:
        """Steps of all runs."""
        return self.runs * self.solver.total_steps

    @property
    def for_ranking(self) -> Callable[[], Restarts]:
        """The same for rankings alone, of a solver that has it."""
        make: Callable[[], Solver] = self.solver.for_ranking  # type: ignore[attr-defined]
        return lambda: dataclasses.replace(self, solver=make(), together=True)

    def solve(
        self,
        problem: Problem,
        seed: int = 0,
        on_step: Callable[[int], object] | None = None,
    ) -> Solution:
        """Run the solver, and choose; Ctrl-C ends the run that is under way.

        Args:
            problem: What a mask is worth.
            seed: Of the first run; the others follow from it.
            on_step: Told the steps of all runs.

        Returns:
            The best masks, and in `Solution.runs` those of each run.
        """
        found: list[Solution] = []
        for run in range(self.runs):
            other = random.Random(f"{seed} {run}").getrandbits(32) if run else seed
            found.append(self.solver.solve(problem, other, on_step))
            if found[-1].ended == "interrupt":
                break
        return self._chosen(problem, found)

    def _chosen(self, problem: Problem, found: list[Solution]) -> Solution:
        ranking = ranked_by = None
        rankings = [each.ranking for each in found if each.ranking is not None]
        if len(rankings) == len(found):
            worth = torch.stack([_worth(problem, each) for each in rankings])
            ranked_by = _best(worth)
            ranking = _taken(rankings, ranked_by)
        if self.together and ranked_by is not None:
            best = ranked_by.repeat_interleave(len(problem.areas))
        else:
            best = self._best_of_masks(problem, [each.masks for each in found])
        # One that was broken off says nothing of stability.
        whole = [each for each in found if each.ended != "interrupt"] or found
        endings = [each.ended for each in found]
        return Solution(
            _taken([each.masks for each in found], best),
            _history([each.history for each in found], best),
            max(endings, key=("budget", "time limit", "interrupt").index),
            ranking,
            tuple(each.masks for each in whole),
        )

    def _best_of_masks(self, problem: Problem, runs: list[Masks]) -> Tensor:
        """Of each cell the run whose mask is best, or whose image's masks are."""
        cells = torch.arange(problem.num_cells, device=problem.device)
        rewards = torch.stack([problem.rewards(masks, cells) for masks in runs])
        if not self.together:
            return _best(rewards)
        means = rewards.unflatten(1, (problem.num_images, -1)).mean(dim=2)
        return _best(means).repeat_interleave(len(problem.areas))


def _worth(problem: Problem, ranking: Masks) -> Tensor:
    """The mean reward of an image's nested masks of some areas, (N,)."""
    images = torch.arange(problem.num_images, device=problem.device)
    rewards = []
    for area in _JUDGED:
        masks = tuple(binary(each, [area]) for each in ranking)
        rewards.append(problem.rewards(masks, images * len(problem.areas)))
    return torch.stack(rewards).mean(dim=0)


def _best(rewards: Tensor) -> Tensor:
    """The best of the runs, (R, M) -> (M,)."""
    # What is not finite is no best one; if there is nothing else, `run` says so.
    return rewards.nan_to_num(-math.inf, -math.inf, -math.inf).argmax(dim=0)


def _taken(runs: list[Masks], best: Tensor) -> Masks:
    """Of each row the tensor of the run that is best."""
    rows = torch.arange(len(best), device=best.device)
    return tuple(
        torch.stack(several)[best, rows] for several in zip(*runs, strict=True)
    )


def _history(runs: list[dict[str, Tensor]], best: Tensor) -> dict[str, Tensor]:
    """Of each cell the series of the run that is best; NaN where it is shorter."""
    series = {}
    cells = torch.arange(len(best), device=best.device)
    for name in runs[0]:
        several = [run[name] for run in runs]
        longest = max(map(len, several))
        filled = several[0].new_full((len(runs), longest, len(best)), torch.nan)
        for run, values in zip(filled, several, strict=True):
            run[: len(values)] = values
        series[name] = filled[best, :, cells].T
    return series
