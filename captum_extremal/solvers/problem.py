"""`Problem`: masks -> rewards and their gradients, in chunks that fit the device.

A problem holds N images and A areas, hence K = N * A cells in image-major order:
cell ``k`` asks for the mask of area ``areas[k % A]`` of image ``k // A`` that maximises
the reward (paper eq. 2). An image may consist of several tensors (a tuple input):
then a cell has one mask for each of them, all of the cell's area.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from captum_extremal._base.causes import (
    Score,
    batches_explained,
    gradients_of,
    may_be_of_the_batch,
    of_gradients,
)
from captum_extremal.perturbations.apply import LARGE_IMAGE, Levels, Moved, apply_mask
from captum_extremal.solvers.rewards import GAMES, Game

Ended = Literal["budget", "time limit", "interrupt"]

Masks = tuple[Tensor, ...]
"""One mask tensor (M, 1, *S) for each tensor of the input."""

_REMEDY = "A gradient solver needs a differentiable model; SearchSolver() needs none"


class View(Protocol):
    """Perturbed inputs -> what the model is shown of them.

    Example:
        >>> from captum_extremal.solvers.views import Copy
        >>> view: View = Copy(mirrored=True, shifts=())
    """

    def __call__(
        self, inputs: tuple[Tensor, ...], images: Tensor
    ) -> tuple[Tensor, ...]:
        """Each (M, C, *S), and the image of each row, (M,) -> the same shapes."""
        ...

    def moved(self, which: int, size: Sequence[int], images: Tensor) -> Moved:
        """The same of one tensor of the input, for rows of one image."""
        ...


class Spread(Protocol):
    """Few values -> masks of the size of what they are laid on.

    Example:
        >>> from captum_extremal.sites.groups import Groups
        >>> spread: Spread = Groups((torch.tensor([0, 0, 1]),), (torch.ones(1, 1, 3),))
    """

    @property
    def sizes(self) -> Sequence[tuple[int, ...]]:
        """The sizes of the masks that are looked for."""
        ...

    def __call__(self, masks: Masks, images: Tensor) -> Masks:
        """Masks of these sizes, and the image of each -> a mask for each tensor."""
        ...


class Problem:
    """What a mask is worth to a model, for K cells of one image and area each.

    Args:
        score: The model: perturbed inputs, each (M, C, *S), and the image of each row,
            (M,), -> scores (M,). They are kept as precise as they come.
        levels: For each input tensor its perturbation levels, see `apply_mask`.
        areas: The A areas, fractions of each tensor's pixels in (0, 1].
        game: ``"preservation"``, ``"deletion"`` or ``"hybrid"`` (Sec. 3.2).
        perturbations_per_eval: The most perturbed inputs that one forward may hold.
        spread: Where a value of a mask stands for more than one place, how it is
            spread; None for masks of the levels' sizes.

    Attributes:
        sizes: The sizes of the masks, one for each tensor of the input, or those that
            `spread` asks for.
        spread: As given.
        is_large: Whether an input holds so many numbers that memory allows one mask at
            a time, whatever `perturbations_per_eval`.

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
        levels: tuple[Levels, ...],
        areas: Sequence[float],
        game: Game = "preservation",
        perturbations_per_eval: int = 16,
        spread: Spread | None = None,
    ) -> None:
        self.areas = tuple(areas)
        lasts = [
            level[-1] if isinstance(level, tuple) else level[:, -1] for level in levels
        ]
        self._level_sizes = [tuple(last.shape[2:]) for last in lasts]
        self.sizes = self._level_sizes if spread is None else list(spread.sizes)
        self.num_tensors = len(lasts)
        self.num_images = len(lasts[0])
        self.num_cells = self.num_images * len(self.areas)
        self.device = lasts[0].device
        self.is_large = any(last[:1].numel() >= LARGE_IMAGE for last in lasts)
        self._given_score = score
        self._score = batches_explained(score)
        self._levels = levels
        self.game = game
        self._weights = GAMES[game]
        self.perturbations_per_eval = perturbations_per_eval
        self.spread = spread

    def over_mean_colour(self) -> Problem:
        """The same with what is left out in one colour instead of perturbed.

        The colour of an image is the mean of its most perturbed level, by channel and
        over finite values: what a blur gives in the end.
        """
        return Problem(
            self._given_score,
            tuple(map(_over_mean_colour, self._levels)),
            self.areas,
            self.game,
            self.perturbations_per_eval,
            self.spread,
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

    def check_finite(
        self, rewards: Tensor, cells: Tensor, when: Callable[[int], str] | str = ""
    ) -> None:
        """Refuse rewards that are NaN or infinite; it names the first.

        Args:
            rewards: (M,), or (T, M) of T steps.
            cells: The cell of each column, (M,).
            when: In words, for the message; of several steps a function of the step.

        Raises:
            RuntimeError: If one is not finite.
        """
        bad = torch.nonzero(~rewards.isfinite())
        if len(bad):
            *steps, column = bad[0].tolist()
            score = float(rewards[tuple(bad[0])])
            told = when if isinstance(when, str) else when(*steps)
            raise self.not_finite(score, int(cells[column]), told)

    def scores(self, masks: Masks, images: Tensor, complement: bool = False) -> Tensor:
        """The model's score of ``masks * images``, whatever the game: (M,), no grad.

        Or of what the masks leave out, ``(1 - masks) * images``.
        """
        chunks = []
        with torch.no_grad():
            for part, rows in self._split(masks, images, self.perturbations_per_eval):
                if complement:
                    part = tuple(1 - mask for mask in part)
                chunks.append(self._perturbed_score(part, rows, None))
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
                reward = self._differentiable(leaves, rows, view)
                gradients.append(_gradient(reward, leaves))
            rewards.append(reward.detach())
        if len(gradients) == 1:
            return rewards[0], gradients[0]
        joined = tuple(torch.cat(parts) for parts in zip(*gradients, strict=True))
        return torch.cat(rewards), joined

    def _differentiable(
        self, masks: Masks, images: Tensor, view: View | None
    ) -> Tensor:
        """Rewards with their graph; an error that only gradients cause says so."""
        try:
            with _leaves_unnoticed():
                return self._reward(masks, images, view)
        except Exception as error:
            if may_be_of_the_batch(error) and self._works(masks, images, view):
                raise of_gradients(error, _REMEDY) from error
            raise

    def _works(self, masks: Masks, images: Tensor, view: View | None) -> bool:
        try:
            with torch.no_grad():
                self._reward(masks, images, view)
        except Exception:  # the model's own, of any kind
            return False
        return True

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
        return self._score(self._shown(masks, images, view), images)

    def _shown(
        self, masks: Masks, images: Tensor, view: View | None
    ) -> tuple[Tensor, ...]:
        """Perturbed inputs as the model sees them."""
        if self.spread is not None:
            masks = self.spread(masks, images)
        pairs = list(zip(self._levels, masks, strict=True))
        if view is not None and self.is_large:
            # One image at a time, which goes to its place at once.
            return tuple(
                apply_mask(levels, mask, images, view.moved(which, size, images))
                for which, ((levels, mask), size) in enumerate(
                    zip(pairs, self._level_sizes, strict=True)
                )
            )
        inputs = tuple(apply_mask(levels, mask, images) for levels, mask in pairs)
        return inputs if view is None else view(inputs, images)

    def _split(
        self, masks: Masks, images: Tensor, size: int
    ) -> Iterator[tuple[Masks, Tensor]]:
        size = 1 if self.is_large else size
        for start in range(0, len(images), size):
            part = slice(start, start + size)
            yield tuple(mask[part] for mask in masks), images[part]


def check_gradients(params: Sequence[Tensor], when: str) -> None:
    """Refuse parameters that gradients have made NaN or infinite."""
    if not all(values.isfinite().all() for values in params):
        raise RuntimeError(
            f"forward_func and reward must have finite gradients, got NaN {when}"
        )


@contextmanager
def _leaves_unnoticed() -> Iterator[None]:
    """torch.compile looks at ``.grad`` of perturbed inputs, of which PyTorch warns."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"The \.grad attribute of a Tensor")
        yield


def _over_mean_colour(levels: Levels) -> Levels:
    """Two levels: in the colour of the most perturbed one, and the last."""
    several = levels if isinstance(levels, tuple) else levels.unbind(dim=1)
    first, last = several[0], several[-1]
    # Image by image and channel by channel: the sums are in float64.
    means = [_finite_mean(channel) for image in first for channel in image]
    shape = (*first.shape[:2], *[1] * (first.dim() - 2))
    colour = torch.stack(means).view(shape).expand_as(first)
    if first[:1].numel() >= LARGE_IMAGE:
        return colour, last
    return torch.stack([colour, last], dim=1)


def _finite_mean(values: Tensor) -> Tensor:
    """The mean of the finite values."""
    finite = values.isfinite()
    known = torch.where(finite, values, 0).sum(dtype=torch.float64)
    return (known / finite.sum().clamp_min(1)).to(values.dtype)


def _gradient(reward: Tensor, leaves: Masks) -> Masks:
    """The gradient of each mask; 0 for a tensor that the model does not look at."""
    found: Sequence[Tensor | None] = [None]
    if reward.requires_grad:
        found = gradients_of(reward.sum(), leaves, _REMEDY)
    if all(gradient is None for gradient in found):
        raise RuntimeError(
            "no gradient reaches the mask through forward_func: its output is cut off "
            "from its input (detach, no_grad, NumPy, an integer step or reentrant "
            "checkpointing inside); a gradient solver needs a differentiable model. "
            "SearchSolver() needs none"
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
        ranking: For each input tensor the place of every pixel, (N, 1, *S) in [0, 1]:
            1 for what the smallest area keeps first, 0 for what even the largest leaves
            out longest; None from solvers that find none.
        ended: What ended the search: its ``"budget"``, a ``"time limit"`` or, by
            Ctrl-C, an ``"interrupt"``. The masks are the best found until then.
        runs: The masks of each search, where one was repeated, see `Restarts`.

    Example:
        >>> Solution((torch.ones(2, 1, 8, 8),)).history
        {}
    """

    masks: Masks
    history: dict[str, Tensor] = field(default_factory=dict)
    ended: Ended = "budget"
    ranking: Masks | None = None
    runs: tuple[Masks, ...] = ()
