"""One image of a result -> its masks and its scores in order of growing area."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from captum_extremal.results.channels import ChannelResult
from captum_extremal.results.extremal import ExtremalResult
from captum_extremal.visualization.overlays import check_range


@dataclass(frozen=True)
class Curve:
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
    def of(cls, result: ExtremalResult, index: int) -> Curve:
        percent = [100 * area for area in result.areas]
        a_star = 100 * float(result.smallest_sufficient_area()[index])
        label = "area of the mask (% of the image)"
        return cls._of(result, index, percent, a_star, label, " %")

    @classmethod
    def of_channels(cls, result: ChannelResult, index: int) -> Curve:
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
    ) -> Curve:
        order = _order(sizes)
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


def _order(sizes: Sequence[float]) -> list[int]:
    return sorted(range(len(sizes)), key=sizes.__getitem__)


def _nearest(values: Sequence[float], value: float) -> int:
    return min(range(len(values)), key=lambda place: abs(values[place] - value))


def masks_of(image: Tensor, result: ExtremalResult, index: int) -> Tensor:
    """The masks of one image in order of growing area, (A, 1, H, W); all checks."""
    if isinstance(result.masks, tuple):
        raise TypeError(
            "result must hold one tensor of masks, got a tuple; draw one of them with "
            "dataclasses.replace(result, masks=result.masks[0])"
        )
    check_picture(image, len(result.masks), index)
    masks = result.masks[index].detach().float().cpu()[_order(result.areas)]
    if masks.shape[1:] != (1, *image.shape[1:]):
        raise ValueError(
            f"image must have the size of the masks, {tuple(masks.shape[2:])}, got "
            f"{tuple(image.shape[1:])}"
        )
    return masks


def check_picture(image: Tensor, num_images: int, index: int) -> None:
    if image.dim() != 3 or image.shape[0] not in (1, 3):
        raise ValueError(
            f"image must have shape (1 or 3, H, W), got {tuple(image.shape)}"
        )
    check_range("image", image)
    if not 0 <= index < num_images:
        raise ValueError(f"index must lie in 0..{num_images - 1}, got {index}")


def check_count(result: ExtremalResult, images: Tensor) -> None:
    if len(images) != len(result.input_score):
        raise ValueError(
            f"images must be those of the result, {len(result.input_score)}, got "
            f"{len(images)}"
        )
