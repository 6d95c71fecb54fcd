r"""Attributions and object masks -> the share of the positive part on the object.

.. math:: E = \frac{\sum_{u \in O} \max(A(u), 0)}{\sum_u \max(A(u), 0)},
          \qquad A(u) = \sum_c A_c(u)
"""

from __future__ import annotations

import torch
from torch import Tensor

from captum_extremal.metrics._maps import attribution_maps, near_one, object_maps


def energy_pointing_game(
    attributions: Tensor | tuple[Tensor, ...],
    object_masks: Tensor | tuple[Tensor, ...],
) -> Tensor:
    """How much of the positive attribution lies on the object, 0 to 1.

    Unlike `pointing_game` it looks at the whole map and needs no tolerance, so it suits
    images with several objects. A map that is equal everywhere scores the object's
    share of the image, hence compare within one data set.

    Args:
        attributions: Attributions of N examples; a tuple of them for an input of
            several tensors, whose energies add up. Channels are summed, then negative
            values count as 0.
        object_masks: Ground truth, bool, True on the object; a tuple if
            ``attributions`` is one. It may lie on another device.

    Returns:
        Shares in [0, 1], float32 or float64 as the attributions are, on their device.
        NaN where undefined: no object, nothing positive, or a NaN or infinity in the
        map.

    Raises:
        TypeError: If ``attributions`` are not floating point or ``object_masks`` not
            bool.
        ValueError: If the shapes do not agree.

    Shape:
        attributions (N, C, *S) with 1, 2 or 3 spatial sizes, object_masks (N, *S) or
        (N, 1, *S) -> (N,).

    Example:
        >>> import torch
        >>> attributions = torch.tensor([[[3.0, 1.0, -9.0]], [[-1.0, 0.0, 0.0]]])
        >>> object_masks = torch.tensor([[True, False, True], [True, True, True]])
        >>> energy_pointing_game(attributions, object_masks)
        tensor([0.7500,    nan])

    References:
        Wang et al., Score-CAM: score-weighted visual explanations for convolutional
        neural networks, CVPR workshops 2020.
    """
    maps = attribution_maps(attributions)
    objects = object_maps(object_masks, maps, isinstance(attributions, tuple))
    inside = torch.zeros((), device=maps[0].device)
    everywhere = torch.zeros((), device=maps[0].device)
    exists = torch.zeros((), dtype=torch.bool, device=maps[0].device)
    finite = torch.stack([m.flatten(1).isfinite().all(dim=1) for m in maps]).all(dim=0)
    positives = near_one([signed.clamp(min=0) for signed in maps])
    for positive, on_object in zip(positives, objects, strict=True):
        inside = inside + positive.where(on_object, 0).flatten(1).sum(dim=1)
        everywhere = everywhere + positive.flatten(1).sum(dim=1)
        exists = exists | on_object.flatten(1).any(dim=1)
    share = inside / everywhere  # 0 / 0 is NaN
    return share.where(exists & finite, torch.nan)
