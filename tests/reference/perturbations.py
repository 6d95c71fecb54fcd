"""The perturbation operator m * x of Sec. 3.4 as its footnote 3 computes it."""

from __future__ import annotations

import math

import numpy as np


def apply_mask(levels: np.ndarray, mask: np.ndarray, rows: list[int]) -> np.ndarray:
    """Linear interpolation in the pyramid at (u, m(u)), one pixel after the other."""
    perturbed = np.zeros((len(rows), *levels.shape[2:]), dtype=np.float64)
    for k, c, *u in np.ndindex(*perturbed.shape):
        below, above, weight = _segment(mask[(k, 0, *u)], levels.shape[1])
        low = levels[(rows[k], below, c, *u)]
        high = levels[(rows[k], above, c, *u)]
        # A level without weight is not looked at.
        if weight == 0:
            perturbed[(k, c, *u)] = low
        elif weight == 1:
            perturbed[(k, c, *u)] = high
        else:
            perturbed[(k, c, *u)] = (1 - weight) * low + weight * high
    return perturbed


def mask_gradient(
    levels: np.ndarray, mask: np.ndarray, rows: list[int], gradient: np.ndarray
) -> np.ndarray:
    """Slope of each pixel's segment, times the incoming gradient, over the channels."""
    total = np.zeros(mask.shape, dtype=np.float64)
    for k, c, *u in np.ndindex(*gradient.shape):
        below, above, _ = _segment(mask[(k, 0, *u)], levels.shape[1])
        low = levels[(rows[k], below, c, *u)]
        high = levels[(rows[k], above, c, *u)]
        slope = (high - low) * (levels.shape[1] - 1)
        if np.isfinite(slope):
            total[(k, 0, *u)] += gradient[(k, c, *u)] * slope
    return total


def _segment(value: float, num_levels: int) -> tuple[int, int, float]:
    """The two levels around a mask value, and the weight of the upper one."""
    position = min(max(float(value), 0.0), 1.0) * (num_levels - 1)
    below = min(math.floor(position), num_levels - 2)
    return below, below + 1, position - below
