"""Activations, batch by batch -> the images that excite each channel most."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from captum_extremal._base import files
from captum_extremal._base.checks import (
    check_channel_dim,
    check_choice,
    check_count,
    check_floating,
)
from captum_extremal.channels.labels import Label, _check_file, _label, _labels

_IMAGES = "captum_extremal.ExcitingImages/1"


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
        files.write(path, tensors, about)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ExcitingImages:
        """Read what `save` wrote; nothing in the file is executed.

        Raises:
            OSError: If there is no such file, or it cannot be read.
            ValueError: If the file is not one of `save`.
        """
        return files.load(path, cls.__name__, _IMAGES, cls._from_file)

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
