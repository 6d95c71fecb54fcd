r"""Lattice parameters -> the smooth max-convolution (eq. 6 and 7), and its gradient.

Two engines compute the same sums: `Spread` for CPUs, where exponentials are dear, and
`Gather` for GPUs and for temperatures whose exponentials leave the number range. Both
work in chunks and never hold a window of lattice points for every pixel.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from captum_extremal._lattice import Lattice, box, outer_sum

LOG2_E = math.log2(math.e)
_LN_2 = math.log(2)
# Up to this power of two the exponentials and their sums stay in range as they are.
MAX_EXPONENT = {torch.float32: 60.0, torch.float64: 500.0}
# Elements of a working tensor: what fits the cache of a CPU; 64 MB of float32 in all on
# an accelerator, where large launches win.
_CPU_ELEMENTS = 1 << 17
_GPU_ELEMENTS = 1 << 21
_SHORTEST_ROW = 256


class Engine(Protocol):
    """One way of computing the mask and its gradient.

    `forward` returns the mask on the canvas, and what `backward` needs besides the
    parameters.
    """

    def forward(
        self, params: Tensor, temperature: float
    ) -> tuple[Tensor, list[Tensor]]: ...

    def backward(
        self, grad: Tensor, params: Tensor, saved: Sequence[Tensor], temperature: float
    ) -> Tensor: ...


class MaxConvolution(torch.autograd.Function):
    """Parameters -> mask, with the gradient worked out by hand.

    A tensor of pixels times lattice points, 16 MB per mask at the paper's settings, is
    never made: both directions go through pieces of it.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, params: Tensor, engine: Engine, temperature: float
    ) -> Tensor:
        canvas, saved = engine.forward(params, temperature)
        ctx.save_for_backward(params, *saved)
        ctx.engine = engine  # type: ignore[attr-defined]
        ctx.temperature = temperature  # type: ignore[attr-defined]
        return canvas.clamp_(0, 1)  # rounding must not pass the range

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
        params, *saved = ctx.saved_tensors  # type: ignore[attr-defined]
        engine, temperature = ctx.engine, ctx.temperature  # type: ignore[attr-defined]
        return engine.backward(grad, params, saved, temperature), None, None


class Gather:
    """Each pixel gathers its window: any temperature, margin and device.

    One table [pixels of a cell, window] of the kernel serves all cells. Pieces of the
    lattice are taken at a time: f = table * window, reduced over the window. Lattice
    points that no pixel of a cell reaches are left out of the table and counted in the
    denominator instead.
    """

    def __init__(
        self,
        lattice: Lattice,
        kernel: Callable[[Tensor], Tensor],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.lattice = lattice
        table = _window_table(lattice, kernel)
        kept = table.any(0)
        self.left_out = int((~kept).sum())
        self.table = table[:, kept].to(device, dtype)
        taps = kept.view([lattice.window] * lattice.dims).nonzero()
        self._index_windows(taps.to(device))
        self._index_disks(taps.to(device))
        per_row = self.table.numel()
        elements = _CPU_ELEMENTS if device.type == "cpu" else _GPU_ELEMENTS
        self.rows = max(1, elements // per_row)

    def _index_windows(self, taps: Tensor) -> None:
        """Where each cell finds its lattice points in the padded parameters."""
        lattice = self.lattice
        sizes = [cells + lattice.window - 1 for cells in lattice.cells]
        spare = [
            size - lattice.first - points
            for size, points in zip(sizes, lattice.params_size, strict=True)
        ]
        self.params_pad = [
            item for after in reversed(spare) for item in (lattice.first, after)
        ]
        self.params_index = _positions(lattice.cells, sizes, taps.device)
        self.params_shift = (taps * _strides(sizes, taps.device)).sum(1)
        self.params_numel = math.prod(sizes)

    def _index_disks(self, taps: Tensor) -> None:
        """Where each lattice point finds its cells in the padded pixels."""
        lattice = self.lattice
        before = max(0, lattice.window - 1 - lattice.first)
        after = [
            max(0, points + lattice.first - cells)
            for points, cells in zip(lattice.params_size, lattice.cells, strict=True)
        ]
        sizes = [
            before + c + more for c, more in zip(lattice.cells, after, strict=True)
        ]
        self.cells_pad = [item for more in reversed(after) for item in (before, more)]
        self.cells_index = _positions(lattice.params_size, sizes, taps.device)
        shift = lattice.first - taps + before
        self.cells_shift = (shift * _strides(sizes, taps.device)).sum(1)
        self.cells_numel = math.prod(sizes)

    def forward(
        self, params: Tensor, temperature: float
    ) -> tuple[Tensor, list[Tensor]]:
        """The mask; and per pixel: the mean, the maximum and the sum of weights."""
        padded = F.pad(params, self.params_pad).flatten()
        starts = _per_mask(self.params_index, len(params), self.params_numel)
        parts = params.new_empty(3, len(starts), len(self.table))
        for rows in _pieces(len(starts), self.rows):
            window = padded[starts[rows, None] + self.params_shift]
            values = window.unsqueeze(1) * self.table
            parts[:, rows] = _smooth_max_parts(values, temperature, self.left_out)
        lattice = self.lattice
        shape = (len(params), *lattice.cells, *[lattice.step] * lattice.dims)
        return lattice.to_canvas(parts[0].view(shape)).clone(), [parts]

    def backward(
        self, grad: Tensor, params: Tensor, saved: Sequence[Tensor], temperature: float
    ) -> Tensor:
        """The gradient of the parameters, gathered from the disk around each."""
        mean, top, total = saved[0]
        share = self.lattice.to_cells(grad).reshape(total.shape) / total
        pixels = torch.stack(
            [
                self._pad_cells(share, len(params), 0.0),
                self._pad_cells(mean, len(params), 0.0),
                self._pad_cells(top, len(params), math.inf),  # no weight out there
            ]
        )
        starts = _per_mask(self.cells_index, len(params), self.cells_numel)
        flat, table = params.reshape(-1, 1, 1), self.table.t()
        result = params.new_empty(len(starts))
        for rows in _pieces(len(starts), self.rows):
            share, mean, top = pixels[:, starts[rows, None] + self.cells_shift]
            values = flat[rows] * table
            slope = _smooth_max_slope(values, mean, top, temperature)
            result[rows] = slope.mul_(share).mul_(table).sum((1, 2))
        return result.view(params.shape)

    def _pad_cells(self, pixels: Tensor, count: int, fill: float) -> Tensor:
        """(count * cells, pixels of a cell) with cells around that hold `fill`."""
        cells = pixels.view(count, *self.lattice.cells, len(self.table))
        return F.pad(cells, [0, 0, *self.cells_pad], value=fill).flatten(0, -2)


def _window_table(lattice: Lattice, kernel: Callable[[Tensor], Tensor]) -> Tensor:
    """The kernel from each pixel of a cell to each lattice point of its window."""
    pixel = torch.arange(lattice.step).unsqueeze(1) - lattice.margin
    point = lattice.step * (torch.arange(lattice.window) - lattice.first)
    squares = (pixel - point).square().flatten()
    table = kernel(outer_sum(*[squares] * lattice.dims))
    table = table.view([lattice.step, lattice.window] * lattice.dims)
    axes = range(0, 2 * lattice.dims, 2)
    table = table.permute(*axes, *(axis + 1 for axis in axes))
    return table.reshape(lattice.step**lattice.dims, -1)


def _strides(sizes: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(
        [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))], device=device
    )


def _positions(
    inner: Sequence[int], sizes: Sequence[int], device: torch.device
) -> Tensor:
    """Flat indices in a tensor of `sizes` of its corner of size `inner`."""
    strides = _strides(sizes, device)
    axes = [torch.arange(n, device=device) * strides[a] for a, n in enumerate(inner)]
    return outer_sum(*axes).flatten()


def _per_mask(index: Tensor, count: int, numel: int) -> Tensor:
    """The same indices in each of `count` masks of `numel` elements."""
    masks = torch.arange(count, device=index.device) * numel
    return (masks.unsqueeze(1) + index).flatten()


def _pieces(length: int, piece: int) -> Iterator[slice]:
    return (slice(start, start + piece) for start in range(0, length, piece))


def _smooth_max_parts(values: Tensor, temperature: float, zeros: int) -> Tensor:
    """Smooth maximum, maximum and sum of weights of values and so many zeros."""
    top = values.amax(-1)
    if is_zero(temperature, values.dtype):
        ties = (values == top.unsqueeze(-1)).sum(-1) + zeros * (top == 0)
        return torch.stack([top, top, ties.to(values.dtype)])
    weights = (values - top.unsqueeze(-1)).div_(temperature).exp_()
    total = weights.sum(-1).add_((top / -temperature).exp_(), alpha=zeros)
    return torch.stack([weights.mul_(values).sum(-1).div_(total), top, total])


def _smooth_max_slope(
    values: Tensor, mean: Tensor, top: Tensor, temperature: float
) -> Tensor:
    """The derivative of the smooth maximum by its values, times the sum of weights."""
    if is_zero(temperature, values.dtype):
        return (values == top).to(values.dtype)
    weights = (values - top).div_(temperature).exp_()
    return values.sub_(mean).div_(temperature).add_(1).mul_(weights)


@dataclass(frozen=True)
class _Tap:
    """One place of a window: which values of a block go to which pixels.

    Attributes:
        shift: From the lattice point's cell to that of the pixels, in flat cells.
        row: First row of the block, flattened.
        strides: Rows of the block per pixel, for each axis.
        mirror: Index of the accumulator: its bits say which axes run backwards.
    """

    shift: int
    row: int
    strides: tuple[int, ...]
    mirror: int


@dataclass(frozen=True)
class _Block:
    """The kernel at some distances per axis, and the taps that use them."""

    table: Tensor
    taps: list[_Tap]


class Spread:
    r"""Each lattice point spreads its disk: for CPUs, where exponentials are dear.

    The disk of a lattice point has as many pixels as there are pairs of a pixel of a
    cell and a place of the window, 3969 at the published settings. But the kernel is
    radial: its values depend on the distances per axis, regardless of their signs and
    order. They are worked out in blocks of step + 1 distances per axis, in ascending
    order of the axes, 960 in all. A block is then added to its taps: the pixels of a
    cell at some shift, with axes swapped or running backwards. Swapping is a matter of
    strides; what runs backwards has an accumulator of its own, turned round at the end.

    Powers of two are cheaper than exponentials, hence x = f / (T ln 2) with
    exp(f / T) = 2^x. The largest x bounds the temperature from below; no maximum is
    subtracted. What is added is 2^x - 1, so that lattice points beyond the border and
    beyond the kernel's reach need not be visited: they count in the denominator with 1.

    Cells, of lattice points and pixels alike, are rows of one flat vector with gaps of
    zeros between, wide enough for shifts to fall into them; masks are its fastest axis.
    """

    def __init__(
        self,
        lattice: Lattice,
        kernel: Callable[[Tensor], Tensor],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.lattice = lattice
        self.origin = lattice.margin // lattice.step
        ends = [
            max(cells, self.origin + points)
            for cells, points in zip(lattice.cells, lattice.params_size, strict=True)
        ]
        self.sizes = [ends[0], *(end + lattice.radius for end in ends[1:])]
        strides = [math.prod(self.sizes[axis + 1 :]) for axis in range(lattice.dims)]
        self.blocks = [
            _Block(block.table.to(device, dtype), block.taps)
            for block in _blocks(lattice, kernel, strides)
        ]
        self.offsets = [lattice.step] * lattice.dims
        self.mirrors = 1 if lattice.step == 1 else 2**lattice.dims
        self.numel = math.prod(self.sizes)
        pixels = lattice.step**lattice.dims
        self.masks = max(1, _CPU_ELEMENTS // (pixels * self.numel))
        self.piece = max(_SHORTEST_ROW, _CPU_ELEMENTS // pixels)

    def forward(
        self, params: Tensor, temperature: float
    ) -> tuple[Tensor, list[Tensor]]:
        """The mask; and per group of masks the sums of 2^x and of x 2^x."""
        canvas = params.new_empty(len(params), 1, *self.lattice.canvas_size)
        scale = LOG2_E / temperature
        saved = []
        for masks in _pieces(len(params), self.masks):
            sums = self._sums(self._flatten_params(params[masks], scale))
            saved.append(sums)
            pixels = self._unflatten(sums[1] / sums[0], len(params[masks]))
            torch.div(self.lattice.to_canvas(pixels), scale, out=canvas[masks])
        return canvas, saved

    def backward(
        self, grad: Tensor, params: Tensor, saved: Sequence[Tensor], temperature: float
    ) -> Tensor:
        """The gradient of the parameters; x and 2^x are worked out again."""
        result = torch.empty_like(params, memory_format=torch.contiguous_format)
        scale = LOG2_E / temperature
        groups = list(_pieces(len(params), self.masks))
        for masks, sums in zip(groups, saved, strict=True):
            flat = self._flatten_params(params[masks], scale)
            slopes = self._slopes(self._flatten_grad(grad[masks]), sums)
            points = self._collect(flat, slopes)
            result[masks] = self._unflatten_params(points, len(params[masks]))
        return result

    def _sums(self, flat: Tensor) -> Tensor:
        """(2, *offsets, n): each pixel's sums of 2^x and of x 2^x over its window."""
        mirrored = self._scatter(flat)
        total = mirrored[0]
        for mirror, part in enumerate(mirrored[1:], start=1):
            total += part.flip(self._axes(mirror))
        total[0] += self.lattice.window**self.lattice.dims
        return total

    def _scatter(self, flat: Tensor) -> list[Tensor]:
        """One accumulator of 2^x - 1 and x 2^x for each way of mirroring."""
        shape = (2, *self.offsets, len(flat))
        sums = [flat.new_zeros(shape) for _ in range(self.mirrors)]
        for points in _pieces(len(flat), self.piece):
            piece = flat[points]
            buffer = self._buffer(piece, 2)
            power, product = buffer
            for block in self.blocks:
                torch.mul(block.table, piece, out=product)
                torch.exp2(product, out=power)
                product.mul_(power)
                power.sub_(1)
                for tap in block.taps:
                    target, source = self._views(
                        sums[tap.mirror], buffer, tap, points.start
                    )
                    target += source
        return sums

    def _slopes(self, grad: Tensor, sums: Tensor) -> list[Tensor]:
        """For each way of mirroring a and b with d loss / d f = 2^x (a + b x)."""
        share = grad.div_(sums[0])
        slopes = torch.empty_like(sums)
        torch.mul(share, _LN_2, out=slopes[1])
        torch.addcmul(share, slopes[1], sums[1] / sums[0], value=-1, out=slopes[0])
        mirrors = range(1, self.mirrors)
        return [slopes, *(slopes.flip(self._axes(mirror)) for mirror in mirrors)]

    def _collect(self, flat: Tensor, slopes: list[Tensor]) -> Tensor:
        """The gradient of each lattice point: a sum over its disk."""
        result = torch.zeros_like(flat)
        for points in _pieces(len(flat), self.piece):
            piece = flat[points]
            buffer, product = self._buffer(piece, 2), self._buffer(piece, 1)[0]
            constant, linear = buffer
            for block in self.blocks:
                buffer.zero_()
                for tap in block.taps:
                    source, target = self._views(
                        slopes[tap.mirror], buffer, tap, points.start
                    )
                    target += source
                torch.mul(block.table, piece, out=product)
                constant.addcmul_(linear, product)
                constant.mul_(torch.exp2(product, out=linear))
                rows = constant.view(-1, len(piece))
                result[points].addmv_(rows.t(), block.table.flatten())
        return result

    def _buffer(self, piece: Tensor, count: int) -> Tensor:
        side = self.lattice.step + 1
        return piece.new_empty(count, *[side] * self.lattice.dims, len(piece))

    def _views(
        self, pixels: Tensor, buffer: Tensor, tap: _Tap, start: int
    ) -> tuple[Tensor, Tensor]:
        """The pixels of a tap and the values of the buffer that belong to them.

        `start` is the place in the flat vector of the buffer's first lattice point.
        """
        length, width = pixels.shape[-1], buffer.shape[-1]
        shift = tap.shift * (length // self.numel)
        low = max(start + shift, 0)
        shape = (2, *self.offsets, max(0, min(start + width + shift, length) - low))
        strides = (*[stride * width for stride in tap.strides], 1)
        place = tap.row * width + low - shift - start
        values = buffer.as_strided(shape, (buffer.stride(0), *strides), place)
        return pixels.as_strided(shape, pixels.stride(), low), values

    def _axes(self, mirror: int) -> list[int]:
        return [axis + 1 for axis in range(self.lattice.dims) if mirror >> axis & 1]

    def _flatten_params(self, params: Tensor, scale: float) -> Tensor:
        """(masks, 1, *lattice) -> (n,), times the scale, 0 in the gaps."""
        flat = params.new_zeros(*self.sizes, len(params))
        inner = box(flat, 0, self.origin, self.lattice.params_size)
        inner.copy_(params.squeeze(1).movedim(0, -1))
        return flat.flatten().mul_(scale)

    def _unflatten_params(self, flat: Tensor, count: int) -> Tensor:
        points = flat.view(*self.sizes, count)
        inner = box(points, 0, self.origin, self.lattice.params_size)
        return inner.movedim(-1, 0).unsqueeze(1)

    def _flatten_grad(self, grad: Tensor) -> Tensor:
        """(masks, 1, *canvas) -> (*offsets, n), 0 in the gaps."""
        dims = self.lattice.dims
        flat = grad.new_zeros(*self.offsets, *self.sizes, len(grad))
        order = (*range(dims + 1, 2 * dims + 1), *range(1, dims + 1), 0)
        cells = self.lattice.to_cells(grad).permute(order)
        box(flat, dims, 0, self.lattice.cells).copy_(cells)
        return flat.flatten(dims)

    def _unflatten(self, flat: Tensor, count: int) -> Tensor:
        """(*offsets, n) -> (count, *cells, *offsets)."""
        pixels = flat.view(*self.offsets, *self.sizes, count)
        dims = self.lattice.dims
        order = (2 * dims, *range(dims, 2 * dims), *range(dims))
        return box(pixels, dims, 0, self.lattice.cells).permute(order)


def _blocks(
    lattice: Lattice, kernel: Callable[[Tensor], Tensor], strides: Sequence[int]
) -> Iterator[_Block]:
    """Blocks of distances with their taps, all but those where the kernel is 0.

    The block q of an axis holds the distances step * q to step * (q + 1).
    """
    steps = torch.arange(lattice.step + 1)
    blocks = range(lattice.radius + 1)
    for corner in itertools.combinations_with_replacement(blocks, lattice.dims):
        axes = [(lattice.step * q + steps).square() for q in corner]
        table = kernel(outer_sum(*axes))
        taps = [
            tap
            for order in _distinct_orders(corner)
            for tap in _taps(lattice, corner, order, strides)
            if table.as_strided(
                [lattice.step] * lattice.dims, tap.strides, tap.row
            ).any()
        ]
        if taps:
            yield _Block(table.unsqueeze(-1), taps)


def _distinct_orders(corner: Sequence[int]) -> list[tuple[int, ...]]:
    """The ways to hand the block's axes to those of the image, each corner once."""
    orders = itertools.permutations(range(len(corner)))
    return list({tuple(corner[a] for a in order): order for order in orders}.values())


def _taps(
    lattice: Lattice,
    corner: Sequence[int],
    order: Sequence[int],
    strides: Sequence[int],
) -> Iterator[_Tap]:
    """The taps of a block whose axes are handed out in this order.

    Pixels q cells ahead of the lattice point have the distances step * q + (0, 1, ...);
    those q + 1 cells behind it step * (q + 1) - (0, 1, ...), mirrored.
    """
    side = lattice.step + 1
    rows = [side ** (lattice.dims - 1 - axis) for axis in order]
    sides = [
        [(q, 0, False), (-q - 1, 1, True)][: 2 if q < lattice.radius else 1]
        for q in (corner[axis] for axis in order)
    ]
    for choice in itertools.product(*sides):
        yield _Tap(
            shift=sum(q * s for (q, _, _), s in zip(choice, strides, strict=True)),
            row=sum(first * r for (_, first, _), r in zip(choice, rows, strict=True)),
            strides=tuple(rows),
            mirror=_mirror([backwards for _, _, backwards in choice], lattice.step),
        )


def _mirror(backwards: Sequence[bool], step: int) -> int:
    """Index of the accumulator; a cell of one pixel is its own mirror image."""
    return 0 if step == 1 else sum(bit << axis for axis, bit in enumerate(backwards))


def is_zero(temperature: float, dtype: torch.dtype) -> bool:
    """Whether 1 / temperature passes the range of the type: then it is the maximum."""
    return temperature < torch.finfo(dtype).tiny
