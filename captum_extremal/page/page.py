"""The page itself: checks, then what `page.html` is given, then one file.

The template escapes everything that comes from outside (titles, names, settings), and
its content security policy lets only this page's own script and style take effect.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from captum_extremal._base import files
from captum_extremal._base.checks import check_shape
from captum_extremal.curve import Curve, growing, told_of_overlap
from captum_extremal.page import svg
from captum_extremal.page.embed import SMALL, data_uri, fitted, kept_and_removed
from captum_extremal.page.svg import text_of
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
    num_images = len(result.input_score)
    if not 0 <= index < num_images:
        raise ValueError(f"index must lie in 0..{num_images - 1}, got {index}")
    image = None if images is None else _image_of(result, images, index, mean, std)
    maps = _others_of({} if others is None else others, num_images, index, image)
    notes = [] if images is not None else [_WITHOUT_IMAGES]
    if num_images > 1:
        notes.append(f"Image {index} of 0..{num_images - 1} of the result.")
    page = _document(
        title=title or "Extremal perturbation",
        label=label or "the target",
        notes=notes,
        curve=result.curve(index),
        **_pictures(image, _masks_of(result, index), maps),
        settings=_settings(result.settings),
    )
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
    num_images, _, *size = result.masks.shape
    if len(size) != 3 or size.pop(0) != 1:
        raise ValueError(
            f"images must be None for masks {tuple(result.masks.shape)}, which are no "
            "pictures: the scores are shown alone"
        )
    fitting = ", as the masks are"
    check_shape("images", images, "N 1|3 *S", fitting, N=num_images, S=size)
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
    masks = result.masks
    if not isinstance(masks, Tensor) or masks.dim() != 5 or masks.shape[2] != 1:
        return None
    return masks[index].detach().float().cpu()[growing(result.areas)]


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


def _pictures(
    image: Tensor | None, masks: Tensor | None, others: Mapping[str, Tensor]
) -> dict[str, Any]:
    """What there is to be seen; the attribution is the mean of the masks."""
    shown = None if image is None else fitted(image)
    masks = None if masks is None else torch.stack([fitted(mask) for mask in masks])
    maps = {}
    if shown is not None and masks is not None:
        maps = {"mean of the masks": masks.mean(dim=0)}
        maps |= {name: without_outliers(values) for name, values in others.items()}
    signed = {name for name, values in maps.items() if (values < 0).any()}
    for name, values in maps.items():
        assert shown is not None
        overlay = overlay_signed if name in signed else overlay_saliency
        maps[name] = overlay(shown.expand(3, -1, -1), fitted(values))
    return {
        "noun": "input" if masks is None else "picture",
        "image": shown,
        "masks": masks,
        "maps": maps,
        "signed": signed,
        "compared": bool(others),
    }


def _settings(settings: Mapping[str, Any]) -> dict[str, str]:
    rows = {str(key): str(value) for key, value in settings.items()}
    if "version" in rows:
        rows["found by version"] = rows.pop("version")
    packages = ("captum_extremal", "captum", "torch")
    made = ", ".join(f"{name} {_version(name)}" for name in packages)
    return rows | {"page made by": made}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "(unknown)"


# --- the document ---


def _document(*, curve: Curve, **content: Any) -> str:  # noqa: ANN401
    from jinja2 import Environment, StrictUndefined

    template, style, script = (
        resources.files("captum_extremal.page").joinpath(name).read_text("utf-8")
        for name in ("page.html", "page.css", "page.js")
    )
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.from_string(template).render(
        content,
        style=style,
        script=script,
        digest=_digest,
        curve=curve,
        text=partial(text_of, curve),
        drawing=svg.draw(curve, f"Scores over the area. {_spoken(curve)}"),
        percent=svg.percent,
        told_of_overlap=told_of_overlap,
        place_x=svg.place_x,
        data_uri=data_uri,
        kept_and_removed=kept_and_removed,
        SMALL=SMALL,
    )


def _spoken(curve: Curve) -> str:
    """The scores in words."""
    rows = zip(curve.sizes, curve.scores, curve.complement_scores, strict=True)
    return ", ".join(
        f"{svg.percent(area)}: {text_of(curve, kept)} kept, "
        f"{text_of(curve, rest)} removed"
        for area, kept, rest in rows
    )


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
