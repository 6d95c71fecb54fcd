"""The area loss R_a of Sec. 3.3: sort, subtract, square, add."""

from __future__ import annotations

import itertools

import numpy as np


def area_loss(mask: np.ndarray, area: float) -> float:
    """R_a(m) = |vecsort(m) - r_a|^2 of one mask."""
    vector = sorted(mask.astype(np.float64).ravel().tolist())
    ones = max(1, round(area * len(vector)))
    reference = [0.0] * (len(vector) - ones) + [1.0] * ones
    return sum((m - r) ** 2 for m, r in zip(vector, reference, strict=True))


def area_gradient(mask: np.ndarray, area: float) -> np.ndarray:
    """Mean of the gradients over all ways to sort the mask that leave it sorted.

    A way to sort assigns a target 0 or 1 to each value; those that agree with the order
    of the values give the same loss, and differ where values tie.
    """
    vector = mask.astype(np.float64).ravel()
    ones = max(1, round(area * vector.size))
    gradients = []
    for chosen in itertools.combinations(range(vector.size), ones):
        target = np.zeros(vector.size)
        target[list(chosen)] = 1
        left = vector[target == 0]
        if left.size == 0 or vector[list(chosen)].min() >= left.max():
            gradients.append(2 * (vector - target))
    return np.mean(gradients, axis=0).reshape(mask.shape)
