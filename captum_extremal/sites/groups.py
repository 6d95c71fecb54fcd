"""`Groups`: one value of a mask for all features with the same number.

The numbers are Captum's ``feature_mask``: superpixels of a picture, electrodes, bands,
the tokens of an embedding, the columns of a table. The features of a number may lie
anywhere, in several tensors as well.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from captum_extremal.solvers.problem import Masks


class Groups:
    """Values, one for each group of features -> masks that are constant on each.

    Args:
        feature_mask: For each tensor the number of each feature, integers that
            broadcast to the tensor; one for all examples or one for each.
        tensors: The inputs, (N, ...).

    Attributes:
        count: How many groups an example has.
        shapes: For each tensor the shape of a mask: (1, *S) where its channels share
            their numbers, else that of an example.

    Raises:
        TypeError: If numbers are not integers.
        ValueError: If they are not as many tensors, do not broadcast, or the examples
            have different numbers of groups.

    Example:
        >>> numbers = torch.tensor([[[7, 7, 9]]])
        >>> groups = Groups((numbers,), (torch.zeros(2, 1, 3),))
        >>> groups.count
        2
        >>> groups((torch.tensor([[[0.5, 1.0]]]),), torch.tensor([1]))
        (tensor([[[0.5000, 0.5000, 1.0000]]]),)
    """

    def __init__(
        self, feature_mask: tuple[Tensor, ...], tensors: tuple[Tensor, ...]
    ) -> None:
        if len(feature_mask) != len(tensors):
            raise ValueError(
                "feature_mask must hold as many tensors as inputs, "
                f"{len(tensors)}, got {len(feature_mask)}"
            )
        numbers = [
            _expanded(mask, tensor)
            for mask, tensor in zip(feature_mask, tensors, strict=True)
        ]
        numbers = [
            each[:, :1] if each.dim() > 2 and (each == each[:, :1]).all() else each
            for each in numbers
        ]
        self.shapes = [tuple(each.shape[1:]) for each in numbers]
        rows = max(map(len, numbers))
        flat = [each.flatten(1).expand(rows, -1) for each in numbers]
        self._lengths = [each.shape[1] for each in flat]
        found = [torch.unique(row, return_inverse=True) for row in torch.cat(flat, 1)]
        counts = sorted({len(numbers) for numbers, _ in found})
        if len(counts) > 1:
            raise ValueError(
                "feature_mask must have the same number of features for each example, "
                f"got {counts[0]} and {counts[-1]}: explain such examples one by one"
            )
        self.count = counts[0]
        self._places = torch.stack([places for _, places in found])

    @property
    def sizes(self) -> list[tuple[int, ...]]:
        """Of the masks that a solver looks for: one, with an axis."""
        return [(self.count,)]

    def __call__(self, masks: Masks, images: Tensor) -> Masks:
        """The values of groups, (M, 1, groups), as a mask for each tensor.

        It is (M, 1, *S), or, where channels have values of their own, (M, 1, features).
        """
        (values,) = masks
        parts = self._everywhere(values.squeeze(1), images).split(self._lengths, dim=1)
        return tuple(
            part.reshape(len(part), *(shape if has_places(shape) else (1, -1)))
            for part, shape in zip(parts, self.shapes, strict=True)
        )

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self._places.device

    def laid(self, values: Tensor) -> tuple[Tensor, ...]:
        """The values of N images and A areas, (N, A, 1, groups) -> (N, A, *shape)."""
        images = _images_of(values)
        return tuple(
            mask.reshape(*values.shape[:2], *shape)
            for mask, shape in zip(
                self((values.flatten(0, 1),), images), self.shapes, strict=True
            )
        )

    def read(self, masks: Sequence[Tensor]) -> Tensor:
        """The way back from `laid`, on the device of the tensors.

        Raises:
            ValueError: If a mask differs within a group.
        """
        shape, images = masks[0].shape[:2], _images_of(masks[0])
        flat = torch.cat([mask.flatten(2).flatten(0, 1) for mask in masks], dim=1)
        flat, images = flat.to(self._places.device), images.to(self._places.device)
        places = self._places.expand(shape[0], -1)[images]
        values = flat.new_zeros(len(flat), self.count).scatter_(1, places, flat)
        if not torch.equal(self._everywhere(values, images), flat):
            raise ValueError(
                "masks must be constant on each feature of feature_mask, got others"
            )
        return values.view(*shape, 1, self.count)

    def _everywhere(self, values: Tensor, images: Tensor) -> Tensor:
        if len(self._places) == 1:
            return values.index_select(1, self._places[0])
        return values.gather(1, self._places[images])


def has_places(shape: Sequence[int]) -> bool:
    """Whether a mask of this shape is one for all channels, (1, *S)."""
    return len(shape) > 1 and shape[0] == 1


def _expanded(numbers: Tensor, tensor: Tensor) -> Tensor:
    """The number of each feature, (1 or N, ...), on the device of the tensor."""
    kind = numbers.dtype if isinstance(numbers, Tensor) else type(numbers).__name__
    whole = isinstance(numbers, Tensor) and not (
        numbers.is_floating_point() or numbers.is_complex() or kind == torch.bool
    )
    if not whole:
        raise TypeError(f"feature_mask must be a tensor of integers, got {kind}")
    own = numbers.dim() == tensor.dim() and len(numbers) == len(tensor)
    shape = (len(tensor) if own else 1, *tensor.shape[1:])
    try:
        return numbers.to(tensor.device).expand(shape)
    except RuntimeError:
        raise ValueError(
            f"feature_mask must broadcast to inputs {tuple(tensor.shape)}, got "
            f"{tuple(numbers.shape)}"
        ) from None


def _images_of(masks: Tensor) -> Tensor:
    """The image of each of N A masks."""
    images = torch.arange(len(masks), device=masks.device)
    return images.repeat_interleave(masks.shape[1])
