"""Attributions (N, C, *S) and object masks -> pairs of maps (N, *S), checked.

Convention:
    The channels of an attribution are summed, as Captum's visualisation does, in
    float32 at least. Who wants another reduction passes a single channel. Only what
    maps are relative to each other counts, so that an example whose sums would leave
    the range of their type is divided by a power of two first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from captum_extremal._base.checks import check_spatial

T = TypeVar("T")


def attribution_maps(attributions: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    """Sum the channels of each tensor, (N, C, *S) -> (N, *S).

    Example:
        >>> attribution_maps(torch.tensor([[[1.0, 2.0], [3.0, -2.0]]]))
        [tensor([[4., 0.]])]
    """
    tensors = attributions if isinstance(attributions, tuple) else (attributions,)
    if not tensors:
        raise ValueError("attributions must hold at least one tensor, got none")
    for tensor in tensors:
        check_spatial("attributions", tensor)
    _agree("in their first dimension N", [len(tensor) for tensor in tensors])
    _agree("in their device", [tensor.device for tensor in tensors])
    wide = [t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors]
    return [t.sum(dim=1) for t in within_range(wide, max(t.shape[1] for t in wide))]


def within_range(tensors: Sequence[Tensor], count: int) -> list[Tensor]:
    """Divide those examples that need it, so that sums of ``count`` values are finite.

    The divisor is one power of two for all that the tensors hold of an example, (N,
    ...), so that what is divided stays exact.

    Example:
        >>> within_range([torch.tensor([[3e38, 2e38], [3.0, 2.0]])], 2)[0].sum(dim=1)
        tensor([1.2500e+38, 5.0000e+00])
    """
    room = room_for(count)
    limit = min(torch.finfo(tensor.dtype).max for tensor in tensors) / room
    large = torch.stack([peak_of(tensor) > limit for tensor in tensors]).any(dim=0)
    if not large.any():
        return list(tensors)
    return [
        tensor / _along(torch.where(large, room, 1.0).to(tensor.dtype), tensor)
        for tensor in tensors
    ]


def room_for(count: int) -> float:
    """A power of two, at least twice a count of numbers that are to be summed.

    What they are divided by so that their sum, rounding included, stays finite.

    Example:
        >>> room_for(5)
        16.0
    """
    return 2.0 ** (2 * count - 1).bit_length()


def near_one(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Divide each example by a power of two that brings its largest value to 1 to 2.

    Signs count: what is largest is largest in the absolute, over all of the tensors.

    Example:
        >>> near_one([torch.tensor([[3e38, -1e38], [2e-38, 0.0]])])[0]
        tensor([[ 1.7632, -0.5877],
                [ 1.7014,  0.0000]])
    """
    peak = torch.stack([peak_of(tensor) for tensor in tensors]).amax(dim=0)
    fraction = peak.frexp().mantissa  # in [0.5, 1), whatever the size of the number
    usual = (peak > 0) & peak.isfinite()
    unit = torch.where(usual, peak / (2 * fraction), 1.0)
    return [tensor / _along(unit, tensor) for tensor in tensors]


def peak_of(tensor: Tensor) -> Tensor:
    """The largest absolute value of each example, (N, ...) -> (N,).

    Example:
        >>> peak_of(torch.tensor([[1.0, -3.0]]))
        tensor([3.])
    """
    lowest, highest = tensor.flatten(1).aminmax(dim=1)
    return torch.maximum(highest, -lowest)


def _along(values: Tensor, tensor: Tensor) -> Tensor:
    """One number for each example, (N,), in the way of broadcasting."""
    return values.reshape(-1, *[1] * (tensor.dim() - 1))


def object_maps(
    object_masks: Tensor | tuple[Tensor, ...], maps: Sequence[Tensor], is_tuple: bool
) -> list[Tensor]:
    """Bring each mask to the shape and device of its map, (N, *S) bool.

    Example:
        >>> maps = [torch.zeros(1, 2)]
        >>> object_maps(torch.tensor([[[True, False]]]), maps, is_tuple=False)
        [tensor([[ True, False]])]
    """
    masks = like_parts(
        "object_masks", object_masks, "attributions", len(maps), is_tuple
    )
    return [_object_map(mask, of) for mask, of in zip(masks, maps, strict=True)]


def like_parts(
    name: str, value: T | tuple[T, ...], other: str, count: int, is_tuple: bool
) -> tuple[T, ...]:
    """The parts of an argument that is a tuple exactly where another one is.

    Example:
        >>> like_parts("baselines", (0, 1), "inputs", 2, is_tuple=True)
        (0, 1)
        >>> like_parts("baselines", 0, "inputs", 2, is_tuple=True)
        Traceback (most recent call last):
        ...
        ValueError: baselines must be a tuple of 2, like inputs, got int
    """
    parts = value if isinstance(value, tuple) else (value,)
    if isinstance(value, tuple) != is_tuple or len(parts) != count:
        wanted = f"a tuple of {count}" if is_tuple else "no tuple"
        came = type(value).__name__
        if isinstance(value, tuple):
            came = f"a tuple of {len(parts)}"
        raise ValueError(f"{name} must be {wanted}, like {other}, got {came}")
    return parts


def _object_map(mask: Tensor, of: Tensor) -> Tensor:
    """One mask; only bool, in which neither NaN nor a class index can hide."""
    came = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
    if came != torch.bool:
        raise TypeError(
            "object_masks must be a bool tensor, True on the object (for example "
            f"`labels == 3` or `masks > 0.5`), got {came}"
        )
    count, *size = of.shape
    if tuple(mask.shape) not in ((count, *size), (count, 1, *size)):
        raise ValueError(
            f"object_masks must be of shape {(count, *size)} or {(count, 1, *size)}, "
            f"as the attributions are, got {tuple(mask.shape)}"
        )
    return mask.reshape(of.shape).to(of.device)


def _agree(what: str, found: Sequence[object]) -> None:
    if any(item != found[0] for item in found):
        raise ValueError(
            f"attributions must agree {what}, got {' and '.join(map(str, found))}"
        )
