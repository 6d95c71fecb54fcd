"""`Site`: what masks are laid on, as the attribution methods see it.

The way of the data: a site's levels and the masks of a solver -> perturbed values ->
`inputs`, what the model is given -> scores; in the end `laid`, the masks in the form
that a result holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from captum_extremal._base import checks
from captum_extremal.perturbations.apply import Levels
from captum_extremal.solvers import Solver
from captum_extremal.solvers.problem import Masks, Spread


class Site(Protocol):
    """What masks are laid on."""

    @property
    def levels(self) -> tuple[Levels, ...]:
        """What each tensor is under a mask, from fully perturbed to untouched."""
        ...

    @property
    def solver(self) -> Solver:
        """How masks are searched by default: smooth ones where positions neighbour."""
        ...

    @property
    def spread(self) -> Spread | None:
        """How values of a mask are spread over the levels; None for one each."""
        ...

    def fractions(self, areas: Sequence[int | float]) -> tuple[float, ...]:
        """Areas as fractions of the positions, of which counts come out as asked."""
        ...

    def inputs(
        self, perturbed: tuple[Tensor, ...], images: Tensor
    ) -> tuple[Tensor, ...]:
        """What the model is given for perturbed values, and the image of each row."""
        ...

    def laid(self, masks: Masks) -> tuple[Tensor, ...]:
        """A solver's masks, (N, A, 1, *S) for each tensor, as a result holds them."""
        ...

    def attributions(self, means: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """A mean of such masks for each image, as `attribute` returns it."""
        ...

    def read(self, masks: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The way back, checked: masks of any origin, (N, A, 1, *S) for each tensor."""
        ...


def check_last(site: Site, inputs: tuple[Tensor, ...]) -> None:
    """Refuse a site whose untouched values are not the inputs, but for rounding.

    Raises:
        ValueError: If they are not.
    """
    lasts = tuple(
        level[-1] if isinstance(level, tuple) else level[:, -1] for level in site.levels
    )
    images = torch.arange(len(inputs[0]), device=lasts[0].device)
    shown = site.inputs(lasts, images)
    # Equal as a rule: only what is not takes memory to compare.
    if len(shown) != len(inputs) or not all(
        torch.equal(one, other)
        or (
            one.shape == other.shape
            and torch.allclose(one.float(), other.float(), rtol=1e-2, atol=1e-3)
        )
        for one, other in zip(shown, inputs, strict=True)
    ):
        raise ValueError(
            f"{type(site).__name__} must give the inputs for its last level, got others"
        )


def fractions_of(
    areas: Sequence[int | float], sizes: Sequence[int], positions: str, owner: str
) -> tuple[float, ...]:
    """Areas as fractions, of which a number of positions comes out as it was asked.

    Args:
        areas: Numbers of positions (int) or fractions of them (float).
        sizes: How many positions each tensor has.
        positions: Their name in the plural, for messages.
        owner: Whose they are.

    Raises:
        ValueError: If there are fewer positions, or a number is given for tensors of
            different sizes.

    Example:
        >>> fractions_of([2, 0.3], [8], "channels", "the layer's")
        (0.25, 0.3)
    """
    for area in areas:
        if isinstance(area, int) and len(set(sizes)) > 1:
            raise ValueError(
                "area must be a fraction for tensors that differ in their number of "
                f"{positions}, {' and '.join(map(str, sizes))}, got {area}"
            )
        if isinstance(area, int) and area > sizes[0]:
            raise ValueError(
                f"area must be at most {owner} {sizes[0]} {positions}, got {area}; a "
                f"fraction is a float, and 1.0 is all {positions}"
            )
    return tuple(a / sizes[0] if isinstance(a, int) else a for a in areas)


def check_masks(
    masks: Sequence[Tensor], count: int, shapes: Sequence[Sequence[int]], owner: str
) -> None:
    """Refuse masks that do not fit what they are laid on, or leave [0, 1].

    Args:
        masks: One for each tensor.
        count: The number of examples N.
        shapes: Of a mask of each tensor, after N and A.
        owner: Whose the tensors are, for messages.

    Raises:
        TypeError: If a mask is not floating point.
        ValueError: If one does not fit.

    Example:
        >>> import torch
        >>> check_masks([torch.ones(1, 2, 1, 4)], 1, [(1, 5)], "inputs")
        Traceback (most recent call last):
        ...
        ValueError: masks must be of shape (1, A, 1, 5), got (1, 2, 1, 4)
    """
    if len(masks) != len(shapes):
        raise ValueError(
            f"masks must be as many as {owner}, {len(shapes)}, got {len(masks)}"
        )
    for mask, shape in zip(masks, shapes, strict=True):
        checks.check_floating("masks", mask)
        checks.check_shape("masks", mask, "N A *S", N=count, S=shape)
        if mask.shape[1] != masks[0].shape[1]:
            raise ValueError(
                "masks must be of the same number of areas for all tensors, got "
                f"{masks[0].shape[1]} and {mask.shape[1]}"
            )
        if not ((mask >= 0) & (mask <= 1)).all():
            raise ValueError("masks must lie in [0, 1], got other values")
