"""Images and their result -> what growing masks keep of each (Fig. 5)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from captum_extremal.curve import Curve
from captum_extremal.results.extremal import ExtremalResult
from captum_extremal.visualization._drawing import (
    CELL,
    FRAME,
    INK,
    PRESERVED,
    captions_for,
    check_batch,
    draw_box,
    draw_grid,
    draw_outline,
    keep,
    wrap_caption,
)
from captum_extremal.visualization._of_result import check_count, masks_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ACROSS = 10  # areas in a row, at most
_POINTS = 72  # in an inch
_SATURATION = 1.25  # of the bars of Fig. 5, as a fraction of the input's score
_BAR = 0.12  # inches, the height of a bar, and half of that above it
_BARS = "bar: score of what is kept, line: the input's"


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

    More than 10 areas, as of a ranking, are broken into several rows of equal length,
    with the area below each picture.

    Args:
        images: For display, (N, C, H, W) in [0, 1], grey or RGB.
        result: The result for these images.
        captions: One for each image, below it.
        title: Written above everything.

    Returns:
        The figure: the images, then a column for each area, in growing order; where
        there are several rows the image stands in each.

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
    check_batch("images", images)
    check_count(result, images)
    captions = captions_for("captions", captions, len(images))
    rows, labels, lines = [], [], []
    pieces = _pieces(len(result.areas))
    for index, image in enumerate(images):
        masks = masks_of(image, result, index)
        image = image.detach().float().cpu()
        curve = result.curve(index)
        texts = _fractions(curve)
        if len(pieces) > 1:
            pairs = zip(curve.sizes, texts, strict=True)
            texts = [f"area {_percent(size)}\n{text}" for size, text in pairs]
        for piece in pieces:
            rows.append([image, *(keep(image, masks[place]) for place in piece)])
            caption = "" if piece.start else wrap_caption(captions[index])
            labels.append([caption, *(texts[place] for place in piece)])
            lines.append((curve, masks, piece))
    names = ["input", *map(_percent, curve.sizes)]
    if len(pieces) > 1:
        names = ["input", *[""] * len(pieces[0])]
    bars = any(curve.input_score > 0 for curve, _, _ in lines)
    note, room = (_BARS, 2 * _BAR) if bars else ("", 0.0)
    figure = draw_grid(rows, labels, names, title, note=note, room=room)
    for line, (curve, masks, piece) in enumerate(lines):
        whole, *others = figure.axes[line * len(names) :][: len(piece) + 1]
        whole.xaxis.labelpad += _POINTS * room
        for place, axes in zip(piece, others, strict=True):
            axes.xaxis.labelpad += _POINTS * room
            draw_outline(axes, masks[place])
            _draw_bar(axes, curve, place)
            if place == curve.a_star:
                draw_box(axes)
    return figure


def _pieces(number: int) -> list[range]:
    """The places of each row: as few rows as there can be, of one length."""
    length = math.ceil(number / math.ceil(number / _ACROSS))
    starts = range(0, number, length)
    return [range(start, min(start + length, number)) for start in starts]


def _percent(area: float) -> str:
    return f"{100 * area:.3g} %"


def _fractions(curve: Curve) -> list[str]:
    """The scores in percent of the input's, or themselves where that is not above 0."""
    whole = curve.input_score
    texts = [
        f"{100 * score / whole:.0f} %" if whole > 0 else f"score {score:.2f}"
        for score in curve.scores
    ]
    if curve.a_star is not None:
        texts[curve.a_star] = f"a*: {texts[curve.a_star]}"
    return texts


def _draw_bar(axes: Axes, curve: Curve, place: int) -> None:
    """Below a picture, between it and its caption."""
    if curve.input_score <= 0:
        return
    height, width = axes.images[0].get_size()
    share = _BAR / (CELL * height / max(height, width))  # of the picture's height
    bar = axes.inset_axes((0, -1.75 * share, 1, share))
    bar.barh(0, curve.scores[place] / curve.input_score, height=1, color=PRESERVED)
    bar.axvline(1, color=INK, linewidth=1.6)
    bar.set(xlim=(0, _SATURATION), ylim=(-0.5, 0.5), xticks=[], yticks=[])
    for spine in bar.spines.values():
        spine.set(color=FRAME, linewidth=0.8)
