"""Areas -> counts of pixels, and any mask -> the same at exactly its area.

An area is a fraction of a mask's pixels in (0, 1], or a number of them (int), which is
least one. ``areas`` may be one number, or A numbers for K = N * A rows in image-major
order: row k is held to ``areas[k % A]``. With A = K each row has its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from captum_extremal._base.checks import (
    check_areas,
    check_count,
    check_floating,
)

Areas = float | Sequence[float] | Tensor


def area_count(num_pixels: int, area: float) -> int:
    """The number of ones in a mask of a given area: round(area * num_pixels), not 0.

    Args:
        num_pixels: Number of values in the mask.
        area: Fraction of them, in (0, 1].

    Returns:
        The number of ones. A half is rounded to the even neighbour.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If ``num_pixels`` is below 1 or ``area`` outside (0, 1].

    Example:
        >>> area_count(100, 0.25), area_count(100, 1e-6)
        (25, 1)
    """
    check_count("num_pixels", num_pixels)
    (area,) = check_areas(area)
    return max(1, round(area * num_pixels))


def rows(masks: Tensor) -> Tensor:
    """Masks as rows of values, (K, num_pixels), in float32 or longer."""
    check_floating("masks", masks)
    if masks.dim() < 2 or 0 in masks.shape[1:]:
        raise ValueError(
            "masks must be of shape (K, ...) with at least one value in each mask, got "
            f"{tuple(masks.shape)}"
        )
    values = masks.flatten(1)
    return values.to(torch.promote_types(values.dtype, torch.float32))


def for_each_row(counts: Tensor, num_masks: int) -> Tensor:
    """Repeat A numbers for the K rows of image-major masks, (K, 1)."""
    if num_masks % len(counts):
        raise ValueError(
            f"masks must hold a whole multiple of the {len(counts)} areas, got "
            f"{num_masks} masks"
        )
    return counts.repeat(num_masks // len(counts)).unsqueeze(1)


def match_area(masks: Tensor, areas: Areas) -> Tensor:
    """Rescale the values of masks so that 0.5 cuts out exactly the asked area.

    A mask that has its area already stays as it is. Any other is rescaled piecewise
    linearly: the middle between its n-th largest value
    and the next one goes to 0.5, while 0 and 1 stay. The order of the values is kept
    and edges stay as smooth as the slopes of the two pieces allow. Where values tie at
    the cut, the first pixels in memory order are taken; the others end up one rounding
    step below 0.5 at most.

    Args:
        masks: K masks of any shape; values outside [0, 1] count as 0 or 1.
        areas: A number, or A numbers that row k takes in turn; see `area_loss`. A
            tensor is read on the host.

    Returns:
        Masks with exactly `area_count` values at or above 0.5 each; no gradient.

    Raises:
        TypeError: If ``masks`` is not a floating point tensor.
        ValueError: If an area lies outside (0, 1], or ``masks`` is not a whole multiple
            of the areas or holds no values.

    Shape:
        (K, ...) -> (K, ...)

    Example:
        >>> import torch
        >>> match_area(torch.tensor([[0.0, 0.6, 0.8, 1.0]]), 0.5)
        tensor([[0.0000, 0.4286, 0.6667, 1.0000]])
    """
    values = rows(masks.detach()).clamp(0, 1)
    ones = [area_count(values.shape[1], area) for area in check_areas(areas)]
    counts = for_each_row(torch.tensor(ones, device=masks.device), len(masks))
    order = values.sort(dim=1, descending=True, stable=True).indices
    ranks = torch.empty_like(order).scatter_(
        1, order, torch.arange(values.shape[1], device=masks.device).expand_as(order)
    )
    kept = ranks < counts
    exact = (values >= 0.5).sum(dim=1, keepdim=True) == counts
    matched = _cut_at_half(values, kept, masks.dtype)
    return torch.where(exact, values.to(masks.dtype), matched).view(masks.shape)


def _cut_at_half(values: Tensor, kept: Tensor, dtype: torch.dtype) -> Tensor:
    """Rescale rows so that exactly the values of ``kept``, the largest, reach 0.5."""
    lowest_kept = values.where(kept, torch.inf).amin(dim=1, keepdim=True)
    highest_left = values.where(~kept, 0).amax(dim=1, keepdim=True)
    cut = (lowest_kept + highest_left) / 2
    tiny = torch.finfo(values.dtype).tiny
    upper = 1 - (1 - values) / (1 - cut).clamp_min(tiny) / 2
    lower = values / cut.clamp_min(tiny) / 2
    below_half = 0.5 - torch.finfo(dtype).eps / 4  # the next number of this type
    rescaled = torch.where(kept, upper, lower.clamp_max(below_half))
    return rescaled.to(dtype)
