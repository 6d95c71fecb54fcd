r"""Masks over channels of many images -> the channel that a class needs most.

Sec. 5.2 of the paper: the optimal masks of the images of a class c have the mean

.. math:: \bar m_c = \frac{1}{|X_c|} \sum_{x \in X_c} m_{a^*}(x), \qquad
          k^*_c = \operatorname{argmax}_k \bar m_c^k .

`ClassChannels` gathers the means, `ExcitingImages` the images that excite each channel
most; both take batches, can be merged and saved. They hold sums on the CPU in float64,
so that the order of the batches, and where they were computed, hardly matters.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from captum_extremal._checks import check_count, check_floating

Label = int | str


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
            labels: The class of each image, whole numbers or names: a tensor (N,) or a
                sequence, or one class for all.

        Raises:
            TypeError: If ``masks`` are not a floating point tensor, or a label is
                neither a whole number nor a string.
            ValueError: If the shapes do not agree with each other or with former masks,
                or values are not in [0, 1].
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
        about = {"labels": list(self._counts), "counts": list(self._counts.values())}
        _write(path, self, tensors, about)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ClassChannels:
        """Read what `save` wrote; nothing in the file is executed.

        Raises:
            ValueError: If the file holds something else.
        """
        tensors, about = _read(path, cls)
        loaded = cls()
        loaded._sums = dict(zip(about["labels"], tensors["sums"], strict=True))
        loaded._counts = dict(zip(about["labels"], about["counts"], strict=True))
        return loaded

    def _checked(self, masks: Tensor) -> Tensor:
        check_floating("masks", masks)
        if masks.dim() != 2 or masks.shape[1] == 0:
            raise ValueError(f"masks must be of shape (N, K), got {tuple(masks.shape)}")
        self._check_width(masks.shape[1])
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
        if reduction not in _REDUCTIONS:
            raise ValueError(f"reduction must be 'mean' or 'max', got {reduction!r}")
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
            image_ids: The caller's name or number of each image.
            channel_dim: The dimension of the channels.

        Raises:
            TypeError: If ``activations`` are not a floating point tensor, or an id is
                neither a whole number nor a string.
            ValueError: If the shapes do not agree with each other or with former ones,
                or values are not finite.
        """
        check_floating("activations", activations)
        if not 0 < channel_dim % max(activations.dim(), 1) < activations.dim():
            raise ValueError(
                f"channel_dim must be a dimension of activations after the first, "
                f"{tuple(activations.shape)}, got {channel_dim}"
            )
        first = activations.detach().movedim(channel_dim, 1)
        places = first.reshape(*first.shape[:2], -1).float()
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
            "num_images": self.num_images,
            "reduction": self.reduction,
            "images": self._images,
        }
        _write(path, self, {"values": self._values, "places": self._places}, about)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ExcitingImages:
        """Read what `save` wrote; nothing in the file is executed.

        Raises:
            ValueError: If the file holds something else.
        """
        tensors, about = _read(path, cls)
        loaded = cls(about["num_images"], about["reduction"])
        loaded._values, loaded._places = tensors["values"], tensors["places"]
        loaded._images = about["images"]
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
    if isinstance(labels, Tensor):
        if labels.is_floating_point() or labels.dtype == torch.bool:
            raise TypeError(f"{argument} must be whole numbers, got {labels.dtype}")
        labels = labels.tolist()
    if isinstance(labels, int | str) and one_for_all:
        labels = [labels] * count
    if not isinstance(labels, Sequence) or isinstance(labels, str):
        raise TypeError(
            f"{argument} must be a sequence of whole numbers or strings, got {labels!r}"
        )
    if len(labels) != count:
        raise ValueError(
            f"{argument} must be one for each of {count} images, got {len(labels)}"
        )
    for label in labels:
        if isinstance(label, bool) or not isinstance(label, int | str):
            raise TypeError(
                f"{argument} must be whole numbers or strings, got {label!r}"
            )
    return list(labels)


def _write(
    path: str | os.PathLike[str],
    what: object,
    tensors: dict[str, Tensor],
    about: dict[str, Any],
) -> None:
    about = {"type": type(what).__name__, **about}
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"path must lie in an existing folder, got {path}")
    partial = target.with_name(target.name + ".partial")
    try:
        save_file(contiguous, partial, {"captum_extremal": json.dumps(about)})
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _read(
    path: str | os.PathLike[str], kind: type
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["captum_extremal"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if about["type"] != kind.__name__:
            raise ValueError(f"type must be {kind.__name__}, got {about['type']}")
    except (SafetensorError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"path must be a saved {kind.__name__}, got {path}") from error
    return tensors, about
