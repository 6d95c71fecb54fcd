"""Boxes of an image (B, 4) -> their masks (B, H, W), True inside.

Pixel (row, column) covers [row, row + 1) x [column, column + 1) and belongs to a box
that covers its centre. VOC counts pixels from 1 and includes the last one, so that its
box from 1 to 3 covers [0, 3).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from captum_extremal._base.checks import check_bool, check_count, check_shape


def boxes_to_masks(
    boxes: Tensor, size: tuple[int, int], *, one_based_inclusive: bool
) -> Tensor:
    """Fill boxes. The ground truth of a class is the union: ``masks.any(dim=0)``.

    Args:
        boxes: (xmin, ymin, xmax, ymax) in pixels: x are columns, y are rows. Their
            values are read on the host.
        size: (H, W) of the image.
        one_based_inclusive: True for the numbers of VOC's annotations. False for edges
            that start at 0, as torchvision has them ("xyxy"; COCO's (x, y, width,
            height) after `torchvision.ops.box_convert`).

    Returns:
        Bool masks on the device of ``boxes``; what lies outside the image is cut off.

    Raises:
        TypeError: If ``boxes`` is not a tensor or ``size`` does not hold ints.
        ValueError: If ``boxes`` is not of shape (B, 4), a box ends before it begins or
            ``size`` does not hold two counts.

    Shape:
        (B, 4) -> (B, H, W).

    Example:
        >>> import torch
        >>> boxes = torch.tensor([[2, 1, 4, 1]])  # columns 2 to 4 of the first row
        >>> boxes_to_masks(boxes, (2, 5), one_based_inclusive=True).int()
        tensor([[[0, 1, 1, 1, 0],
                 [0, 0, 0, 0, 0]]], dtype=torch.int32)
    """
    check_shape("boxes", boxes, "B 4")
    if not isinstance(size, Sequence) or len(size) != 2:
        raise ValueError(f"size must be (H, W), got {size!r}")
    check_bool("one_based_inclusive", one_based_inclusive)
    height, width = (check_count("size", side) for side in size)
    for box in boxes.tolist():
        if not (box[0] <= box[2] and box[1] <= box[3]):
            raise ValueError(
                "boxes must be (xmin, ymin, xmax, ymax) with xmin <= xmax and "
                f"ymin <= ymax, got {box}"
            )
    edges = boxes.double()  # exact for pixel numbers, and holds their halves
    lows, highs = edges[:, :2] - int(one_based_inclusive), edges[:, 2:]
    columns = _covers(lows[:, 0], highs[:, 0], width)
    rows = _covers(lows[:, 1], highs[:, 1], height)
    return rows[:, :, None] & columns[:, None, :]


def _covers(low: Tensor, high: Tensor, length: int) -> Tensor:
    """Whether the interval [low, high) holds the centre of each pixel, (B, length)."""
    centres = torch.arange(length, device=low.device) + 0.5
    return (low[:, None] <= centres) & (centres < high[:, None])
