"""What the model is shown of a perturbed input: a mirrored or a shifted copy.

A mask that scores high in all of them owes it to what is in the image, less to how the
image happens to lie under the network's grid.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from captum_extremal.solvers.problem import View


def copy_of(mirror: bool, shifts: Sequence[float]) -> View:
    """A view that mirrors (inputs with two spatial sizes alone) and shifts.

    Args:
        mirror: Show the mirror image.
        shifts: For each spatial axis how far to shift, as a fraction of its size, at
            most a half. What enters at the border repeats the outermost pixels.

    Returns:
        (M, C, *S) -> the same shape.

    Example:
        >>> view = copy_of(False, [0.25])
        >>> view(torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]))
        tensor([[[1., 1., 2., 3.]]])
    """

    def view(inputs: Tensor) -> Tensor:
        shown = _shifted(inputs, shifts) if any(shifts) else inputs
        return shown.flip(-1) if mirror and inputs.dim() == 4 else shown

    return view


def _shifted(inputs: Tensor, shifts: Sequence[float]) -> Tensor:
    """Cut off on one side what is repeated on the other.

    By `torch.cat`: the gradient of a padding is not deterministic on CUDA.
    """
    shown = inputs
    for axis, share in zip(range(2, inputs.dim()), shifts, strict=False):
        side = inputs.shape[axis]
        shift = round(share * side)
        kept = shown.narrow(axis, max(0, -shift), side - abs(shift))
        edge = kept.narrow(axis, 0 if shift > 0 else kept.shape[axis] - 1, 1)
        repeated = edge.expand(
            *[abs(shift) if dim == axis else -1 for dim in range(inputs.dim())]
        )
        if shift:
            pieces = [repeated, kept] if shift > 0 else [kept, repeated]
            shown = torch.cat(pieces, dim=axis)
    return shown


def random_shifts(source: random.Random, reach: float) -> list[float]:
    """A shift for each of up to three axes, at most ``reach``."""
    return [source.uniform(-reach, reach) for _ in range(3)]
