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


def copy_of(mirror: Tensor | bool, shifts: Sequence[float]) -> View:
    """A view that mirrors (inputs with two spatial sizes alone) and shifts.

    Args:
        mirror: Show the mirror image: of every image, of none, or of those where this
            is true, (N,) bool.
        shifts: For each spatial axis how far to shift, as a fraction of its size. What
            leaves at one border enters at the other, so that as much is shown of every
            mask; repeated border pixels would favour masks at the border.

    Returns:
        (M, C, *S) and the image of each (M,) -> the same shape as the former.

    Example:
        >>> import torch
        >>> view = copy_of(False, [0.25])
        >>> view(torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]), torch.tensor([0]))
        tensor([[[4., 1., 2., 3.]]])
    """

    def view(inputs: Tensor, images: Tensor) -> Tensor:
        axes = range(2, inputs.dim())
        moves = [
            round(share * inputs.shape[axis])
            for axis, share in zip(axes, shifts, strict=False)
        ]
        shown = inputs.roll(moves, list(axes)[: len(moves)]) if any(moves) else inputs
        if mirror is False or inputs.dim() != 4:
            return shown
        if mirror is True:
            return shown.flip(-1)
        return torch.where(mirror[images].view(-1, 1, 1, 1), shown.flip(-1), shown)

    return view


def random_shifts(source: random.Random, reach: float) -> list[float]:
    """A shift for each of up to three axes, at most ``reach``."""
    return [source.uniform(-reach, reach) for _ in range(3)]
