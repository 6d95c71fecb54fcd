r"""Attributions and object masks -> hits of the pointing game (Sec. 4.2).

The maximum :math:`u^*` of an attribution hits an object with the pixels :math:`O` if

.. math:: \min_{v \in O} \|u^* - v\|_2 < \tau
          \quad \text{or} \quad u^* \in O, \qquad
          u^* = \operatorname{argmax}_u \sum_c A_c(u).

The second condition matters at the tolerance :math:`\tau = 0` alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from captum_extremal._base.checks import check_non_negative
from captum_extremal.metrics._maps import attribution_maps, object_maps


def pointing_game(
    attributions: Tensor | tuple[Tensor, ...],
    object_masks: Tensor | tuple[Tensor, ...],
    tolerance: float = 15,
) -> Tensor:
    """Whether the maximum of each attribution lies on the object, or close to it.

    In the published protocol `object_masks` is the union of all instances of one class
    in the image: for VOC their boxes (`boxes_to_masks`), for COCO their segments, crowd
    regions included. The attribution is brought to the size of the original image
    first, so that ``tolerance`` counts pixels of that image. VOC's pairs of image and
    class whose boxes are all marked difficult are left out by the caller.

    Rules:
        - Channels are summed; pass one channel for another reduction.
        - Of several maxima the first in row-major order counts, as with argmax.
          Attributions that are flat at their top, binary masks for example, go through
          `masks_to_saliency` first.
        - A map that points nowhere is a miss: all its values are equal, or one is NaN.
          Hence the undefined examples are the same for every method.
        - An empty ground truth makes an example undefined: NaN.

    Args:
        attributions: Attributions of N examples; a tuple of them for an input of
            several tensors, where the maximum over all of them counts.
        object_masks: Ground truth, bool, True on the object; a tuple if
            ``attributions`` is one. It may lie on another device.
        tolerance: Pixels of the attribution. An object pixel counts if it is closer to
            the maximum than this (strictly, Euclidean). 0: the maximum itself must lie
            on the object. 15 is the protocol's (Zhang et al.; TorchRay's default).

    Returns:
        1.0 for a hit, 0.0 for a miss, NaN where undefined; float32, on the device of
        ``attributions``.

    Raises:
        TypeError: If ``attributions`` are not floating point, ``object_masks`` not bool
            or ``tolerance`` is not a number.
        ValueError: If the shapes do not agree or ``tolerance`` is negative or infinite.

    Shape:
        attributions (N, C, *S) with 1, 2 or 3 spatial sizes, object_masks (N, *S) or
        (N, 1, *S) -> (N,).

    Example:
        >>> import torch
        >>> attributions = torch.zeros(2, 3, 40, 60)
        >>> attributions[:, :, 10, 50] = 1.0
        >>> object_masks = torch.zeros(2, 40, 60, dtype=torch.bool)
        >>> object_masks[0, 24, 50] = True  # 14 pixels below the maximum
        >>> pointing_game(attributions, object_masks)
        tensor([1., nan])
        >>> pointing_game(attributions, object_masks, tolerance=14)
        tensor([0., nan])

    References:
        Zhang et al., Top-down neural attention by excitation backprop, ECCV 2016.
    """
    tolerance = check_non_negative("tolerance", tolerance)
    maps = attribution_maps(attributions)
    objects = object_maps(object_masks, maps, isinstance(attributions, tuple))
    # For whole numbers d: d < t^2 is d < ceil(t^2), and d = 0 always passes. No input
    # is wider than the bound.
    reach = max(1, math.ceil(min(tolerance, 1e9) ** 2))
    near = torch.stack(
        [_near_maximum(m, o, reach) for m, o in zip(maps, objects, strict=True)]
    )
    highest = torch.stack([m.flatten(1).amax(dim=1) for m in maps])
    lowest = torch.stack([m.flatten(1).amin(dim=1) for m in maps]).amin(dim=0)
    first = highest.argmax(dim=0, keepdim=True)  # the tensor with the maximum
    points = lowest < highest.amax(dim=0)  # false for a NaN as well
    hits = (near.gather(0, first)[0] & points).float()
    exists = torch.stack([o.flatten(1).any(dim=1) for o in objects]).any(dim=0)
    return hits.where(exists, torch.nan)


def _near_maximum(maps: Tensor, objects: Tensor, reach: int) -> Tensor:
    """Whether a squared distance from the first maximum to the object is < reach."""
    size = maps.shape[1:]
    maxima = torch.unravel_index(maps.flatten(1).argmax(dim=1), size)
    distances = torch.zeros((), dtype=torch.long, device=maps.device)
    for axis, (length, maximum) in enumerate(zip(size, maxima, strict=True)):
        offsets = torch.arange(length, device=maps.device) - maximum[:, None]
        along = [1] * len(size)
        along[axis] = length
        distances = distances + offsets.square().reshape(-1, *along)
    return (objects & (distances < reach)).flatten(1).any(dim=1)
