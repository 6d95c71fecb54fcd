r"""Regions -> masks of exactly their area, whose edge falls over a chosen width.

The region of area a is the set of the ``round(a N)`` pixels where a field S is largest
(`largest`), and the mask falls from 1 to 0 across its border (`smooth_edges`):

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
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from captum_extremal._base.axes import scales
from captum_extremal.masks.area import area_count

EDGE = 0.018  # half the width of an edge by default, see `edge_widths`

# Numbers at a time, a megabyte: about a second-level cache; and in a line of it.
_CPU_CHUNK = 2**18
_CPU_LINE = 16
_LONG = 2**22  # pixels from which on a partition of all values takes too much memory
_SAMPLE = 2**16  # of them


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
    numbers = values.flatten(1)
    regions = torch.empty(numbers.shape, dtype=torch.bool, device=values.device)
    for area, count in enumerate(counts):
        rows = slice(area, None, len(counts))
        if numbers.shape[1] >= _LONG:
            for row, region in zip(numbers[rows], regions[rows], strict=True):
                _largest_of_many(row, count, region)
        else:
            regions[rows] = _largest_of_few(numbers[rows], count)
    return regions.view(values.shape)


def places(values: Tensor) -> Tensor:
    """The place of each value among those of its row, from 1, the largest, to 0.

    Args:
        values: (K, *S).

    Returns:
        (K, *S) float32, evenly spaced; of ties the first in memory order are larger.

    Example:
        >>> places(torch.tensor([[3.0, 5.0, 1.0, 5.0, 2.0]]))
        tensor([[0.5000, 1.0000, 0.0000, 0.7500, 0.2500]])
    """
    order = values.flatten(1).argsort(dim=1, descending=True, stable=True)
    number = order.shape[1]
    steps = torch.linspace(1, 0, number, dtype=torch.float64, device=values.device)
    found = torch.empty(order.shape, dtype=torch.float32, device=values.device)
    found.scatter_(1, order, steps.float().expand_as(found))
    return found.view(values.shape)


def binary(masks: Tensor, areas: Sequence[float]) -> Tensor:
    """The largest values of each mask as ones, the others as zeros.

    Args:
        masks: (K, 1, *S), whose rows take the areas in turn.
        areas: Fractions of the positions.

    Returns:
        Of the shape and type of ``masks``.

    Example:
        >>> binary(torch.tensor([[[0.2, 0.9, 0.4, 0.1]]]), [0.5])
        tensor([[[0., 1., 1., 0.]]])
    """
    counts = [area_count(masks[0].numel(), area) for area in areas]
    return largest(masks.squeeze(1), counts).to(masks).unsqueeze(1)


def _largest_of_few(rows: Tensor, count: int) -> Tensor:
    """Of each row, without waiting for a device."""
    # NaN counts as the largest of all.
    rows = rows.nan_to_num(torch.inf, torch.inf, -torch.inf)
    threshold = rows.kthvalue(rows.shape[1] - count + 1, dim=1, keepdim=True).values
    above, ties = rows > threshold, rows == threshold
    missing = count - above.count_nonzero(dim=1).unsqueeze(1).int()
    return above | ties & (ties.cumsum(dim=1, dtype=torch.int32) <= missing)


def _largest_of_many(row: Tensor, count: int, region: Tensor) -> None:
    """Fill the region of one row, in little memory.

    The threshold is found among the few values near to where a sample has it.
    """
    if row.isnan().any():
        row = row.nan_to_num(torch.inf, torch.inf, -torch.inf)
    sample = row[:: len(row) // _SAMPLE].sort(descending=True).values
    place, margin = round(count / len(row) * len(sample)), len(sample) // 50
    high = sample[max(0, place - margin)]
    low = sample[min(len(sample) - 1, place + margin)]
    near = row[(row <= high) & (row >= low)]
    rank = count - int((row > high).count_nonzero())
    if not 1 <= rank <= len(near):
        near, rank = row, count
    threshold = near.kthvalue(len(near) - rank + 1).values
    torch.gt(row, threshold, out=region)
    missing = count - int(region.count_nonzero())
    ties = (row == threshold).nonzero().squeeze(1)
    region[ties[:missing]] = True


def edge_widths(edge: float, size: Sequence[int]) -> tuple[float, ...]:
    """Half the width of an edge along each axis in pixels, from a fraction of it.

    Args:
        edge: Fraction of the length that counts along an axis, see `scales`.
        size: Spatial size.

    Returns:
        Pixels; 0, a hard edge, where it would be less than half a pixel.

    Example:
        >>> [round(width, 3) for width in edge_widths(0.018, (224, 224))]
        [4.032, 4.032]
        >>> edge_widths(0.018, (16, 16)), edge_widths(0.018, (12, 1000))
        ((0.0, 0.0), (0.0, 18.0))
    """
    return tuple(edge_width(edge * length) for length in scales(size))


def edge_width(width: float) -> float:
    """The same, or 0, a hard edge, for less than half a pixel.

    Example:
        >>> edge_width(4.0), edge_width(0.3)
        (4.0, 0.0)
    """
    return width if width >= 0.5 else 0.0


def smooth_edges(regions: Tensor, width: float | Sequence[float]) -> Tensor:
    """Regions -> masks that fall from 1 to 0 across the regions' borders.

    Args:
        regions: (K, *S) bool.
        width: w, half the width of an edge in pixels, see `edge_widths`; at 0 the mask
            is the region itself. With one number for each axis the distance to the
            border is measured in widths, axis by axis; across an axis of width 0
            nothing is smoothed.

    Returns:
        (K, 1, *S) float32 in [0, 1], at or above 0.5 exactly in the region. The border
        of the input is no edge.

    Example:
        >>> region = torch.tensor([[False, False, False, True, True, True]])
        >>> smooth_edges(region, 2.0)
        tensor([[[0.0000, 0.0381, 0.3087, 0.6913, 0.9619, 1.0000]]])
        >>> leads = torch.tensor([[[False, True, True], [False, False, False]]])
        >>> smooth_edges(leads, (0, 1.0))
        tensor([[[[0.1464, 0.8536, 1.0000],
                  [0.0000, 0.0000, 0.0000]]]])
    """
    dims = regions.dim() - 1
    widths = [width] * dims if isinstance(width, float | int) else list(width)
    widest = max(widths)
    if widest == 0:
        return regions.float().unsqueeze(1)
    masks = _squares(regions, widths)
    # Half a pixel of the narrowest axis, though never more than half the distance.
    half = 0.5 * widest / _narrowest(widths)
    for _, pixels in _pieces(masks.view(1, 1, -1)):
        distance = masks.view(-1)[pixels].sqrt_()
        distance = torch.maximum(distance - half, distance / 2)
        inside = regions.reshape(-1)[pixels]
        signed = torch.where(inside, distance, -distance).div_(widest).clamp_(-1, 1)
        masks.view(-1)[pixels] = signed.mul_(math.pi / 2).sin_().mul_(0.5).add_(0.5)
    return masks.unsqueeze(1)


def _narrowest(widths: Sequence[float]) -> float:
    """The least width that is not 0."""
    return min(width for width in widths if width)


def _squares(regions: Tensor, widths: Sequence[float]) -> Tensor:
    """Squared distance of each pixel to the nearest one on the other side, (K, *S).

    In pixels of the axis of the largest width, of which those of other axes are a
    multiple; exact up to that width and half a pixel, and beyond it no less.
    """
    widest, narrowest = max(widths), _narrowest(widths)
    far = float((math.ceil(widest + 0.5 * widest / narrowest) + 1) ** 2)
    squares = torch.full(regions.shape, far, device=regions.device)
    for axis, width in enumerate(widths, start=1):
        if width == 0:
            continue
        beyond = 0.5 * width / narrowest
        reach = min(math.ceil(width + beyond), regions.shape[axis] - 1)
        pixel = widest / width
        lines = (math.prod(regions.shape[:axis]), regions.shape[axis], -1)
        for rows, columns in _pieces(squares.view(lines)):
            place = (rows, slice(None), columns)
            nearest = squares.view(lines)[place].contiguous()
            _spread_along(nearest, reach, pixel)
            steps = _steps_to_border(regions.reshape(lines)[place], reach)
            torch.minimum(nearest, (steps * pixel).square_(), out=nearest)
            squares.view(lines)[place] = nearest
    return squares


def squares_to(places: Tensor, radii: Sequence[float], most: float) -> Tensor:
    """Squared distance of each pixel to the nearest of some places, (K, *S).

    Args:
        places: (K, *S) bool.
        radii: The length of a distance of 1 along each axis, in pixels; along one of
            less than 1 there is no way.
        most: Up to this distance it is exact, and beyond it no less.

    Returns:
        In pixels of the axis of the largest radius.

    Example:
        >>> places = torch.tensor([[True, False, False, False, False]])
        >>> squares_to(places, [2.0], 1.5)
        tensor([[ 0.,  1.,  4.,  9., 25.]])
    """
    widest = max(radii)
    far = float((math.ceil(most * widest) + 2) ** 2)
    squares = torch.where(places, 0.0, far)
    for axis, radius in enumerate(radii, start=1):
        if radius < 1:
            continue
        reach = min(math.ceil(most * radius), places.shape[axis] - 1)
        lines = squares.view(math.prod(places.shape[:axis]), places.shape[axis], -1)
        for rows, columns in _pieces(lines):
            nearest = lines[rows, :, columns].contiguous()
            _spread_along(nearest, reach, widest / radius)
            lines[rows, :, columns] = nearest
    return squares


def _pieces(lines: Tensor) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of (before, pixels, behind) that stay in the cache of a CPU."""
    before, pixels, behind = lines.shape
    chunk = _CPU_CHUNK if lines.device.type == "cpu" else max(1, lines.numel())
    width = min(behind, max(_CPU_LINE, chunk // pixels))
    height = max(1, chunk // (pixels * width))
    for row in range(0, before, height):
        for column in range(0, behind, width):
            yield slice(row, row + height), slice(column, column + width)


def _spread_along(squares: Tensor, reach: int, pixel: float) -> None:
    """Let each value be the least of value + distance^2 along axis 1, in place.

    The square of a distance is the sum of as many odd numbers: 1 + 3 + 5 + ..
    """
    raised = torch.empty_like(squares)
    steepest = torch.inf
    if squares.device.type == "cpu" and reach:
        steepest = float(squares.diff(dim=1).abs_().max())
    for odd in range(1, 2 * reach, 2):
        cost = odd * pixel**2
        if cost >= steepest:  # no neighbour is that much lower, nor will one be
            break
        torch.add(squares, cost, out=raised)
        ahead, behind = squares[:, 1:], squares[:, :-1]
        torch.minimum(ahead, raised[:, :-1], out=ahead)
        torch.minimum(behind, raised[:, 1:], out=behind)


def _steps_to_border(regions: Tensor, reach: int) -> Tensor:
    """Pixels along axis 1 to the nearest one on the other side, exact up to reach.

    A pixel beyond that one is further from it, so that both sides can be done at once.
    """
    steps = torch.full(regions.shape, torch.inf, device=regions.device)
    changes = regions[:, 1:] != regions[:, :-1]
    steps[:, 1:].masked_fill_(changes, 1)
    steps[:, :-1].masked_fill_(changes, 1)
    hop = 1
    while hop < reach:
        raised = steps + hop
        ahead, behind = steps[:, hop:], steps[:, :-hop]
        torch.minimum(ahead, raised[:, :-hop], out=ahead)
        torch.minimum(behind, raised[:, hop:], out=behind)
        hop *= 2
    return steps
