"""Attributions and the truth -> one number for each example, from any method.

Plain functions as in `captum.metrics`; tensors in, tensors out. Ground truth comes as
`object_masks`, bool, True on the object, in the size of the attributions.
"""

from __future__ import annotations

from captum_extremal.metrics.boxes import boxes_to_masks
from captum_extremal.metrics.pointing import pointing_game
from captum_extremal.metrics.saliency import masks_to_saliency

__all__ = ["boxes_to_masks", "masks_to_saliency", "pointing_game"]
