"""The one loop of all solvers: steps, until the budget, the time or the user ends it.

A solver says how a search starts; the `Run` that it returns makes steps and has masks
of exactly the asked areas at any time. What ends it, and what is told of it on the way,
is the same for all and stands here.
"""

from __future__ import annotations

import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from captum_extremal._base.checks import check_count
from captum_extremal.solvers.problem import Ended, Masks, Problem, Solution


class Solver(Protocol):
    """Whatever turns a problem into masks.

    Example:
        >>> class Everything:
        ...     total_steps = 1
        ...
        ...     def solve(self, problem, seed=0, on_step=None):
        ...         sizes = [(problem.num_cells, 1, *size) for size in problem.sizes]
        ...         return Solution(tuple(map(torch.ones, sizes)))
        >>> from captum_extremal import ExtremalPerturbation
        >>> method = ExtremalPerturbation(lambda x: x.sum((1, 2)), solver=Everything())
        >>> method.attribute(torch.ones(1, 1, 3), areas=1.0)
        tensor([[[1., 1., 1.]]])
    """

    def solve(
        self,
        problem: Problem,
        seed: int = 0,
        on_step: Callable[[int], object] | None = None,
    ) -> Solution:
        """Find the mask of the asked area with the highest reward, for each cell.

        Args:
            problem: What a mask is worth.
            seed: The only source of randomness.
            on_step: Told the number of steps done since it was last told.

        Returns:
            The masks and how they were found.
        """
        ...

    @property
    def total_steps(self) -> int:
        """Steps that ``on_step`` will hear of at most."""
        ...


class Run(Protocol):
    """A search that is under way, see `StepwiseSolver`.

    Example:
        >>> from captum_extremal import SearchSolver
        >>> problem = Problem(lambda x, _: x[0].sum((1, 2)), (torch.ones(1, 2, 1, 4),), [0.5])
        >>> run: Run = SearchSolver(8).start(problem, seed=0)
        >>> with torch.no_grad():
        ...     run.step()
        3
        >>> run.masks()[0].shape
        torch.Size([1, 1, 4])
    """  # noqa: E501

    @property
    def history(self) -> dict[str, Tensor]:
        """Named series of the steps so far, each (T, K)."""
        ...

    def step(self) -> int:
        """Do one step: how much of the budget it took, 0 if there was nothing to do."""
        ...

    def masks(self) -> Masks:
        """The best masks so far, at exactly the asked areas."""
        ...


@runtime_checkable
class Ranks(Protocol):
    """A `Run` that puts all pixels in an order, too.

    Example:
        >>> from captum_extremal import LevelSetSolver
        >>> x = torch.ones(1, 2, 1, 8, 8)
        >>> problem = Problem(lambda x, _: x[0].sum((1, 2, 3)), (x,), [0.5])
        >>> isinstance(LevelSetSolver().start(problem, seed=0), Ranks)
        True
    """

    def ranking(self) -> Masks:
        """For each input tensor (N, 1, *S), see `Solution`."""
        ...


class StepwiseSolver:
    """A solver by its steps: what is left to write is `start`.

    A subclass is a frozen dataclass of its settings, among them ``time_limit`` and the
    one that `budget` names. The first step is made in any case; after each one the
    search ends if the time is up or Ctrl-C was pressed.

    Attributes:
        needs_gradient: Whether the model must be differentiable.
        uses_seed: Whether another seed gives other masks.
        budget: The setting that says how many steps a run takes.

    Example:
        One of your own stands in ``docs/extending.md``.

        >>> from captum_extremal import SearchSolver
        >>> SearchSolver().with_steps(7).total_steps, SearchSolver.needs_gradient
        (7, False)
    """

    needs_gradient: ClassVar[bool] = True
    uses_seed: ClassVar[bool] = True
    budget: ClassVar[str] = "iterations"
    time_limit: float | None

    @property
    def total_steps(self) -> int:
        """Steps that a run takes at most."""
        steps: int = getattr(self, self.budget)
        return steps

    def with_steps(self: _S, steps: int) -> _S:
        """The same solver with another budget."""
        given: dict[str, Any] = {self.budget: check_count("steps", steps)}
        return dataclasses.replace(self, **given)  # type: ignore[type-var]

    def start(self, problem: Problem, seed: int) -> Run:
        """Begin the search for the masks of all cells.

        Args:
            problem: What a mask is worth.
            seed: The only source of randomness.

        Returns:
            The search, before its first step.
        """
        raise NotImplementedError

    def solve(
        self,
        problem: Problem,
        seed: int = 0,
        on_step: Callable[[int], object] | None = None,
    ) -> Solution:
        """Find the masks of all cells at once.

        Args:
            problem: What a mask is worth.
            seed: The only source of randomness.
            on_step: Told after every step how much of `total_steps` it took.

        Returns:
            Masks of exactly the asked areas, and the series of the run.

        Raises:
            RuntimeError: If the model cuts the gradient, for a solver that needs it, or
                a score is not finite.
        """
        with torch.no_grad(), stopping(self.time_limit) as stop:
            run = self.start(problem, seed)
            while done := run.step():
                if on_step is not None:
                    on_step(done)
                if stop():
                    break
            masks = run.masks()
            ranking = run.ranking() if isinstance(run, Ranks) else None
        return Solution(masks, run.history, stop.ended, ranking)


_S = TypeVar("_S", bound=StepwiseSolver)


class History:
    """Named series of a run, written step by step; NaN where nothing was written.

    Each is as precise as what is written first.

    Args:
        steps: Number of steps at most.
        problem: Of which the cells are.

    Example:
        >>> problem = Problem(lambda x, _: x[0].sum((1, 2)), (torch.ones(1, 2, 1, 4),), [0.5])
        >>> history = History(2, problem)
        >>> history.write(0, torch.tensor([0]), reward=torch.tensor([3.0]))
        >>> history.series
        {'reward': tensor([[3.],
                [nan]])}
    """  # noqa: E501

    def __init__(self, steps: int, problem: Problem) -> None:
        self._shape = (steps, problem.num_cells)
        self.series: dict[str, Tensor] = {}

    def write(self, step: int, cells: Tensor | slice, **values: Tensor) -> None:
        """Note what some cells have at a step, (M,) each."""
        for name, value in values.items():
            if name not in self.series:
                self.series[name] = value.new_full(self._shape, torch.nan)
            self.series[name][step, cells] = value


class Stop:
    """Whether a search has to end, and what ended it.

    Args:
        time_limit: Seconds from now; None for no limit.

    Example:
        >>> Stop(None)()
        False
    """

    def __init__(self, time_limit: float | None) -> None:
        self.ended: Ended = "budget"
        self._end = None if time_limit is None else time.monotonic() + time_limit

    def __call__(self) -> bool:
        """Whether to stop now; once it said so, it says so for good."""
        late = self._end is not None and time.monotonic() >= self._end
        if late and self.ended == "budget":
            self.ended = "time limit"
        return self.ended != "budget"


@contextmanager
def stopping(time_limit: float | None) -> Iterator[Stop]:
    """Tell a loop when to end: after a time, or after Ctrl-C.

    In the main thread a first Ctrl-C lets the step that is under way come to its end; a
    second one interrupts as usual. In other threads Python delivers no Ctrl-C. A
    handler that is not Python's own is left alone.

    Args:
        time_limit: Seconds from now; None for no limit.

    Yields:
        What says whether to stop, and afterwards why.

    Example:
        >>> with stopping(None) as stop:
        ...     stop(), stop.ended
        (False, 'budget')
    """
    stop = Stop(time_limit)

    def note(_signal: int, _frame: FrameType | None) -> None:
        stop.ended = "interrupt"
        signal.signal(signal.SIGINT, signal.default_int_handler)

    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if ours:
        signal.signal(signal.SIGINT, note)
    try:
        yield stop
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
