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

from captum_extremal.masks.lattice import Lattice, outer_sum

LOG2_E = math.log2(math.e)
_LN_2 = math.log(2)
# Up to this power of two the exponentials and their sums stay in range as they are.
MAX_EXPONENT = {torch.float32: 60.0, torch.float64: 500.0}
# Elements of a working tensor: what fits the cache of a CPU; 64 MB of float32 in all on
# an accelerator, where large launches win.
_CPU_ELEMENTS = 1 << 17
_GPU_ELEMENTS = 1 << 21
# Of `Spread`: lattice points of as many masks as are worth an operation; and pixels of
# the bands of a piece, for each mask. With the latter at most 3 MB a mask are needed
# at 224 pixels.
_SHORTEST_ROW = 4096
_BAND_ELEMENTS = 162_000


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
class _Row:
    """The kernel at one distance along the first axis and several along the others.

    Attributes:
        table: Its values, (k, 1).
        places: Where a band's pixels at that distance begin, in pixels of one mask.
    """

    table: Tensor
    places: list[int]


class Spread:
    r"""Each lattice point spreads its disk: for CPUs, where exponentials are dear.

    The kernel is radial: its values depend on the distances per axis, regardless of
    their signs. So :math:`2^x` and :math:`x 2^x`, with :math:`x = f / (T \ln 2)`, are
    worked out for one quarter of the disk in 2-D and added to the pixels on either side
    of the lattice point, one axis after the other. (Powers of two are cheaper than
    those of e. The largest x bounds the temperature from below; no maximum is
    subtracted.)

    Of the first axis one distance is taken at a time, of the others a piece of all
    combinations. In between are bands: what is summed over the first axis alone,
    (2, combination, offset, cell, lattice points of the other axes, mask). Pixels are
    laid out by their offsets in a cell first and by cells second, so that those at the
    same distance from each lattice point lie side by side; masks come last. Around the
    cells is a border that takes the disks that reach beyond.
    """

    def __init__(
        self,
        lattice: Lattice,
        kernel: Callable[[Tensor], Tensor],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.lattice = lattice
        table, combinations = _quarter(lattice, kernel)
        farthest = min(len(table) - 1, lattice.step * lattice.radius)
        reach = math.ceil(farthest / lattice.step)  # in cells
        origin = lattice.margin // lattice.step
        self.border = max(0, reach - origin)
        self.first = origin + self.border  # the cell of the first lattice point
        self.sizes = [
            max(self.border + cells, self.first + points + reach)
            for cells, points in zip(lattice.cells, lattice.params_size, strict=True)
        ]
        self.points = math.prod(lattice.params_size)
        self.masks = max(1, _SHORTEST_ROW // self.points)
        rest = self.points // lattice.params_size[0]
        self.band = lattice.step * self.sizes[0] * rest
        most = max(1, _BAND_ELEMENTS // self.band)
        count = math.ceil(len(combinations) / most)
        self.piece = math.ceil(len(combinations) / count)  # equal pieces
        self.pieces = list(self._pieces(table.to(device, dtype), combinations))
        nothing = torch.zeros(1, 1, *lattice.params_size, dtype=dtype, device=device)
        self.unseen = lattice.window**lattice.dims - self._sums(nothing, 1.0)[0]

    def forward(
        self, params: Tensor, temperature: float
    ) -> tuple[Tensor, list[Tensor]]:
        """The mask; and per group of masks the sum of 2^x and the mean of x."""
        canvas = params.new_empty(len(params), 1, *self.lattice.canvas_size)
        scale, dims = LOG2_E / temperature, self.lattice.dims
        saved = []
        for masks in _pieces(len(params), self.masks):
            total, mean = sums = self._sums(params[masks], scale)
            total += self.unseen
            mean /= total
            saved.append(sums.contiguous())
            pixels = mean.permute(2 * dims, *range(dims, 2 * dims), *range(dims))
            torch.div(self.lattice.to_canvas(pixels), scale, out=canvas[masks])
        return canvas, saved

    def backward(
        self, grad: Tensor, params: Tensor, saved: Sequence[Tensor], temperature: float
    ) -> Tensor:
        """The gradient of the parameters; x and 2^x are worked out again."""
        result = torch.empty_like(params, memory_format=torch.contiguous_format)
        scale = LOG2_E / temperature
        groups = list(_pieces(len(params), self.masks))
        for masks, (total, mean) in zip(groups, saved, strict=True):
            slopes = self._slopes(grad[masks], total, mean)
            points = self._collect(self._flatten(params[masks], scale), slopes)
            inner = points.view(*self.lattice.params_size, -1)
            result[masks] = inner.movedim(-1, 0).unsqueeze(1)
        return result

    def _sums(self, params: Tensor, scale: float) -> Tensor:
        """(2, *offsets, *cells, masks): the sums of 2^x and of x 2^x that are seen."""
        flat = self._flatten(params, scale)
        pixels = self._pixels(params)
        bands, buffer = self._room(flat, 2)
        powers, products = buffer
        for rows, others in self.pieces:
            bands.zero_()
            for row in rows:
                count = len(row.table)
                power, product = powers[:count], products[:count]
                torch.mul(row.table, flat, out=product)
                torch.exp2(product, out=power)
                product.mul_(power)
                values = buffer[:, :count]
                for seen in self._beside(bands, row, len(params)):
                    seen += values
            for place, places in enumerate(others):
                band = bands[:, place]
                for seen in self._around(pixels, places):
                    seen += band.view(seen.shape)
        return self._canvas_of(pixels)

    def _slopes(self, grad: Tensor, total: Tensor, mean: Tensor) -> Tensor:
        """Each pixel's constant and linear, d loss / d f = 2^x (constant + linear x).

        Divided by the kernel, (2, *offsets, *sizes, masks).
        """
        dims = self.lattice.dims
        slopes = self._pixels(grad)
        constant, linear = self._canvas_of(slopes)
        order = (*range(dims + 1, 2 * dims + 1), *range(1, dims + 1), 0)
        share = self.lattice.to_cells(grad).permute(order) / total
        torch.mul(share, _LN_2, out=linear)
        torch.addcmul(share, linear, mean, value=-1, out=constant)
        return slopes

    def _collect(self, flat: Tensor, slopes: Tensor) -> Tensor:
        """The gradient of each lattice point: a sum over its disk."""
        result = torch.zeros_like(flat)
        bands, buffer = self._room(flat, 3)
        constants, linears, products = buffer
        for rows, others in self.pieces:
            for place, places in enumerate(others):
                _sum_into(bands[:, place], self._around(slopes, places))
            for row in rows:
                count = len(row.table)
                _sum_into(
                    buffer[:2, :count], self._beside(bands, row, slopes.shape[-1])
                )
                product, constant = products[:count], constants[:count]
                torch.mul(row.table, flat, out=product)
                constant.addcmul_(linears[:count], product)
                constant.mul_(product.exp2_())
                result.addmv_(constant.t(), row.table.squeeze(1))
        return result

    def _beside(self, bands: Tensor, row: _Row, masks: int) -> list[Tensor]:
        """Views of bands at a distance along the first axis, (2, k, n)."""
        shape = (2, len(row.table), self.points * masks)
        return [
            bands.as_strided(shape, bands.stride(), place * masks)
            for place in row.places
        ]

    def _around(self, pixels: Tensor, places: list[int]) -> list[Tensor]:
        """Views of pixels at distances along the other axes, each shaped as a band."""
        dims, masks = self.lattice.dims, pixels.shape[-1]
        axes = (0, 1, *range(1 + dims, 2 * dims + 2))
        strides = [pixels.stride(axis) for axis in axes]
        shape = (2, self.lattice.step, self.sizes[0], *self.lattice.params_size[1:])
        return [
            pixels.as_strided((*shape, masks), strides, place * masks)
            for place in places
        ]

    def _flatten(self, params: Tensor, scale: float) -> Tensor:
        """(masks, 1, *lattice) -> (n,), times the scale; masks are the last axis."""
        return params.squeeze(1).movedim(0, -1).flatten() * scale

    def _pixels(self, like: Tensor) -> Tensor:
        """Zeros for as many masks, (2, *offsets, *sizes, masks)."""
        offsets = [self.lattice.step] * self.lattice.dims
        return like.new_zeros(2, *offsets, *self.sizes, len(like))

    def _room(self, flat: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """For the bands of a piece, and for so many values of each of its rows."""
        bands = flat.new_empty(2, self.piece, self.band * (len(flat) // self.points))
        return bands, flat.new_empty(count, self.piece, len(flat))

    def _canvas_of(self, pixels: Tensor) -> Tensor:
        """A view of the pixels without their border."""
        for axis, cells in enumerate(self.lattice.cells, 1 + self.lattice.dims):
            pixels = pixels.narrow(axis, self.border, cells)
        return pixels

    # --- the tables ---

    def _pieces(
        self, table: Tensor, combinations: list[list[int]]
    ) -> Iterator[tuple[list[_Row], list[list[int]]]]:
        """Pieces of the combinations: their rows, and where each finds its pixels."""
        counts = [int(row.nonzero().max()) + 1 if row.any() else 0 for row in table]
        for piece in _pieces(len(combinations), self.piece):
            rows = [
                _Row(
                    table[distance, piece.start : min(piece.stop, count), None],
                    self._places_beside(distance),
                )
                for distance, count in enumerate(counts)
                if count > piece.start
            ]
            yield rows, [self._places_around(c) for c in combinations[piece]]

    def _places_beside(self, distance: int) -> list[int]:
        """Where in a band the pixels are, ahead of the lattice points and behind."""
        rest = self.points // self.lattice.params_size[0]
        return [
            (offset * self.sizes[0] + cell) * rest
            for offset, cell in self._sides(distance)
        ]

    def _places_around(self, distances: Sequence[int]) -> list[int]:
        """Where the pixels are for each choice of a side along each other axis."""
        shape = [self.lattice.step] * self.lattice.dims + self.sizes
        strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        offsets = strides[1 : self.lattice.dims]
        cells = strides[self.lattice.dims + 1 :]
        return [
            sum(
                offset * a + cell * b
                for (offset, cell), a, b in zip(sides, offsets, cells, strict=True)
            )
            for sides in itertools.product(*map(self._sides, distances))
        ]

    def _sides(self, distance: int) -> list[tuple[int, int]]:
        """Offset and cell of the first lattice point's pixels, ahead and behind.

        Windows end a whole number of cells behind.
        """
        step, radius = self.lattice.step, self.lattice.radius
        signs = (1, -1) if 0 < distance <= step * radius else (1,)
        return [
            (sign * distance % step, self.first + sign * distance // step)
            for sign in signs
        ]


def _quarter(
    lattice: Lattice, kernel: Callable[[Tensor], Tensor]
) -> tuple[Tensor, list[list[int]]]:
    """The kernel by distance along the first axis and combination of the others.

    Combinations come in the order of their length, so that those that the kernel
    reaches at a distance along the first axis are the first ones. What it does not
    reach at all is left out.
    """
    side = torch.arange(lattice.step * (lattice.radius + 1))
    others = torch.cartesian_prod(*[side] * (lattice.dims - 1), side[:1])
    others = others.view(-1, lattice.dims)
    squares, order = others.square().sum(1).sort(stable=True)
    table = kernel(outer_sum(side.square(), squares))
    ends = [int(table.any(axis).nonzero().max()) + 1 for axis in (1, 0)]
    return table[: ends[0], : ends[1]], others[order[: ends[1]], :-1].tolist()


def _sum_into(target: Tensor, terms: Sequence[Tensor]) -> None:
    """Fill the target with the sum of one or more tensors."""
    target = target.view(terms[0].shape)
    if len(terms) == 1:
        target.copy_(terms[0])
        return
    torch.add(terms[0], terms[1], out=target)
    for term in terms[2:]:
        target += term


def is_zero(temperature: float, dtype: torch.dtype) -> bool:
    """Whether 1 / temperature passes the range of the type: then it is the maximum."""
    return temperature < torch.finfo(dtype).tiny
