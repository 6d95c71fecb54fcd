"""Tensors -> images for display: de-normalised, behind a mask, under a saliency map.

The public door to these functions is `captum_extremal.visualization`.

Convention:
    Images are (C, H, W) with 1 or 3 channels and values in [0, 1], a mask is (1, H, W):
    1 = kept, 0 = fully perturbed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from captum_extremal._base.checks import check_shape

# Of signed maps: colours that stay distinct with a colour vision deficiency.
POSITIVE, NEGATIVE = "#C1272D", "#0072B2"  # red, blue
_MOST_OPAQUE = 0.75  # of a saliency map over its image
_PALE = 0.75  # of white, mixed into the image below a signed map
ROUNDING = 1e-3  # by which a picture may leave [0, 1]
_FLOAT32 = 1e30  # beyond it, float32 comes to its limits


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


def check_range(name: str, images: Tensor) -> None:
    """Refuse what is not ready for display.

    Args:
        name: The name of the argument, for the error.
        images: Of any shape.

    Raises:
        TypeError: If the values are integers, such as bytes.
        ValueError: If a value lies outside [0, 1] by more than rounding, or is NaN.

    Example:
        >>> check_range("image", torch.tensor([-1.0, 2.0]))
        Traceback (most recent call last):
        ...
        ValueError: image must lie in [0, 1] (see denormalize), got -1..2
    """
    if not images.is_floating_point():
        raise TypeError(
            f"{name} must be floating point in [0, 1], got {images.dtype} (divide "
            "bytes by 255)"
        )
    if images.numel() == 0:
        return
    low, high = (float(value) for value in images.detach().aminmax())
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):
        raise ValueError(
            f"{name} must lie in [0, 1] (see denormalize), got {low:.3g}..{high:.3g}"
        )


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

    image, saliency = _checked(image, saliency)
    share = _of_largest(saliency.clamp(min=0))
    colours = colormaps["inferno"](share[0].numpy())[..., :3]
    warm = torch.from_numpy(colours).float().movedim(-1, 0)
    opacity = _MOST_OPAQUE * share
    return ((1 - opacity) * image + opacity * warm).clamp(0, 1)


def overlay_signed(image: Tensor, saliency: Tensor) -> Tensor:
    """Lay a signed map over a pale grey image: red above 0, blue below.

    Args:
        image: (C, H, W) in [0, 1], grey or RGB.
        saliency: (1, H, W), finite; it counts relative to its largest absolute value:
            the larger, the less transparent.

    Returns:
        An RGB picture in [0, 1]; the pale image where the map is 0.

    Raises:
        ValueError: If the shapes do not agree, or the saliency is not finite.

    Shape:
        (3, H, W).

    Example:
        >>> import torch
        >>> image, saliency = torch.zeros(1, 1, 3), torch.tensor([[[-1.0, 0.0, 1.0]]])
        >>> red, green, blue = overlay_signed(image, saliency)[:, 0]
        >>> red > blue, red == blue
        (tensor([False, False,  True]), tensor([False,  True, False]))
    """
    from matplotlib.colors import to_rgb

    image, saliency = _checked(image, saliency)
    share = _of_largest(saliency)
    red, blue = (
        torch.tensor(to_rgb(colour)).view(3, 1, 1) for colour in (POSITIVE, NEGATIVE)
    )
    pale = _PALE + (1 - _PALE) * image.mean(dim=0, keepdim=True)
    opacity = share.abs()
    colour = torch.where(share > 0, red, blue)
    return ((1 - opacity) * pale + opacity * colour).clamp(0, 1)


def _checked(image: Tensor, saliency: Tensor) -> tuple[Tensor, Tensor]:
    """Both on the CPU, once they fit each other."""
    check_shape("image", image, "1|3 H W", filled=True)
    check_shape("saliency", saliency, "1 *S", S=image.shape[1:])
    if not saliency.isfinite().all():
        raise ValueError(
            "saliency must be finite, got NaN or infinity (no area sufficed?)"
        )
    return image.detach().float().cpu(), saliency.detach().cpu()


def _of_largest(values: Tensor) -> Tensor:
    """Divided by the largest absolute value, in float32; zeros stay zeros."""
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    largest = wide.abs().amax()
    return (wide / largest.where(largest > 0, 1.0)).float()


# --- attributions of any method ---


def check_attributions(
    argument: str, attributions: Mapping[str, Tensor], num_images: int
) -> None:
    """Refuse what is no dict of (N, C, h, w) by name.

    Args:
        argument: The name of the argument, for the error.
        attributions: What was given.
        num_images: N.

    Raises:
        ValueError: If a shape does not fit.
        TypeError: If it is no dict, or of no tensors.

    Example:
        >>> check_attributions("others", {"ig": torch.zeros(2, 3, 8, 8)}, 1)
        Traceback (most recent call last):
        ...
        ValueError: others['ig'] must be of shape (1, C, H, W), got (2, 3, 8, 8)
    """
    if not isinstance(attributions, Mapping):
        raise TypeError(
            f"{argument} must be a dict of attributions by name, got "
            f"{type(attributions).__name__}"
        )
    for name, maps in attributions.items():
        check_shape(f"{argument}[{name!r}]", maps, "N C H W", N=num_images)


def map_of(name: str, attribution: Tensor, size: Sequence[int]) -> Tensor:
    """One attribution as one map: summed over its channels, enlarged bilinearly.

    Args:
        name: For the error.
        attribution: (C, h, w).
        size: H and W of the image.

    Returns:
        (1, H, W) on the CPU, float32.

    Raises:
        ValueError: If it is not finite.

    Example:
        >>> map_of("ig", torch.ones(3, 1, 1), (1, 2))
        tensor([[[3., 3.]]])
    """
    values = attribution.detach().cpu().double()
    if not values.isfinite().all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    if float(values.abs().amax()) > torch.finfo(values.dtype).max / len(values):
        values = values / (2 * len(values))  # else the sum would not be finite
    total = values.sum(dim=0, keepdim=True)
    largest = float(total.abs().amax())
    if largest > _FLOAT32 or 0 < largest < 1 / _FLOAT32:
        total = total / largest  # its size does not matter, but float32 has limits
    total = total.float()
    if list(total.shape[1:]) != list(size):
        total = F.interpolate(total[None], list(size), mode="bilinear")[0]
    return total


def without_outliers(values: Tensor, percent: float = 2.0) -> Tensor:
    """Cut what lies above 98 % of the absolute sum, as Captum's pictures do.

    Args:
        values: A map of any shape.
        percent: How much of the sum may be cut, in [0, 100): Captum's ``outlier_perc``.

    Returns:
        The values, between plus and minus the smallest of their absolute values below
        which (itself included) lie 98 % of the absolute sum.

    Example:
        >>> without_outliers(torch.tensor([5.0, -4.0, 1.0]), percent=50)
        tensor([ 4., -4.,  1.])
    """
    ordered = values.abs().flatten().sort().values
    wide = ordered.cpu().double()
    total = (wide / wide[-1].where(wide[-1] > 0, 1.0)).cumsum(dim=0)  # is finite
    place = int((total < (1 - percent / 100) * total[-1]).sum())
    limit = float(ordered[min(place, len(ordered) - 1)])
    return values.clamp(-limit, limit)
