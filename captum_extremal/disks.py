r"""Centres of disks in, a smooth mask of exactly the asked area out.

The max-convolution of the paper (eq. 6) with parameters of 0 and 1 alone: the mask at
:math:`u` depends on the distance to the nearest centre only,

.. math::
    m(u) = k(d(u)), \qquad d(u) = \min_{v \in C} \|u - v\|, \qquad
    k(d) = \tfrac12 + \tfrac12 \sin\left(\tfrac{\pi}{2}
        \operatorname{clamp}\left(\tfrac{r - d}{w}, -1, 1\right)\right).

The radius r is the distance that the asked share of the pixels stays within, so the
mask binarised at 0.5 has exactly the asked area; w is half the width of its edge. A
distance changes by no more than 1 a pixel, hence the mask by no more than
:math:`\pi / (4 w)` (Lemma 1).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

Point = tuple[int, ...]
Disks = frozenset[Point]

_LATTICE_POINTS = 1024
_SAMPLES = 3136


def nearest_squares(centres: Tensor, axes: Sequence[Tensor], step: float) -> Tensor:
    """Squared distance of each pixel to the nearest centre.

    Args:
        centres: Lattice points, (M, P, D) integers; point ``i`` of an axis sits on the
            pixel ``step * i``. A set of fewer than P centres repeats one of them.
        axes: For each of the D axes the pixel positions, (S_d,).
        step: Lattice spacing in pixels.

    Returns:
        (M, *S).
    """
    offsets = [
        (axis - step * centres[..., d, None]).square() for d, axis in enumerate(axes)
    ]
    shape = [len(axis) for axis in axes]
    nearest = torch.full((len(centres), *shape), torch.inf, device=centres.device)
    for point in range(centres.shape[1]):
        square = _outer_sum([offset[:, point] for offset in offsets])
        torch.minimum(nearest, square, out=nearest)
    return nearest


def _outer_sum(offsets: Sequence[Tensor]) -> Tensor:
    """(M, S_d) of each axis -> their sums, (M, *S)."""
    total = offsets[0]
    for offset in offsets[1:]:
        total = total.unsqueeze(-1) + offset.view(
            len(offset), *[1] * (total.dim() - 1), -1
        )
    return total


def radii(squares: Tensor, count: int) -> Tensor:
    """The distance that ``count`` pixels stay within, (M,)."""
    return squares.flatten(1).kthvalue(count, dim=1).values.sqrt()


def disk_masks(squares: Tensor, count: int, edge: float) -> Tensor:
    """The masks of squared distances, with ``count`` pixels at or above 0.5.

    Args:
        squares: What `nearest_squares` returned, (M, *S).
        count: Number of pixels in the binarised mask. With a soft edge all pixels that
            tie at the radius have the value 0.5; `match_area` picks among them.
        edge: w, half the width of the edge in pixels; 0 for a hard one, where of the
            tied pixels the first are in.

    Returns:
        (M, 1, *S) in [0, 1].
    """
    shape = (-1, *[1] * (squares.dim() - 1))
    if count >= squares[0].numel():
        return torch.ones_like(squares).unsqueeze(1)
    radius = radii(squares, count).view(shape)
    if edge == 0:
        nearest = squares.flatten(1).argsort(dim=1, stable=True)[:, :count]
        hard = torch.zeros_like(squares).flatten(1).scatter_(1, nearest, 1)
        mask = hard.view_as(squares)
    else:
        slope = squares.sqrt().neg_().add_(radius).div_(edge).clamp_(-1, 1)
        mask = slope.mul_(math.pi / 2).sin_().mul_(0.5).add_(0.5)
    return mask.unsqueeze(1)


class DiskLattice:
    """The places that disks may take in an input, and distances to sets of them.

    Args:
        size: Spatial size of the input, 1 to 3 axes.
        device: Where full masks are made. Coarse ones stay on the CPU.

    Attributes:
        points: Number of places along each axis, about 1024 in all: 32 x 32 on an
            image, 7 pixels apart at 224.
        axes: Positions of all pixels along each axis, in pixels from the first place.
        sampled: The same for the centres of about 3136 blocks of pixels, 56 x 56 on an
            image: enough to compare masks with one another.

    Example:
        >>> lattice = DiskLattice((224, 224), torch.device("cpu"))
        >>> lattice.points, lattice.step, round(lattice.radius_of(0.05))
        ([32, 32], 7.0, 28)
    """

    def __init__(self, size: Sequence[int], device: torch.device) -> None:
        self.dims = len(size)
        self.pixels = math.prod(size)
        self.step = max(1.0, (self.pixels / _LATTICE_POINTS) ** (1 / self.dims))
        self.points = [max(1, round(n / self.step)) for n in size]
        origins = [
            (n - 1 - self.step * (count - 1)) / 2
            for n, count in zip(size, self.points, strict=True)
        ]
        self.axes = [
            torch.arange(n, dtype=torch.float32, device=device) - origin
            for n, origin in zip(size, origins, strict=True)
        ]
        blocks = [min(n, round(_SAMPLES ** (1 / self.dims))) for n in size]
        self.sampled = [
            (
                (torch.arange(count, dtype=torch.float32) + 0.5) * n / count
                - 0.5
                - origin
            )
            for n, count, origin in zip(size, blocks, origins, strict=True)
        ]
        self.samples = math.prod(blocks)

    def radius_of(self, share: float) -> float:
        """Radius of a ball that holds this share of the pixels."""
        unit = math.pi ** (self.dims / 2) / math.gamma(self.dims / 2 + 1)
        return float((share * self.pixels / unit) ** (1 / self.dims))

    def grid(self, count: float) -> list[Point]:
        """At most ``count`` lattice points, evenly spread over the input."""
        side = max(1, math.floor(count ** (1 / self.dims) + 1e-9))
        axes = [
            sorted({math.floor((i + 0.5) * n / side) for i in range(side)})
            for n in self.points
        ]
        return list(itertools.product(*axes))

    def squares(self, sets: Sequence[Disks], axes: Sequence[Tensor]) -> Tensor:
        """Squared distances to the nearest point of each set, (M, *S)."""
        width = max(map(len, sets))
        rows = [sorted(points) for points in sets]
        padded = [row + row[:1] * (width - len(row)) for row in rows]
        centres = torch.tensor(padded, device=axes[0].device)
        return nearest_squares(centres, axes, self.step)
