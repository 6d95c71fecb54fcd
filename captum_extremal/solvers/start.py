"""What uniform masks say of an input: where to begin, whether a mirror image serves.

The gradients of masks that are the same everywhere, averaged over several heights, tell
which places a model looks at before any mask is there. Where the mirror image asks for
the same places, a search may show it in turn with the image itself: for a photograph,
what both agree on is steadier than what one of them asks for. Of a model that looks at
one side, half of the mask would end on the other.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_extremal._base.axes import is_short
from captum_extremal.masks.fields import Field, FreeField
from captum_extremal.solvers.problem import Problem
from captum_extremal.solvers.views import Copy, random_shifts

MIRRORING = 0.5  # part of a run that mirror images take part in at most
_HEIGHTS = (0.2, 7 / 15, 11 / 15, 1.0)  # of the uniform masks
# Of the gain of the image's own choice. Photographs of animals: 0.2 to 0.9; a cause on
# one side beside whatever is symmetric: 0 and less.
_AGREES = 0.3


@dataclass(frozen=True, eq=False)
class Start:
    """What a search begins with, for each tensor of the input.

    Attributes:
        gradients: Of the fields' parameters, (N, *points), mean over the heights and,
            where the mirror image is shown, both images.
        mirrored: Of which images the mirror image is shown too, (N,) bool.
    """

    gradients: list[Tensor]
    mirrored: list[Tensor]


def start(
    problem: Problem,
    fields: Sequence[Field | FreeField],
    mirror: bool | None,
    areas: Sequence[float] | None = None,
) -> Start:
    """Look at uniform masks, and at those of the mirror image where it may serve.

    Args:
        problem: What a mask is worth.
        fields: One for each tensor of the input.
        mirror: True for each tensor with two spatial sizes, False for none. None for
            those whose axes are alike, and of them for the images where both `agree`;
            each tensor of an input decides for itself.
        areas: At which both must agree; None for those of the problem.

    Returns:
        Where to begin.
    """
    may = [_may_mirror(mirror, size) for size in problem.sizes]
    mirrored = [
        torch.full((problem.num_images,), one, dtype=torch.bool, device=problem.device)
        for one in may
    ]
    usual = _gradients(problem, fields, False)
    if not any(may):
        none = torch.zeros(problem.num_images, dtype=torch.bool, device=problem.device)
        return Start(usual, [none] * problem.num_tensors)
    other = _gradients(problem, fields, mirrored)
    if mirror is None:
        mirrored = [
            flags & agree(one, two, areas or problem.areas)
            for flags, one, two in zip(mirrored, usual, other, strict=True)
        ]
    return Start(_means(mirrored, usual, other), mirrored)


def first_gradients(
    problem: Problem,
    fields: Sequence[Field | FreeField],
    mirrored: Sequence[Tensor],
    jitter: float,
) -> list[Tensor]:
    """The gradients of a `Start` whose mirror images are known.

    Args:
        problem: What a mask is worth.
        fields: One for each tensor of the input.
        mirrored: As of a `Start`.
        jitter: Each height is seen in a shifted copy, by up to this fraction of each
            side; always the same shifts.

    Returns:
        As of a `Start`.
    """
    usual = _gradients(problem, fields, False, jitter)
    if not any(bool(flags.any()) for flags in mirrored):
        return usual
    return _means(mirrored, usual, _gradients(problem, fields, mirrored, jitter))


def _means(
    mirrored: Sequence[Tensor], usual: Sequence[Tensor], other: Sequence[Tensor]
) -> list[Tensor]:
    """Of both images where the mirror image is shown."""
    return [
        torch.where(flags.view(-1, *[1] * (one.dim() - 1)), (one + two) / 2, one)
        for flags, one, two in zip(mirrored, usual, other, strict=True)
    ]


def _may_mirror(choice: bool | None, size: Sequence[int]) -> bool:
    if choice is None:
        return len(size) == 2 and not any(is_short(size))
    return choice and len(size) == 2


def _gradients(
    problem: Problem,
    fields: Sequence[Field | FreeField],
    mirrored: bool | Sequence[Tensor],
    jitter: float = 0.0,
) -> list[Tensor]:
    """Of each field's parameters, (N, *points), mean over the heights."""
    first = torch.arange(problem.num_images, device=problem.device) * len(problem.areas)
    total = [torch.zeros(())] * len(fields)
    unmoved = random.Random(0)  # the same shifts in every run
    for height in _HEIGHTS:
        view = Copy(mirrored, random_shifts(unmoved, jitter))
        masks = tuple(
            torch.full((), height, device=first.device).expand(len(first), 1, *size)
            for size in problem.sizes
        )
        _, gradients = problem.gradients(masks, first, view)
        total = [
            before.to(gradient) + field.adjoint(gradient.squeeze(1)) / len(_HEIGHTS)
            for before, field, gradient in zip(total, fields, gradients, strict=True)
        ]
        del gradients  # of a large image, before the next are made
    return total


def agree(usual: Tensor, mirrored: Tensor, areas: Sequence[float]) -> Tensor:
    """Of which images the mirror image wants the same places kept.

    The mirror image agrees if the places that it would choose, at each area, are worth
    more than others to the image itself: of what that gains by its own choice over the
    mean, at least 0.3. A broad part that is symmetric, however much of both gradients
    it makes up, has no say about a cause on one side.

    Args:
        usual: Gradients of the image itself, (N, *points).
        mirrored: Of its mirror image, mirrored back.
        areas: The areas that are asked for.

    Returns:
        (N,) bool.

    Example:
        >>> left = torch.tensor([[3.0, 0.0, 1.0]])
        >>> right = torch.tensor([[0.0, 3.0, 1.0]])
        >>> agree(left, left, [0.3]), agree(left, right, [0.3])
        (tensor([True]), tensor([False]))
    """
    own, other = usual.flatten(1), mirrored.flatten(1)
    mean = own.mean(dim=1)
    fine = torch.ones_like(mean, dtype=torch.bool)
    for area in areas:
        count = max(1, round(area * own.shape[1]))
        if count == own.shape[1]:  # nothing to choose
            continue
        best = own.topk(count, dim=1).values.mean(dim=1) - mean
        chosen = own.gather(1, other.topk(count, dim=1).indices).mean(dim=1) - mean
        fine &= chosen >= _AGREES * best
    return fine
