"""A model's scores and a class of the data set -> the output to be attributed.

Two kinds of classifier can play:

- One for ImageNet, with 1000 outputs. `imagenet_indices` tells which of them are an
  object of the class, a dog's are 118 breeds; attributed is **the one that scores
  highest** in the image, the breed that the network sees. A class without an index
  (person) takes no part. The probability is that of a softmax.
- One for the data set's own classes, in its own order (`class_names`), made by
  fine-tuning: attributed is the output of the class. The probability is a sigmoid's.

A model that ends in probabilities keeps them; the rule stands in
`captum_extremal.models.probabilities`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from torch import Tensor

from captum_extremal._base.checks import check_choice
from captum_extremal.models.probabilities import Rule, probabilities

_IMAGENET_CLASSES = 1000


class Target(NamedTuple):
    """One output of a model for one image.

    Attributes:
        output: Which one.
        score: Its value.
        probability: By the rule of `captum_extremal.models.probabilities`.
    """

    output: int
    score: float
    probability: float


def imagenet_indices(dataset: str) -> dict[str, list[int]]:
    """The ImageNet classes that are an object of each class of a data set.

    Args:
        dataset: ``"voc2007"`` (20 classes) or ``"coco2014"`` (80).

    Returns:
        Class -> indices in 0 to 999, none where ImageNet has no such object. The file
        ``imagenet_classes.json`` of this package tells its origin.

    Raises:
        ValueError: If ``dataset`` is another one.

    Example:
        >>> indices = imagenet_indices("voc2007")
        >>> indices["aeroplane"], indices["person"]  # airliner and warplane, nothing
        ([404, 895], [])
    """
    check_choice("dataset", dataset, ("voc2007", "coco2014"))
    return {name: list(indices) for name, indices in _mapping()[dataset].items()}


def class_names(dataset: str) -> list[str]:
    """The classes of a data set in its own order: the outputs of a fine-tuned model.

    Args:
        dataset: ``"voc2007"``, in alphabetical order, or ``"coco2014"``, in that of its
            category ids.

    Returns:
        20 or 80 names.

    Raises:
        ValueError: If ``dataset`` is another one.

    Example:
        >>> class_names("coco2014")[:2], len(class_names("voc2007"))
        (['person', 'bicycle'], 20)
    """
    return list(imagenet_indices(dataset))


def outputs_of_classes(dataset: str, num_outputs: int) -> dict[str, list[int]]:
    """The outputs of a model that stand for each class.

    Args:
        dataset: As in `class_names`.
        num_outputs: How many outputs the model has.

    Returns:
        Class -> indices of outputs, as the module's first lines tell.

    Raises:
        ValueError: If a model with so many outputs knows neither ImageNet's classes nor
            the data set's.

    Example:
        >>> outputs_of_classes("voc2007", 20)["bicycle"]
        [1]
        >>> outputs_of_classes("voc2007", 1000)["bicycle"]
        [444, 671]
    """
    names = class_names(dataset)
    if num_outputs == _IMAGENET_CLASSES:
        return imagenet_indices(dataset)
    if num_outputs != len(names):
        raise ValueError(
            f"model must have {_IMAGENET_CLASSES} outputs (ImageNet) or {len(names)} "
            f"(the classes of {dataset}), got {num_outputs}"
        )
    return {name: [index] for index, name in enumerate(names)}


def highest(outputs: Tensor, indices: Sequence[int], rule: Rule = "auto") -> Target:
    """The output with the highest score among those of a class.

    Args:
        outputs: All scores of one image, (C,).
        indices: Which of them to choose from, at least one; of equal ones the first.
        rule: How scores become probabilities.

    Returns:
        The output and its probability.

    Raises:
        ValueError: If the scores are not finite or an index is out of range.

    Example:
        >>> import torch
        >>> highest(torch.tensor([0.0, 1.0, 3.0]), [0, 1])
        Target(output=1, score=1.0, probability=0.11419519037008286)
    """
    if not outputs.isfinite().all():
        raise ValueError("model must give finite scores, got NaN or infinity")
    wrong = [index for index in indices if not 0 <= index < len(outputs)]
    if wrong:
        raise ValueError(f"index must lie in 0..{len(outputs) - 1}, got {wrong[0]}")
    index = max(indices, key=lambda index: float(outputs[index]))
    probability = float(probabilities(outputs, rule)[index])
    return Target(index, float(outputs[index]), probability)


@cache
def _mapping() -> dict[str, dict[str, list[int]]]:
    text = files(__package__).joinpath("imagenet_classes.json").read_text("utf-8")
    content: dict[str, dict[str, list[int]]] = json.loads(text)
    return content
