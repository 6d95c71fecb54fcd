r"""Fields -> regions of exactly their area that are unions of disks.

A level set of a field may have pieces as small as a pixel. Here disks of one radius r
are all that a region is made of. The disks that lie inside a level set are those whose
centres are in its erosion, and the value from which on a disk fits is the least one
that the field has in it,

.. math:: E(c) = \min_{\|u - c\| \le r} S(u), \qquad
    U_t = \{u : \|u - c\| \le r \text{ for a } c \text{ with } E(c) \ge t\}.

The region of an area takes the largest U that is not larger, and grows, all its disks
alike, to as many pixels as are missing. Where a single disk is too large already, it
is the best place's disk of a smaller radius.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from captum_extremal.masks.edges import largest, squares_to

_FINE = 6  # centres lie at most a sixth of a radius apart
_GROWTH = 1.5  # radii that distances are followed


def unions(values: Tensor, counts: Sequence[int], radii: Sequence[float]) -> Tensor:
    """Regions that are unions of disks, where the values are largest.

    Args:
        values: Fields, (K, *S).
        counts: Pixels of the A areas, which the K rows take in turn.
        radii: Of the disks in pixels, along each axis; along one of less than 1 nothing
            is joined. With different ones disks are ellipses.

    Returns:
        Regions of exactly so many pixels, (K, *S) bool. Disks may reach beyond the
        border.

    Example:
        >>> row = torch.tensor([[0.0, 9.0, 0.0, 0.0, 5.0, 6.0, 5.0, 0.0]])
        >>> unions(row, [3], [1.0])
        tensor([[False, False, False, False,  True,  True,  True, False]])
        >>> unions(row, [3], [0.0])
        tensor([[False,  True, False, False,  True,  True, False, False]])
    """
    if max(radii) < 1:
        return largest(values, counts)
    values = values.contiguous()
    steps = [max(1, math.floor(radius / _FINE)) for radius in radii]
    starts = [
        (side - 1) % step // 2
        for side, step in zip(values.shape[1:], steps, strict=True)
    ]
    places = tuple(map(slice, [0, *starts], [None] * values.dim(), [1, *steps]))
    coarse = values[places]
    reach = [radius / step for radius, step in zip(radii, steps, strict=True)]
    fits = -_largest_around(-coarse, reach)
    opened = _largest_around(fits, reach)
    share = coarse[0].numel() / values[0].numel()
    rows = torch.arange(len(values), device=values.device)
    wanted = [max(1, math.floor(count * share)) for count in counts]
    least = _least(opened.flatten(1), wanted, rows % len(counts))
    alone = (-1, *[1] * (values.dim() - 1))
    centres = fits >= least.view(alone)
    none = ~centres.flatten(1).any(dim=1).view(alone)
    centres |= _best(fits, coarse) & none
    every = torch.zeros_like(values, dtype=torch.bool)
    every[places] = centres
    squares = squares_to(every, radii, _GROWTH)
    # Of pixels as far as others those with the larger values.
    tie = values - values.flatten(1).mean(dim=1).view(-1, *[1] * (values.dim() - 1))
    return largest(tie.sigmoid_().mul_(0.5).sub_(squares), counts)


def _best(fits: Tensor, values: Tensor) -> Tensor:
    """One place of each row: of those where a disk fits best that of most value."""
    top = fits == fits.flatten(1).amax(dim=1).view(-1, *[1] * (fits.dim() - 1))
    place = values.masked_fill(~top, -torch.inf).flatten(1).argmax(dim=1)
    found = torch.zeros_like(fits, dtype=torch.bool).flatten(1)
    return found.scatter_(1, place[:, None], True).view(fits.shape)


def _least(opened: Tensor, wanted: Sequence[int], areas: Tensor) -> Tensor:
    """Of each row the value from which on at most as many pixels as wanted are in."""
    ordered = opened.sort(dim=1, descending=True).values
    number = ordered.shape[1]
    count = torch.tensor(wanted, device=opened.device)[areas].unsqueeze(1)
    last = ordered.gather(1, count - 1)
    beyond = ordered.gather(1, count.clamp_max(number - 1))
    fitting = (beyond < last) | (count == number)
    above = torch.where(ordered > last, ordered, torch.inf).amin(dim=1, keepdim=True)
    return torch.where(fitting, last, above).squeeze(1)


def _largest_around(values: Tensor, reach: Sequence[float]) -> Tensor:
    """Of each place the largest value within an ellipse, (K, *S)."""
    found = torch.full_like(values, -torch.inf)
    rows = values.flatten(0, -2).unsqueeze(1)
    most = [
        min(math.floor(each), side - 1)
        for each, side in zip(reach, values.shape[1:], strict=True)
    ]
    sides = [range(-each, each + 1) for each in most[:-1]]
    for offsets in itertools.product(*sides):
        # Of the ellipse a line along the last axis, so many steps to either side.
        taken = sum((o / r) ** 2 for o, r in zip(offsets, reach, strict=False) if o)
        if taken > 1:
            continue
        half = math.floor(reach[-1] * math.sqrt(1 - taken) + 1e-6)
        half = min(half, most[-1])
        lines = F.max_pool1d(rows, 2 * half + 1, stride=1, padding=half)
        here, there = [slice(None)], [slice(None)]
        for offset, side in zip(offsets, values.shape[1:], strict=False):
            here.append(slice(max(0, -offset), side - max(0, offset)))
            there.append(slice(max(0, offset), side - max(0, -offset)))
        target = found[tuple(here)]
        torch.maximum(target, lines.view(values.shape)[tuple(there)], out=target)
    return found
