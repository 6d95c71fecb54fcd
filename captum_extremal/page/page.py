"""The page itself: checks, then the parts from top to bottom, then one file.

Everything that comes from outside (titles, names, settings) is escaped, and the content
security policy lets only this page's own script and style take effect.
"""

from __future__ import annotations

import base64
import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from captum_extremal._base import files
from captum_extremal.curve import Curve, growing
from captum_extremal.page import svg
from captum_extremal.page.embed import SMALL, data_uri, fitted, kept_and_removed
from captum_extremal.page.svg import percent, text_of
from captum_extremal.results.extremal import ExtremalResult
from captum_extremal.visualization.overlays import (
    ROUNDING,
    check_attributions,
    denormalize,
    map_of,
    overlay_saliency,
    overlay_signed,
    without_outliers,
)

_PAPER = (
    "Fong, Patrick and Vedaldi: Understanding Deep Networks via Extremal Perturbations "
    "and Smooth Masks, ICCV 2019 (arXiv 1910.08485)."
)


def to_html(
    result: ExtremalResult,
    path: str | os.PathLike[str] | None = None,
    images: Tensor | None = None,
    *,
    index: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    title: str | None = None,
    label: str | None = None,
    others: Mapping[str, Tensor] | None = None,
) -> str:
    """Show one image of a result as a page that opens in any browser, offline.

    A slider goes through the areas; it shows what the mask keeps and what it removes,
    and moves a cursor along the scores. The smallest sufficient area a* (eq. 3) is
    where it starts. Without ``images`` the masks are shown alone: a result does not
    hold its images. Masks that are no pictures (signals, volumes, a tuple of masks) are
    left out, and the scores remain.

    Args:
        result: The result.
        path: The file to write, such as ``page.html``; an existing one is replaced.
            None to write nothing.
        images: The images of the result, (N, C, H, W) with 1 or 3 channels: values in
            [0, 1], or normalised ones with ``mean`` and ``std``.
        index: Which of the N images is shown.
        mean: What the normalisation took off, for each channel or one for all.
        std: What it divided by.
        title: The heading.
        label: The name of the target, for texts such as "score of tripod".
        others: Attributions of other methods for the same images, by name, (N, C, H, W)
            as Captum returns them; smaller ones, as of Grad-CAM, are enlarged. They are
            summed over their channels; those with values below 0 are drawn in red
            (above) and blue (below) on grey.

    Returns:
        The page. The same arguments give the same page, character by character.

    Raises:
        ValueError: If ``images``, ``index`` or ``others`` do not fit the result, or
            ``mean`` and ``std`` do not fit each other or the channels.
        TypeError: If ``images`` come with a result that holds a tuple of masks, or
            ``others`` is no dict.
        OSError: If the folder of ``path`` does not exist or cannot be written to.

    Example:
        >>> import torch
        >>> from captum_extremal import ExtremalResult
        >>> result = ExtremalResult(
        ...     masks=torch.rand(1, 2, 1, 8, 8),
        ...     areas=(0.25, 0.5),
        ...     scores=torch.tensor([[1.0, 3.0]]),
        ...     complement_scores=torch.tensor([[2.0, 0.0]]),
        ...     input_score=torch.tensor([2.5]),
        ...     perturbed_score=torch.tensor([0.0]),
        ... )
        >>> page = to_html(result, images=torch.rand(1, 3, 8, 8), title="noise & dots")
        >>> "<h1>noise &amp; dots</h1>" in page
        True
    """
    if path is not None:
        files.check_folder(path)
    content = _Content.of(result, images, index, mean, std, title, label, others)
    page = _document(content)
    if path is not None:
        files.write_text(path, page)
    return page


def notebook_html(result: ExtremalResult) -> str | None:
    """The page of a result's first image inside a frame, for a notebook.

    Returns:
        The frame, or None of a result without images, which a notebook then shows as
        text.

    Example:
        >>> import torch
        >>> from captum_extremal import ExtremalResult
        >>> result = ExtremalResult(
        ...     masks=torch.rand(1, 1, 1, 8, 8),
        ...     areas=(0.25,),
        ...     scores=torch.tensor([[1.0]]),
        ...     complement_scores=torch.tensor([[2.0]]),
        ...     input_score=torch.tensor([2.5]),
        ...     perturbed_score=torch.tensor([0.0]),
        ... )
        >>> (notebook_html(result) or "").startswith("<iframe")
        True
    """
    if len(result.input_score) == 0 or not result.areas:
        return None
    page = escape(to_html(result))
    return (
        f'<iframe srcdoc="{page}" sandbox="allow-scripts" width="100%" height="900" '
        'title="Extremal perturbation" style="border: 0"></iframe>'
    )


# --- what is shown ---


@dataclass(frozen=True)
class _Content:
    """One image of a result, checked, on the CPU and in order of growing area."""

    title: str
    label: str
    curve: Curve
    image: Tensor | None  # (1 or 3, H, W) in [0, 1]
    masks: Tensor | None  # (A, 1, H, W); None if they are no pictures
    others: Mapping[str, Tensor]  # (1, H, W)
    settings: Mapping[str, Any]
    notes: Sequence[str]

    @property
    def noun(self) -> str:
        """What the masks are masks of."""
        return "input" if self.masks is None else "picture"

    @classmethod
    def of(
        cls,
        result: ExtremalResult,
        images: Tensor | None,
        index: int,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        title: str | None,
        label: str | None,
        others: Mapping[str, Tensor] | None,
    ) -> _Content:
        num_images = len(result.input_score)
        if not 0 <= index < num_images:
            raise ValueError(f"index must lie in 0..{num_images - 1}, got {index}")
        image = None
        if images is not None:
            image = _image_of(result, images, index, mean, std)
        masks = _masks_of(result, index)
        notes = [] if images is not None else [_WITHOUT_IMAGES]
        if num_images > 1:
            notes.append(f"Image {index} of 0..{num_images - 1} of the result.")
        return cls(
            title=title or "Extremal perturbation",
            label=label or "the target",
            curve=result.curve(index),
            image=None if image is None else fitted(image),
            masks=None if masks is None else torch.stack([fitted(m) for m in masks]),
            others=_others_of(
                {} if others is None else others, num_images, index, image
            ),
            settings=result.settings,
            notes=notes,
        )


_WITHOUT_IMAGES = (
    "A result does not hold its images: result.to_html(path, images) shows them behind "
    "the masks."
)


def _image_of(
    result: ExtremalResult,
    images: Tensor,
    index: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Tensor:
    if not isinstance(result.masks, Tensor):
        raise TypeError(
            "result must hold one tensor of masks, got a tuple; show one of them with "
            "dataclasses.replace(result, masks=result.masks[0])"
        )
    num_images, _, _, *size = result.masks.shape
    if len(size) != 2:
        raise ValueError(
            f"images must be None for masks with {len(size)} spatial sizes, which are "
            "no pictures: the scores are shown alone"
        )
    legal = isinstance(images, Tensor) and images.dim() == 4
    if not legal or (
        len(images) != num_images
        or images.shape[1] not in (1, 3)
        or list(images.shape[2:]) != size
    ):
        sizes = ", ".join(map(str, size))
        got = tuple(images.shape) if isinstance(images, Tensor) else type(images)
        raise ValueError(
            f"images must have shape ({num_images}, 1 or 3, {sizes}), as the masks "
            f"have, got {got}"
        )
    if (mean is None) != (std is None):
        missing = "mean" if mean is None else "std"
        raise ValueError(f"mean and std must be given together, got no {missing}")
    image = images[index].detach().float().cpu()
    if mean is not None and std is not None:
        for name, values in (("mean", mean), ("std", std)):
            if len(values) not in (1, len(image)):
                raise ValueError(
                    f"{name} must hold one value, or one for each of {len(image)} "
                    f"channels, got {len(values)}"
                )
        return denormalize(image, mean, std)
    low, high = image.aminmax()
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):
        raise ValueError(
            "images must lie in [0, 1] unless mean and std are given, got "
            f"{low:.3g}..{high:.3g}"
        )
    return image.clamp(0, 1)


def _masks_of(result: ExtremalResult, index: int) -> Tensor | None:
    if not isinstance(result.masks, Tensor) or result.masks.dim() != 5:
        return None
    return result.masks[index].detach().float().cpu()[growing(result.areas)]


def _others_of(
    others: Mapping[str, Tensor], num_images: int, index: int, image: Tensor | None
) -> dict[str, Tensor]:
    check_attributions("others", others, num_images)
    if not others:
        return {}
    if image is None:
        raise ValueError("others must come with images to be shown on, got none")
    return {
        name: map_of(f"others[{name!r}]", maps[index], image.shape[1:])
        for name, maps in others.items()
    }


# --- the document ---


def _document(content: _Content) -> str:
    """All parts in one file, with a policy that lets only its own script run."""
    style, script = (
        resources.files("captum_extremal.page").joinpath(name).read_text("utf-8")
        for name in ("page.css", "page.js")
    )
    policy = (
        "default-src 'none'; img-src data:; "
        f"style-src {_hash(style)}; script-src {_hash(script)}"
    )
    title = escape(content.title)
    head = [
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title>",
        '<link rel="icon" href="data:,">',
        f"<style>{style}</style>",
    ]
    body = [
        "<main>",
        f"<h1>{title}</h1>",
        f"<p>{escape(_summary(content))}</p>",
        *(f'<p class="quiet">{escape(note)}</p>' for note in content.notes),
        *_viewer(content),
        '<div class="pair">',
        *_curve(content),
        *_others(content),
        "</div>",
        *_areas(content),
        *_settings(content),
        f"<footer>{escape(_PAPER)}</footer>",
        "</main>",
        f"<script>{script}</script>",
    ]
    lines = ["<!doctype html>", '<html lang="en">', "<head>", *head, "</head>"]
    return "\n".join([*lines, "<body>", *body, "</body>", "</html>", ""])


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _summary(content: _Content) -> str:
    curve = content.curve
    whole = text_of(curve, curve.input_score)
    if math.isnan(curve.input_score):
        return (
            f"The whole {content.noun} has no score that is a number: no area has a*."
        )
    if curve.a_star is None:
        return (
            f"None of these areas is enough: the whole {content.noun} scores {whole} "
            f"for {content.label}, and no mask keeps as much."
        )
    area = percent(curve.sizes[curve.a_star])
    kept = text_of(curve, curve.scores[curve.a_star])
    return (
        f"{area} of the {content.noun} is enough (a*): alone it scores {kept} for "
        f"{content.label}, the whole {content.noun} {whole}."
    )


def _viewer(content: _Content) -> Iterator[str]:
    """The slider and what it shows; hidden until the script fills it."""
    curve = content.curve
    last = len(curve.sizes) - 1
    start = last if curve.a_star is None else curve.a_star
    yield '<section id="viewer" aria-label="One area at a time" hidden>'
    yield (
        '<label for="area">Area of the mask: <span data-show="area"></span>'
        '<span data-show="note"></span></label>'
    )
    yield (
        f'<input type="range" id="area" min="0" max="{last}" step="1" value="{start}">'
    )
    few = "" if content.image is not None else " few"
    yield f'<div class="pictures{few}">'
    if content.image is not None:
        yield _shown(content, "kept", "kept alone", "kept")
        yield _shown(content, "removed", "kept part removed", "removed")
        whole = escape(text_of(curve, curve.input_score))
        yield (
            f'<figure class="whole">{_img(content.image, "whole", "The whole picture")}'
            f'<figcaption>whole picture <span class="score">{whole}</span></figcaption>'
            "</figure>"
        )
        yield _shown(content, "mask", "mask, white is kept")
    else:
        if content.masks is not None:
            yield _shown(content, "mask", "mask, white is kept")
        yield (
            '<div class="readout"><p class="kept">kept alone '
            '<span class="score" data-show="kept"></span></p>'
            '<p class="removed">kept part removed '
            '<span class="score" data-show="removed"></span></p></div>'
        )
    yield "</div>"
    yield "</section>"


def _shown(content: _Content, name: str, caption: str, score: str = "") -> str:
    """A picture that the script fills in."""
    assert content.masks is not None
    pixels = " pixels" if max(content.masks.shape[2:]) <= SMALL else ""
    height, width = content.masks.shape[2:]
    value = f' <span class="score" data-show="{score}"></span>' if score else ""
    return (
        f'<figure class="{name}"><img class="{name}{pixels}" alt="" width="{width}" '
        f'height="{height}"><figcaption>{caption}{value}</figcaption></figure>'
    )


def _img(image: Tensor, name: str, alt: str) -> str:
    height, width = image.shape[1:]
    pixels = " pixels" if max(height, width) <= SMALL else ""
    return (
        f'<img class="{name}{pixels}" src="{data_uri(image)}" alt="{escape(alt)}" '
        f'width="{width}" height="{height}">'
    )


def _curve(content: _Content) -> Iterator[str]:
    curve = content.curve
    pairs = ", ".join(
        f"{percent(area)}: {text_of(curve, kept)} kept, "
        f"{text_of(curve, removed)} removed"
        for area, kept, removed in zip(
            curve.sizes, curve.scores, curve.complement_scores, strict=True
        )
    )
    yield "<section>"
    yield f"<h2>Score of {escape(content.label)} over the area</h2>"
    yield svg.draw(curve, f"Scores over the area. {pairs}")
    yield '<ul class="legend">'
    for name, text in (
        ("kept", "kept alone"),
        ("removed", "kept part removed"),
        ("whole", f"whole {content.noun} {text_of(curve, curve.input_score)}"),
        ("perturbed", f"fully perturbed {text_of(curve, curve.perturbed_score)}"),
    ):
        mark = f'<span class="key {name}"></span>'
        yield f"<li>{mark}{escape(text)}</li>"
    yield "</ul>"
    yield "</section>"


def _areas(content: _Content) -> Iterator[str]:
    """Every area with all that is known of it; what the script shows is taken here."""
    curve = content.curve
    yield "<section>"
    yield "<h2>All areas</h2>"
    yield '<ol class="areas" id="areas">'
    for place, area in enumerate(curve.sizes):
        kept, removed = (
            text_of(curve, s[place]) for s in (curve.scores, curve.complement_scores)
        )
        note = "a*: enough" if place == curve.a_star else ""
        spoken = f"{percent(area)}, kept alone {kept}, removed {removed}"
        data = {
            "area": percent(area),
            "kept": kept,
            "removed": removed,
            "note": note,
            "spoken": f"{spoken}, {note}" if note else spoken,
            "x": str(svg.place_x(curve, place)),
        }
        attributes = " ".join(f'data-{k}="{escape(v)}"' for k, v in data.items())
        yield f"<li {attributes}>"
        star = " (a*)" if note else ""
        yield f"<h3>{percent(area)}{star}</h3>"
        if content.masks is not None:
            yield _row(content, place, kept, removed)
        yield (
            f'<div class="said"><p class="kept">kept <span class="score">{kept}</span>'
            f'</p><p class="removed">removed <span class="score">{removed}</span></p>'
            "</div></li>"
        )
    yield "</ol>"
    yield "</section>"


def _row(content: _Content, place: int, kept: str, removed: str) -> str:
    """The pictures of one area."""
    assert content.masks is not None
    mask, area = content.masks[place], percent(content.curve.sizes[place])
    shown = []
    if content.image is not None:
        parts = kept_and_removed(content.image, mask)
        texts = (
            f"What the mask of {area} keeps: {content.label} scores {kept}",
            f"The picture without these {area}: {content.label} scores {removed}",
        )
        for part, name, text in zip(parts, ("kept", "removed"), texts, strict=True):
            shown.append(_img(part, name, text))
    shown.append(_img(mask, "mask", f"The mask of {area}, white is kept"))
    return f'<div class="row{"" if len(shown) > 1 else " one"}">{"".join(shown)}</div>'


def _others(content: _Content) -> Iterator[str]:
    """The attribution, which is the mean of the masks, beside those of others."""
    if content.image is None or content.masks is None:
        return
    maps = {"mean of the masks": content.masks.mean(dim=0)}
    maps |= {name: without_outliers(values) for name, values in content.others.items()}
    signed = {name for name, values in maps.items() if (values < 0).any()}
    yield "<section>"
    yield f"<h2>{'Beside other methods' if content.others else 'Attribution'}</h2>"
    if signed:
        yield '<p class="quiet">On grey, red is above 0 and blue below.</p>'
    yield '<div class="others">'
    for name, values in maps.items():
        overlay = overlay_signed if name in signed else overlay_saliency
        shown = overlay(content.image.expand(3, -1, -1), fitted(values))
        picture = _img(shown, "other", f"Where the picture counts: {name}")
        yield f"<figure>{picture}<figcaption>{escape(name)}</figcaption></figure>"
    yield "</div>"
    yield "</section>"


def _settings(content: _Content) -> Iterator[str]:
    made = {name: _version(name) for name in ("captum_extremal", "captum", "torch")}
    settings = {str(key): str(value) for key, value in content.settings.items()}
    if "version" in settings:
        settings["found by version"] = settings.pop("version")
    yield "<section>"
    yield "<h2>Settings</h2>"
    yield "<table>"
    for name, value in settings.items():
        yield _table_row(name, value)
    yield _table_row("page made by", ", ".join(f"{n} {v}" for n, v in made.items()))
    yield "</table>"
    yield "</section>"


def _table_row(name: str, value: str) -> str:
    return f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "(unknown)"
