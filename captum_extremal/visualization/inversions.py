"""Feature inversions -> tables of pictures (Fig. 9 and 10)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from captum_extremal._base.checks import check_shape
from captum_extremal.visualization._drawing import captions_for, check_batch, draw_grid
from captum_extremal.visualization.overlays import overlay_saliency

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_comparison(
    images: Tensor,
    saliency: Tensor,
    original: Tensor,
    masked: Tensor,
    *,
    captions: Sequence[str] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw what a mask over channels keeps of some images (Fig. 9), one image a row.

    Args:
        images: For display, (N, C, H, W) in [0, 1], grey or RGB.
        saliency: Of the masked channels (eq. 11), (N, 1, H, W).
        original: Inversions of the activations, (N, C, H, W) in [0, 1].
        masked: Inversions of the masked activations, (N, C, H, W) in [0, 1].
        captions: One for each image, below its saliency.
        title: Written above everything.

    Returns:
        The figure: the overlaid image, the inversion, the inversion of what is kept.

    Raises:
        ValueError: If the shapes or the number of captions do not agree, or the
            saliency is not finite.

    Example:
        >>> import torch
        >>> images = torch.rand(2, 3, 8, 8)
        >>> figure = plot_comparison(images, images[:, :1], images, images)
        >>> [axes.get_title() for axes in figure.axes[:3]]
        ['channel saliency', 'inversion', 'inversion, masked']
    """
    check_batch("images", images)
    for name, others in (("original", original), ("masked", masked)):
        check_shape(name, others, "*S", ", as images are", S=images.shape)
    size = images.shape[2:]
    check_shape("saliency", saliency, "N 1 *S", N=len(images), S=size)
    captions = captions_for("captions", captions, len(images))
    rows = [
        [overlay_saliency(image, heat), whole, kept]
        for image, heat, whole, kept in zip(
            images, saliency, original, masked, strict=True
        )
    ]
    labels = [[caption, "", ""] for caption in captions]
    names = ["channel saliency", "inversion", "inversion, masked"]
    return draw_grid(rows, labels, names, title)


def plot_class_channels(
    inversions: Tensor,
    examples: Sequence[Tensor],
    *,
    captions: Sequence[str] | None = None,
    example_captions: Sequence[Sequence[str]] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw channels and the images that excite them (Fig. 10), one channel a row.

    Args:
        inversions: One image for each channel, (N, C, H, W) in [0, 1].
        examples: For each channel its images, (M, C, H', W') in [0, 1]; M may
            differ, and is 1 or more.
        captions: One for each channel, below its inversion.
        example_captions: For each channel one for each of its images.
        title: Written above everything.

    Returns:
        The figure; the first column holds the inversions.

    Raises:
        ValueError: If the shapes or the numbers of captions do not agree.

    Example:
        >>> import torch
        >>> images = torch.rand(2, 3, 8, 8)
        >>> figure = plot_class_channels(images[:1], [images])
        >>> [axes.get_title() for axes in figure.axes]
        ['inversion', 'example 1', 'example 2']
    """
    check_batch("inversions", inversions)
    if len(examples) != len(inversions):
        raise ValueError(
            f"examples must be given for each of {len(inversions)} channels, got "
            f"{len(examples)}"
        )
    for images in examples:
        check_batch("examples", images)
    if example_captions is None:
        example_captions = [[""] * len(images) for images in examples]
    below = [
        [caption, *captions_for("example_captions", texts, len(images))]
        for caption, texts, images in zip(
            captions_for("captions", captions, len(inversions)),
            _per_channel(example_captions, len(inversions)),
            examples,
            strict=True,
        )
    ]
    rows = [
        [inversion, *images]
        for inversion, images in zip(inversions, examples, strict=True)
    ]
    most = max(map(len, examples))
    names = ["inversion", *(f"example {number + 1}" for number in range(most))]
    return draw_grid(rows, below, names, title)


def _per_channel(texts: Sequence[Sequence[str]], count: int) -> Sequence[Sequence[str]]:
    if len(texts) != count:
        raise ValueError(
            f"example_captions must be given for each of {count} channels, got "
            f"{len(texts)}"
        )
    return texts
