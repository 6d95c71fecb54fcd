r"""Few mask parameters in, a smooth mask out: the smooth max-convolution of the paper.

A coarse lattice of parameters, one point every ``step`` pixels, is turned into a mask
of the size of the input. Each lattice point :math:`v` carries a disk, the radial kernel
:math:`k(\|u - v\| / \sigma)`, as high as its parameter; the mask at the pixel :math:`u`
is the smooth maximum of the disks that reach it (paper eq. 6 and 7, App. A.1):

.. math::

    f_v = k(\|u - v\| / \sigma) \, \bar m(v), \qquad
    m(u) = \frac{\sum_v f_v \exp(f_v / T)}{\sum_v \exp(f_v / T)}

Unlike a convolution (eq. 5), the maximum lets a parameter of 1 give a mask of 1, and it
still bounds the slope of the mask by that of the kernel (Lemma 1).

Convention:
    Mask 1 = kept, 0 = fully perturbed. Coordinates are (row, column), pixel centres at
    integers; the lattice point ``i`` of an axis sits on the pixel ``step * i``.
    ``sigma`` and ``step`` are in pixels of the mask.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from captum_extremal._checks import (
    check_callable,
    check_choice,
    check_count,
    check_floating,
    check_non_negative,
    check_positive,
)

__all__ = [
    "MaskGenerator",
    "Profile",
    "default_sigma",
    "default_step",
    "profile_paper",
    "profile_smooth",
    "profile_torchray",
    "smooth_max",
]

Profile = str | Callable[[Tensor], Tensor]


# --- the smooth maximum ---


def smooth_max(
    values: Tensor, temperature: float, dim: int | tuple[int, ...] = -1
) -> Tensor:
    r"""The mean of the values weighted by :math:`\exp(v / T)` (paper eq. 7).

    From the mean (:math:`T \to \infty`) to the maximum (:math:`T \to 0`); its gradients
    are spread over all values where those of the maximum reach one alone.

    Args:
        values: Floating tensor of any shape.
        temperature: T, in the unit of the values; 0 is the maximum itself (ties share
            its gradient), ``math.inf`` the mean. The paper's masks use 1 / 20.
        dim: Dimension or dimensions to reduce.

    Returns:
        The smooth maximum, between the mean and the maximum of the values.

    Raises:
        TypeError: If the values are not a floating point tensor.
        ValueError: If the temperature is negative or NaN.

    Shape:
        values ``(*, n, *)`` -> ``(*, *)``, without the dimensions in ``dim``.

    Example:
        >>> values = torch.tensor([0.0, 0.5, 1.0])
        >>> [round(smooth_max(values, t).item(), 3) for t in (0, 0.05, 1, math.inf)]
        [1.0, 1.0, 0.66, 0.5]
    """
    check_floating("values", values)
    if not temperature >= 0:
        raise ValueError(f"temperature must be at least 0, got {temperature}")
    if _is_zero(temperature, values.dtype):
        return values.amax(dim)
    if math.isinf(temperature):
        return values.mean(dim)
    shifted = values - values.detach().amax(dim, keepdim=True)  # exp stays in range
    weights = (shifted / temperature).exp()
    return (weights * values).sum(dim) / weights.sum(dim)


def _is_zero(temperature: float, dtype: torch.dtype) -> bool:
    """Whether 1 / temperature passes the range of the type: then it is the maximum."""
    return temperature < torch.finfo(dtype).tiny


# --- radial profiles ---


def profile_smooth(z: Tensor) -> Tensor:
    """Raised cosine: 1 up to z = 0.5, 0.5 at z = 1, exactly 0 from z = 1.5 on (ours).

    It ends inside the window that is summed over, so that the mask has no jumps where
    the window moves on by a lattice point. Its steepest slope is pi / 2.

    Args:
        z: Distance from the lattice point in units of sigma, at least 0.

    Returns:
        The kernel's values in [0, 1], in the shape of ``z``.

    Example:
        >>> profile_smooth(torch.tensor([0.0, 0.5, 1.0, 1.5, 9.0]))
        tensor([1.0000, 1.0000, 0.5000, 0.0000, 0.0000])
    """
    fall = 0.5 + 0.5 * torch.cos(math.pi * (z - 0.5).clamp(0, 1))
    return torch.where(z < 1.5, fall, torch.zeros_like(z))


def profile_paper(z: Tensor) -> Tensor:
    """exp(-max(0, z - 1)^2 / 4), as in the paper's Sec. 4 (printed without the minus).

    Its steepest slope is exp(-1/2) / sqrt(2), about 0.43, at z = 1 + sqrt(2).

    Args:
        z: Distance from the lattice point in units of sigma, at least 0.

    Returns:
        The kernel's values in (0, 1], in the shape of ``z``.

    Example:
        >>> profile_paper(torch.tensor([0.0, 1.0, 2.0]))
        tensor([1.0000, 1.0000, 0.7788])
    """
    return torch.exp(-(z - 1).clamp(min=0).square() / 4)


def profile_torchray(z: Tensor) -> Tensor:
    """exp(-2 max(0, z - 0.5)^2), the kernel of TorchRay's published code.

    Its steepest slope is 2 exp(-1/2), about 1.21, at z = 1.

    Args:
        z: Distance from the lattice point in units of sigma, at least 0.

    Returns:
        The kernel's values in (0, 1], in the shape of ``z``.

    Example:
        >>> profile_torchray(torch.tensor([0.0, 0.5, 1.0]))
        tensor([1.0000, 1.0000, 0.6065])
    """
    return torch.exp(-2 * (z - 0.5).clamp(min=0).square())


@dataclass(frozen=True)
class _Kernel:
    """A profile with what must be known of it, all in units of sigma.

    Attributes:
        function: z -> value.
        lipschitz: Its steepest slope.
        reach: A.1's "radius": only lattice points up to this distance must be summed.
    """

    function: Callable[[Tensor], Tensor]
    lipschitz: float
    reach: float


_KERNELS = {
    "smooth": _Kernel(profile_smooth, math.pi / 2, 1.5),
    "paper": _Kernel(profile_paper, math.exp(-0.5) / math.sqrt(2), 1.0),
    "torchray": _Kernel(profile_torchray, 2 * math.exp(-0.5), 1.0),
}
# A callable is measured at this many points per sigma, up to this many sigmas, and ends
# where it has come down to this value.
_POINTS_PER_SIGMA = 4096
_LONGEST_REACH = 8
_SMALLEST_VALUE = 1e-4


def _kernel_of(profile: Profile) -> _Kernel:
    """The known kernel of that name or function, or a measured one."""
    if isinstance(profile, str):
        check_choice("profile", profile, _KERNELS)
        return _KERNELS[profile]
    check_callable("profile", profile)
    known = (kernel for kernel in _KERNELS.values() if kernel.function is profile)
    return next(known, None) or _measured_kernel(profile)


def _measured_kernel(profile: Callable[[Tensor], Tensor]) -> _Kernel:
    """Slope and reach of a callable, on a fine grid."""
    count = _LONGEST_REACH * _POINTS_PER_SIGMA + 1
    z = torch.linspace(0, _LONGEST_REACH, count, dtype=torch.float64)
    values = profile(z)
    if values.shape != z.shape:
        raise ValueError(
            "profile must return a tensor of the shape of its argument, "
            f"{tuple(z.shape)}, got {tuple(values.shape)}"
        )
    low, high, centre = values.min().item(), values.max().item(), values[0].item()
    if not (low >= 0 and high <= 1 and centre == 1):
        raise ValueError(
            "profile must return values in [0, 1] and 1 at z = 0, "
            f"got values in [{low:g}, {high:g}] and {centre:g} at z = 0"
        )
    slope = values.diff().abs().max().item() * _POINTS_PER_SIGMA
    reach = z[values > _SMALLEST_VALUE].max().item()
    return _Kernel(profile, slope, max(reach, 1 / _POINTS_PER_SIGMA))


# --- defaults ---


def default_step(size: Sequence[int]) -> int:
    """Lattice spacing: 7 pixels at 224, in proportion to the smallest side.

    224 and 7 are the published settings; the proportion is ours. At least 1.

    Args:
        size: Spatial size of the mask in pixels.

    Returns:
        The spacing in pixels.

    Example:
        >>> [default_step(size) for size in ((224, 224), (480, 320), (32, 32), (10,))]
        [7, 10, 1, 1]
    """
    return max(1, round(7 / 224 * min(size)))


def default_sigma(step: int) -> float:
    """Kernel width: three lattice spacings, as published (21 pixels at 224).

    Args:
        step: Lattice spacing in pixels.

    Returns:
        The width in pixels.

    Example:
        >>> default_sigma(default_step((224, 224)))
        21.0
    """
    return 3.0 * step


# --- the module ---


class MaskGenerator(nn.Module):
    """Turns mask parameters on a coarse lattice into smooth masks (Sec. 3.5, App. A.1).

    Along each axis a pixel sees the window of lattice points of App. A.1: those that
    the kernel reaches and a few more. Points outside the lattice count as parameters
    of 0, in the denominator of the smooth maximum too. Values agree with those of the
    published code at its settings,
    ``MaskGenerator((224, 224), 7, 21, profile="torchray", margin=21)``.

    The published kernels ("paper", "torchray") are not yet 0 where their window ends,
    one sigma and a part of a cell away. There the mask jumps from one cell of ``step``
    pixels to the next, and Lemma 1's bound on its slope holds inside the cells only.
    The default kernel ends inside its window, and the bound holds everywhere.

    The mask can be differentiated once: second derivatives raise an error.

    Args:
        size: Spatial size of the mask, 1 to 3 axes.
        step: Lattice spacing in pixels; None for `default_step`.
        sigma: Kernel width in pixels; None for `default_sigma`.
        temperature: T of the smooth maximum; the paper's 1 / 20. 0 is the maximum
            itself, whose gradient ties share. May be set anew between two calls.
        profile: The kernel as a function of z = distance / sigma: "smooth" (ours,
            `profile_smooth`), "paper" (`profile_paper`), "torchray"
            (`profile_torchray`), or a callable from a float64 tensor of distances to
            values in [0, 1], 1 at 0. The slope of a callable is measured at 4096 points
            per sigma, and it is taken to end where it has come down to 1e-4, at most 8
            sigmas away.
        margin: Pixels that the canvas starts before the mask, for losses that count a
            border around it. 0: the canvas is the mask. None: sigma, rounded up, as in
            the published code. A multiple of the step changes no value of the mask;
            others shift the cells, and thus the windows, as in the published code.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of range; the text names it.

    Shape:
        params ``(K, 1, *params_size)`` -> ``(K, 1, *canvas_size)``.

    Example:
        >>> generator = MaskGenerator((224, 224))
        >>> generator.step, generator.sigma, generator.params_size
        (7, 21.0, (32, 32))
        >>> params = torch.zeros(1, 1, *generator.params_size)
        >>> params[0, 0, 16, 16] = 1  # one disk, centred on the pixel (112, 112)
        >>> mask = generator(params)
        >>> mask.shape
        torch.Size([1, 1, 224, 224])
        >>> mask[0, 0, 112, 112:152:10].round(decimals=3)
        tensor([1.0000, 1.0000, 0.5740, 0.0000])

    References:
        Fong, Patrick and Vedaldi, "Understanding Deep Networks via Extremal
        Perturbations and Smooth Masks", 2019, Sec. 3.5 and App. A.1.
    """

    def __init__(
        self,
        size: Sequence[int],
        step: int | None = None,
        sigma: float | None = None,
        temperature: float = 0.05,
        profile: Profile = "smooth",
        margin: int | None = 0,
    ) -> None:
        super().__init__()
        size = _checked_size(size)
        step = default_step(size) if step is None else check_count("step", step)
        sigma = default_sigma(step) if sigma is None else sigma
        sigma = check_positive("sigma", sigma)
        margin = math.ceil(sigma) if margin is None else margin
        margin = check_count("margin", margin, minimum=0)
        self.profile = profile
        self.temperature = temperature
        self._sigma = sigma
        self._kernel = _kernel_of(profile)
        self._lattice = _Lattice(size, step, margin, self._kernel.reach * sigma)
        self._engines: dict[tuple[str, torch.dtype, torch.device], _Engine] = {}

    @property
    def size(self) -> tuple[int, ...]:
        """Spatial size of the mask."""
        return self._lattice.size

    @property
    def step(self) -> int:
        """Lattice spacing in pixels."""
        return self._lattice.step

    @property
    def sigma(self) -> float:
        """Kernel width in pixels."""
        return self._sigma

    @property
    def temperature(self) -> float:
        """Temperature of the smooth maximum."""
        return self._temperature

    @temperature.setter
    def temperature(self, value: float) -> None:
        self._temperature = check_non_negative("temperature", value)

    @property
    def margin(self) -> int:
        """Pixels of the canvas before the mask, on each axis."""
        return self._lattice.margin

    @property
    def params_size(self) -> tuple[int, ...]:
        """Size of the lattice: the sides divided by the step, rounded up."""
        return self._lattice.params_size

    @property
    def canvas_size(self) -> tuple[int, ...]:
        """Size of what `forward` returns: the mask with its margin (App. A.1)."""
        return self._lattice.canvas_size

    @property
    def lipschitz(self) -> float:
        """The most that the mask can change per pixel at T -> 0 (Lemma 1).

        That is the steepest slope of the kernel. With the published kernels it holds
        inside the cells of ``step`` pixels, see the class.
        """
        return self._kernel.lipschitz / self._sigma

    def forward(self, params: Tensor) -> Tensor:
        """The smooth masks of the parameters.

        Args:
            params: Mask parameters in [0, 1], float32 or float64, on any device.

        Returns:
            Masks in [0, 1] on the canvas, in the type and on the device of ``params``.

        Raises:
            TypeError: If the parameters are neither float32 nor float64.
            ValueError: If the parameters are not of the lattice's size.

        Shape:
            ``(K, 1, *params_size)`` -> ``(K, 1, *canvas_size)``.
        """
        self._check_params(params)
        engine = self._engine(params)
        mask = _MaxConvolution.apply(params, engine, self._temperature)
        return cast(Tensor, mask)

    def crop(self, canvas_mask: Tensor) -> Tensor:
        """The mask itself, without its margin.

        Args:
            canvas_mask: What `forward` returned.

        Returns:
            A view of the ``size`` pixels that start ``margin`` pixels into the canvas;
            with ``margin=0`` the argument itself.

        Raises:
            ValueError: If the argument is not of the canvas' size.

        Shape:
            ``(K, 1, *canvas_size)`` -> ``(K, 1, *size)``.

        Example:
            >>> generator = MaskGenerator((224, 224), profile="torchray", margin=21)
            >>> canvas = generator(torch.ones(1, 1, 32, 32))
            >>> canvas.shape, generator.crop(canvas).shape
            (torch.Size([1, 1, 260, 260]), torch.Size([1, 1, 224, 224]))
        """
        spatial = tuple(canvas_mask.shape[-len(self.size) :])
        if spatial != self.canvas_size:
            raise ValueError(
                f"canvas_mask must have the spatial size {self.canvas_size}, "
                f"got {spatial}"
            )
        if spatial == self.size:
            return canvas_mask
        first_axis = canvas_mask.ndim - len(self.size)
        return _box(canvas_mask, first_axis, self.margin, self.size)

    def extra_repr(self) -> str:
        """The settings, as `repr` shows them."""
        settings = [f"{self.size}, step={self.step}, sigma={self.sigma}"]
        settings.append(f"temperature={self.temperature}, profile={self.profile!r}")
        if self.margin:
            settings.append(f"margin={self.margin}")
        return ", ".join(settings)

    def _check_params(self, params: Tensor) -> None:
        if params.dtype not in _MAX_EXPONENT:
            raise TypeError(f"params must be float32 or float64, got {params.dtype}")
        if tuple(params.shape[1:]) != (1, *self.params_size):
            legal = ", ".join(str(side) for side in self.params_size)
            raise ValueError(
                f"params must have shape (K, 1, {legal}), got {tuple(params.shape)}"
            )

    def _engine(self, params: Tensor) -> _Engine:
        """The faster way to the same mask; its tables are made once."""
        spreads = (
            params.device.type == "cpu"
            and self.margin % self.step == 0
            and self._temperature * _MAX_EXPONENT[params.dtype] >= _LOG2_E
        )
        key = ("spread" if spreads else "gather", params.dtype, params.device)
        if key not in self._engines:
            make: Callable[..., _Engine] = _Spread if spreads else _Gather
            self._engines[key] = make(
                self._lattice, self._kernel_at, params.dtype, params.device
            )
        return self._engines[key]

    def _kernel_at(self, squared_distance: Tensor) -> Tensor:
        """The kernel at squared distances in pixels, float64."""
        distance = squared_distance.to(torch.float64).sqrt()
        return self._kernel.function(distance / self._sigma)


def _checked_size(size: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(size, Sequence) or not 1 <= len(size) <= 3:
        raise ValueError(f"size must be a sequence of 1 to 3 integers, got {size!r}")
    return tuple(check_count("size", side) for side in size)


# --- geometry: lattice points, cells and pixels ---


@dataclass(frozen=True)
class _Lattice:
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
        return tuple(-(-side // self.step) for side in self.canvas_size)

    def to_canvas(self, pixels: Tensor) -> Tensor:
        """(K, *cells, *[step] * dims) -> (K, 1, *canvas)."""
        axes = range(1, self.dims + 1)
        order = itertools.chain.from_iterable((a, a + self.dims) for a in axes)
        full = [cells * self.step for cells in self.cells]
        canvas = pixels.permute(0, *order).reshape(len(pixels), 1, *full)
        return _box(canvas, 2, 0, self.canvas_size)

    def to_cells(self, canvas: Tensor) -> Tensor:
        """(K, 1, *canvas) -> (K, *cells, *[step] * dims); 0 beyond the canvas."""
        missing = [
            cells * self.step - side
            for cells, side in zip(self.cells, self.canvas_size, strict=True)
        ]
        full = F.pad(canvas, _pad_after(missing))
        split = [item for cells in self.cells for item in (cells, self.step)]
        axes = range(1, 2 * self.dims, 2)
        order = (0, *axes, *(axis + 1 for axis in axes))
        return full.reshape(len(canvas), *split).permute(order)


def _box(tensor: Tensor, axis: int, start: int, lengths: Sequence[int]) -> Tensor:
    """A view of so many items from `start` on of the axes from `axis` on."""
    for place, length in enumerate(lengths, start=axis):
        tensor = tensor.narrow(place, start, length)
    return tensor


def _pad_after(amounts: Sequence[int]) -> list[int]:
    """What `F.pad` wants for zeros at the end of each of the last axes."""
    return [item for amount in reversed(amounts) for item in (0, amount)]


def _outer_sum(*axes: Tensor) -> Tensor:
    """The sums of one item of each axis, one dimension per axis."""
    total = axes[0]
    for axis in axes[1:]:
        total = total.unsqueeze(-1) + axis
    return total


# --- the smooth max-convolution and its gradient ---

_LOG2_E = math.log2(math.e)
_LN_2 = math.log(2)
# Up to this power of two the exponentials and their sums stay in range as they are.
_MAX_EXPONENT = {torch.float32: 60.0, torch.float64: 500.0}
# Elements of a working tensor: what fits the cache of a CPU; 64 MB of float32 in all on
# an accelerator, where large launches win.
_CPU_ELEMENTS = 1 << 17
_GPU_ELEMENTS = 1 << 21
_SHORTEST_ROW = 256


class _Engine(Protocol):
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


class _MaxConvolution(torch.autograd.Function):
    """Parameters -> mask, with the gradient worked out by hand.

    A tensor of pixels times lattice points, 16 MB per mask at the paper's settings, is
    never made: both directions go through pieces of it.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, params: Tensor, engine: _Engine, temperature: float
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


class _Gather:
    """Each pixel gathers its window: any temperature, margin and device.

    One table [pixels of a cell, window] of the kernel serves all cells. Pieces of the
    lattice are taken at a time: f = table * window, reduced over the window. Lattice
    points that no pixel of a cell reaches are left out of the table and counted in the
    denominator instead.
    """

    def __init__(
        self,
        lattice: _Lattice,
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


def _window_table(lattice: _Lattice, kernel: Callable[[Tensor], Tensor]) -> Tensor:
    """The kernel from each pixel of a cell to each lattice point of its window."""
    pixel = torch.arange(lattice.step).unsqueeze(1) - lattice.margin
    point = lattice.step * (torch.arange(lattice.window) - lattice.first)
    squares = (pixel - point).square().flatten()
    table = kernel(_outer_sum(*[squares] * lattice.dims))
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
    return _outer_sum(*axes).flatten()


def _per_mask(index: Tensor, count: int, numel: int) -> Tensor:
    """The same indices in each of `count` masks of `numel` elements."""
    masks = torch.arange(count, device=index.device) * numel
    return (masks.unsqueeze(1) + index).flatten()


def _pieces(length: int, piece: int) -> Iterator[slice]:
    return (slice(start, start + piece) for start in range(0, length, piece))


def _smooth_max_parts(values: Tensor, temperature: float, zeros: int) -> Tensor:
    """Smooth maximum, maximum and sum of weights of values and so many zeros."""
    top = values.amax(-1)
    if _is_zero(temperature, values.dtype):
        ties = (values == top.unsqueeze(-1)).sum(-1) + zeros * (top == 0)
        return torch.stack([top, top, ties.to(values.dtype)])
    weights = (values - top.unsqueeze(-1)).div_(temperature).exp_()
    total = weights.sum(-1).add_((top / -temperature).exp_(), alpha=zeros)
    return torch.stack([weights.mul_(values).sum(-1).div_(total), top, total])


def _smooth_max_slope(
    values: Tensor, mean: Tensor, top: Tensor, temperature: float
) -> Tensor:
    """The derivative of the smooth maximum by its values, times the sum of weights."""
    if _is_zero(temperature, values.dtype):
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


class _Spread:
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
        lattice: _Lattice,
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
        scale = _LOG2_E / temperature
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
        scale = _LOG2_E / temperature
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
        inner = _box(flat, 0, self.origin, self.lattice.params_size)
        inner.copy_(params.squeeze(1).movedim(0, -1))
        return flat.flatten().mul_(scale)

    def _unflatten_params(self, flat: Tensor, count: int) -> Tensor:
        points = flat.view(*self.sizes, count)
        inner = _box(points, 0, self.origin, self.lattice.params_size)
        return inner.movedim(-1, 0).unsqueeze(1)

    def _flatten_grad(self, grad: Tensor) -> Tensor:
        """(masks, 1, *canvas) -> (*offsets, n), 0 in the gaps."""
        dims = self.lattice.dims
        flat = grad.new_zeros(*self.offsets, *self.sizes, len(grad))
        order = (*range(dims + 1, 2 * dims + 1), *range(1, dims + 1), 0)
        cells = self.lattice.to_cells(grad).permute(order)
        _box(flat, dims, 0, self.lattice.cells).copy_(cells)
        return flat.flatten(dims)

    def _unflatten(self, flat: Tensor, count: int) -> Tensor:
        """(*offsets, n) -> (count, *cells, *offsets)."""
        pixels = flat.view(*self.offsets, *self.sizes, count)
        dims = self.lattice.dims
        order = (2 * dims, *range(dims, 2 * dims), *range(dims))
        return _box(pixels, dims, 0, self.lattice.cells).permute(order)


def _blocks(
    lattice: _Lattice, kernel: Callable[[Tensor], Tensor], strides: Sequence[int]
) -> Iterator[_Block]:
    """Blocks of distances with their taps, all but those where the kernel is 0.

    The block q of an axis holds the distances step * q to step * (q + 1).
    """
    steps = torch.arange(lattice.step + 1)
    blocks = range(lattice.radius + 1)
    for corner in itertools.combinations_with_replacement(blocks, lattice.dims):
        axes = [(lattice.step * q + steps).square() for q in corner]
        table = kernel(_outer_sum(*axes))
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
    lattice: _Lattice,
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
