r"""Input and mask -> perturbed input (Sec. 3.4): :math:`m \otimes x`.

A perturbation turns an input into L `levels`, from the most perturbed one to the input
itself, once. A mask then chooses at every pixel a position between two of them:

.. math::
    (m \otimes x)(u) = (1 - w)\, x_l(u) + w\, x_{l+1}(u),
    \qquad l + w = (L - 1)\, m(u), \quad 0 \le w < 1

Convention:
    - mask 1 keeps the input, mask 0 perturbs it fully;
    - level 0 is the most perturbed, the last level is the input.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from captum_extremal._base.axes import scaled
from captum_extremal._base.checks import (
    check_count,
    check_positive,
    check_spatial,
)
from captum_extremal.perturbations.apply import LARGE_IMAGE, Levels
from captum_extremal.perturbations.blur import (
    Border,
    check_border,
    check_sigmas,
    gaussian_blur,
)


@runtime_checkable
class Perturbation(Protocol):
    """Whatever can perturb an input to several degrees.

    Example:
        >>> import torch
        >>> class Negative:
        ...     def levels(self, inputs):
        ...         return torch.stack([-inputs, inputs], dim=1)
        >>> isinstance(Negative(), Perturbation)
        True
    """

    def levels(self, inputs: Tensor) -> Tensor:
        """The perturbed versions of each input, without gradient.

        Args:
            inputs: (N, C, *S), or (N, F) of a table (with a ``feature_mask``).

        Returns:
            (N, L, C, *S) with L >= 2: the most perturbed version first, the input
            itself, bit for bit, last.
        """
        ...


def levels_of(perturbation: Perturbation, inputs: Tensor) -> Tensor:
    """The levels of a perturbation that may be the caller's: checked, of a copy.

    Example:
        >>> import torch
        >>> class Forgets:
        ...     def levels(self, inputs):
        ...         return inputs[:, None]
        >>> levels_of(Forgets(), torch.ones(1, 1, 4))
        Traceback (most recent call last):
        ...
        ValueError: perturbation must return levels of shape (N, L, C, *S) with L >= 2 for inputs (1, 1, 4), got (1, 1, 1, 4)
    """  # noqa: E501
    levels = perturbation.levels(inputs.clone())
    count = levels.shape[1] if isinstance(levels, Tensor) and levels.dim() > 1 else 0
    num_images, *rest = inputs.shape
    if count < 2 or tuple(levels.shape) != (num_images, count, *rest):
        shape = tuple(levels.shape) if isinstance(levels, Tensor) else type(levels)
        raise ValueError(
            "perturbation must return levels of shape (N, L, C, *S) with L >= 2 "
            f"for inputs {tuple(inputs.shape)}, got {shape}"
        )
    if levels.dtype != inputs.dtype or not torch.equal(levels[:, -1], inputs):
        raise ValueError(
            "perturbation must return levels of the inputs' dtype whose last one "
            f"is the inputs themselves, got {levels.dtype} levels that differ"
        )
    return levels


def levels_apart(perturbation: Perturbation, inputs: Tensor) -> Levels:
    """`levels_of`, in less memory for blurs of large images: L tensors.

    The last of them are the inputs themselves.

    Example:
        >>> import torch
        >>> levels_apart(BlurPerturbation(3), torch.ones(1, 1, 4)).shape
        torch.Size([1, 3, 1, 4])
    """
    if inputs[:1].numel() < LARGE_IMAGE or type(perturbation) is not BlurPerturbation:
        return levels_of(perturbation, inputs)
    blurred = [torch.empty_like(inputs) for _ in range(perturbation.num_levels - 1)]
    perturbation.blur_into(blurred, inputs.detach())
    return *blurred, inputs.detach()


@dataclass(frozen=True)
class BlurPerturbation:
    """Gaussian blurs of decreasing width: the paper's perturbation pyramid.

    Level l of L has the standard deviation ``sigma_max * (1 - l / (L - 1))``.

    Args:
        num_levels: L, at least 2. Footnote 3 of the paper leaves the number open; 8 is
            our default.
        sigma_max: Standard deviation of the strongest blur, in pixels of the input:
            one number, or a tuple of one for each spatial axis, 0 for an axis that
            nothing is blurred along. None scales with the input: 20 pixels where the
            sides' geometric mean is 224; where one side is much longer than another,
            along each axis by itself, and not at all across a few leads or slices.
        border: ``"normalised"`` over the pixels of the input, as in the paper, or
            ``"fade"`` to zero near the border, see `gaussian_blur`.

    Raises:
        TypeError: If a number is of another type.
        ValueError: If ``num_levels`` is below 2, ``sigma_max`` is not positive, nor
            any number of a tuple, or ``border`` is unknown.

    Example:
        >>> import torch
        >>> inputs = torch.tensor([[[0.0, 0.0, 1.0, 0.0]]])
        >>> BlurPerturbation(num_levels=3, sigma_max=2.0).levels(inputs)
        tensor([[[[0.2156, 0.2618, 0.2966, 0.3136]],
        <BLANKLINE>
                 [[0.0772, 0.2583, 0.4258, 0.3460]],
        <BLANKLINE>
                 [[0.0000, 0.0000, 1.0000, 0.0000]]]])
    """

    num_levels: int = 8
    sigma_max: float | tuple[float, ...] | None = None
    border: Border = "normalised"

    def __post_init__(self) -> None:
        check_count("num_levels", self.num_levels, minimum=2)
        check_border(self.border)
        if isinstance(self.sigma_max, tuple):
            check_sigmas("sigma_max", self.sigma_max, len(self.sigma_max))
            check_positive("the largest of sigma_max", max(self.sigma_max, default=0))
        elif self.sigma_max is not None:
            check_positive("sigma_max", self.sigma_max)

    def levels(self, inputs: Tensor) -> Tensor:
        """Blur the inputs to each degree.

        Args:
            inputs: (N, C, *S), floating point, with 1, 2 or 3 spatial sizes.

        Returns:
            (N, num_levels, C, *S), without gradient.

        Raises:
            TypeError: If ``inputs`` is not a floating point tensor.
            ValueError: If ``inputs`` has not 1, 2 or 3 spatial sizes, or ``sigma_max``
                not as many numbers.
        """
        check_spatial("inputs", inputs)
        inputs = inputs.detach()
        num_images, *rest = inputs.shape
        levels = inputs.new_empty(num_images, self.num_levels, *rest)
        *blurred, last = levels.unbind(dim=1)
        last.copy_(inputs)
        self.blur_into(blurred, inputs)
        return levels

    def blur_into(self, levels: Sequence[Tensor], inputs: Tensor) -> None:
        """Fill all levels but the last, each (N, C, *S)."""
        sigma_max = self.sigma_max
        if sigma_max is None:
            sigma_max = scaled(20, inputs.shape[2:])
        strongest = check_sigmas("sigma_max", sigma_max, inputs.dim() - 2)
        for level, blurred in enumerate(levels):
            sigmas = [sigma * (1 - level / len(levels)) for sigma in strongest]
            for part in _parts(inputs):
                blurred[part] = gaussian_blur(inputs[part], sigmas, self.border)


def _parts(inputs: Tensor) -> list[tuple[slice, slice]]:
    """Images and channels to be blurred at a time, which takes memory of their size."""
    if inputs[:1].numel() < LARGE_IMAGE:
        return [(slice(None), slice(None))]
    ranges = (range(size) for size in inputs.shape[:2])
    return [
        (slice(image, image + 1), slice(channel, channel + 1))
        for image, channel in itertools.product(*ranges)
    ]


@dataclass(frozen=True, eq=False)
class FadePerturbation:
    """Two levels, a baseline and the input: fade to black, to grey, to another image.

    With the baseline 0 this is footnote 2 of the paper, ``m * x``.

    Args:
        baseline: What fully perturbed pixels look like: a number, or a tensor that
            broadcasts to the inputs, for example (C, 1, 1) for a colour or (N, C, *S).

    Raises:
        TypeError: If ``baseline`` is neither a number nor a tensor.

    Example:
        >>> import torch
        >>> FadePerturbation(baseline=0.5).levels(torch.tensor([[[3.0, 4.0]]]))
        tensor([[[[0.5000, 0.5000]],
        <BLANKLINE>
                 [[3.0000, 4.0000]]]])
    """

    baseline: float | Tensor = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.baseline, bool) or not isinstance(
            self.baseline, int | float | Tensor
        ):
            raise TypeError(
                "baseline must be a number or a tensor that broadcasts to the inputs, "
                f"got {type(self.baseline).__name__}"
            )

    def levels(self, inputs: Tensor) -> Tensor:
        """Stack the baseline and the inputs.

        Args:
            inputs: (N, C, *S), floating point, with 1, 2 or 3 spatial sizes; or a table
                (N, F).

        Returns:
            (N, 2, C, *S) or (N, 2, F), without gradient.

        Raises:
            TypeError: If ``inputs`` is not a floating point tensor.
            ValueError: If ``inputs`` has more than 3 spatial sizes, or ``baseline``
                does not broadcast to them.
        """
        check_spatial("inputs", inputs, tables=True)
        inputs = inputs.detach()
        baseline = torch.as_tensor(self.baseline).detach().to(inputs)
        if not _broadcasts(baseline.shape, inputs.shape):
            raise ValueError(
                f"baseline must broadcast to the inputs {tuple(inputs.shape)}, got "
                f"shape {tuple(baseline.shape)}"
            )
        return torch.stack([baseline.expand_as(inputs), inputs], dim=1)


def _broadcasts(shape: torch.Size, to: torch.Size) -> bool:
    """Whether ``shape`` can be expanded to ``to``."""
    pairs = zip(reversed(shape), reversed(to), strict=False)
    return len(shape) <= len(to) and all(a in (1, b) for a, b in pairs)
