"""Tensors -> pictures inside a page, as data URIs.

A photograph becomes a JPEG; masks, and pictures so small that each pixel counts, become
PNGs. What is larger than a screen needs is made smaller.
"""

from __future__ import annotations

import base64
import io

import torch
from torch import Tensor
from torch.nn import functional as F

from captum_extremal.visualization.overlays import overlay_mask

GHOST = 0.25  # brightness of what a mask leaves out, as in the figures
SMALL = 96  # pixels of the longer side, up to which each is drawn as a square
_LARGEST = 640  # pixels of the longer side
_QUALITY = 88  # of a JPEG: no blocks to be seen


def data_uri(image: Tensor) -> str:
    """A picture (1 or 3, H, W) in [0, 1] as the address of an `<img>`.

    Example:
        >>> import torch
        >>> data_uri(torch.zeros(1, 4, 4))[:22]
        'data:image/png;base64,'
        >>> data_uri(torch.zeros(3, 200, 100))[:23]
        'data:image/jpeg;base64,'
    """
    from PIL import Image

    small = max(image.shape[1:]) <= SMALL
    bytes_ = (image.clamp(0, 1) * 255).round().to(torch.uint8)
    picture = Image.fromarray(bytes_.movedim(0, -1).squeeze(-1).numpy())
    file = io.BytesIO()
    if small or len(image) == 1:
        kind = "png"
        picture.save(file, "PNG", optimize=True)
    else:
        kind = "jpeg"
        picture.save(file, "JPEG", quality=_QUALITY)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def fitted(image: Tensor) -> Tensor:
    """A picture or mask (C, H, W), made smaller if it is larger than a screen needs.

    Example:
        >>> import torch
        >>> fitted(torch.ones(3, 1280, 960)).shape
        torch.Size([3, 640, 480])
    """
    scale = _LARGEST / max(image.shape[1:])
    if scale >= 1:
        return image
    size = [max(1, round(side * scale)) for side in image.shape[1:]]
    return F.interpolate(image[None], size, mode="area")[0]


def kept_and_removed(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """What a mask keeps of an image, and the rest; each beside a dark, grey ghost.

    The outline of the mask is drawn where there is room for a line.

    Example:
        >>> import torch
        >>> image, mask = torch.full((3, 1, 2), 0.8), torch.tensor([[[1.0, 0.0]]])
        >>> kept, removed = kept_and_removed(image, mask)
        >>> kept[0], removed[0]
        (tensor([[0.8000, 0.2000]]), tensor([[0.2000, 0.8000]]))
    """
    image = image.expand(3, -1, -1)
    ghost = GHOST * image.mean(dim=0, keepdim=True)
    line = _outline(mask)
    kept, removed = (overlay_mask(image, part, ghost) for part in (mask, 1 - mask))
    return torch.where(line, 1.0, kept), torch.where(line, 1.0, removed)


def _outline(mask: Tensor) -> Tensor:
    """Pixels at >= 0.5 with a neighbour that is not; none of a small mask."""
    inside = mask >= 0.5
    if max(mask.shape[1:]) <= SMALL:
        return torch.zeros_like(inside)
    outside = F.max_pool2d((~inside).float(), 3, stride=1, padding=1) > 0
    return inside & outside
