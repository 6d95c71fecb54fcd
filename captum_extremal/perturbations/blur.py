r"""Input (N, C, *S) -> the same input, blurred by a normalised Gaussian (Sec. 3.4).

.. math::
    \pi_g(x; u, \sigma) =
        \frac{\sum_v g_\sigma(u - v)\, x(v)}{\sum_v g_\sigma(u - v)},
    \qquad g_\sigma(u) = e^{-\|u\|^2 / (2 \sigma^2)}

Both sums run over the pixels of the input and no others, so that nothing is assumed
beyond its border: a constant input stays constant up to the edge, and ``sigma`` may be
larger than the input. The kernel is a product over the axes and so is its sum; hence
one axis is blurred after the other.

Along a short axis all weights are written down, in one matrix. Along a long one a pixel
costs the same whatever the size and sigma, since blurs add up by their squares: a first
one as wide as ``step`` pixels keeps every ``step``-th value, the second one, as wide as
:math:`\sqrt{\sigma^2 - 2\,step^2}` pixels, has only these to do, and a third one, again
as wide as ``step``, fills the gaps. Together they differ from the formula by less than
1e-5 of the range of the input, and stay inside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from captum_extremal._base.checks import check_choice, check_non_negative, check_spatial

Border = Literal["normalised", "fade"]

# One CPU thread, sigma 9 % of the size: 224 x 224 x 3 in 4 ms with matrices, in 8 ms by
# steps; 512 x 512 x 3 in 24 and 10 ms; 1024 x 1024 x 3 in 180 and 35 ms.
_LARGEST_MATRIX = 512
_SMALL = 128  # length up to which a matrix costs no more than steps
_REACH = 5  # standard deviations that a kernel of an intermediate blur is followed
_STEP = 0.4  # of sigma: the error of leaving out values between is below 1e-6
_LARGEST_STEP = 64  # keeps the matrices small
_BLOCK = 16  # values of the coarse grid in a block


def gaussian_blur(
    inputs: Tensor,
    sigma: float | Sequence[float],
    border: Border = "normalised",
) -> Tensor:
    """Blur every channel of every example with the same Gaussian.

    Args:
        inputs: Images, series or volumes; differentiable. A NaN or an infinity spreads
            along the lines that it lies on: from end to end where they have at most
            512 pixels, else as far as the Gaussian is to be seen, or somewhat further.
        sigma: Standard deviation in pixels of ``inputs``, one for all axes or one for
            each spatial axis. 0 is the identity, of an axis as well; the limit of large
            values is the mean over all pixels.
        border: ``"normalised"`` divides by the sum of the kernel over the pixels of the
            input (the formula above). ``"fade"`` divides by its sum over an unlimited
            lattice, as if zeros lay around the input, so that it darkens there.

    Returns:
        The blurred inputs, of their shape, dtype and device. Types shorter than float32
        are computed in float32, also under autocast.

    Raises:
        TypeError: If ``inputs`` is not a floating point tensor.
        ValueError: If ``inputs`` has not 1, 2 or 3 spatial sizes, ``sigma`` is negative
            or not finite or has not as many numbers, or ``border`` is unknown.

    Shape:
        (N, C, *S) -> (N, C, *S) with 1, 2 or 3 spatial sizes.

    Example:
        >>> import torch
        >>> line = torch.tensor([[[0.0, 0.0, 1.0, 0.0]]])
        >>> gaussian_blur(line, sigma=1.0)
        tensor([[[0.0772, 0.2583, 0.4258, 0.3460]]])
        >>> gaussian_blur(torch.ones(1, 1, 4), sigma=9.0)
        tensor([[[1., 1., 1., 1.]]])
        >>> gaussian_blur(torch.ones(1, 1, 4), sigma=1.0, border="fade")
        tensor([[[0.6993, 0.9369, 0.9369, 0.6993]]])
        >>> two_leads = torch.tensor([[[[0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]]]])
        >>> gaussian_blur(two_leads, sigma=(0, 1.0))
        tensor([[[[0.0772, 0.2583, 0.4258, 0.3460],
                  [0.0000, 0.0000, 0.0000, 0.0000]]]])
    """
    check_spatial("inputs", inputs)
    sigmas = check_sigmas("sigma", sigma, inputs.dim() - 2)
    check_border(border)
    if not any(sigmas):
        return inputs.clone()
    blurred = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
    with torch.autocast(inputs.device.type, enabled=False):
        blurred = _blur(blurred, sigmas, border)
    return blurred.to(inputs.dtype)


def check_sigmas(
    name: str, sigma: float | Sequence[float], num_axes: int
) -> tuple[float, ...]:
    """One standard deviation for each spatial axis.

    Example:
        >>> check_sigmas("sigma", 2, num_axes=2), check_sigmas("sigma", (2, 0), 2)
        ((2.0, 2.0), (2.0, 0.0))
        >>> check_sigmas("sigma", (1, 2, 3), num_axes=2)
        Traceback (most recent call last):
        ...
        ValueError: sigma must be one number or one for each of 2 spatial sizes, got 3
    """
    if not isinstance(sigma, list | tuple):
        return (check_non_negative(name, sigma),) * num_axes  # type: ignore[arg-type]
    if len(sigma) != num_axes:
        raise ValueError(
            f"{name} must be one number or one for each of {num_axes} spatial sizes, "
            f"got {len(sigma)}"
        )
    return tuple(check_non_negative(name, each) for each in sigma)


def check_border(border: str) -> None:
    """One of the ways to treat the border of the input.

    Example:
        >>> check_border("mirror")
        Traceback (most recent call last):
        ...
        ValueError: border must be 'normalised' or 'fade', got 'mirror'
    """
    check_choice("border", border, get_args(Border))


def _blur(images: Tensor, sigmas: Sequence[float], border: Border) -> Tensor:
    """Blur (N, C, *S): short axes by the formula, while the long ones are coarse."""
    axes = {axis: sigma for axis, sigma in enumerate(sigmas, start=2) if sigma}
    long = [axis for axis in axes if images.shape[axis] > _LARGEST_MATRIX]
    normalisers = {
        axis: _long_normaliser(images.shape[axis], axes[axis], border).to(images)
        for axis in long
    }

    def along_short_axes(values: Tensor) -> Tensor:
        for axis, sigma in axes.items():
            if axis not in long:
                lines = _by_matrix(values.movedim(axis, -1), sigma, border)
                values = lines.movedim(-1, axis)
        return values

    images = _by_steps(images, [(axis, axes[axis]) for axis in long], along_short_axes)
    for axis, normaliser in normalisers.items():
        images.div_(normaliser.view(-1, *[1] * (images.dim() - 1 - axis)))
    return images.contiguous()


def _normaliser(sigma: float, size: int, border: Border) -> Tensor:
    """What the sum over the pixels of a line is divided by, (size,) float64."""
    profile = _profile(sigma, size)
    if border == "fade":
        return torch.full_like(profile, _sum_over_lattice(sigma))
    one_side = profile.cumsum(dim=0)
    return one_side + one_side.flip(0) - 1


def _profile(sigma: float, size: int) -> Tensor:
    """g(0), g(1), .., g(size - 1)."""
    distances = torch.arange(size, dtype=torch.float64)
    return torch.exp(-((distances / sigma) ** 2) / 2)


def _sum_over_lattice(sigma: float) -> float:
    """Sum of g over all integers; above sigma 2 it equals the integral to 34 digits."""
    if sigma > 2:
        return math.sqrt(2 * math.pi) * sigma
    return 2 * float(_profile(sigma, 20).sum()) - 1


def _by_matrix(lines: Tensor, sigma: float, border: Border) -> Tensor:
    """Multiply the last axis by W(u, v) = g(u - v) / normaliser(u)."""
    size = lines.shape[-1]
    # On the CPU, since not every device has float64.
    profile, normaliser = _profile(sigma, size), _normaliser(sigma, size, border)
    pixels = torch.arange(size)
    weights = profile[(pixels[:, None] - pixels).abs()] / normaliser[:, None]
    return lines @ weights.T.to(lines)


# --- long axes ---


def _long_normaliser(size: int, sigma: float, border: Border) -> Tensor:
    """What the outcome of `_by_steps` is divided by, (size,) float64.

    Its weights share a factor that nobody needs to know: it is in those of a line of
    ones too, whose sums are known by the formula.
    """
    ones = torch.ones(size, dtype=torch.float64)
    sums = _by_steps(ones, [(0, sigma)])
    if border == "fade":
        sums *= _sum_over_lattice(sigma) / _normaliser(sigma, size, "normalised")
    return sums


def _by_steps(
    values: Tensor,
    todo: Sequence[tuple[int, float]],
    inmost: Callable[[Tensor], Tensor] = lambda values: values,
) -> Tensor:
    """Sums with the weights of Gaussians along some axes, as if zeros lay around.

    Args:
        values: Of any shape.
        todo: Axes and their standard deviations. The last is reduced first, and all of
            them before any is enlarged again.
        inmost: Done to the smallest values.
    """
    if not todo:
        return inmost(values)
    *others, (axis, sigma) = todo
    size = values.shape[axis]
    step = min(int(_STEP * sigma), _LARGEST_STEP)
    if step < 2 or size <= _SMALL:
        reach = min(math.ceil(_REACH * sigma), size - 1)
        blocks = _Blocks(size, 1, reach, sigma)
        summed = blocks.reduce(values, axis).narrow(axis, reach, size)
        return _by_steps(summed, others, inmost)
    blocks = _Blocks(size, step, _REACH, sigma=1.0)
    ratio = sigma / blocks.step
    rest = math.sqrt(1 - 2 / ratio**2) * ratio
    coarse = blocks.reduce(values, axis)
    return blocks.enlarge(_by_steps(coarse, [(axis, rest), *others], inmost), axis)


class _Blocks:
    """A line of pixels in blocks, and a coarse grid of points.

    The grid starts ``reach`` steps before the first pixel and ends as many behind the
    last block. A pixel and a point see each other up to a distance of ``reach`` steps,
    with the weight of a Gaussian of ``sigma`` steps.

    Args:
        size: Pixels.
        step: Pixels from one point to the next, at most.
        reach: Of the Gaussian, in steps.
        sigma: Of the Gaussian, in steps.
    """

    def __init__(self, size: int, step: int, reach: int, sigma: float) -> None:
        self.size = size
        self.reach = reach
        number = max(1, round(size / step / max(_BLOCK, 2 * reach)))
        # Blocks without a rest need no copy.
        even = (more for more in range(number, 2 * number) if size % more == 0)
        self.number = next(even, number)
        pixels = math.ceil(size / self.number)
        self.points = math.ceil(pixels / step)  # within a block
        self.step = pixels / self.points
        places = torch.arange(-reach, self.points + reach, dtype=torch.float64)
        distances = (torch.arange(pixels) / self.step - places[:, None]).abs()
        weights = torch.exp(-((distances / sigma) ** 2) / 2)
        weights = weights.where(distances <= reach, 0)
        self.weights = weights / weights.sum(dim=1).max()

    def reduce(self, values: Tensor, axis: int) -> Tensor:
        """Pixels -> the points of the grid."""
        before, _, after = _around(values, axis)
        lines = values.reshape(before, self.size, after)
        rest = self.number * self.weights.shape[1] - self.size
        if rest:
            lines = F.pad(lines, (0, 0, 0, rest))
        sums = _times(self.weights, lines.unflatten(1, (self.number, -1)))
        # Points near the end of a block are seen by the next blocks too.
        seen = -(-sums.shape[2] // self.points)
        total = sums.new_zeros(before, self.number + seen - 1, self.points, after)
        for place, part in enumerate(sums.split(self.points, dim=2)):
            total[:, place : place + self.number, : part.shape[2]] += part
        points = total.flatten(1, 2)[:, : self.number * self.points + 2 * self.reach]
        return points.reshape(*values.shape[:axis], -1, *values.shape[axis + 1 :])

    def enlarge(self, values: Tensor, axis: int) -> Tensor:
        """The points of the grid -> pixels."""
        shape = _around(values, axis)
        points = values.reshape(shape).unfold(1, len(self.weights), self.points)
        lines = _times(self.weights.T, points.transpose(2, 3)).flatten(1, 2)
        lines = lines[:, : self.size]
        return lines.reshape(*values.shape[:axis], -1, *values.shape[axis + 1 :])


def _around(values: Tensor, axis: int) -> tuple[int, int, int]:
    """Numbers before, along and behind an axis, as sizes."""
    sizes = values.shape
    return math.prod(sizes[:axis]), sizes[axis], math.prod(sizes[axis + 1 :])


def _times(weights: Tensor, lines: Tensor) -> Tensor:
    """Multiply the axis before the last, (.., from, n) -> (.., to, n)."""
    weights = weights.to(lines)
    if lines.shape[-1] == 1:  # fewer and larger products
        return (lines.squeeze(-1) @ weights.T).unsqueeze(-1)
    return weights @ lines
