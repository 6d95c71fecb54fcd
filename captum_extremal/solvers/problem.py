"""`Problem`: masks -> rewards and their gradients, in chunks that fit the device.

A problem holds N images and A areas, hence K = N * A cells in image-major order:
cell ``k`` asks for the mask of area ``areas[k % A]`` of image ``k // A`` that maximises
the reward (paper eq. 2). An image may consist of several tensors (a tuple input):
then a cell has one mask for each of them, all of the cell's area.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from captum_extremal.perturbations import apply_mask
from captum_extremal.rewards import GAMES, Game
from captum_extremal.solvers.anytime import Ended

Score = Callable[[tuple[Tensor, ...], Tensor], Tensor]
"""Perturbed inputs, each (M, C, *S), and the image of each row (M,) -> scores (M,)."""

Masks = tuple[Tensor, ...]
"""One mask tensor (M, 1, *S) for each tensor of the input."""

View = Callable[[Tensor, Tensor], Tensor]
"""Perturbed inputs (M, C, *S), the image of each (M,) -> what the model is shown of
them, same shape."""


class Problem:
    """What a mask is worth to a model, for K cells of one image and area each.

    Args:
        score: The model: perturbed inputs and the image index of each row -> scores.
        levels: For each input tensor its perturbation levels, (N, L, C, *S).
        areas: The A areas, fractions of each tensor's pixels in (0, 1].
        game: ``"preservation"``, ``"deletion"`` or ``"hybrid"`` (Sec. 3.2).
        perturbations_per_eval: The most perturbed inputs that one forward may hold.

    Example:
        >>> from captum_extremal import FadePerturbation
        >>> levels = FadePerturbation().levels(torch.tensor([[[1.0, 2.0, 4.0]]]))
        >>> problem = Problem(lambda x, images: x[0].sum((1, 2)), (levels,), [0.4])
        >>> mask = torch.tensor([[[0.0, 0.5, 1.0]]])
        >>> rewards, (gradient,) = problem.gradients((mask,), torch.tensor([0]))
        >>> rewards, gradient
        (tensor([5.]), tensor([[[1., 2., 4.]]]))
    """

    def __init__(
        self,
        score: Score,
        levels: tuple[Tensor, ...],
        areas: Sequence[float],
        game: Game = "preservation",
        perturbations_per_eval: int = 16,
    ) -> None:
        self.areas = tuple(areas)
        self.sizes = [tuple(level.shape[3:]) for level in levels]
        self.num_images = len(levels[0])
        self.num_cells = self.num_images * len(self.areas)
        self.device = levels[0].device
        self._score = score
        self._levels = levels
        self.game = game
        self._weights = GAMES[game]
        self.perturbations_per_eval = perturbations_per_eval

    def over_mean_colour(self) -> Problem:
        """The same with what is left out in one colour instead of perturbed.

        The colour of an image is the mean of its most perturbed level, by channel and
        over finite values: what a blur gives in the end.
        """
        levels = tuple(
            torch.stack([_flat(level[:, 0]), level[:, -1]], dim=1)
            for level in self._levels
        )
        return Problem(
            self._score, levels, self.areas, self.game, self.perturbations_per_eval
        )

    @property
    def cell_areas(self) -> Tensor:
        """The area of each cell, (K,) float64: its pixel count must round as asked."""
        areas = torch.tensor(self.areas, dtype=torch.float64, device=self.device)
        return areas.repeat(self.num_images)

    def images_of(self, cells: Tensor) -> Tensor:
        """The image of each cell, (M,)."""
        return torch.div(cells, len(self.areas), rounding_mode="floor")

    def name_of(self, cell: int) -> str:
        """A cell in words, for error messages."""
        image, area = divmod(cell, len(self.areas))
        return f"image {image} and area {self.areas[area]}"

    def not_finite(self, score: float, cell: int, when: str = "") -> RuntimeError:
        """The error for a score that is NaN or infinite."""
        return RuntimeError(
            f"forward_func and reward must give finite scores, got {score}{when} for "
            f"{self.name_of(cell)}"
        )

    def scores(self, masks: Masks, images: Tensor) -> Tensor:
        """The model's score of ``masks * images``, whatever the game: (M,), no grad."""
        with torch.no_grad():
            chunks = [
                self._perturbed_score(part, rows, None)
                for part, rows in self._split(
                    masks, images, self.perturbations_per_eval
                )
            ]
        return torch.cat(chunks)

    def rewards(self, masks: Masks, cells: Tensor, view: View | None = None) -> Tensor:
        """What is to be maximised, for masks of any cells, without gradients.

        Args:
            masks: A mask for each of M candidates.
            cells: The cell of each candidate, (M,).
            view: What the model is shown of each perturbed input tensor, such as its
                mirror image; None for the perturbed input itself.

        Returns:
            Rewards, (M,).
        """
        images = self.images_of(cells)
        with torch.no_grad():
            chunks = [
                self._reward(part, rows, view)
                for part, rows in self._split(masks, images, self._masks_per_chunk)
            ]
        return torch.cat(chunks)

    def gradients(
        self, masks: Masks, cells: Tensor, view: View | None = None
    ) -> tuple[Tensor, Masks]:
        """Rewards (M,) and their gradient with respect to each mask, (M, 1, *S).

        Only the masks are differentiated; no ``.grad`` of the model is touched.

        Raises:
            RuntimeError: If no gradient reaches the mask through the model.
        """
        images = self.images_of(cells)
        rewards, gradients = [], []
        for part, rows in self._split(masks, images, self._masks_per_chunk):
            leaves = tuple(mask.detach().requires_grad_() for mask in part)
            with torch.enable_grad():
                reward = self._reward(leaves, rows, view)
                gradients.append(_gradient(reward, leaves))
            rewards.append(reward.detach())
        joined = tuple(torch.cat(parts) for parts in zip(*gradients, strict=True))
        return torch.cat(rewards), joined

    @property
    def _masks_per_chunk(self) -> int:
        """The hybrid game shows the model two perturbed inputs for each mask."""
        shown = sum(weight != 0 for weight in self._weights)
        return max(1, self.perturbations_per_eval // shown)

    def _reward(self, masks: Masks, images: Tensor, view: View | None) -> Tensor:
        kept, removed = self._weights
        if removed == 0:
            return kept * self._perturbed_score(masks, images, view)
        complement = tuple(1 - mask for mask in masks)
        if kept == 0:
            return removed * self._perturbed_score(complement, images, view)
        if self.perturbations_per_eval == 1:
            inside = self._perturbed_score(masks, images, view)
            outside = self._perturbed_score(complement, images, view)
            return kept * inside + removed * outside
        both = tuple(torch.cat(pair) for pair in zip(masks, complement, strict=True))
        scores = self._perturbed_score(both, images.repeat(2), view)
        inside, outside = scores.chunk(2)
        return kept * inside + removed * outside

    def _perturbed_score(
        self, masks: Masks, images: Tensor, view: View | None
    ) -> Tensor:
        inputs = tuple(
            apply_mask(levels, mask, images)
            for levels, mask in zip(self._levels, masks, strict=True)
        )
        if view is not None:
            inputs = tuple(view(tensor, images) for tensor in inputs)
        return self._score(inputs, images)

    @staticmethod
    def _split(
        masks: Masks, images: Tensor, size: int
    ) -> Iterator[tuple[Masks, Tensor]]:
        for start in range(0, len(images), size):
            part = slice(start, start + size)
            yield tuple(mask[part] for mask in masks), images[part]


def _flat(images: Tensor) -> Tensor:
    """Each channel's mean of finite values over space, (N, C, *S)."""
    axes = tuple(range(2, images.dim()))
    finite = images.isfinite()
    known = torch.where(finite, images, 0).sum(axes, True, dtype=torch.float64)
    mean = known / finite.sum(axes, True).clamp_min(1)
    return mean.to(images.dtype).expand_as(images)


def _gradient(reward: Tensor, leaves: Masks) -> Masks:
    """The gradient of each mask; 0 for a tensor that the model does not look at."""
    found: Sequence[Tensor | None] = [None]
    if reward.requires_grad:
        found = torch.autograd.grad(reward.sum(), leaves, allow_unused=True)
    if all(gradient is None for gradient in found):
        raise RuntimeError(
            "no gradient reaches the mask through forward_func: its output is cut off "
            "from its input (detach, no_grad, NumPy or an integer step inside); a "
            "gradient solver needs a differentiable model. SearchSolver() needs none"
        )
    return tuple(
        torch.zeros_like(leaf) if gradient is None else gradient
        for gradient, leaf in zip(found, leaves, strict=True)
    )


@dataclass(frozen=True, eq=False)
class Solution:
    """What a solver found.

    Attributes:
        masks: For each input tensor its masks, (K, 1, *S) in [0, 1], exactly of the
            cell's area when binarised at 0.5.
        history: Named series of the run, each (T, K) for T iterations; NaN after a
            cell's end.
        ended: What ended the search: its ``"budget"``, a ``"time limit"`` or, by
            Ctrl-C, an ``"interrupt"``. The masks are the best found until then.

    Example:
        >>> Solution((torch.ones(2, 1, 8, 8),)).history
        {}
    """

    masks: Masks
    history: dict[str, Tensor] = field(default_factory=dict)
    ended: Ended = "budget"


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
