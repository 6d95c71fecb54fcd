"""`ChannelDescent`: the paper's eq. 9, descent with the area loss on channels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from captum_extremal._base.checks import check_count, check_non_negative, check_positive
from captum_extremal.masks.edges import binary
from captum_extremal.solvers.area_loss import area_loss
from captum_extremal.solvers.driver import History, StepwiseSolver
from captum_extremal.solvers.problem import Masks, Problem, check_gradients


@dataclass(frozen=True)
class ChannelDescent(StepwiseSolver):
    r"""The paper's descent: a mask in [0, 1] and the area loss (eq. 9), with Adam.

    .. math:: m_a = \operatorname{argmax}_m
        \Phi_{l+}(m \otimes \Phi_l(x)) - \lambda R_a(m)

    The mask starts at 1 everywhere; in the end its ``n`` largest values become 1 and
    the others 0. The paper names neither the optimiser nor whether the loss is a sum;
    here it is Adam, and the mean of the squares as for images.

    Args:
        iterations: Gradients of each cell.
        learning_rate: Of Adam.
        area_weight: The factor lambda of the area loss at its highest.
        ramp: The part of the run, in [0, 1], over which it grows linearly from 0.
        time_limit: Seconds after which the descent ends early; None for no limit.

    Raises:
        TypeError: If a setting is of the wrong type.
        ValueError: If a setting is out of range.

    Example:
        >>> solver = ChannelDescent()
        >>> [solver.weight(iteration) for iteration in (0, 75, 150, 299)]
        [0.0, 750.0, 1500.0, 1500.0]
    """

    uses_seed = False

    iterations: int = 300
    learning_rate: float = 0.01
    area_weight: float = 1500.0
    ramp: float = 0.5
    time_limit: float | None = None

    def __post_init__(self) -> None:
        check_count("iterations", self.iterations)
        check_positive("learning_rate", self.learning_rate)
        check_non_negative("area_weight", self.area_weight)
        if check_non_negative("ramp", self.ramp) > 1:
            raise ValueError(f"ramp must lie in [0, 1], got {self.ramp}")
        if self.time_limit is not None:
            check_positive("time_limit", self.time_limit)

    def weight(self, iteration: int) -> float:
        """The factor of the area loss at an iteration, counted from 0."""
        length = self.ramp * self.iterations
        part = 1.0 if iteration >= length else iteration / length
        return self.area_weight * part

    def start(self, problem: Problem, seed: int) -> _Descent:
        """Begin: masks of ones. Nothing is left to chance."""
        del seed
        return _Descent(self, problem)


class _Descent:
    """One run: the masks, moved by Adam."""

    def __init__(self, settings: ChannelDescent, problem: Problem) -> None:
        self.settings = settings
        self.problem = problem
        self.cells = torch.arange(problem.num_cells, device=problem.device)
        self.soft = [
            torch.ones(len(self.cells), 1, *size, device=problem.device)
            for size in problem.sizes
        ]
        self.optimizer = torch.optim.Adam(self.soft, lr=settings.learning_rate)
        self.done = 0
        self._history = History(settings.iterations, problem)

    @property
    def history(self) -> dict[str, Tensor]:
        """The rewards and area losses of each step."""
        return self._history.series

    def step(self) -> int:
        """Descend once."""
        if self.done == self.settings.iterations:
            return 0
        leaves = [mask.detach().requires_grad_() for mask in self.soft]
        with torch.enable_grad():
            losses = [area_loss(leaf, self.problem.cell_areas) for leaf in leaves]
            loss = torch.stack(losses).sum(dim=0)
            slopes = torch.autograd.grad(loss.sum(), leaves)
        rewards, gradients = self.problem.gradients(tuple(self.soft), self.cells)
        weight = self.settings.weight(self.done)
        for mask, gradient, slope in zip(self.soft, gradients, slopes, strict=True):
            mask.grad = weight * slope - gradient
        self.optimizer.step()
        for mask in self.soft:
            mask.clamp_(0, 1)
        self._history.write(
            self.done, slice(None), reward=rewards, area_loss=loss.detach()
        )
        self.done += 1
        return 1

    def masks(self) -> Masks:
        """The largest values of each mask as ones, the others as zeros."""
        rewards = self.history["reward"][: self.done]
        self.problem.check_finite(
            rewards, self.cells, lambda step: f" at iteration {step}"
        )
        check_gradients(self.soft, f"within the first {self.done} iterations")
        areas = self.problem.areas
        return tuple(binary(mask, areas) for mask in self.soft)
