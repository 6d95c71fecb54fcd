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

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_WIDTH = 8 / 7  # sigma of a field's Gaussians, in lattice steps
_FEWEST_POINTS = 4  # along an axis that has as many pixels


class Field:
    """Parameters on a coarse lattice -> a smooth field over all pixels, and back.

    Args:
        size: Spatial size, 1 to 3 axes.
        step: Lattice spacing in pixels.
        device: Where the field lives.

    Attributes:
        points: Number of lattice points along each axis, at least 4 of them where it
            has as many pixels.
        size: As given.
        device: As given.

    Example:
        >>> field = Field((224, 224), 7, torch.device("cpu"))
        >>> field.points
        [32, 32]
        >>> field(torch.ones(5, 32, 32)).shape
        torch.Size([5, 224, 224])
    """

    def __init__(self, size: Sequence[int], step: int, device: torch.device) -> None:
        self.size = tuple(size)
        self.device = device
        self.points = [
            max(round(side / step), min(side, _FEWEST_POINTS)) for side in size
        ]
        self._bases = [
            _gaussians(side, count, device)
            for side, count in zip(size, self.points, strict=True)
        ]

    def __call__(self, params: Tensor) -> Tensor:
        """(K, *points) -> (K, *size)."""
        return self._along_all_axes(params, 1)

    def adjoint(self, gradients: Tensor) -> Tensor:
        """(K, *size) -> (K, *points): a gradient of the field, of its parameters."""
        return self._along_all_axes(gradients, 0)

    def _along_all_axes(self, values: Tensor, side: int) -> Tensor:
        """Sum over one side of each axis' matrix, in float32 under autocast as well."""
        with torch.autocast(self.device.type, enabled=False):
            for axis, basis in enumerate(self._bases, start=1):
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
        return params

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


def largest(values: Tensor, counts: Sequence[int]) -> Tensor:
    """The pixels with the largest values: of ties the first in memory order.

    Args:
        values: (K, *S).
        counts: Pixels of the A areas, which the K rows take in turn.

    Returns:
        Regions of exactly so many pixels, (K, *S) bool.

    Example:
        >>> largest(torch.tensor([[3.0, 1.0, 2.0], [5.0, 5.0, 5.0]]), [2, 1])
        tensor([[ True, False,  True],
                [ True, False, False]])
    """
    order = values.flatten(1).argsort(dim=1, descending=True, stable=True)
    regions = torch.zeros(order.shape, dtype=torch.bool, device=values.device)
    for area, count in enumerate(counts):
        rows = slice(area, None, len(counts))
        chosen = torch.ones_like(order[rows, :count], dtype=torch.bool)
        regions[rows] = regions[rows].scatter(1, order[rows, :count], chosen)
    return regions.view(values.shape)


def edge_width(edge: float, size: Sequence[int]) -> float:
    """Half the width of an edge in pixels, from a fraction of the mean side.

    Args:
        edge: Fraction of the geometric mean of the sizes.
        size: Spatial size.

    Returns:
        Pixels; 0, a hard edge, where it would be less than half a pixel.

    Example:
        >>> round(edge_width(0.018, (224, 224)), 3), edge_width(0.018, (16, 16))
        (4.032, 0.0)
    """
    width = edge * float(math.prod(size) ** (1 / len(size)))
    return width if width >= 0.5 else 0.0


def smooth_edges(regions: Tensor, width: float) -> Tensor:
    """Regions -> masks that fall from 1 to 0 across the regions' borders.

    Args:
        regions: (K, *S) bool.
        width: w, half the width of an edge in pixels, see `edge_width`; at 0 the mask
            is the region itself.

    Returns:
        (K, 1, *S) float32 in [0, 1], at or above 0.5 exactly in the region. The border
        of the input is no edge.

    Example:
        >>> region = torch.tensor([[False, False, False, True, True, True]])
        >>> smooth_edges(region, 2.0)
        tensor([[[0.0000, 0.0381, 0.3087, 0.6913, 0.9619, 1.0000]]])
    """
    if width == 0:
        return regions.float().unsqueeze(1)
    inside = _distances(~regions, width) - 0.5
    outside = _distances(regions, width) - 0.5
    signed = torch.where(regions, inside, -outside)
    slope = (signed / width).clamp_(-1, 1)
    return slope.mul_(math.pi / 2).sin_().mul_(0.5).add_(0.5).unsqueeze(1)


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


def _distances(targets: Tensor, width: float) -> Tensor:
    """Distance of each pixel to the nearest target, exact up to ``width`` + 1/2."""
    reach = math.ceil(width + 0.5)
    far = float((reach + 1) ** 2)
    squares = torch.where(targets, 0.0, far)
    for axis in range(1, targets.dim()):
        nearest = squares.clone()
        length = squares.shape[axis]
        for offset in range(1, min(reach, length - 1) + 1):
            ahead = nearest.narrow(axis, 0, length - offset)
            behind = nearest.narrow(axis, offset, length - offset)
            cost = float(offset**2)
            shifted = squares.narrow(axis, offset, length - offset) + cost
            torch.minimum(ahead, shifted, out=ahead)
            shifted = squares.narrow(axis, 0, length - offset) + cost
            torch.minimum(behind, shifted, out=behind)
        squares = nearest
    return squares.sqrt_()
