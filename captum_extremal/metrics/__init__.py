"""Attributions and the truth -> one number for each example, from any method.

Plain functions as in `captum.metrics`; tensors in, tensors out. Ground truth comes as
`object_masks`, bool, True on the object, in the size of the attributions.
`PointingGame` adds up a data set and is the only one that needs torchmetrics.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from captum_extremal.metrics.boxes import boxes_to_masks
from captum_extremal.metrics.energy import energy_pointing_game
from captum_extremal.metrics.insertion import deletion_auc, insertion_auc
from captum_extremal.metrics.pointing import pointing_game
from captum_extremal.metrics.saliency import masks_to_saliency

if TYPE_CHECKING:
    from captum_extremal.metrics.accumulate import PointingGame

__all__ = [
    "PointingGame",
    "boxes_to_masks",
    "deletion_auc",
    "energy_pointing_game",
    "insertion_auc",
    "masks_to_saliency",
    "pointing_game",
]


def __getattr__(name: str) -> object:
    """`PointingGame` on demand, since torchmetrics is optional."""
    if name != "PointingGame":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from captum_extremal.metrics.accumulate import PointingGame
    except ModuleNotFoundError as error:
        if error.name != "torchmetrics":
            raise
        raise ModuleNotFoundError(
            "PointingGame needs torchmetrics: pip install 'captum_extremal[metrics]'",
            name="torchmetrics",
        ) from error
    return PointingGame
