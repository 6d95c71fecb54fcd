"""`ChannelDescent`: the paper's eq. 9, descent with the area loss on channels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from captum_extremal._base.checks import check_count, check_non_negative, check_positive
from captum_extremal.masks.area import area_count
from captum_extremal.masks.edges import largest
from captum_extremal.solvers.area_loss import area_loss
from captum_extremal.solvers.driver import stopping
from captum_extremal.solvers.problem import Masks, Problem, Solution
from captum_extremal.solvers.swaps import _check_axes


@dataclass(frozen=True)
class ChannelDescent:
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

    @property
    def total_steps(self) -> int:
        """The iterations."""
        return self.iterations

    def weight(self, iteration: int) -> float:
        """The factor of the area loss at an iteration, counted from 0."""
        length = self.ramp * self.iterations
        part = 1.0 if iteration >= length else iteration / length
        return self.area_weight * part

    def solve(
        self,
        problem: Problem,
        seed: int = 0,
        on_step: Callable[[int], object] | None = None,
    ) -> Solution:
        """Descend for all cells at once.

        Args:
            problem: What a mask is worth.
            seed: Not used: nothing is left to chance.
            on_step: Told after every iteration that one step is done.

        Returns:
            Masks of zeros and ones with exactly the asked counts, and the series
            ``reward`` and ``area_loss`` of the run.

        Raises:
            ValueError: If a mask has more than one axis.
            RuntimeError: If the model cuts the gradient or a score is not finite.
        """
        del seed
        _check_axes(problem)
        with torch.no_grad():
            return self._descend(problem, on_step or (lambda _: None))

    def _descend(self, problem: Problem, on_step: Callable[[int], object]) -> Solution:
        cells = torch.arange(problem.num_cells, device=problem.device)
        masks = [
            torch.ones(len(cells), 1, *size, device=problem.device)
            for size in problem.sizes
        ]
        optimizer = torch.optim.Adam(masks, lr=self.learning_rate)
        series: dict[str, list[Tensor]] = {"reward": [], "area_loss": []}
        with stopping(self.time_limit) as stop:
            for iteration in range(self.iterations):
                leaves = [mask.detach().requires_grad_() for mask in masks]
                with torch.enable_grad():
                    losses = [area_loss(leaf, problem.cell_areas) for leaf in leaves]
                    loss = torch.stack(losses).sum(dim=0)
                    slopes = torch.autograd.grad(loss.sum(), leaves)
                rewards, gradients = problem.gradients(tuple(masks), cells)
                for mask, gradient, slope in zip(masks, gradients, slopes, strict=True):
                    mask.grad = self.weight(iteration) * slope - gradient
                optimizer.step()
                for mask in masks:
                    mask.clamp_(0, 1)
                series["reward"].append(rewards)
                series["area_loss"].append(loss.detach())
                on_step(1)
                if stop():
                    break
        left = (0, 0, 0, self.iterations - len(series["reward"]))
        history = {
            name: F.pad(torch.stack(values), left, value=torch.nan)
            for name, values in series.items()
        }
        _check_finite(problem, torch.stack(series["reward"]), masks)
        return Solution(_binary(problem, masks), history, stop.ended)


def _binary(problem: Problem, masks: list[Tensor]) -> Masks:
    """The largest values of each mask as ones, the others as zeros."""
    binary = []
    for mask in masks:
        counts = [area_count(mask.shape[2], area) for area in problem.areas]
        binary.append(largest(mask.squeeze(1), counts).to(mask).unsqueeze(1))
    return tuple(binary)


def _check_finite(problem: Problem, rewards: Tensor, masks: list[Tensor]) -> None:
    bad = torch.nonzero(~rewards.isfinite())
    if len(bad):
        step, cell = bad[0].tolist()
        score = float(rewards[step, cell])
        raise problem.not_finite(score, cell, f" at iteration {step}")
    if not all(mask.isfinite().all() for mask in masks):
        raise RuntimeError(
            "forward_func and reward must have finite gradients, got NaN"
        )
