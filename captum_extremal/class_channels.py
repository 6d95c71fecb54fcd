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
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from captum_extremal import _files
from captum_extremal._checks import (
    check_channel_dim,
    check_choice,
    check_count,
    check_floating,
)
from captum_extremal.channel_result import check_sufficient

Label = int | str
_CLASSES = "captum_extremal.ClassChannels/1"
_IMAGES = "captum_extremal.ExcitingImages/1"


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
        _files.write(path, tensors, about)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ClassChannels:
        """Read what `save` wrote; nothing in the file is executed.

        Raises:
            OSError: If there is no such file, or it cannot be read.
            ValueError: If the file is not one of `save`.
        """
        return _files.load(path, cls.__name__, _CLASSES, cls._from_file)

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
        if masks.dim() != 2 or masks.shape[1] == 0:
            raise ValueError(f"masks must be of shape (N, K), got {tuple(masks.shape)}")
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


class ExcitingImages:
    """The images that excite each channel most, batch by batch.

    How much an image excites a channel is the channel's mean over the image, which
    `FeatureInversion.channel` maximises, or its maximum.

    Args:
        num_images: How many to keep for each channel.
        reduction: ``"mean"`` or ``"max"`` over the places of a channel.

    Raises:
        TypeError: If ``num_images`` is not an int.
        ValueError: If it is below 1, or ``reduction`` unknown.

    Example:
        >>> import torch
        >>> best = ExcitingImages(num_images=2)
        >>> activations = torch.tensor([[1.0, 5.0], [3.0, 4.0], [2.0, 6.0]])
        >>> best.update(activations, ["a.jpg", "b.jpg", "c.jpg"])
        >>> best.of(0)
        [('b.jpg', 3.0), ('c.jpg', 2.0)]
    """

    def __init__(self, num_images: int = 9, reduction: str = "mean") -> None:
        self.num_images = check_count("num_images", num_images)
        check_choice("reduction", reduction, _REDUCTIONS)
        self.reduction = reduction
        self._values = torch.empty(0, 0)  # (K, up to num_images), descending
        self._places = torch.empty(0, 0, dtype=torch.long)  # likewise, in _images
        self._images: list[Label] = []

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(num_images={self.num_images}, "
            f"reduction={self.reduction!r})"
        )

    def update(
        self,
        activations: Tensor,
        image_ids: Sequence[Label] | Tensor,
        channel_dim: int = 1,
    ) -> None:
        """Add N images. One that is given twice counts twice.

        Args:
            activations: Of the layer, (N, ...) with channels along ``channel_dim``.
            image_ids: The caller's name, path or number of each image.
            channel_dim: The dimension of the channels.

        Raises:
            TypeError: If ``activations`` are not a floating point tensor, or an id is
                neither a whole number nor a string or path.
            ValueError: If the shapes do not agree with each other or with former ones,
                or values are not finite.
        """
        check_floating("activations", activations)
        dim = check_channel_dim(activations.shape, channel_dim)
        if 0 in activations.shape[1:]:
            raise ValueError(
                "activations must have values for each image, got shape "
                f"{tuple(activations.shape)}"
            )
        first = activations.detach().movedim(dim, 1).float()
        places = first.flatten(2) if first.dim() > 2 else first.unsqueeze(2)
        values = places.mean(dim=2) if self.reduction == "mean" else places.amax(dim=2)
        if not values.isfinite().all():
            raise ValueError("activations must be finite, got NaN or inf")
        names = _labels(image_ids, len(values), "image_ids", one_for_all=False)
        own = torch.arange(len(values)).expand(values.shape[1], -1)
        self._add(values.cpu().T, own, names)

    def of(self, channel: int) -> list[tuple[Label, float]]:
        """The images that excite a channel most and how much, most first.

        Of equal images the one given first stands first.

        Raises:
            IndexError: If there is no such channel.
        """
        if not 0 <= channel < len(self._values):
            raise IndexError(
                f"channel must lie in 0 to {len(self._values) - 1}, got {channel}"
            )
        places = self._places[channel].tolist()
        names = [self._images[place] for place in places]
        return list(zip(names, self._values[channel].tolist(), strict=True))

    def merge(self, other: ExcitingImages) -> None:
        """Add what another one has gathered, on another rank for example.

        Raises:
            TypeError: If the other is of another type.
            ValueError: If it counts otherwise or has another number of channels.
        """
        if not isinstance(other, ExcitingImages):
            raise TypeError(
                f"other must be an ExcitingImages, got {type(other).__name__}"
            )
        if repr(other) != repr(self):
            raise ValueError(f"other must be {self}, got {other}")
        self._add(other._values, other._places, other._images)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file; it appears only once it is complete.

        Raises:
            OSError: If the folder does not exist or cannot be written to.
        """
        about = {
            "format": _IMAGES,
            "num_images": self.num_images,
            "reduction": self.reduction,
            "images": self._images,
        }
        tensors = {"values": self._values, "places": self._places}
        _files.write(path, tensors, about)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ExcitingImages:
        """Read what `save` wrote; nothing in the file is executed.

        Raises:
            OSError: If there is no such file, or it cannot be read.
            ValueError: If the file is not one of `save`.
        """
        return _files.load(path, cls.__name__, _IMAGES, cls._from_file)

    @classmethod
    def _from_file(
        cls, about: dict[str, Any], tensors: dict[str, Tensor]
    ) -> ExcitingImages:
        loaded = cls(about["num_images"], about["reduction"])
        values, places = tensors["values"], tensors["places"]
        images = [_label(image) for image in about["images"]]
        _check_file(values.dim() == 2 and values.shape == places.shape, "values")
        _check_file(values.shape[1] <= loaded.num_images, "values")
        known = (places >= 0) & (places < len(images))
        _check_file(places.dtype == torch.long and bool(known.all()), "places")
        loaded._values, loaded._places = values.float(), places
        loaded._images = images
        return loaded

    def _add(self, values: Tensor, places: Tensor, images: Iterable[Label]) -> None:
        """Values and places (K, any number) of images beside those that are here."""
        if len(values) == 0:
            return
        if len(self._values) == 0:
            self._values = values[:, :0]
            self._places = places[:, :0]
        if len(values) != len(self._values):
            raise ValueError(
                f"activations must have {len(self._values)} channels, as the former "
                f"ones, got {len(values)}"
            )
        known = [*self._images, *images]
        values = torch.cat([self._values, values], dim=1)
        places = torch.cat([self._places, places + len(self._images)], dim=1)
        best, order = values.sort(dim=1, descending=True, stable=True)
        self._values = best[:, : self.num_images].clone()
        # Names of images that no channel keeps are let go.
        kept, self._places = places.gather(1, order[:, : self.num_images]).unique(
            return_inverse=True
        )
        self._images = [known[place] for place in kept.tolist()]


_REDUCTIONS = ("mean", "max")


def _labels(
    labels: object, count: int, argument: str = "labels", one_for_all: bool = True
) -> list[Label]:
    """One label for each of ``count`` images, as plain ints and strings."""
    if isinstance(labels, Tensor) and (
        labels.is_floating_point() or labels.dtype == torch.bool
    ):
        raise TypeError(f"{argument} must be whole numbers, got {labels.dtype}")
    if hasattr(labels, "tolist"):  # of PyTorch or NumPy
        labels = labels.tolist()
    if isinstance(labels, Integral | str | os.PathLike) and one_for_all:
        labels = [labels] * count
    if not isinstance(labels, Sequence) or isinstance(labels, str):
        raise TypeError(
            f"{argument} must be a sequence of whole numbers or strings, got {labels!r}"
        )
    if len(labels) != count:
        raise ValueError(
            f"{argument} must be one for each of {count} images, got {len(labels)}"
        )
    return [_label(label, argument) for label in labels]


def _label(label: object, argument: str = "labels") -> Label:
    """A whole number, of PyTorch or NumPy too, a string or a path as int or str."""
    plain = label
    if isinstance(label, Tensor) and label.dim() == 0:
        plain = label.item()
    elif isinstance(label, os.PathLike):
        plain = os.fspath(label)
    if isinstance(plain, Integral) and not isinstance(plain, bool):
        return int(plain)
    if isinstance(plain, str):
        return str(plain)
    raise TypeError(f"{argument} must be whole numbers or strings, got {label!r}")


def _check_file(fits: bool, what: str) -> None:
    if not fits:
        raise ValueError(f"{what} must be as saved, got other values")
