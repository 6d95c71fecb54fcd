"""One image and its result -> its masks beside its scores (Fig. 1, 3 and 8)."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn import functional as F

from captum_extremal.curve import Curve, told_of_overlap
from captum_extremal.results.channels import ChannelResult
from captum_extremal.results.extremal import ExtremalResult
from captum_extremal.visualization._drawing import (
    BADGE,
    CELL,
    DELETED,
    FRAME,
    INK,
    MEDIUM,
    NARROWEST,
    PERTURBED,
    PRESERVED,
    SMALL,
    UNTOUCHED,
    UNTOUCHED_TEXT,
    count_lines,
    draw_box,
    draw_outline,
    draw_picture,
    keep,
    title_lines,
    write_title,
)
from captum_extremal.visualization._of_result import check_picture, masks_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DELETED_TEXT = "#9A6500"  # the orange is too pale for letters on white
_GRID = "#E6E6E6"
_CURVE = 4.4  # inches, the width of the curve
_CHANNELS = 4  # single ones, at most


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
    smallest sufficient area a* (eq. 3), if there is one, is boxed. Of a search that was
    repeated bars show the scores of all runs, and below the masks stands how far those
    of two runs overlap.

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
        >>> from captum_extremal.results.extremal import ExtremalResult
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
    masks = masks_of(image, result, index)
    curve = _in_percent(result.curve(index))
    image = image.detach().float().cpu()
    figure = _new_figure(image, len(masks), title)
    widths = [figure.get_figwidth() - _CURVE, _CURVE]
    parts = figure.subfigures(1, 2, squeeze=False, width_ratios=widths)
    pictures, beside = parts[0]
    _draw_pictures(pictures.subplots(2, len(masks) + 1), image, masks, curve)
    _draw_curve(beside.subplots(), curve, "area of the mask (% of the image)", " %")
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
    check_picture(image, len(result.input_score), index)
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
    _draw_curve(beside.subplots(), result.curve(index), "number of channels", "")
    return figure


def _in_percent(curve: Curve) -> Curve:
    return dataclasses.replace(curve, sizes=[100 * area for area in curve.sizes])


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
    a_star = result.curve(index).smallest_sufficient
    chosen, name = None, f"a* = {a_star} channels"
    if a_star is None:
        most = max(result.counts)
        chosen = result.masks[:, result.counts.index(most)]
        name = f"{most} channels"
    maps.append((name, result.saliency(chosen)[index].detach().float().cpu()))
    kept_by = masks.mean(dim=0)
    for channel in kept_by.argsort(descending=True, stable=True)[:_CHANNELS].tolist():
        if kept_by[channel] > 0:
            maps.append((f"channel {channel}", activation[channel]))
    return maps


def _show_map(axes: Axes, image: Tensor, name: str, values: Tensor | None) -> None:
    """The image, and on it a map of any size in colours."""
    grey = image if values is None else image.mean(dim=0, keepdim=True)
    draw_picture(axes, grey, "", INK)
    axes.set_title(name, fontsize=MEDIUM, color=INK)
    if values is None:
        return
    size = tuple(image.shape[1:])
    wide = F.interpolate(values[None, None].clamp_min(0), size, mode="bilinear")[0, 0]
    axes.imshow(wide.numpy(), cmap="viridis", alpha=0.65, vmin=0)


def _new_figure(image: Tensor, num_areas: int, title: str | None) -> Figure:
    """An empty figure with room for the pictures, their captions and the curve."""
    from matplotlib.figure import Figure

    height, width = image.shape[1:]
    scale = CELL / max(height, width)
    across = (max(width * scale, NARROWEST) + 0.15) * (num_areas + 1) + _CURVE
    title = title_lines(title, across)
    down = max(2 * (height * scale + 0.45), 3.4) + 0.3 * count_lines([title])
    figure = Figure(figsize=(across, down + (0.15 if title else 0.0)), dpi=110)
    figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06)
    write_title(figure, title)
    return figure


def _draw_pictures(axes: Any, image: Tensor, masks: Tensor, curve: Curve) -> None:  # noqa: ANN401
    """Two rows: the input and what is kept; the mean of the masks and the masks."""
    draw_picture(axes[0, 0], image, f"score {curve.input_score:.2f}", UNTOUCHED_TEXT)
    axes[0, 0].set_title("input", fontsize=MEDIUM, color=INK)
    draw_picture(axes[1, 0], masks.mean(dim=0), "mean of the masks", INK)
    for place, mask in enumerate(masks):
        kept, alone = axes[:, place + 1]
        draw_picture(
            kept, keep(image, mask), f"alone {curve.scores[place]:.2f}", PRESERVED
        )
        draw_outline(kept, mask)
        removed = f"removed {curve.complement_scores[place]:.2f}"
        if curve.overlaps:
            removed += f"\n{told_of_overlap(curve, place)}"
        draw_picture(alone, mask, removed, _DELETED_TEXT)
        name = f"{curve.sizes[place]:.3g} %"
        kept.set_title(name, fontsize=MEDIUM, color=INK)
        if place == curve.a_star:
            kept.title.set(text=f"a* = {name}", color="white", weight="bold")
            kept.title.set_bbox(BADGE)
            draw_box(kept)
            draw_box(alone)


def _draw_curve(axes: Axes, curve: Curve, sizes: str, unit: str) -> None:
    """The paper's Fig. 3, right: scores over the area, with two lines of reference."""
    for scores, style, color, label in (
        (curve.scores, "o-", PRESERVED, "kept part alone"),
        (curve.complement_scores, "s-", DELETED, "kept part removed"),
    ):
        axes.plot(curve.sizes, scores, style, color=color, label=label, lw=2.2, ms=7)
    for place, scores in enumerate(curve.runs):
        axes.vlines(
            curve.sizes[place],
            min(scores),
            max(scores),
            color=PRESERVED,
            linewidth=6,
            alpha=0.35,
            label="" if place else f"all {len(scores)} runs",
        )
    axes.axhline(curve.input_score, color=UNTOUCHED, ls="--", lw=1.8, label="input")
    axes.axhline(
        curve.perturbed_score, color=PERTURBED, ls=":", lw=2.2, label="fully perturbed"
    )
    if curve.smallest_sufficient is not None:
        _mark_a_star(axes, curve.smallest_sufficient, unit)
    axes.set_xlim(0, 1.06 * curve.sizes[-1])
    axes.set_xlabel(sizes, fontsize=MEDIUM, color=INK)
    axes.set_ylabel("score of the target", fontsize=MEDIUM, color=INK)
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
        fontsize=SMALL,
        color="white",
        fontweight="bold",
        bbox=BADGE,
    )


def _style(axes: Axes) -> None:
    """Quiet axes, and the legend below them, where no data can be."""
    axes.tick_params(labelsize=SMALL, color=FRAME, labelcolor=INK)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FRAME)
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.17),
        ncols=2,
        frameon=False,
        fontsize=SMALL,
        labelcolor=INK,
    )
