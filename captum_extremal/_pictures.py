"""Tensors -> images for display: de-normalised, behind a mask, under a saliency map.

The public door to these functions is `captum_extremal.visualization`.

Convention:
    Images are (C, H, W) with 1 or 3 channels and values in [0, 1], a mask is (1, H, W):
    1 = kept, 0 = fully perturbed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_MOST_OPAQUE = 0.75  # of a saliency map over its image


def denormalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Undo a normalisation by channel, for display.

    Args:
        images: (..., C, H, W), normalised as ``(image - mean) / std``.
        mean: One value for each channel, or one for all.
        std: One value for each channel, or one for all.

    Returns:
        Images in [0, 1]; what was outside is clipped.

    Shape:
        Like ``images``.

    Example:
        >>> import torch
        >>> denormalize(torch.tensor([[[-1.0, 0.0, 1.0, 9.0]]]), mean=[0.5], std=[0.5])
        tensor([[[0.0000, 0.5000, 1.0000, 1.0000]]])
    """
    shape = (-1, 1, 1)
    return (
        images * images.new_tensor(std).reshape(shape)
        + images.new_tensor(mean).reshape(shape)
    ).clamp(0, 1)


def overlay_mask(
    image: Tensor, mask: Tensor, background: float | Tensor = 0.0
) -> Tensor:
    """Show what a mask keeps: the image inside, a background outside.

    Args:
        image: (C, H, W) in [0, 1].
        mask: (1, H, W) in [0, 1], 1 = kept.
        background: Shown where nothing is kept: a grey level (0 is black, as in the
            paper's Fig. 1) or an image that broadcasts to ``image``.

    Returns:
        ``mask * image + (1 - mask) * background``.

    Shape:
        Like ``image``.

    Example:
        >>> import torch
        >>> image, mask = torch.full((3, 1, 2), 0.8), torch.tensor([[[1.0, 0.0]]])
        >>> overlay_mask(image, mask)[0]
        tensor([[0.8000, 0.0000]])
    """
    return mask * image + (1 - mask) * background


def overlay_saliency(image: Tensor, saliency: Tensor) -> Tensor:
    """Lay a saliency map over an image: the stronger, the warmer and less transparent.

    Args:
        image: (C, H, W) in [0, 1], grey or RGB.
        saliency: (1, H, W), finite; it counts relative to its maximum, and negative
            values as 0.

    Returns:
        An RGB picture in [0, 1]; the image where nothing is positive.

    Raises:
        ValueError: If the shapes do not agree, or the saliency is not finite, as where
            no area sufficed (`ChannelResult.saliency`).

    Shape:
        (3, H, W).

    Example:
        >>> import torch
        >>> image, saliency = torch.zeros(3, 1, 2), torch.tensor([[[-1.0, 2.0]]])
        >>> overlay_saliency(image, saliency).amax(dim=0)
        tensor([[0.0000, 0.7488]])
    """
    from matplotlib import colormaps

    if image.dim() != 3 or image.shape[0] not in (1, 3) or 0 in image.shape:
        raise ValueError(
            "image must have shape (1 or 3, H, W), none of them 0, got "
            f"{tuple(image.shape)}"
        )
    if saliency.shape != (1, *image.shape[1:]):
        raise ValueError(
            f"saliency must have shape {(1, *image.shape[1:])}, got "
            f"{tuple(saliency.shape)}"
        )
    if not saliency.isfinite().all():
        raise ValueError(
            "saliency must be finite, got NaN or infinity (no area sufficed?)"
        )
    image, saliency = image.detach().float().cpu(), saliency.detach().float().cpu()
    share = saliency.clamp(min=0)
    share = share / share.amax().clamp(min=torch.finfo(share.dtype).tiny)
    colours = colormaps["inferno"](share[0].numpy())[..., :3]
    warm = torch.from_numpy(colours).float().movedim(-1, 0)
    opacity = _MOST_OPAQUE * share
    return ((1 - opacity) * image + opacity * warm).clamp(0, 1)
