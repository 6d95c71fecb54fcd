"""One step of the descent on eq. 4, literally, in float64 and one mask at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def canvas(
    params: Tensor,
    sizes: Sequence[int],
    origin: int,
    step: int,
    sigma: float,
    reach: float,
    profile: Callable[[Tensor], Tensor],
) -> Tensor:
    """Eq. 6 and 7 with 1 / T = 20 over the window of App. A.1.

    Pixel (0, 0) of the canvas lies ``origin`` pixels before the image, whose first
    pixel carries the first lattice point.
    """
    radius = 1 + math.ceil(reach / step)
    axes = [torch.arange(size) - origin for size in sizes]
    cells = [torch.div(axis, step, rounding_mode="floor") for axis in axes]
    values = []
    for shift in itertools.product(range(-radius, radius + 1), repeat=len(sizes)):
        points = [cell + s for cell, s in zip(cells, shift, strict=True)]
        squares = [
            (u - step * v).double() ** 2 for u, v in zip(axes, points, strict=True)
        ]
        distance = (squares[0][:, None] + squares[1][None]).sqrt()
        values.append(profile(distance / sigma) * _at(params, points))
    f = torch.stack(values)
    weights = torch.exp(20 * f)
    return (f * weights).sum(0) / weights.sum(0)


def _at(params: Tensor, points: Sequence[Tensor]) -> Tensor:
    """The parameters at lattice points, 0 outside the lattice."""
    inside = [(p >= 0) & (p < n) for p, n in zip(points, params.shape, strict=True)]
    rows, columns = (
        p.clamp(0, n - 1) for p, n in zip(points, params.shape, strict=True)
    )
    found = params[rows[:, None], columns[None]]
    return found * (inside[0][:, None] & inside[1][None])


def perturb(levels: Tensor, mask: Tensor) -> Tensor:
    """Footnote 3: interpolate between the levels (L, C, H, W) at (u, m(u))."""
    position = mask * (len(levels) - 1)
    low = position.detach().floor().clamp(max=len(levels) - 2).long()
    index = low.expand(1, levels.shape[1], *low.shape)
    at_low = levels.gather(0, index)[0]
    at_high = levels.gather(0, index + 1)[0]
    return at_low + (position - low) * (at_high - at_low)


def area_loss(mask: Tensor, area: float) -> Tensor:
    """Sec. 3.3 by a full sort, as a mean."""
    ordered = mask.flatten().sort().values
    reference = torch.zeros_like(ordered)
    reference[len(ordered) - max(1, round(area * len(ordered))) :] = 1
    return ((ordered - reference) ** 2).mean()
