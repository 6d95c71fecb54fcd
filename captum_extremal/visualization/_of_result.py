"""One image of a result -> its masks in order of growing area; checks."""

from __future__ import annotations

from torch import Tensor

from captum_extremal._base.checks import check_shape
from captum_extremal.curve import growing
from captum_extremal.results.extremal import ExtremalResult
from captum_extremal.visualization.overlays import check_range


def masks_of(image: Tensor, result: ExtremalResult, index: int) -> Tensor:
    """The masks of one image in order of growing area, (A, 1, H, W); all checks."""
    if isinstance(result.masks, tuple):
        raise TypeError(
            "result must hold one tensor of masks, got a tuple; draw one of them with "
            "dataclasses.replace(result, masks=result.masks[0])"
        )
    check_picture(image, len(result.masks), index)
    note = ", one for all channels"
    check_shape("the masks of result", result.masks, "N A 1 *S", note)
    masks = result.masks[index].detach().float().cpu()[growing(result.areas)]
    if masks.shape[1:] != (1, *image.shape[1:]):
        raise ValueError(
            f"image must have the size of the masks, {tuple(masks.shape[2:])}, got "
            f"{tuple(image.shape[1:])}"
        )
    return masks


def check_picture(image: Tensor, num_images: int, index: int) -> None:
    check_shape("image", image, "1|3 H W", filled=True)
    check_range("image", image)
    if not 0 <= index < num_images:
        raise ValueError(f"index must lie in 0..{num_images - 1}, got {index}")


def check_count(result: ExtremalResult, images: Tensor) -> None:
    if len(images) != len(result.input_score):
        raise ValueError(
            f"images must be those of the result, {len(result.input_score)}, got "
            f"{len(images)}"
        )
