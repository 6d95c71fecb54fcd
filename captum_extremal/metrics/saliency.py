r"""Masks of several areas (N, A, 1, *S) -> a saliency map with one maximum (Sec. 4.2).

.. math:: S = g_\sigma * \sum_a m_a, \qquad \sigma = 0.09 \min_i S_i

Masks are flat where they are 1; the sum over areas ranks the pixels, the blur decides
among those that every mask keeps. Outside the input there is no mask: zeros.

The map is made to point. Its highest pixels of an area are not the mask of that area,
and the network sees far less in them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from captum_extremal._base.checks import check_floating, check_non_negative, check_shape
from captum_extremal.metrics._maps import within_range
from captum_extremal.perturbations.blur import gaussian_blur


def masks_to_saliency(
    masks: Tensor | tuple[Tensor, ...], smooth: float = 0.09
) -> Tensor | tuple[Tensor, ...]:
    """Sum the masks over the areas and blur the sum: the paper's pointing game.

    Args:
        masks: The ``masks`` of an `ExtremalResult`, 1 = kept; a tuple of them is
            treated tensor by tensor. Sec. 4.2 uses the areas 0.025, 0.05, 0.1 and 0.2
            for VOC, 0.018, 0.025, 0.05 and 0.1 for COCO.
        smooth: Standard deviation of the Gaussian as a fraction of the shortest side;
            0.09 in Sec. 4.2, 0 for none. Outside the input the masks count as 0, so
            that a point at the border needs more around it than one in the middle. A
            sum that is the same everywhere stays so: it has no maximum. One that is
            nearly the same everywhere has it in the middle.

    Returns:
        Saliency in [0, A] of the dtype and device of ``masks``, a tuple if they are
        one. Where values far above 1 sum up to more than the dtype holds, the map of
        that example is divided by a power of two.

    Raises:
        TypeError: If ``masks`` are not floating point or ``smooth`` is not a number.
        ValueError: If ``masks`` have another shape or ``smooth`` is negative or not
            finite.

    Shape:
        (N, A, 1, *S) with 1, 2 or 3 spatial sizes -> (N, 1, *S).

    Example:
        >>> import torch
        >>> masks = torch.tensor([[[[0.0, 1.0, 0.0, 0.0]], [[0.0, 1.0, 1.0, 1.0]]]])
        >>> masks_to_saliency(masks, smooth=0.25)
        tensor([[[0.5424, 1.0938, 1.1249, 0.7489]]])
        >>> masks_to_saliency(masks, smooth=0)
        tensor([[[0., 2., 1., 1.]]])
    """
    smooth = check_non_negative("smooth", smooth)
    if not isinstance(masks, tuple):
        return _saliency(_checked(masks), smooth)
    if not masks:
        raise ValueError("masks must hold at least one tensor, got an empty tuple")
    return tuple([_saliency(mask, smooth) for mask in [_checked(m) for m in masks]])


def _checked(masks: Tensor) -> Tensor:
    check_floating("masks", masks)
    check_shape("masks", masks, "N A 1 *S")
    return masks


def _saliency(masks: Tensor, smooth: float) -> Tensor:
    count, size = masks.shape[1], masks.shape[3:]
    (masks,) = within_range([masks], count)
    wide = masks.to(torch.promote_types(masks.dtype, torch.float32))
    # A Fourier transform along long axes sums over them.
    (wide,) = within_range([wide], count * max(size) ** 3)
    total = wide.sum(dim=1)
    sigma = smooth * min(size)
    blurred = gaussian_blur(total, sigma, border="fade")
    axes = tuple(range(1, total.dim()))
    lowest, highest = total.amin(axes, keepdim=True), total.amax(axes, keepdim=True)
    # Round-off must not leave the range of what was averaged.
    blurred = blurred.clamp(torch.zeros_like(highest), highest)
    return torch.where(lowest == highest, total, blurred).to(masks.dtype)
