"""Images and maps of several methods -> a table of pictures (Fig. 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from captum_extremal._base.checks import check_shape
from captum_extremal.results.extremal import ExtremalResult
from captum_extremal.visualization._drawing import (
    captions_for,
    check_batch,
    draw_grid,
    draw_outline,
    keep,
    wrap_caption,
    write_inside,
)
from captum_extremal.visualization._of_result import check_count, masks_of
from captum_extremal.visualization.overlays import (
    check_attributions,
    check_range,
    map_of,
    overlay_saliency,
    overlay_signed,
    without_outliers,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SIGNS = "red: above 0, blue: below 0"


def plot_methods(
    images: Tensor,
    attributions: Mapping[str, Tensor],
    *,
    masks: Mapping[str, Tensor | ExtremalResult] | None = None,
    captions: Sequence[str] | None = None,
    title: str | None = None,
    outlier_perc: float = 2.0,
) -> Figure:
    """Draw maps of several methods side by side (Fig. 2), one image a row.

    An attribution is summed over its channels, enlarged to the image if it is smaller,
    and cut where it exceeds 98 % of its absolute sum; then it counts relative to its
    largest absolute value, image by image. All this is what
    ``captum.attr.visualization`` does. A method without a value below 0 is drawn over
    the image in warm colours, the stronger, the less transparent. Any other is signed:
    red above 0 and blue below, over the image in pale grey.

    Args:
        images: For display, (N, C, H, W) in [0, 1], grey or RGB.
        attributions: Name -> (N, C', h, w) as Captum returns them, a column each.
        masks: Name -> what is drawn as a mask, in columns before the attributions: the
            part that it keeps with its outline at 0.5, the rest as a dark ghost, its
            area (the share of pixels at >= 0.5) in a box. Either masks (N, 1, H, W) in
            [0, 1] or a result for the images, of which the masks of the smallest
            sufficient area a* are taken, the largest ones where none suffices.
        captions: One for each image, below it.
        title: Written above everything.
        outlier_perc: How much of the absolute sum of an attribution is cut, in percent
            in [0, 100). 2 is Captum's default.

    Returns:
        The figure: the images, the masks, the attributions.

    Raises:
        ValueError: If the shapes or the number of captions do not agree, an attribution
            is not finite, ``outlier_perc`` is out of range, or there is nothing to
            draw.
        TypeError: If ``attributions`` or ``masks`` is no dict, or a result holds a
            tuple of masks.

    Example:
        >>> import torch
        >>> images, mask = torch.rand(2, 3, 8, 8), torch.zeros(2, 1, 8, 8)
        >>> mask[:, :, :4] = 1
        >>> maps = {"ig": torch.randn(2, 3, 8, 8), "grad-cam": torch.rand(2, 1, 2, 2)}
        >>> figure = plot_methods(images, maps, masks={"half": mask})
        >>> [axes.get_title() for axes in figure.axes[:4]]
        ['input', 'half', 'ig', 'grad-cam']
    """
    check_batch("images", images)
    check_attributions("attributions", attributions, len(images))
    if not 0 <= outlier_perc < 100:
        raise ValueError(f"outlier_perc must lie in [0, 100), got {outlier_perc}")
    kept = _mask_columns({} if masks is None else masks, images)
    if not kept and not attributions:
        raise ValueError("attributions must hold at least one method, got none")
    captions = captions_for("captions", captions, len(images))
    drawn, signed = _map_columns(attributions, images, outlier_perc)
    columns = [images, *(column.kept_of(images) for column in kept), *drawn]
    rows = list(zip(*columns, strict=True))
    labels = [[wrap_caption(text), *[""] * (len(columns) - 1)] for text in captions]
    names = ["input", *(column.name for column in kept), *attributions]
    names = [wrap_caption(name) for name in names]
    figure = draw_grid(rows, labels, names, title, note=_SIGNS if signed else "")
    for line in range(len(images)):
        for place, column in enumerate(kept, start=1):
            axes = figure.axes[line * len(columns) + place]
            draw_outline(axes, column.masks[line])
            write_inside(axes, column.badges[line])
    return figure


@dataclass(frozen=True)
class _MaskColumn:
    """One mask for each of N images."""

    name: str
    masks: Tensor  # (N, 1, H, W)
    badges: list[str]

    def kept_of(self, images: Tensor) -> list[Tensor]:
        return [
            keep(image.detach().float().cpu(), mask)
            for image, mask in zip(images, self.masks, strict=True)
        ]


def _mask_columns(
    masks: Mapping[str, Tensor | ExtremalResult], images: Tensor
) -> list[_MaskColumn]:
    if not isinstance(masks, Mapping):
        raise TypeError(
            f"masks must be a dict of masks by name, got {type(masks).__name__}"
        )
    columns = []
    for name, given in masks.items():
        stars = [""] * len(images)
        if isinstance(given, ExtremalResult):
            given, stars = _sufficient_masks(given, images)
        called = f"masks[{name!r}]"
        check_shape(called, given, "N 1 *S", N=len(images), S=images.shape[2:])
        check_range(called, given)
        chosen = given.detach().float().cpu()
        areas = (chosen >= 0.5).float().mean(dim=(1, 2, 3)).tolist()
        badges = [
            f"{star}{100 * area:.3g} %" for star, area in zip(stars, areas, strict=True)
        ]
        columns.append(_MaskColumn(name, chosen, badges))
    return columns


def _sufficient_masks(
    result: ExtremalResult, images: Tensor
) -> tuple[Tensor, list[str]]:
    """The masks of area a*, the largest where none suffices; and which are a*."""
    check_count(result, images)
    chosen, stars = [], []
    for index, image in enumerate(images):
        place = result.curve(index).a_star
        chosen.append(masks_of(image, result, index)[-1 if place is None else place])
        stars.append("" if place is None else "a* = ")
    return torch.stack(chosen), stars


def _map_columns(
    attributions: Mapping[str, Tensor], images: Tensor, outlier_perc: float
) -> tuple[list[list[Tensor]], bool]:
    """For each method its maps on the images; and whether one of them is signed."""
    columns, any_signed = [], False
    for name, attribution in attributions.items():
        maps = [
            without_outliers(
                map_of(f"attributions[{name!r}]", one, images.shape[2:]), outlier_perc
            )
            for one in attribution
        ]
        signed = any(bool((one < 0).any()) for one in maps)
        any_signed |= signed
        overlay = overlay_signed if signed else overlay_saliency
        columns.append([overlay(*pair) for pair in zip(images, maps, strict=True)])
    return columns, any_signed
