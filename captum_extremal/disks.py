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

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def nearest_squares(centres: Tensor, axes: Sequence[Tensor], step: float) -> Tensor:
    """Squared distance of each pixel to the nearest centre.

    Args:
        centres: Lattice points, (M, P, D) integers; point ``i`` of an axis sits on the
            pixel ``step * i``. A set of fewer than P centres repeats one of them.
        axes: For each of the D axes the pixel positions, (S_d,).
        step: Lattice spacing in pixels.

    Returns:
        (M, *S), exact squares in float32 up to sizes of 4000 pixels.
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
        count: Number of pixels in the binarised mask. Pixels that tie at the radius
            are all in.
        edge: w, half the width of the edge in pixels; 0 for a hard one.

    Returns:
        (M, 1, *S) in [0, 1].
    """
    shape = (-1, *[1] * (squares.dim() - 1))
    if count >= squares[0].numel():
        return torch.ones_like(squares).unsqueeze(1)
    radius = radii(squares, count).view(shape)
    if edge == 0:
        mask = (squares <= radius.square() * (1 + 1e-6)).to(squares.dtype)
    else:
        slope = squares.sqrt().neg_().add_(radius).div_(edge).clamp_(-1, 1)
        mask = slope.mul_(math.pi / 2).sin_().mul_(0.5).add_(0.5)
    return mask.unsqueeze(1)
