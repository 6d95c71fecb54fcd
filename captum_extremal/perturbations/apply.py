r"""Levels and masks -> perturbed inputs: :math:`m \otimes x` (Sec. 3.4).

.. math::
    (m \otimes x)(u) = (1 - w)\, x_l(u) + w\, x_{l+1}(u),
    \qquad l + w = (L - 1)\, m(u), \quad 0 \le w < 1

with the levels :math:`x_l` of a perturbation, from the most perturbed one to the input.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from captum_extremal._base.checks import (
    check_floating,
    check_shape,
)

# Numbers at a time: half a megabyte in float32, about a second-level cache.
_CPU_CHUNK = 2**17
_FEW_CHANNELS = 16
_DEVICE_CHUNK = 2**24  # on other devices, of large images
LARGE_IMAGE = 2**22
"""Numbers of an image from which on memory counts: what can be done in parts is."""


Levels = Tensor | tuple[Tensor, ...]
"""All levels in one tensor (N, L, C, *S), or L tensors (N, C, *S)."""


@dataclass(frozen=True)
class Moved:
    """A shifted, then mirrored copy, without the copy.

    Args:
        moves: Along each spatial axis, in pixels; what leaves enters at the other end.
        mirror: Whether the last of two axes is turned round.

    Example:
        >>> import torch
        >>> from captum_extremal import FadePerturbation
        >>> levels = FadePerturbation().levels(torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]))
        >>> apply_mask(levels, torch.ones(1, 1, 4), moved=Moved((1,)))
        tensor([[[4., 1., 2., 3.]]])
    """

    moves: tuple[int, ...]
    mirror: bool = False

    def take(self, values: Tensor, rows: slice, axis: int) -> Tensor:
        """What is shown in some rows: a slice of the first spatial axis."""
        parts = [values.narrow(axis, *run) for run in self._runs(values, rows, axis)]
        taken = torch.cat(parts, axis) if len(parts) > 1 else parts[0]
        if any(self.moves[1:]):
            axes = tuple(range(axis + 1, axis + len(self.moves)))
            taken = taken.roll(self.moves[1:], axes)
        return taken.flip(-1) if self.mirror else taken

    def put_back(self, shown: Tensor, to: Tensor, rows: slice, axis: int) -> None:
        """Write what is shown in some rows to where it was taken from."""
        shown = shown.flip(-1) if self.mirror else shown
        if any(self.moves[1:]):
            axes = tuple(range(axis + 1, axis + len(self.moves)))
            shown = shown.roll([-move for move in self.moves[1:]], axes)
        done = 0
        for start, length in self._runs(to, rows, axis):
            to.narrow(axis, start, length).copy_(shown.narrow(axis, done, length))
            done += length

    def _runs(self, values: Tensor, rows: slice, axis: int) -> list[tuple[int, int]]:
        """Starts and lengths of where some rows lie, one run or two."""
        side, length = values.shape[axis], rows.stop - rows.start
        start = (rows.start - (self.moves[0] if self.moves else 0)) % side
        before = min(length, side - start)
        return [(start, before), (0, length - before)][: 1 + (before < length)]


def apply_mask(
    levels: Levels,
    mask: Tensor,
    rows: Tensor | None = None,
    moved: Moved | None = None,
) -> Tensor:
    """Perturb inputs where a mask says so: linear interpolation between the levels.

    The gradient goes to the mask alone: the slope of the segment that a mask value
    lies in. A value on a level belongs to the segment above it, and 1 to the last one,
    so the slopes at 0 and 1 are one-sided and no gradient is lost there. Values outside
    [0, 1] count as 0 or 1, with that slope.

    A level of weight zero has no influence, also where it is NaN or infinite: mask 1
    gives the input and mask 0 gives level 0, bit for bit, and a slope that is not
    finite counts as 0. A NaN in the mask makes its pixel NaN.

    Args:
        levels: What `Perturbation.levels` returned, or a tuple of its L levels, which
            may be views of little memory. No gradient goes to them.
        mask: 1 keeps a pixel, 0 perturbs it fully; for all channels alike.
        rows: Index of the image of each mask, an integer tensor. None where each image
            has the same number K / N of masks and the masks are in image-major order.
        moved: A copy of the perturbed inputs to return instead.

    Returns:
        The perturbed inputs, in the dtype of ``levels``. Types shorter than float32 are
        computed in float32.

    Raises:
        TypeError: If ``levels`` or ``mask`` is not floating point, or ``rows`` not an
            integer tensor.
        ValueError: If the shapes do not fit, or ``rows`` is on the CPU and names an
            image that is not there.

    Shape:
        - levels: (N, L, C, *S) or L times (N, C, *S)
        - mask: (K, 1, *S)
        - rows: (K,)
        - returns: (K, C, *S)

    Example:
        >>> import torch
        >>> from captum_extremal import FadePerturbation
        >>> levels = FadePerturbation().levels(torch.tensor([[[2.0, 4.0, 6.0]]]))
        >>> mask = torch.tensor([[[1.0, 0.0, 0.5]]], requires_grad=True)
        >>> perturbed = apply_mask(levels, mask)
        >>> perturbed.detach()
        tensor([[[2., 0., 3.]]])
        >>> perturbed.sum().backward()
        >>> mask.grad
        tensor([[[2., 4., 6.]]])
    """
    _check_shapes(levels, mask)
    several = levels if isinstance(levels, tuple) else (levels,)
    several = tuple(level.detach() for level in several)
    images = _images(rows, len(mask), len(several[0])).to(mask.device)
    differentiable = torch.is_grad_enabled() and mask.requires_grad
    in_parts = len(several) > 1 or moved is not None
    if in_parts or several[0][:1, :1].numel() >= LARGE_IMAGE:
        if not differentiable:
            return _interpolate_in_parts(several, mask, images, moved)
        return _ApplyMaskInParts.apply(mask, images, moved, *several)  # type: ignore[no-any-return]
    if not differentiable:
        return _interpolate(several[0], mask, images)
    return _ApplyMask.apply(mask, images, several[0])  # type: ignore[no-any-return]


def _check_shapes(levels: Levels, mask: Tensor) -> None:
    several = levels if isinstance(levels, tuple) else (levels,)
    for level in several:
        check_floating("levels", level)
    check_floating("mask", mask)
    shape = tuple(several[0].shape)
    if isinstance(levels, tuple):
        shape = (*shape[:1], len(levels), *shape[1:])
    if len(shape) < 4 or shape[1] < 2:
        raise ValueError(
            f"levels must be of shape (N, L, C, *S) with L >= 2, got {shape}"
        )
    check_shape("mask", mask, "K 1 *S", f" to fit levels {shape}", S=shape[3:])


def _images(rows: Tensor | None, num_masks: int, num_images: int) -> Tensor:
    """The image of each mask, (K,)."""
    if rows is None:
        if num_images == 0 or num_masks % num_images:
            raise ValueError(
                "mask must hold a whole multiple of the N images of levels where rows "
                f"is None, got {num_masks} masks for {num_images} images"
            )
        return torch.arange(num_masks) // (num_masks // num_images or 1)
    if not isinstance(rows, Tensor) or rows.dtype not in (torch.int64, torch.int32):
        came = rows.dtype if isinstance(rows, Tensor) else type(rows).__name__
        raise TypeError(f"rows must be a tensor of integers, got {came}")
    check_shape("rows", rows, "K", ", one for each mask", K=num_masks)
    # Elsewhere the look would wait for the device, which itself refuses such an index.
    if rows.device.type == "cpu" and ((rows < 0) | (rows >= num_images)).any():
        raise ValueError(f"rows must lie in [0, {num_images}), got {rows.tolist()}")
    return rows


class _ApplyMask(torch.autograd.Function):
    """`_interpolate` with the gradient of the mask; keeps nothing but the slopes."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, mask: Tensor, images: Tensor, levels: Tensor
    ) -> Tensor:
        shape = (len(mask), *levels.shape[2:])
        slopes = levels.new_empty(shape, dtype=_exact(levels.dtype))
        ctx.save_for_backward(slopes)
        return _interpolate(levels, mask, images, slopes)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None]:
        (slopes,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return _channel_product(gradient, slopes), None, None


class _ApplyMaskInParts(torch.autograd.Function):
    """`_interpolate_in_parts`, whose gradient finds the slopes once more."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        mask: Tensor,
        images: Tensor,
        moved: Moved | None,
        *levels: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(mask, images, *levels)
        ctx.moved = moved  # type: ignore[attr-defined]
        return _interpolate_in_parts(levels, mask, images, moved)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        mask, images, *levels = ctx.saved_tensors  # type: ignore[attr-defined]
        moved = ctx.moved or _UNMOVED  # type: ignore[attr-defined]
        found = mask.new_empty(mask.shape, dtype=_exact(levels[0].dtype))
        for rows, part in _parts_of(tuple(levels), moved):
            given = gradient[:, :, rows]
            slopes = torch.empty_like(
                given, dtype=found.dtype, memory_format=torch.contiguous_format
            )
            _interpolate(part, moved.take(mask, rows, 2), images, slopes)
            moved.put_back(_channel_product(given, slopes), found, rows, 2)
        return found, None, None, *(None for _ in levels)


def _interpolate_in_parts(
    levels: tuple[Tensor, ...], mask: Tensor, images: Tensor, moved: Moved | None
) -> Tensor:
    """`_interpolate`, but next to no memory beside the result."""
    moved = moved or _UNMOVED
    one = levels[0] if len(levels) > 1 else levels[0][:, 0]
    perturbed = one.new_empty(len(mask), *one.shape[1:])
    for rows, part in _parts_of(levels, moved):
        perturbed[:, :, rows] = _interpolate(part, moved.take(mask, rows, 2), images)
    return perturbed


def _parts_of(
    levels: tuple[Tensor, ...], moved: Moved
) -> Iterator[tuple[slice, Tensor]]:
    """Some rows of the result at a time, and the levels there, (N, L, C, *S)."""
    stacked = len(levels) == 1
    axis = 3 if stacked else 2
    side = levels[0].shape[axis]
    chunk = _CPU_CHUNK if levels[0].device.type == "cpu" else _DEVICE_CHUNK
    step = max(1, chunk * side // levels[0][0].numel())
    if stacked:
        step *= levels[0].shape[1]
    for start in range(0, side, step):
        rows = slice(start, min(start + step, side))
        few = [moved.take(level, rows, axis) for level in levels]
        yield rows, few[0].contiguous() if stacked else torch.stack(few, dim=1)


_UNMOVED = Moved(())


def _channel_product(first: Tensor, second: Tensor) -> Tensor:
    """The sum over channels of the products, (K, C, *S) -> (K, 1, *S)."""
    if first.device.type != "cpu" or first.shape[1] > _FEW_CHANNELS:
        return (first * second).sum(dim=1, keepdim=True)
    # Four times as fast for a gradient in the channels_last order of a model.
    channels = zip(first.split(1, dim=1), second.split(1, dim=1), strict=True)
    a, b = next(channels)
    total: Tensor = a * b
    for a, b in channels:
        total.addcmul_(a, b)
    return total


def _exact(dtype: torch.dtype) -> torch.dtype:
    """The type of the arithmetic."""
    return torch.promote_types(dtype, torch.float32)


def _interpolate(
    levels: Tensor, mask: Tensor, images: Tensor, slopes: Tensor | None = None
) -> Tensor:
    """Perturbed inputs (K, C, *S); fills ``slopes`` (K, C, *S) if given.

    In chunks of masks that stay in the cache of a CPU. They also bound what is needed
    beyond the two results.
    """
    exact = levels.to(_exact(levels.dtype)).contiguous()
    perturbed = exact.new_empty(len(mask), *levels.shape[2:])
    within = _within(exact)
    chunk = len(mask)
    if mask.device.type == "cpu":
        chunk = max(1, _CPU_CHUNK // exact[0, 0].numel())
    for start in range(0, len(mask), chunk or 1):
        part = slice(start, start + chunk)
        slope = None if slopes is None else slopes[part]
        _fill(perturbed[part], slope, exact, mask[part], images[part], within)
    return perturbed.to(levels.dtype)


def _fill(
    perturbed: Tensor,
    slope: Tensor | None,
    levels: Tensor,
    mask: Tensor,
    images: Tensor,
    within: Tensor,
) -> None:
    """Compute one chunk in place.

    The anchor is the level at or below the position, the partner the other end of the
    segment: the level above, and below the last level. The anchor has all the weight
    where the position is a level, so that such pixels can be copied from it.
    """
    last = levels.shape[1] - 1
    position = (mask.to(levels.dtype) * last).clamp_(0, last)
    # The second clamp is for NaN, which has no integer.
    anchor = position.to(torch.int32).clamp_(0, last)
    # The level above, reflected at the last: 0, 1, .., L - 2, L - 1 -> 1, 2, .., L - 2.
    direction = last - (last - 1 - anchor).abs() - anchor
    weight = position - anchor
    numbers = levels.view(-1)
    index = _index(levels, images, anchor, within)
    value = numbers.index_select(0, index.view(-1)).view(perturbed.shape)
    index += direction * levels[0, 0].numel()
    step = torch.empty_like(perturbed) if slope is None else slope
    torch.index_select(numbers, 0, index.view(-1), out=step.view(-1))
    step -= value
    torch.addcmul(value, weight, step, out=perturbed)
    # Laid out in full, since a condition that broadcasts takes twice the time.
    inside = (weight != 0).expand_as(value).contiguous()
    torch.where(inside, perturbed, value, out=perturbed)
    if slope is not None:
        # Levels that are no finite number apart must not reach the gradient.
        slope.nan_to_num_(0, 0, 0).mul_(direction * last)


def _within(levels: Tensor) -> Tensor:
    """Place of each number within its level in memory, (C, *S)."""
    dtype = torch.int32 if levels.numel() < 2**31 else torch.int64
    places = torch.arange(levels[0, 0].numel(), dtype=dtype, device=levels.device)
    return places.view(levels.shape[2:])


def _index(levels: Tensor, images: Tensor, level: Tensor, within: Tensor) -> Tensor:
    """Place of levels[images[k], level[k, 0, u], c, u] in memory, (k, C, *S).

    Single numbers by their place: two to four times as fast on a CPU as `torch.gather`
    or `torch.take`.
    """
    offset = images.to(within.dtype) * levels[0].numel()
    place = level.to(within.dtype) * within.numel()
    place += offset.view(-1, *[1] * (level.dim() - 1))
    return (place + within).contiguous()
