r"""A spectrum -> an image whose statistics are a photograph's (Olah et al. 2017).

Gradient ascent on pixels finds noise that excites a network. An image is therefore
written as

.. math:: I = \operatorname{sigmoid}\Big(4\, R \, \mathcal{F}^{-1}
          \big[c(u) / \max(|u|, u_0)^{\delta}\big]\Big), \qquad R R^\top = \Sigma,

with a spectrum c of which all frequencies u weigh the same, whatever their share of a
photograph (1/f scaling), and colours along the axes in which those of photographs are
uncorrelated (:math:`\Sigma`, the covariance of ImageNet's colours). With coefficients
of variance 1 the colours have the covariance of ImageNet, to first order: the slope of
the sigmoid at 0 is 1/4. The image is then seen moved, scaled and turned by chance
(transformation robustness), so that only what survives it is found.

References:
    Olah, Mordvintsev, Schubert: Feature Visualization. Distill, 2017.
    The covariance of ImageNet's colours: Lucid (Apache-2.0), ``optvis/param/color.py``,
    which publishes a square root of it to two digits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from captum_extremal._base.checks import check_count, check_non_negative

# Of the colours (R, G, B) in [0, 1] of ImageNet's pixels.
COLOUR_COVARIANCE = (
    (0.0761, 0.0692, 0.0627),
    (0.0692, 0.0754, 0.0714),
    (0.0627, 0.0714, 0.0819),
)
_SLOPE = 4.0  # undoes the slope of the sigmoid at 0


@dataclass(frozen=True)
class ImagePrior:
    """What an image that is made by optimisation must be like.

    Args:
        decay: Exponent of the spectrum's fall with the frequency. 1 is that of
            photographs; 0 gives all frequencies the same weight, as pixels do.
        decorrelate: Whether colours are optimised along the uncorrelated axes of
            ImageNet's colours. Of no effect on images that are not RGB.
        jitter: The image is moved by up to so many pixels along each axis.
        scale: Its size changes by a factor in ``[1 - scale, 1 + scale]``; below 1.
        rotate: It is turned by up to so many degrees either way.
        total_variation: Weight of `total_variation` in what is minimised, besides the
            negative score of an image. Its unit is that of the score: for a channel
            that of the layer, for an activation 1.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If a number is negative or infinite, or ``scale`` is not below 1.

    Example:
        >>> ImagePrior(total_variation=0.5).decay
        1.0
    """

    decay: float = 1.0
    decorrelate: bool = True
    jitter: float = 8.0
    scale: float = 0.1
    rotate: float = 10.0
    total_variation: float = 0.0

    def __post_init__(self) -> None:
        for name in ("decay", "jitter", "scale", "rotate", "total_variation"):
            check_non_negative(name, getattr(self, name))
        if not isinstance(self.decorrelate, bool):
            raise TypeError(f"decorrelate must be a bool, got {self.decorrelate!r}")
        if self.scale >= 1:
            raise ValueError(f"scale must be below 1, got {self.scale}")


def spectrum_scale(size: tuple[int, int], decay: float = 1.0) -> Tensor:
    """How much each coefficient of a spectrum counts.

    Args:
        size: Height and width of the image in pixels.
        decay: Exponent of the fall with the frequency, 0 for none.

    Returns:
        ``1 / max(frequency, 1 / longer side) ** decay``, scaled so that coefficients
        whose real and imaginary parts have variance 1 give pixels of variance 1; (H,
        W // 2 + 1), float32, on the CPU.

    Example:
        >>> spectrum_scale((1, 8))[0, 1:4] * 4 / spectrum_scale((1, 8))[0, 1]
        tensor([4.0000, 2.0000, 1.3333])
    """
    height, width = size
    rows = torch.fft.fftfreq(height, dtype=torch.float64)[:, None]
    columns = torch.fft.rfftfreq(width, dtype=torch.float64)
    lowest = torch.tensor(1 / max(size), dtype=torch.float64)
    scale = torch.hypot(rows, columns).maximum(lowest) ** -decay
    # The columns without a mirror image among the negative frequencies: there the
    # inverse transform keeps the symmetric half of what it is given.
    alone = torch.zeros(width // 2 + 1, dtype=torch.float64)
    alone[0] = 1
    alone[-1] = max(float(alone[-1]), width % 2 == 0)
    variance = (scale**2 * (4 - 2 * alone)).sum() / (height * width)
    return (scale * (1 + (math.sqrt(2) - 1) * alone) / variance.sqrt()).float()


def colour_root(num_channels: int, decorrelate: bool = True) -> Tensor:
    """Uncorrelated colours -> colours: a matrix R with R Rᵀ the covariance.

    Args:
        num_channels: Colours of the image.
        decorrelate: Whether the columns are the principal axes of ImageNet's colours
            (black to white first). If not, or if there are not 3 colours, each is
            independent of the others, with their mean variance.

    Returns:
        (num_channels, num_channels), float32, on the CPU.

    Example:
        >>> root = colour_root(3)
        >>> (root @ root.T)[0]
        tensor([0.0761, 0.0692, 0.0627])
    """
    covariance = torch.tensor(COLOUR_COVARIANCE, dtype=torch.float64)
    if not decorrelate or num_channels != 3:
        variance = covariance.diagonal().mean()
        return torch.eye(num_channels, dtype=torch.float32) * variance.sqrt().float()
    values, axes = torch.linalg.eigh(covariance)
    axes = axes * axes.sum(dim=0).sign()  # the sign of an axis is left to the library
    root: Tensor = (axes * values.sqrt()).flip(1).float()
    return root


def spectrum_to_image(
    spectrum: Tensor, size: tuple[int, int], scale: Tensor, root: Tensor
) -> Tensor:
    """The image of a spectrum.

    Args:
        spectrum: Real and imaginary parts, (N, C, H, W // 2 + 1, 2).
        size: Height and width of the image in pixels.
        scale: Of the coefficients, as `spectrum_scale` gives it.
        root: Of the colours, as `colour_root` gives it, (C, C).

    Returns:
        Images in (0, 1), (N, C, H, W).

    Example:
        >>> spectrum = torch.zeros(1, 3, 4, 3, 2)
        >>> image = spectrum_to_image(
        ...     spectrum, (4, 4), spectrum_scale((4, 4)), colour_root(3)
        ... )
        >>> image.shape, float(image.mean())
        (torch.Size([1, 3, 4, 4]), 0.5)
    """
    pixels = torch.fft.irfft2(
        torch.view_as_complex(spectrum) * scale, s=size, norm="ortho"
    )
    return torch.sigmoid(_SLOPE * torch.einsum("dc,nchw->ndhw", root, pixels))


def random_views(
    count: int, size: tuple[int, int], prior: ImagePrior, generator: torch.Generator
) -> Tensor:
    """Moves, changes of size and turns by chance, for `view`.

    Args:
        count: How many.
        size: Height and width of the images in pixels.
        prior: How far they may go.
        generator: Where chance comes from, on the CPU.

    Returns:
        Affine maps from the view to the image, in the coordinates of
        `torch.nn.functional.affine_grid`, (count, 2, 3).

    Example:
        >>> still = ImagePrior(jitter=0, scale=0, rotate=0)
        >>> random_views(1, (4, 4), still, torch.Generator()).abs()
        tensor([[[1., 0., 0.],
                 [0., 1., 0.]]])
    """
    check_count("count", count)
    height, width = size
    chance = 2 * torch.rand(count, 4, generator=generator, dtype=torch.float32) - 1
    angle = chance[:, 0] * math.radians(prior.rotate)
    zoom = 1 + chance[:, 1] * prior.scale
    cosine, sine = angle.cos() / zoom, angle.sin() / zoom
    along = chance[:, 2:] * prior.jitter * 2 / torch.tensor([width, height])
    # Coordinates run from -1 to 1 along both axes, whatever the sides.
    rows = [
        torch.stack([cosine, -sine * height / width, along[:, 0]], dim=1),
        torch.stack([sine * width / height, cosine, along[:, 1]], dim=1),
    ]
    return torch.stack(rows, dim=1)


def view(images: Tensor, affine: Tensor) -> Tensor:
    """All images under one affine map; beyond the border they are mirrored.

    Args:
        images: (N, C, H, W).
        affine: From the view to the image, (2, 3), as `random_views` gives it.

    Returns:
        Images of the same size, bilinearly interpolated.

    Shape:
        Like ``images``.

    Example:
        >>> mirror = torch.tensor([[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        >>> view(torch.tensor([[[[1.0, 2.0, 3.0]]]]), mirror)
        tensor([[[[3., 2., 1.]]]])
    """
    grid = F.affine_grid(affine[None], [1, *images.shape[1:]], align_corners=False)
    return F.grid_sample(
        images,
        grid.expand(len(images), -1, -1, -1),
        padding_mode="reflection",
        align_corners=False,
    )


def total_variation(images: Tensor) -> Tensor:
    """How much neighbouring pixels differ.

    Args:
        images: (N, C, H, W).

    Returns:
        The mean absolute difference of vertical neighbours plus that of horizontal
        ones, (N,); a side of one pixel has no neighbours and adds 0.

    Example:
        >>> total_variation(torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]]))
        tensor([1.])
    """
    total = images.new_zeros(len(images))
    for dim in (2, 3):
        if images.shape[dim] > 1:
            total = total + images.diff(dim=dim).abs().mean(dim=(1, 2, 3))
    return total
