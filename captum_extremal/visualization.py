"""An image and its masks, of pixels or of channels -> a matplotlib figure.

`plot_result` draws one image of an `ExtremalResult` as the paper's Figures 1 and 3:
what each mask keeps, the masks themselves, and the scores of the kept and of the
remaining part over the area. `plot_channels` draws one of a `ChannelResult` as Figure
8: where the kept channels see something, and the scores over their number.
`plot_methods` sets maps of several methods side by side, as Figure 2, and
`plot_area_growth` shows what masks of growing area keep of several images, as Figure 5.
`plot_comparison` draws the columns of Figure 9, `plot_class_channels` channels and what
excites them, as Figure 10. No window is opened and pyplot is not touched: a `Figure`
comes back, to be saved or shown by the caller.

Convention:
    Images are (C, H, W) with 1 or 3 channels and values in [0, 1], a mask is (1, H, W):
    1 = kept, 0 = fully perturbed. The outline of a mask is its level 0.5.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from captum_extremal._pictures import (
    NEGATIVE,
    POSITIVE,
    check_attributions,
    check_range,
    map_of,
    without_outliers,
)
from captum_extremal._pictures import denormalize as denormalize
from captum_extremal._pictures import overlay_mask as overlay_mask
from captum_extremal._pictures import overlay_saliency as overlay_saliency
from captum_extremal._pictures import overlay_signed as overlay_signed
from captum_extremal.channel_result import ChannelResult
from captum_extremal.result import ExtremalResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours that stay distinct with a colour vision deficiency (Okabe and Ito); lines also
# differ in their dashes and markers.
PRESERVED = NEGATIVE  # blue
DELETED = "#E69F00"  # orange
UNTOUCHED = "#009E73"  # green
PERTURBED = POSITIVE  # red
_DELETED_TEXT = "#9A6500"  # the orange is too pale for letters on white
_UNTOUCHED_TEXT = "#00795A"
_INK = "#222222"
_FRAME = "#8A8A8A"
_GRID = "#E6E6E6"
_BADGE = {"boxstyle": "round,pad=0.3", "facecolor": _UNTOUCHED_TEXT, "linewidth": 0}

_CELL = 2.1  # inches, the longer side of a picture
_CURVE = 4.4  # inches, the width of the curve
_SMALL, _MEDIUM, _LARGE = 9.5, 11.0, 14.0  # font sizes in points
_POINTS = 72  # in an inch
_CHANNELS = 4  # single ones, at most
_GHOST = 0.25  # brightness of what a mask leaves out
_SATURATION = 1.25  # of the bars of Fig. 5, as a fraction of the input's score
_WRAP = 24  # letters of a caption that fit below a picture
_NARROWEST = 1.4  # inches of a column, for its name
_TITLE_LETTERS = 8  # of a title that fit in an inch
_BAR = 0.12  # inches, the height of a bar, and half of that above it
_SIGNS = "red: above 0, blue: below 0"
_BARS = "bar: score of what is kept, line: the input's"


def plot_result(
    image: Tensor,
    result: ExtremalResult,
    index: int = 0,
    *,
    title: str | None = None,
) -> Figure:
    """Draw the masks of one image, what they keep, and their scores over the area.

    The first row shows the input and what each mask keeps, with the mask's outline at
    0.5 and the rest of the image as a dark ghost; the second row the mean of the masks
    (the attribution) and the masks. Beside them stand the scores over the area. The
    smallest sufficient area a* (eq. 3), if there is one, is boxed.

    Args:
        image: The image for display, (C, H, W) in [0, 1], grey or RGB.
        result: A result for images of that size.
        index: Which of the result's images this is.
        title: Written above everything.

    Returns:
        The figure; ``figure.savefig(path)`` writes it.

    Raises:
        ValueError: If the image is not (1 or 3, H, W), the masks are not of its size,
            or ``index`` is out of range.
        TypeError: If the result holds a tuple of masks.

    Example:
        >>> import torch
        >>> from captum_extremal.result import ExtremalResult
        >>> result = ExtremalResult(
        ...     masks=torch.rand(1, 2, 1, 8, 8),
        ...     areas=(0.25, 0.5),
        ...     scores=torch.tensor([[1.0, 3.0]]),
        ...     complement_scores=torch.tensor([[2.0, 0.0]]),
        ...     input_score=torch.tensor([2.5]),
        ...     perturbed_score=torch.tensor([0.0]),
        ... )
        >>> figure = plot_result(torch.rand(3, 8, 8), result, title="noise")
        >>> [axes.get_title() for axes in figure.axes[:3]]
        ['input', '25 %', 'a* = 50 %']
    """
    masks = _masks_of(image, result, index)
    curve = _Curve.of(result, index)
    image = image.detach().float().cpu()
    figure = _new_figure(image, len(masks), title)
    widths = [figure.get_figwidth() - _CURVE, _CURVE]
    parts = figure.subfigures(1, 2, squeeze=False, width_ratios=widths)
    pictures, beside = parts[0]
    _draw_pictures(pictures.subplots(2, len(masks) + 1), image, masks, curve)
    _draw_curve(beside.subplots(), curve)
    return figure


def plot_channels(
    image: Tensor,
    result: ChannelResult,
    index: int = 0,
    *,
    title: str | None = None,
) -> Figure:
    """Draw the channels that one image needs: saliency, channels, score by number.

    The first row shows the input, the saliency map of the smallest sufficient set of
    channels (eq. 11; of the largest set where none suffices) on the image, and below
    that the activation of the channels that most areas keep, at most four. Activations
    below 0 are drawn as 0. Where the layer has no two spatial dimensions, only the
    input is shown. Beside them stand the scores over the number of channels, with a*
    (eq. 10).

    Args:
        image: The image for display, (C, H, W) in [0, 1], grey or RGB.
        result: A result for a layer with one tensor.
        index: Which of the result's images this is.
        title: Written above everything.

    Returns:
        The figure; ``figure.savefig(path)`` writes it.

    Raises:
        ValueError: If the image is not (1 or 3, H, W), or ``index`` is out of range.
        TypeError: If the result holds a tuple of masks.

    Example:
        >>> import torch
        >>> result = ChannelResult(
        ...     masks=torch.tensor([[[0.0, 1.0, 0.0], [1.0, 1.0, 0.0]]]),
        ...     areas=(1, 2),
        ...     scores=torch.tensor([[1.0, 3.0]]),
        ...     complement_scores=torch.tensor([[2.0, 0.0]]),
        ...     input_score=torch.tensor([2.5]),
        ...     perturbed_score=torch.tensor([0.0]),
        ...     activations=torch.rand(1, 3, 4, 4),
        ... )
        >>> figure = plot_channels(torch.rand(3, 8, 8), result, title="noise")
        >>> [axes.get_title() for axes in figure.axes[:4]]
        ['input', 'channel 1', 'a* = 2 channels', 'channel 0']
    """
    _check_picture(image, len(result.input_score), index)
    if not isinstance(result.masks, Tensor) or not isinstance(
        result.activations, Tensor
    ):
        raise TypeError(
            "result must hold one tensor of masks, got a tuple; draw one of them with "
            "dataclasses.replace"
        )
    maps = _channel_maps(result, index)
    image = image.detach().float().cpu()
    columns = max(1, math.ceil(len(maps) / 2))
    figure = _new_figure(image, columns - 1, title)
    widths = [figure.get_figwidth() - _CURVE, _CURVE]
    pictures, beside = figure.subfigures(1, 2, squeeze=False, width_ratios=widths)[0]
    axes = pictures.subplots(2, columns, squeeze=False).T.flatten()
    for axis, (name, values) in zip(axes, maps, strict=False):
        _show_map(axis, image, name, values)
    for axis in axes[len(maps) :]:
        axis.set_axis_off()
    _draw_curve(beside.subplots(), _Curve.of_channels(result, index))
    return figure


def _channel_maps(result: ChannelResult, index: int) -> list[tuple[str, Tensor | None]]:
    """What is drawn on the image: the input, the saliency map and single channels."""
    assert isinstance(result.masks, Tensor)
    assert isinstance(result.activations, Tensor)
    maps: list[tuple[str, Tensor | None]] = [("input", None)]
    activation = result.activations[index].detach().float().cpu()
    activation = activation.movedim(result.channel_dim - 1, 0)
    if activation.dim() != 3:
        return maps
    masks = result.masks[index].detach().float().cpu()
    a_star = float(result.smallest_sufficient_count()[index])
    name = f"a* = {a_star:.0f} channels"
    chosen = None
    if math.isnan(a_star):
        place = max(range(len(result.counts)), key=result.counts.__getitem__)
        chosen = result.masks[:, place]
        name = f"{result.counts[place]} channels"
    maps.append((name, result.saliency(chosen)[index].detach().float().cpu()))
    kept_by = masks.mean(dim=0)
    for channel in kept_by.argsort(descending=True, stable=True)[:_CHANNELS].tolist():
        if kept_by[channel] > 0:
            maps.append((f"channel {channel}", activation[channel]))
    return maps


def _show_map(axes: Axes, image: Tensor, name: str, values: Tensor | None) -> None:
    """The image, and on it a map of any size in colours."""
    grey = image if values is None else image.mean(dim=0, keepdim=True)
    _show(axes, grey, "", _INK)
    axes.set_title(name, fontsize=_MEDIUM, color=_INK)
    if values is None:
        return
    size = tuple(image.shape[1:])
    wide = F.interpolate(values[None, None].clamp_min(0), size, mode="bilinear")[0, 0]
    axes.imshow(wide.numpy(), cmap="viridis", alpha=0.65, vmin=0)


@dataclass(frozen=True)
class _Curve:
    """The scores of one image in order of growing area."""

    sizes: list[float]  # the areas in percent, or numbers of channels
    scores: list[float]
    complement_scores: list[float]
    input_score: float
    perturbed_score: float
    smallest_sufficient: int | None  # its place among the areas
    label: str
    unit: str

    @classmethod
    def of(cls, result: ExtremalResult, index: int) -> _Curve:
        percent = [100 * area for area in result.areas]
        a_star = 100 * float(result.smallest_sufficient_area()[index])
        label = "area of the mask (% of the image)"
        return cls._of(result, index, percent, a_star, label, " %")

    @classmethod
    def of_channels(cls, result: ChannelResult, index: int) -> _Curve:
        a_star = float(result.smallest_sufficient_count()[index])
        return cls._of(result, index, result.counts, a_star, "number of channels", "")

    @classmethod
    def _of(
        cls,
        result: ExtremalResult | ChannelResult,
        index: int,
        sizes: Sequence[float],
        a_star: float,
        label: str,
        unit: str,
    ) -> _Curve:
        order = sorted(range(len(sizes)), key=sizes.__getitem__)
        ordered = [sizes[place] for place in order]
        return cls(
            ordered,
            result.scores[index, order].tolist(),
            result.complement_scores[index, order].tolist(),
            float(result.input_score[index]),
            float(result.perturbed_score[index]),
            # a* is one of the areas, rounded to the precision of the scores.
            None if math.isnan(a_star) else _nearest(ordered, a_star),
            label,
            unit,
        )


def _order(result: ExtremalResult) -> list[int]:
    return sorted(range(len(result.areas)), key=result.areas.__getitem__)


def _nearest(values: Sequence[float], value: float) -> int:
    return min(range(len(values)), key=lambda place: abs(values[place] - value))


def _masks_of(image: Tensor, result: ExtremalResult, index: int) -> Tensor:
    """The masks of one image in order of growing area, (A, 1, H, W); all checks."""
    if isinstance(result.masks, tuple):
        raise TypeError(
            "result must hold one tensor of masks, got a tuple; draw one of them with "
            "dataclasses.replace(result, masks=result.masks[0])"
        )
    _check_picture(image, len(result.masks), index)
    masks = result.masks[index].detach().float().cpu()[_order(result)]
    if masks.shape[1:] != (1, *image.shape[1:]):
        raise ValueError(
            f"image must have the size of the masks, {tuple(masks.shape[2:])}, got "
            f"{tuple(image.shape[1:])}"
        )
    return masks


def _check_picture(image: Tensor, num_images: int, index: int) -> None:
    if image.dim() != 3 or image.shape[0] not in (1, 3):
        raise ValueError(
            f"image must have shape (1 or 3, H, W), got {tuple(image.shape)}"
        )
    check_range("image", image)
    if not 0 <= index < num_images:
        raise ValueError(f"index must lie in 0..{num_images - 1}, got {index}")


def _new_figure(image: Tensor, num_areas: int, title: str | None) -> Figure:
    """An empty figure with room for the pictures, their captions and the curve."""
    from matplotlib.figure import Figure

    height, width = image.shape[1:]
    scale = _CELL / max(height, width)
    across = (max(width * scale, _NARROWEST) + 0.15) * (num_areas + 1) + _CURVE
    title = _title_lines(title, across)
    down = max(2 * (height * scale + 0.45), 3.4) + 0.3 * _lines([title])
    figure = Figure(figsize=(across, down + (0.15 if title else 0.0)), dpi=110)
    figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06)
    _write_title(figure, title)
    return figure


def _title_lines(title: str | None, inches: float) -> str:
    """A title in as many lines as it takes in this width; empty for none."""
    return "\n".join(textwrap.wrap(title or "", max(8, int(inches * _TITLE_LETTERS))))


def _write_title(figure: Figure, title: str) -> None:
    if title:
        figure.suptitle(
            title, fontsize=_LARGE, color=_INK, fontweight="bold", parse_math=False
        )


def _draw_pictures(axes: Any, image: Tensor, masks: Tensor, curve: _Curve) -> None:  # noqa: ANN401
    """Two rows: the input and what is kept; the mean of the masks and the masks."""
    _show(axes[0, 0], image, f"score {curve.input_score:.2f}", _UNTOUCHED_TEXT)
    axes[0, 0].set_title("input", fontsize=_MEDIUM, color=_INK)
    _show(axes[1, 0], masks.mean(dim=0), "mean of the masks", _INK)
    for place, mask in enumerate(masks):
        kept, alone = axes[:, place + 1]
        _show(kept, _kept(image, mask), f"alone {curve.scores[place]:.2f}", PRESERVED)
        _outline(kept, mask)
        _show(
            alone, mask, f"removed {curve.complement_scores[place]:.2f}", _DELETED_TEXT
        )
        name = f"{curve.sizes[place]:.3g}{curve.unit}"
        kept.set_title(name, fontsize=_MEDIUM, color=_INK)
        if place == curve.smallest_sufficient:
            kept.title.set(text=f"a* = {name}", color="white", weight="bold")
            kept.title.set_bbox(_BADGE)
            _box(kept)
            _box(alone)


def _show(axes: Axes, image: Tensor, caption: str, color: str) -> None:
    """A grey or RGB picture in a thin frame, with a line of text below."""
    pixels = image.clamp(0, 1).movedim(0, -1).squeeze(-1).numpy()
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel(caption, fontsize=_SMALL, color=color)
    for spine in axes.spines.values():
        spine.set(color=_FRAME, linewidth=0.8)


def _outline(axes: Axes, mask: Tensor) -> None:
    drawable = min(mask.shape[-2:]) > 1 and mask.amin() < 0.5 <= mask.amax()
    if drawable:  # else there is no line, only a warning
        axes.contour(mask[0].numpy(), levels=[0.5], colors="white", linewidths=1.2)


def _box(axes: Axes) -> None:
    for spine in axes.spines.values():
        spine.set(color=UNTOUCHED, linewidth=3.5)


def _draw_curve(axes: Axes, curve: _Curve) -> None:
    """The paper's Fig. 3, right: scores over the area, with two lines of reference."""
    for scores, style, color, label in (
        (curve.scores, "o-", PRESERVED, "kept part alone"),
        (curve.complement_scores, "s-", DELETED, "kept part removed"),
    ):
        axes.plot(curve.sizes, scores, style, color=color, label=label, lw=2.2, ms=7)
    axes.axhline(curve.input_score, color=UNTOUCHED, ls="--", lw=1.8, label="input")
    axes.axhline(
        curve.perturbed_score, color=PERTURBED, ls=":", lw=2.2, label="fully perturbed"
    )
    if curve.smallest_sufficient is not None:
        _mark_a_star(axes, curve.sizes[curve.smallest_sufficient], curve.unit)
    axes.set_xlim(0, 1.06 * curve.sizes[-1])
    axes.set_xlabel(curve.label, fontsize=_MEDIUM, color=_INK)
    axes.set_ylabel("score of the target", fontsize=_MEDIUM, color=_INK)
    _style(axes)


def _mark_a_star(axes: Axes, size: float, unit: str) -> None:
    axes.axvline(size, color=UNTOUCHED, linewidth=1.2, zorder=0.5)
    axes.annotate(
        f"a* = {size:.3g}{unit}",
        xy=(size, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 5),
        textcoords="offset points",
        horizontalalignment="center",
        fontsize=_SMALL,
        color="white",
        fontweight="bold",
        bbox=_BADGE,
    )


def _style(axes: Axes) -> None:
    """Quiet axes, and the legend below them, where no data can be."""
    axes.tick_params(labelsize=_SMALL, color=_FRAME, labelcolor=_INK)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_FRAME)
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.17),
        ncols=2,
        frameon=False,
        fontsize=_SMALL,
        labelcolor=_INK,
    )


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
    _check_batch("images", images)
    check_attributions("attributions", attributions, len(images))
    if not 0 <= outlier_perc < 100:
        raise ValueError(f"outlier_perc must lie in [0, 100), got {outlier_perc}")
    kept = _mask_columns({} if masks is None else masks, images)
    if not kept and not attributions:
        raise ValueError("attributions must hold at least one method, got none")
    captions = _captions("captions", captions, len(images))
    drawn, signed = _map_columns(attributions, images, outlier_perc)
    columns = [images, *(column.kept_of(images) for column in kept), *drawn]
    rows = list(zip(*columns, strict=True))
    labels = [[_wrapped(text), *[""] * (len(columns) - 1)] for text in captions]
    names = ["input", *(column.name for column in kept), *attributions]
    names = [_wrapped(name) for name in names]
    figure = _draw_grid(rows, labels, names, title, note=_SIGNS if signed else "")
    for line in range(len(images)):
        for place, column in enumerate(kept, start=1):
            axes = figure.axes[line * len(columns) + place]
            _outline(axes, column.masks[line])
            _write_inside(axes, column.badges[line])
    return figure


@dataclass(frozen=True)
class _MaskColumn:
    """One mask for each of N images."""

    name: str
    masks: Tensor  # (N, 1, H, W)
    badges: list[str]

    def kept_of(self, images: Tensor) -> list[Tensor]:
        return [
            _kept(image.detach().float().cpu(), mask)
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
        if given.shape != (len(images), 1, *images.shape[2:]):
            raise ValueError(
                f"masks[{name!r}] must have shape "
                f"{(len(images), 1, *images.shape[2:])}, got {tuple(given.shape)}"
            )
        check_range(f"masks[{name!r}]", given)
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
    _check_count(result, images)
    chosen, stars = [], []
    for index, image in enumerate(images):
        place = _Curve.of(result, index).smallest_sufficient
        chosen.append(_masks_of(image, result, index)[-1 if place is None else place])
        stars.append("" if place is None else "a* = ")
    return torch.stack(chosen), stars


def _check_count(result: ExtremalResult, images: Tensor) -> None:
    if len(images) != len(result.input_score):
        raise ValueError(
            f"images must be those of the result, {len(result.input_score)}, got "
            f"{len(images)}"
        )


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


def _wrapped(caption: str) -> str:
    return "\n".join(textwrap.wrap(caption, _WRAP))


def _write_inside(axes: Axes, text: str) -> None:
    """In the upper left corner, as the boxes of the paper's figures."""
    axes.text(
        0.04,
        0.96,
        text,
        transform=axes.transAxes,
        verticalalignment="top",
        fontsize=_SMALL,
        color="white",
        fontweight="bold",
        bbox=_BADGE,
    )


def plot_area_growth(
    images: Tensor,
    result: ExtremalResult,
    *,
    captions: Sequence[str] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw what masks of growing area keep of several images (Fig. 5), one a row.

    Below each picture a bar shows the score of what is kept as a fraction of the
    input's score Phi_0 = Phi(x), which a line marks; the bar ends at 125 %, the number
    beside it does not. The picture of the smallest sufficient area a* is framed. Where
    Phi_0 is not above 0 there are no fractions: the score itself stands below.

    Args:
        images: For display, (N, C, H, W) in [0, 1], grey or RGB.
        result: The result for these images.
        captions: One for each image, below it.
        title: Written above everything.

    Returns:
        The figure: the images, then a column for each area, in growing order.

    Raises:
        ValueError: If the images do not fit the result, or the number of captions does
            not fit the images.
        TypeError: If the result holds a tuple of masks.

    Example:
        >>> import torch
        >>> result = ExtremalResult(
        ...     masks=torch.rand(1, 2, 1, 8, 8),
        ...     areas=(0.25, 0.5),
        ...     scores=torch.tensor([[1.0, 3.0]]),
        ...     complement_scores=torch.tensor([[2.0, 0.0]]),
        ...     input_score=torch.tensor([2.5]),
        ...     perturbed_score=torch.tensor([0.0]),
        ... )
        >>> figure = plot_area_growth(torch.rand(1, 3, 8, 8), result)
        >>> [(axes.get_title(), axes.get_xlabel()) for axes in figure.axes]
        [('input', ''), ('25 %', '40 %'), ('50 %', 'a*: 120 %')]
    """
    _check_batch("images", images)
    _check_count(result, images)
    captions = _captions("captions", captions, len(images))
    rows, labels, curves = [], [], []
    for index, image in enumerate(images):
        masks = _masks_of(image, result, index)
        image = image.detach().float().cpu()
        curve = _Curve.of(result, index)
        rows.append([image, *(_kept(image, mask) for mask in masks)])
        labels.append([_wrapped(captions[index]), *_fractions(curve)])
        curves.append((curve, masks))
    names = ["input", *(f"{size:.3g} %" for size in curves[0][0].sizes)]
    bars = any(curve.input_score > 0 for curve, _ in curves)
    note, room = (_BARS, 2 * _BAR) if bars else ("", 0.0)
    figure = _draw_grid(rows, labels, names, title, note=note, room=room)
    for line, (curve, masks) in enumerate(curves):
        whole, *others = figure.axes[line * len(names) :][: len(names)]
        whole.xaxis.labelpad += _POINTS * room
        for place, axes in enumerate(others):
            axes.xaxis.labelpad += _POINTS * room
            _outline(axes, masks[place])
            _draw_bar(axes, curve, place)
            if place == curve.smallest_sufficient:
                _box(axes)
    return figure


def _fractions(curve: _Curve) -> list[str]:
    """The scores in percent of the input's, or themselves where that is not above 0."""
    whole = curve.input_score
    texts = [
        f"{100 * score / whole:.0f} %" if whole > 0 else f"score {score:.2f}"
        for score in curve.scores
    ]
    if curve.smallest_sufficient is not None:
        texts[curve.smallest_sufficient] = f"a*: {texts[curve.smallest_sufficient]}"
    return texts


def _draw_bar(axes: Axes, curve: _Curve, place: int) -> None:
    """Below a picture, between it and its caption."""
    if curve.input_score <= 0:
        return
    height, width = axes.images[0].get_size()
    share = _BAR / (_CELL * height / max(height, width))  # of the picture's height
    bar = axes.inset_axes((0, -1.75 * share, 1, share))
    bar.barh(0, curve.scores[place] / curve.input_score, height=1, color=PRESERVED)
    bar.axvline(1, color=_INK, linewidth=1.6)
    bar.set(xlim=(0, _SATURATION), ylim=(-0.5, 0.5), xticks=[], yticks=[])
    for spine in bar.spines.values():
        spine.set(color=_FRAME, linewidth=0.8)


def _kept(image: Tensor, mask: Tensor) -> Tensor:
    """What a mask keeps, the rest as a dark ghost."""
    return overlay_mask(image, mask, _GHOST * image.mean(dim=0, keepdim=True))


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
    _check_batch("images", images)
    for name, others in (("original", original), ("masked", masked)):
        if others.shape != images.shape:
            raise ValueError(
                f"{name} must have the shape of images, {tuple(images.shape)}, got "
                f"{tuple(others.shape)}"
            )
    if saliency.shape != (len(images), 1, *images.shape[2:]):
        raise ValueError(
            f"saliency must have shape {(len(images), 1, *images.shape[2:])}, got "
            f"{tuple(saliency.shape)}"
        )
    captions = _captions("captions", captions, len(images))
    rows = [
        [overlay_saliency(image, heat), whole, kept]
        for image, heat, whole, kept in zip(
            images, saliency, original, masked, strict=True
        )
    ]
    labels = [[caption, "", ""] for caption in captions]
    names = ["channel saliency", "inversion", "inversion, masked"]
    return _draw_grid(rows, labels, names, title)


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
    _check_batch("inversions", inversions)
    if len(examples) != len(inversions):
        raise ValueError(
            f"examples must be given for each of {len(inversions)} channels, got "
            f"{len(examples)}"
        )
    for images in examples:
        _check_batch("examples", images)
    if example_captions is None:
        example_captions = [[""] * len(images) for images in examples]
    below = [
        [caption, *_captions("example_captions", texts, len(images))]
        for caption, texts, images in zip(
            _captions("captions", captions, len(inversions)),
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
    return _draw_grid(rows, below, names, title)


def _per_channel(texts: Sequence[Sequence[str]], count: int) -> Sequence[Sequence[str]]:
    if len(texts) != count:
        raise ValueError(
            f"example_captions must be given for each of {count} channels, got "
            f"{len(texts)}"
        )
    return texts


def _captions(name: str, texts: Sequence[str] | None, count: int) -> Sequence[str]:
    texts = [""] * count if texts is None else texts
    if len(texts) != count:
        raise ValueError(
            f"{name} must be one for each of {count} images, got {len(texts)}"
        )
    return texts


def _check_batch(name: str, images: Tensor) -> None:
    if images.dim() != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise ValueError(
            f"{name} must have shape (N, 1 or 3, H, W), none of them 0, got "
            f"{tuple(images.shape)}"
        )
    check_range(name, images)


def _draw_grid(
    rows: Sequence[Sequence[Tensor]],
    labels: Sequence[Sequence[str]],
    names: Sequence[str],
    title: str | None,
    *,
    note: str = "",
    room: float = 0.0,
) -> Figure:
    """Pictures in rows, a text below each, names above the first row, a note last.

    Between a picture and its text there is ``room`` in inches.
    """
    from matplotlib.figure import Figure

    height, width = rows[0][0].shape[1:]
    scale = _CELL / max(height, width)
    across = (max(width * scale, _NARROWEST) + 0.12) * len(names)
    title = _title_lines(title, across)
    down = (
        sum(height * scale + room + 0.1 + 0.18 * _lines(texts) for texts in labels)
        + (0.3 + 0.3 * _lines([title]) if title else 0.15)
        + (0.25 if note else 0.0)
        + 0.2 * _lines(names)
    )
    figure = Figure(figsize=(across, down), dpi=110)
    figure.set_layout_engine("constrained", w_pad=0.03, h_pad=0.03)
    _write_title(figure, title)
    if note:
        figure.supxlabel(note, fontsize=_SMALL, color=_INK)
    grid = figure.subplots(len(rows), len(names), squeeze=False)
    for line, (pictures, texts) in enumerate(zip(rows, labels, strict=True)):
        for column, axes in enumerate(grid[line]):
            if column >= len(pictures):
                axes.set_axis_off()
                continue
            picture = pictures[column].detach().float().cpu()
            _show(axes, picture, texts[column], _INK)
            axes.xaxis.label.set_parse_math(False)
            if all(column >= len(above) for above in rows[:line]):
                axes.set_title(names[column], fontsize=_MEDIUM, color=_INK)
                axes.title.set_parse_math(False)
    return figure


def _lines(texts: Sequence[str]) -> int:
    """Of the tallest of some captions; none where all are empty."""
    return max(len(text.splitlines()) for text in texts)
