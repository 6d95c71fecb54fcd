"""Other methods' formulas, number by number and in their papers' symbols."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np


def winning_probability(
    activations: np.ndarray, weights: np.ndarray, above: np.ndarray
) -> np.ndarray:
    """Zhang et al. (2016), eqs. 2 and 3: P(A) of the layer below, (n,).

    ``weights[j, i]`` leads from neuron i to neuron j above, which wins with
    probability ``above[j]``.
    """
    below = np.zeros(len(activations))
    for j in range(len(above)):
        excitation = {
            i: max(activations[i], 0.0) * weights[j, i]
            for i in range(len(activations))
            if weights[j, i] >= 0
        }
        total = sum(excitation.values())
        for i, value in excitation.items():
            if total > 0:  # else Z_j = 0
                below[i] += above[j] * value / total
    return below


def max_pool_probability(
    activations: np.ndarray, above: np.ndarray, side: int
) -> np.ndarray:
    """All of a neuron's probability goes to the largest of its ``side ** 2`` below."""
    below = np.zeros_like(activations)
    for c, row, column in itertools.product(*map(range, above.shape)):
        window = list(
            itertools.product(
                range(row * side, (row + 1) * side),
                range(column * side, (column + 1) * side),
            )
        )
        best = max(window, key=lambda at: activations[(c, *at)])
        if activations[(c, *best)] > 0:
            below[(c, *best)] += above[c, row, column]
    return below


def convolution_matrix(
    weight: np.ndarray, size: tuple[int, int], stride: int, padding: int
) -> np.ndarray:
    """A convolution (C', C, k, k) of (C, *size) as a matrix (outputs, inputs)."""
    after, before, side, _ = weight.shape
    rows, columns = ((s + 2 * padding - side) // stride + 1 for s in size)
    matrix = np.zeros((after, rows, columns, before, *size))
    for o, row, column, i, dy, dx in itertools.product(
        range(after), range(rows), range(columns), range(before), *[range(side)] * 2
    ):
        y, x = row * stride + dy - padding, column * stride + dx - padding
        if 0 <= y < size[0] and 0 <= x < size[1]:
            matrix[o, row, column, i, y, x] = weight[o, i, dy, dx]
    return matrix.reshape(after * rows * columns, -1)


def rise(
    score: Callable[[np.ndarray], float],
    x: np.ndarray,
    masks: Sequence[np.ndarray],
    expectation: float,
) -> np.ndarray:
    """Petsiuk et al. (2018), eq. 6: (C, H, W) and masks (H, W) -> (H, W)."""
    saliency = np.zeros(x.shape[1:])
    for mask in masks:
        saliency += score(x * mask) * mask
    return saliency / (expectation * len(masks))


def rise_mask(
    grid: np.ndarray, size: tuple[int, int], shift: tuple[int, int]
) -> np.ndarray:
    """Sec. 3.2: enlarged bilinearly to (h + 1) C_H x (w + 1) C_W, then cropped."""
    cell = [math.ceil(s / n) for s, n in zip(size, grid.shape, strict=True)]
    mask = np.zeros(size)
    for pixel in itertools.product(*map(range, size)):
        value, axes = 0.0, []
        for u, at, c, n in zip(pixel, shift, cell, grid.shape, strict=True):
            # Where the middle of the pixel lies among the middles of the n cells.
            place = (u + at + 0.5) * n / ((n + 1) * c) - 0.5
            place = min(max(place, 0.0), n - 1.0)
            low = min(int(place), max(n - 2, 0))
            axes.append([(low, 1 - place + low), (min(low + 1, n - 1), place - low)])
        for (i, a), (j, b) in itertools.product(*axes):
            value += a * b * grid[i, j]
        mask[pixel] = value
    return mask


def meaningful_penalty(
    mask: np.ndarray, l1_weight: float, tv_weight: float, beta: float
) -> float:
    """Fong & Vedaldi (2017), eq. 5 without its last term, in the deletion game."""
    total = sum(l1_weight * abs(1 - m) for m in mask.ravel())
    for u in itertools.product(*map(range, mask.shape)):
        for axis in range(mask.ndim):
            v = tuple(k + (i == axis) for i, k in enumerate(u))
            if v[axis] < mask.shape[axis]:
                total += tv_weight * abs(mask[v] - mask[u]) ** beta
    return total
