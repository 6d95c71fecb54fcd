"""The labels of a batch, checked: names or numbers of images and classes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor

Label = int | str


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
