"""What the model is shown of a perturbed input: a mirrored or a shifted copy.

A mask that scores high in all of them owes it to what is in the image, less to how the
image happens to lie under the network's grid.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_extremal._base.axes import is_short
from captum_extremal.perturbations.apply import Moved


@dataclass(frozen=True, eq=False)
class Copy:
    """A view that mirrors (tensors with two spatial sizes alone) and shifts.

    Args:
        mirrored: Show the mirror image: of everything, of nothing, or for each tensor
            of the images where this is true, (N,) bool.
        shifts: For each spatial axis how far to shift, as a fraction of its size. What
            leaves at one border enters at the other, so that as much is shown of every
            mask; repeated border pixels would favour masks at the border. Signals, and
            whatever has a short axis (`is_short`), are not shifted: their steps mean
            something by themselves.

    Example:
        >>> import torch
        >>> view = Copy(False, [0.0, 0.25])
        >>> rows = torch.tensor([[[[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]]])
        >>> view((rows,), torch.tensor([0]))
        (tensor([[[[4., 1., 2., 3.],
                  [8., 5., 6., 7.]]]]),)
        >>> view.moved(0, (4,), torch.tensor([0]))
        Moved(moves=(0,), mirror=False)
    """

    mirrored: bool | Sequence[Tensor]
    shifts: Sequence[float]

    def __call__(
        self, inputs: tuple[Tensor, ...], images: Tensor
    ) -> tuple[Tensor, ...]:
        """Tensors (M, C, *S) and the image of each row (M,) -> the same shapes."""
        shown = tuple(_shifted(tensor, self.shifts) for tensor in inputs)
        if self.mirrored is False:
            return shown
        if self.mirrored is True:
            return tuple(t.flip(-1) if t.dim() == 4 else t for t in shown)
        return tuple(
            torch.where(flags[images].view(-1, 1, 1, 1), tensor.flip(-1), tensor)
            if tensor.dim() == 4
            else tensor
            for flags, tensor in zip(self.mirrored, shown, strict=True)
        )

    def moved(self, which: int, size: Sequence[int], images: Tensor) -> Moved:
        """The same without a copy, for rows of one image.

        Args:
            which: Place of the tensor in the input.
            size: Its spatial size.
            images: The image of each row, all of them the same.
        """
        mirrored = self.mirrored
        if not isinstance(mirrored, bool):
            mirrored = bool(mirrored[which][images[0]])
        return Moved(tuple(_moves(size, self.shifts)), mirrored and len(size) == 2)


def _moves(size: Sequence[int], shifts: Sequence[float]) -> list[int]:
    """Shifts in pixels, of pictures and volumes alone."""
    if len(size) == 1 or any(is_short(size)):
        return [0] * min(len(size), len(shifts))
    return [round(share * side) for side, share in zip(size, shifts, strict=False)]


def _shifted(inputs: Tensor, shifts: Sequence[float]) -> Tensor:
    moves = _moves(inputs.shape[2:], shifts)
    axes = list(range(2, 2 + len(moves)))
    return inputs.roll(moves, axes) if any(moves) else inputs


def random_shifts(source: random.Random, reach: float) -> list[float]:
    """A shift for each of up to three axes, at most ``reach``."""
    return [source.uniform(-reach, reach) for _ in range(3)]
