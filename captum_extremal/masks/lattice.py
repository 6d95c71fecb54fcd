"""The geometry of App. A.1: lattice points, cells of pixels, and who sees whom."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor
from torch.nn import functional as F

LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}
"""Modes of `torch.nn.functional.interpolate` by the number of spatial axes."""


@dataclass(frozen=True)
class Lattice:
    """App. A.1: which lattice points a pixel sees.

    The canvas is cut into cells of ``step`` pixels. All pixels of the cell ``c`` see
    the lattice points ``c - first + k``, ``0 <= k < window``, on each axis; the lattice
    point ``i`` sits on the canvas' pixel ``step * i + margin``.

    Attributes:
        size: Spatial size of the mask.
        step: s of A.1.
        margin: b of A.1.
        reach: sigma of A.1, how far the kernel must be followed, in pixels.
    """

    size: tuple[int, ...]
    step: int
    margin: int
    reach: float

    @property
    def dims(self) -> int:
        """Number of axes."""
        return len(self.size)

    @cached_property
    def params_size(self) -> tuple[int, ...]:
        """N of A.1."""
        return tuple(-(-side // self.step) for side in self.size)

    @cached_property
    def radius(self) -> int:
        """R of A.1."""
        return 1 + math.ceil(self.reach / self.step)

    @cached_property
    def first(self) -> int:
        """P of A.1."""
        return 1 + math.ceil((self.reach + self.margin) / self.step)

    @property
    def window(self) -> int:
        """K of A.1. Derived there for margins near sigma, it is enough for any."""
        return 2 * self.radius + 1

    @cached_property
    def canvas_size(self) -> tuple[int, ...]:
        """W'' of A.1 less s - 1, and never less than the mask needs."""
        spare = 2 * self.first - self.window
        return tuple(
            max(self.step * (points + spare) + 1, self.margin + side)
            for points, side in zip(self.params_size, self.size, strict=True)
        )

    @cached_property
    def cells(self) -> tuple[int, ...]:
        """Steps that the canvas takes, along each axis."""
        return tuple(-(-side // self.step) for side in self.canvas_size)

    def to_canvas(self, pixels: Tensor) -> Tensor:
        """(K, *cells, *[step] * dims) -> (K, 1, *canvas)."""
        axes = range(1, self.dims + 1)
        order = itertools.chain.from_iterable((a, a + self.dims) for a in axes)
        full = [cells * self.step for cells in self.cells]
        canvas = pixels.permute(0, *order).reshape(len(pixels), 1, *full)
        return box(canvas, 2, 0, self.canvas_size)

    def to_cells(self, canvas: Tensor) -> Tensor:
        """(K, 1, *canvas) -> (K, *cells, *[step] * dims); 0 beyond the canvas."""
        missing = [
            cells * self.step - side
            for cells, side in zip(self.cells, self.canvas_size, strict=True)
        ]
        full = F.pad(canvas, pad_after(missing))
        split = [item for cells in self.cells for item in (cells, self.step)]
        axes = range(1, 2 * self.dims, 2)
        order = (0, *axes, *(axis + 1 for axis in axes))
        return full.reshape(len(canvas), *split).permute(order)


def box(tensor: Tensor, axis: int, start: int, lengths: Sequence[int]) -> Tensor:
    """A view of so many items from `start` on of the axes from `axis` on."""
    for place, length in enumerate(lengths, start=axis):
        tensor = tensor.narrow(place, start, length)
    return tensor


def pad_after(amounts: Sequence[int]) -> list[int]:
    """What `F.pad` wants for zeros at the end of each of the last axes."""
    return [item for amount in reversed(amounts) for item in (0, amount)]


def outer_sum(*axes: Tensor) -> Tensor:
    """The sums of one item of each axis, one dimension per axis."""
    total = axes[0]
    for axis in axes[1:]:
        total = total.unsqueeze(-1) + axis
    return total
