"""Attributions (N, C, *S) and object masks -> pairs of maps (N, *S), checked.

Convention:
    The channels of an attribution are summed, as Captum's visualisation does, in
    float32 at least. Who wants another reduction passes a single channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from captum_extremal._checks import check_spatial

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
    dtypes = [torch.promote_types(tensor.dtype, torch.float32) for tensor in tensors]
    return [t.sum(dim=1, dtype=d) for t, d in zip(tensors, dtypes, strict=True)]


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
