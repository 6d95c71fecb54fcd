"""Pictures, texts and titles -> the parts that the figures share.

No window is opened and pyplot is not touched.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from captum_extremal._base.checks import check_shape
from captum_extremal.visualization.overlays import (
    NEGATIVE,
    POSITIVE,
    check_range,
    overlay_mask,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours that stay distinct with a colour vision deficiency (Okabe and Ito); lines also
# differ in their dashes and markers.
PRESERVED = NEGATIVE  # blue
DELETED = "#E69F00"  # orange
UNTOUCHED = "#009E73"  # green
PERTURBED = POSITIVE  # red
UNTOUCHED_TEXT = "#00795A"
INK = "#222222"
FRAME = "#8A8A8A"
BADGE = {"boxstyle": "round,pad=0.3", "facecolor": UNTOUCHED_TEXT, "linewidth": 0}
CELL = 2.1  # inches, the longer side of a picture
SMALL, MEDIUM, _LARGE = 9.5, 11.0, 14.0  # font sizes in points
_GHOST = 0.25  # brightness of what a mask leaves out
_WRAP = 24  # letters of a caption that fit below a picture
NARROWEST = 1.4  # inches of a column, for its name
_TITLE_LETTERS = 8  # of a title that fit in an inch


def title_lines(title: str | None, inches: float) -> str:
    """A title in as many lines as it takes in this width; empty for none."""
    return "\n".join(textwrap.wrap(title or "", max(8, int(inches * _TITLE_LETTERS))))


def write_title(figure: Figure, title: str) -> None:
    if title:
        figure.suptitle(
            title, fontsize=_LARGE, color=INK, fontweight="bold", parse_math=False
        )


def draw_picture(axes: Axes, image: Tensor, caption: str, color: str) -> None:
    """A grey or RGB picture in a thin frame, with a line of text below."""
    pixels = image.clamp(0, 1).movedim(0, -1).squeeze(-1).numpy()
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel(caption, fontsize=SMALL, color=color)
    for spine in axes.spines.values():
        spine.set(color=FRAME, linewidth=0.8)


def draw_outline(axes: Axes, mask: Tensor) -> None:
    drawable = min(mask.shape[-2:]) > 1 and mask.amin() < 0.5 <= mask.amax()
    if drawable:  # else there is no line, only a warning
        axes.contour(mask[0].numpy(), levels=[0.5], colors="white", linewidths=1.2)


def draw_box(axes: Axes) -> None:
    for spine in axes.spines.values():
        spine.set(color=UNTOUCHED, linewidth=3.5)


def wrap_caption(caption: str) -> str:
    return "\n".join(textwrap.wrap(caption, _WRAP))


def write_inside(axes: Axes, text: str) -> None:
    """In the upper left corner, as the boxes of the paper's figures."""
    axes.text(
        0.04,
        0.96,
        text,
        transform=axes.transAxes,
        verticalalignment="top",
        fontsize=SMALL,
        color="white",
        fontweight="bold",
        bbox=BADGE,
    )


def keep(image: Tensor, mask: Tensor) -> Tensor:
    """What a mask keeps, the rest as a dark ghost."""
    return overlay_mask(image, mask, _GHOST * image.mean(dim=0, keepdim=True))


def captions_for(name: str, texts: Sequence[str] | None, count: int) -> Sequence[str]:
    texts = [""] * count if texts is None else texts
    if len(texts) != count:
        raise ValueError(
            f"{name} must be one for each of {count} images, got {len(texts)}"
        )
    return texts


def check_batch(name: str, images: Tensor) -> None:
    check_shape(name, images, "N 1|3 H W", filled=True)
    check_range(name, images)


def draw_grid(
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
    scale = CELL / max(height, width)
    across = (max(width * scale, NARROWEST) + 0.12) * len(names)
    title = title_lines(title, across)
    down = (
        sum(height * scale + room + 0.1 + 0.18 * count_lines(texts) for texts in labels)
        + (0.3 + 0.3 * count_lines([title]) if title else 0.15)
        + (0.25 if note else 0.0)
        + 0.2 * count_lines(names)
    )
    figure = Figure(figsize=(across, down), dpi=110)
    figure.set_layout_engine("constrained", w_pad=0.03, h_pad=0.03)
    write_title(figure, title)
    if note:
        figure.supxlabel(note, fontsize=SMALL, color=INK)
    grid = figure.subplots(len(rows), len(names), squeeze=False)
    for line, (pictures, texts) in enumerate(zip(rows, labels, strict=True)):
        for column, axes in enumerate(grid[line]):
            if column >= len(pictures):
                axes.set_axis_off()
                continue
            picture = pictures[column].detach().float().cpu()
            draw_picture(axes, picture, texts[column], INK)
            axes.xaxis.label.set_parse_math(False)
            if all(column >= len(above) for above in rows[:line]):
                axes.set_title(names[column], fontsize=MEDIUM, color=INK)
                axes.title.set_parse_math(False)
    return figure


def count_lines(texts: Sequence[str]) -> int:
    """Of the tallest of some captions; none where all are empty."""
    return max(len(text.splitlines()) for text in texts)
