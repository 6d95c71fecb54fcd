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

from captum_extremal._base.axes import is_short, scales

Point = tuple[int, ...]
Disks = frozenset[Point]

_LATTICE_POINTS = 1024
_SAMPLES = 3136
_FEWEST = 8  # of them along an axis, where steps stand by themselves beside it
_APART = 1e5  # distance of such steps, farther than any disk reaches


def nearest_squares(
    centres: Tensor, axes: Sequence[Tensor], steps: Sequence[float]
) -> Tensor:
    """Squared distance of each pixel to the nearest centre.

    Args:
        centres: Lattice points, (M, P, D) integers; point ``i`` of an axis sits at
            ``step * i``. A set of fewer than P centres repeats one of them.
        axes: For each of the D axes the positions of the pixels, (S_d,).
        steps: Lattice spacing along each axis, in the unit of ``axes``.

    Returns:
        (M, *S).
    """
    offsets = [
        (axis - step * centres[..., d, None]).square()
        for d, (axis, step) in enumerate(zip(axes, steps, strict=True))
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

    Distances are in pixels of an input whose axes are alike. Where they are not
    (`scales`), each axis is stretched or shrunk to the same length first, so that a
    disk takes the same share of each; and steps that stand by themselves lie too far
    apart for a disk to reach from one to the next.

    Args:
        size: Spatial size of the input, 1 to 3 axes.
        device: Where full masks are made. Coarse ones stay on the CPU.

    Attributes:
        points: Number of places along each axis, about 1024 in all: 32 x 32 on an
            image, 7 pixels apart at 224.
        steps: Distance of the places along each axis.
        length: The geometric mean of the sides, of axes whose steps do not stand by
            themselves.
        dims: How many these are.
        apart: Of each axis whether its steps do.
        stretched: Whether the axes are not alike.
        axes: Positions of all pixels along each axis, from the first place on.
        sampled: The same for the centres of about 3136 blocks of pixels, 56 x 56 on an
            image: enough to compare masks with one another.

    Example:
        >>> lattice = DiskLattice((224, 224), torch.device("cpu"))
        >>> lattice.points, lattice.steps, round(lattice.radius_of(0.05))
        ([32, 32], [7.0, 7.0], 28)
        >>> DiskLattice((12, 1000), torch.device("cpu")).points
        [12, 85]
    """

    def __init__(self, size: Sequence[int], device: torch.device) -> None:
        lengths = scales(size)
        self.apart = [length == 0 for length in lengths]
        self.dims = self.apart.count(False)
        self.pixels = math.prod(size)
        self.length = math.prod(filter(None, lengths)) ** (1 / self.dims)
        units = [self.length / length if length else _APART for length in lengths]
        volume = math.prod(
            n * unit
            for n, unit, apart in zip(size, units, self.apart, strict=True)
            if not apart
        )
        self.single = self.pixels // round(volume)  # steps that stand by themselves
        step = (volume / self._of_each(_LATTICE_POINTS)) ** (1 / self.dims)
        # Twice as close along a short axis: a row of it may be all there is to find.
        short = is_short(size)
        spacing = [
            1.0 if apart else max(1.0, step / unit / (2 if is_one else 1))
            for unit, apart, is_one in zip(units, self.apart, short, strict=True)
        ]
        self.stretched = any(short)
        self.points = [max(1, round(n / s)) for n, s in zip(size, spacing, strict=True)]
        self.steps = [s * unit for s, unit in zip(spacing, units, strict=True)]
        origins = [
            (n - 1 - s * (count - 1)) / 2
            for n, s, count in zip(size, spacing, self.points, strict=True)
        ]
        self.axes = [
            (torch.arange(n, dtype=torch.float32, device=device) - origin) * unit
            for n, origin, unit in zip(size, origins, units, strict=True)
        ]
        most = round(self._of_each(_SAMPLES) ** (1 / self.dims))
        blocks = [
            n if apart else min(n, most)
            for n, apart in zip(size, self.apart, strict=True)
        ]
        self.sampled = [
            (
                (torch.arange(count, dtype=torch.float32) + 0.5) * n / count
                - 0.5
                - origin
            )
            * unit
            for n, count, origin, unit in zip(size, blocks, origins, units, strict=True)
        ]
        self.samples = math.prod(blocks)

    def _of_each(self, total: float) -> float:
        """Of so many points in all those of a step that stands by itself."""
        return max(total / self.single, float(_FEWEST**self.dims))

    def radius_of(self, share: float) -> float:
        """Radius of a ball that holds this share of the pixels."""
        unit = math.pi ** (self.dims / 2) / math.gamma(self.dims / 2 + 1)
        return float((share * self.pixels / unit) ** (1 / self.dims))

    def grid(self, count: float) -> list[Point]:
        """At most ``count`` lattice points, evenly spread over the input."""
        # The same share of each axis whose steps stand by themselves, if not all.
        short = self.apart.count(True)
        share = min(1.0, count / self.single) ** (1 / short) if short else 1.0
        alone = [
            max(1, math.floor(n * share + 1e-9)) if apart else 1
            for n, apart in zip(self.points, self.apart, strict=True)
        ]
        left = max(1.0, count / math.prod(alone))
        side = math.floor(left ** (1 / self.dims) + 1e-9)
        axes = [
            _evenly(n, single if apart else side)
            for n, apart, single in zip(self.points, self.apart, alone, strict=True)
        ]
        return list(itertools.product(*axes))

    def bar(self, point: Point, axes: Sequence[int]) -> list[Point]:
        """All places that differ from a point along these axes alone."""
        places = [
            range(count) if axis in axes else [place]
            for axis, (count, place) in enumerate(zip(self.points, point, strict=True))
        ]
        return list(itertools.product(*places))

    def windows(self, count: int) -> list[list[Point]]:
        """At most ``count`` places, evenly spread, on all steps that stand alone."""
        apart = [axis for axis, it in enumerate(self.apart) if it]
        side = max(1, math.floor(count ** (1 / self.dims) + 1e-9))
        axes = [
            [0] if it else _evenly(n, side)
            for n, it in zip(self.points, self.apart, strict=True)
        ]
        return [self.bar(point, apart) for point in itertools.product(*axes)]

    def squares(self, sets: Sequence[Disks], axes: Sequence[Tensor]) -> Tensor:
        """Squared distances to the nearest point of each set, (M, *S)."""
        width = max(map(len, sets))
        rows = [sorted(points) for points in sets]
        padded = [row + row[:1] * (width - len(row)) for row in rows]
        centres = torch.tensor(padded, device=axes[0].device)
        return nearest_squares(centres, axes, self.steps)


def _evenly(count: int, parts: int) -> list[int]:
    """The middles of equal parts of so many places."""
    return sorted({math.floor((i + 0.5) * count / parts) for i in range(parts)})
