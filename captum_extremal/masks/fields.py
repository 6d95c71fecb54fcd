r"""A smooth field in, a smooth mask of exactly the asked area out.

A field is a sum of Gaussians on a coarse lattice, one parameter each:

.. math:: S(u) = \sum_v \theta_v \, e^{-\|u - v\|^2 / (2 \sigma^2)}

The region of area a is the set of the ``round(a N)`` pixels where S is largest, and the
mask falls from 1 to 0 across its border:

.. math::
    m(u) = \tfrac12 + \tfrac12 \sin\left(\tfrac{\pi}{2}
        \operatorname{clamp}\left(\tfrac{d(u)}{w}, -1, 1\right)\right),

where d is the distance to the border, positive inside and half a pixel on either side
of it. So exactly the region is at or above 0.5, whatever the field; and as d changes by
no more than 1 a pixel, m changes by no more than :math:`\pi / (4 w)` (the bound of the
paper's Lemma 1 for a kernel of that slope).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from captum_extremal._base.axes import lattice_steps
from captum_extremal.masks.edges import largest

_WIDTH = 8 / 7  # sigma of a field's Gaussians, in lattice steps
_FEWEST_POINTS = 4  # along an axis that has as many pixels


class Field:
    """Parameters on a coarse lattice -> a smooth field over all pixels, and back.

    Args:
        size: Spatial size, 1 to 3 axes.
        step: Lattice spacing in pixels along all axes. None for `lattice_steps`, where
            steps that stand by themselves have a parameter each and no Gaussian.
        device: Where the field lives.

    Attributes:
        points: Number of lattice points along each axis, at least 4 of them where it
            has as many pixels.
        size: As given.
        device: As given.
        bases: Of each axis the Gaussians at its pixels, (side, points); None where
            steps have a parameter each.

    Example:
        >>> field = Field((224, 224), 7, torch.device("cpu"))
        >>> field.points
        [32, 32]
        >>> field(torch.ones(5, 32, 32)).shape
        torch.Size([5, 224, 224])
        >>> Field((12, 1000), None, torch.device("cpu")).points
        [12, 32]
    """

    def __init__(
        self, size: Sequence[int], step: int | None, device: torch.device
    ) -> None:
        self.size = tuple(size)
        self.device = device
        steps = lattice_steps(size) if step is None else (step,) * len(size)
        self.points = [
            max(round(side / s), min(side, _FEWEST_POINTS)) if s else side
            for side, s in zip(size, steps, strict=True)
        ]
        self.bases = [
            _gaussians(side, count, device) if s else None
            for side, count, s in zip(size, self.points, steps, strict=True)
        ]

    @property
    def overlap(self) -> float:
        """The sum of all Gaussians at a pixel, in the mean."""
        pixels = torch.ones(1, *self.size, device=self.device)
        return float(self.adjoint(pixels).sum()) / pixels.numel()

    def thinned(self, strides: Sequence[int]) -> Field:
        """The same field at every so many pixels along each axis, from the middle one.

        Example:
            >>> field = Field((9, 9), 3, torch.device("cpu"))
            >>> params = torch.rand(1, *field.points)
            >>> coarse = field.thinned([3, 1])
            >>> torch.equal(coarse(params), field(params)[:, 1::3])
            True
        """
        coarse = copy.copy(self)
        coarse.bases = [
            basis if basis is None else basis[stride // 2 :: stride]
            for basis, stride in zip(self.bases, strides, strict=True)
        ]
        coarse.size = tuple(
            len(range(stride // 2, side, stride))
            for side, stride in zip(self.size, strides, strict=True)
        )
        return coarse

    def __call__(self, params: Tensor) -> Tensor:
        """(K, *points) -> (K, *size)."""
        return self._along_all_axes(params, 1)

    def adjoint(self, gradients: Tensor) -> Tensor:
        """(K, *size) -> (K, *points): a gradient of the field, of its parameters."""
        return self._along_all_axes(gradients, 0)

    def _along_all_axes(self, values: Tensor, side: int) -> Tensor:
        """Sum over one side of each axis' matrix, in float32 under autocast as well."""
        with torch.autocast(self.device.type, enabled=False):
            for axis, basis in enumerate(self.bases, start=1):
                if basis is None:
                    continue
                product = torch.tensordot(values, basis, dims=([axis], [side]))
                values = product.movedim(-1, axis)
        return values


class FreeField:
    """Parameters -> the same values: for positions that are no neighbours.

    Args:
        size: As of `Field`.

    Attributes:
        points: As many as positions.
        size: As given.

    Example:
        >>> FreeField([3])(torch.tensor([[1.0, 5.0, 2.0]]))
        tensor([[1., 5., 2.]])
    """

    def __init__(self, size: Sequence[int]) -> None:
        self.size = tuple(size)
        self.points = list(size)

    def __call__(self, params: Tensor) -> Tensor:
        """(K, *size) -> (K, *size)."""
        return params.clone()

    def adjoint(self, gradients: Tensor) -> Tensor:
        """(K, *size) -> (K, *size)."""
        return gradients


def _gaussians(side: int, count: int, device: torch.device) -> Tensor:
    """The Gaussians of evenly spread centres along one axis, (side, count)."""
    pixels = torch.arange(side, dtype=torch.float32, device=device)
    spacing = side / count
    centres = (torch.arange(count, device=device) + 0.5) * spacing - 0.5
    z = (pixels[:, None] - centres) / (_WIDTH * spacing)
    return torch.exp(-z.square() / 2)


def random_regions(
    field: Field, counts: Sequence[int], number: int, generator: torch.Generator
) -> Tensor:
    """The level sets of fields with random parameters.

    Args:
        field: Its parameters are drawn from the standard normal distribution.
        counts: Pixels of each of the A areas.
        number: Regions of each area.
        generator: The only source of randomness, on the CPU.

    Returns:
        (number * A, *size) bool; the areas take turns.

    Example:
        >>> field = Field((8, 8), 2, torch.device("cpu"))
        >>> regions = random_regions(field, [4, 16], 2, torch.Generator())
        >>> regions.flatten(1).sum(dim=1)
        tensor([ 4, 16,  4, 16])
    """
    shape = (number * len(counts), *field.points)
    params = torch.randn(shape, generator=generator).to(field.device)
    return largest(field(params), counts)
