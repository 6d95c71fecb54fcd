r"""Masks over channels of many images -> the channel that a class needs most.

Sec. 5.2 of the paper: the optimal masks of the images of a class c have the mean

.. math:: \bar m_c = \frac{1}{|X_c|} \sum_{x \in X_c} m_{a^*}(x), \qquad
          k^*_c = \operatorname{argmax}_k \bar m_c^k .

`ClassChannels` gathers the means, `ExcitingImages` the images that excite each channel
most; both take batches, can be merged and saved, and hold what they have on the CPU.
The means come from sums in float64, so that the order of the batches, and where they
were computed, hardly matters; the largest activations are held in float32.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from captum_extremal._base import files
from captum_extremal._base.checks import (
    check_count,
    check_floating,
    check_shape,
)
from captum_extremal.channels.labels import Label, _check_file, _label, _labels
from captum_extremal.results.saliency import check_sufficient

_CLASSES = "captum_extremal.ClassChannels/1"


class ClassChannels:
    r"""The mean mask of each class, batch by batch, in the manner of Captum.

    `update` takes what Captum's ``ClassSummarizer.update`` takes; the means are the
    same as those of its ``Mean``. Unlike it, this can be merged and saved.

    Example:
        >>> import torch
        >>> gathered = ClassChannels()
        >>> masks = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
        >>> gathered.update(masks, ["cat", "cat", "dog"])
        >>> gathered.mean("cat")
        tensor([0.5000, 0.5000, 1.0000])
        >>> gathered.channel("cat"), gathered.counts
        (2, {'cat': 2, 'dog': 1})
    """

    def __init__(self) -> None:
        self._sums: dict[Label, Tensor] = {}
        self._counts: dict[Label, int] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.counts})"

    @property
    def counts(self) -> dict[Label, int]:
        """How many masks of each class there were, in the order of their first."""
        return dict(self._counts)

    @property
    def num_channels(self) -> int | None:
        """K, or None before the first mask."""
        return next((len(total) for total in self._sums.values()), None)

    def update(
        self, masks: Tensor, labels: Tensor | Sequence[Label] | int | str
    ) -> None:
        """Add the masks of N images.

        Args:
            masks: One value in [0, 1] for each channel, (N, K), on any device.
            labels: The class of each image, whole numbers or names: a tensor or array
                (N,) or a sequence, or one class for all.

        Raises:
            TypeError: If ``masks`` are not a floating point tensor, or a label is
                neither a whole number nor a string.
            ValueError: If the shapes do not agree with each other or with former masks,
                or values are not in [0, 1]: NaN marks images for which no area sufficed
                (`ChannelResult.smallest_sufficient_mask`), to be left out.
        """
        masks = self._checked(masks)
        names = _labels(labels, len(masks))
        for name, mask in zip(names, masks, strict=True):
            self._sums[name] = self._sums.get(name, 0.0) + mask
            self._counts[name] = self._counts.get(name, 0) + 1

    def mean(self, label: Label) -> Tensor:
        """The mean mask of a class, (K,), float32, on the CPU.

        Raises:
            KeyError: If no mask of the class was given.
        """
        if label not in self._sums:
            raise KeyError(
                f"label must be a class with masks, one of {list(self._sums)}, got "
                f"{label!r}"
            )
        return (self._sums[label] / self._counts[label]).float()

    def channel(self, label: Label) -> int:
        """The class-specific channel: the first of the maxima of `mean`.

        Raises:
            KeyError: If no mask of the class was given.
        """
        return int(self.mean(label).argmax())

    def channels(self) -> dict[Label, int]:
        """`channel` of every class."""
        return {label: self.channel(label) for label in self._sums}

    def merge(self, other: ClassChannels) -> None:
        """Add what another one has gathered, on another rank for example.

        Raises:
            TypeError: If the other is of another type.
            ValueError: If its masks have another number of channels.
        """
        if not isinstance(other, ClassChannels):
            raise TypeError(
                f"other must be a ClassChannels, got {type(other).__name__}"
            )
        self._check_width(other.num_channels)
        for label, total in other._sums.items():
            self._sums[label] = self._sums.get(label, 0.0) + total
            self._counts[label] = self._counts.get(label, 0) + other._counts[label]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file; it appears only once it is complete.

        Raises:
            OSError: If the folder does not exist or cannot be written to.
        """
        width = self.num_channels or 0
        sums = list(self._sums.values())
        tensors = {"sums": torch.stack(sums) if sums else torch.zeros(0, width)}
        about = {
            "format": _CLASSES,
            "labels": list(self._counts),
            "counts": list(self._counts.values()),
        }
        files.write(path, tensors, about)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ClassChannels:
        """Read what `save` wrote; nothing in the file is executed.

        Raises:
            OSError: If there is no such file, or it cannot be read.
            ValueError: If the file is not one of `save`.
        """
        return files.load(path, cls.__name__, _CLASSES, cls._from_file)

    @classmethod
    def _from_file(
        cls, about: dict[str, Any], tensors: dict[str, Tensor]
    ) -> ClassChannels:
        labels = [_label(label) for label in about["labels"]]
        counts = [check_count("counts", count) for count in about["counts"]]
        sums = tensors["sums"]
        _check_file(sums.dim() == 2 and (not labels or sums.shape[1] > 0), "sums")
        _check_file(len(set(labels)) == len(labels), "labels")
        loaded = cls()
        loaded._sums = dict(zip(labels, sums.double(), strict=True))
        loaded._counts = dict(zip(labels, counts, strict=True))
        return loaded

    def _checked(self, masks: Tensor) -> Tensor:
        check_floating("masks", masks)
        check_shape("masks", masks, "N K")
        self._check_width(masks.shape[1])
        check_sufficient(masks)
        masks = masks.detach().cpu().double()
        if not ((masks >= 0) & (masks <= 1)).all():
            raise ValueError("masks must lie in [0, 1], got other values")
        return masks

    def _check_width(self, width: int | None) -> None:
        mine = self.num_channels
        if mine is not None and width is not None and width != mine:
            raise ValueError(
                f"masks must have {mine} channels, as the former ones, got {width}"
            )
