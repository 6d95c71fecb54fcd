"""`Site`: what masks are laid on, as the attribution methods see it.

The way of the data: a site's levels and the masks of a solver -> perturbed values ->
`inputs`, what the model is given -> scores; in the end `laid`, the masks in the form
that a result holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from captum_extremal.perturbations.apply import Levels
from captum_extremal.solvers.problem import Masks, Spread


class Site(Protocol):
    """What masks are laid on."""

    @property
    def levels(self) -> tuple[Levels, ...]:
        """What each tensor is under a mask, from fully perturbed to untouched."""
        ...

    @property
    def is_free(self) -> bool:
        """Whether its positions are no neighbours, so that masks need not be smooth."""
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

    def read(self, masks: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The way back, checked: masks of any origin, (N, A, 1, *S) for each tensor."""
        ...


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


def check_unit_range(masks: Tensor) -> None:
    """Refuse masks that leave [0, 1].

    Raises:
        ValueError: If a value is outside or NaN.
    """
    if not ((masks >= 0) & (masks <= 1)).all():
        raise ValueError("masks must lie in [0, 1], got other values")
