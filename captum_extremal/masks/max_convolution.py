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

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from captum_extremal._base.axes import lattice_step
from captum_extremal._base.checks import (
    check_callable,
    check_choice,
    check_count,
    check_floating,
    check_non_negative,
    check_positive,
    check_shape,
)
from captum_extremal.masks._engines import (
    LOG2_E,
    MAX_EXPONENT,
    Engine,
    Gather,
    MaxConvolution,
    Spread,
    is_zero,
)
from captum_extremal.masks.lattice import Lattice, box

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
    if is_zero(temperature, values.dtype):
        return values.amax(dim)
    if math.isinf(temperature):
        return values.mean(dim)
    shifted = values - values.detach().amax(dim, keepdim=True)  # exp stays in range
    weights = (shifted / temperature).exp()
    return (weights * values).sum(dim) / weights.sum(dim)


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
    """Lattice spacing: 7 pixels at 224, in proportion to the sides' geometric mean.

    224 and 7 are the published settings; the proportion is ours. At least 1.

    Args:
        size: Spatial size of the mask in pixels.

    Returns:
        The spacing in pixels.

    Example:
        >>> [default_step(size) for size in ((224, 224), (480, 320), (32, 32), (10,))]
        [7, 12, 1, 1]
    """
    return lattice_step(float(math.prod(size) ** (1 / len(size))))


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
        self._lattice = Lattice(size, step, margin, self._kernel.reach * sigma)
        self._engines: dict[tuple[str, torch.dtype, torch.device], Engine] = {}

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
        mask = MaxConvolution.apply(params, engine, self._temperature)
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
        return box(canvas_mask, first_axis, self.margin, self.size)

    def extra_repr(self) -> str:
        """The settings, as `repr` shows them."""
        settings = [f"{self.size}, step={self.step}, sigma={self.sigma}"]
        settings.append(f"temperature={self.temperature}, profile={self.profile!r}")
        if self.margin:
            settings.append(f"margin={self.margin}")
        return ", ".join(settings)

    def _check_params(self, params: Tensor) -> None:
        if params.dtype not in MAX_EXPONENT:
            raise TypeError(f"params must be float32 or float64, got {params.dtype}")
        check_shape("params", params, "K 1 *S", S=self.params_size)

    def _engine(self, params: Tensor) -> Engine:
        """The faster way to the same mask; its tables are made once."""
        spreads = (
            params.device.type == "cpu"
            and self.margin % self.step == 0
            and self._temperature * MAX_EXPONENT[params.dtype] >= LOG2_E
        )
        key = ("spread" if spreads else "gather", params.dtype, params.device)
        if key not in self._engines:
            make: Callable[..., Engine] = Spread if spreads else Gather
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
