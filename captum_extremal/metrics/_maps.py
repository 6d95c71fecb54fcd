"""Attributions (N, C, *S) and object masks -> pairs of maps (N, *S), checked.

Convention:
    The channels of an attribution are summed, as Captum's visualisation does, in
    float32 at least. Who wants another reduction passes a single channel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from captum_extremal._checks import check_spatial


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
    masks = object_masks if isinstance(object_masks, tuple) else (object_masks,)
    if isinstance(object_masks, tuple) != is_tuple or len(masks) != len(maps):
        wanted = f"a tuple of {len(maps)} tensors" if is_tuple else "a tensor"
        came = type(object_masks).__name__
        if isinstance(object_masks, tuple):
            came = f"a tuple of {len(masks)}"
        raise ValueError(
            f"object_masks must be {wanted}, like attributions, got {came}"
        )
    return [_object_map(mask, of) for mask, of in zip(masks, maps, strict=True)]


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
