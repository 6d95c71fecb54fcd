"""The normalised Gaussian blur of Sec. 3.4, pixel by pixel over all axes at once."""

from __future__ import annotations

import itertools
import math

import numpy as np


def gaussian_blur(inputs: np.ndarray, sigma: float) -> np.ndarray:
    """pi_g(x; u, sigma) = sum_v g(u - v) x(v) / sum_v g(u - v), v in the image."""
    size = inputs.shape[2:]
    pixels = list(itertools.product(*map(range, size)))
    blurred = np.zeros(inputs.shape, dtype=np.float64)
    for u in pixels:
        weights = [_gaussian(u, v, sigma) for v in pixels]
        for v, weight in zip(pixels, weights, strict=True):
            blurred[(..., *u)] += weight * inputs[(..., *v)].astype(np.float64)
        blurred[(..., *u)] /= sum(weights)
    return blurred


def kernel_sums(size: tuple[int, ...], sigma: float) -> np.ndarray:
    """sum_v g(u - v), v in the image, at every pixel u: (*S)."""
    pixels = list(itertools.product(*map(range, size)))
    sums = [sum(_gaussian(u, v, sigma) for v in pixels) for u in pixels]
    return np.array(sums).reshape(size)


def faded_blur(inputs: np.ndarray, sigma: float, reach: int) -> np.ndarray:
    """The same over a lattice that goes on for `reach` zeros around the image."""
    pad = [(0, 0), (0, 0)] + [(reach, reach)] * (inputs.ndim - 2)
    wide = gaussian_blur(np.pad(inputs, pad), sigma)
    return wide[(..., *[slice(reach, -reach)] * (inputs.ndim - 2))]


def _gaussian(u: tuple[int, ...], v: tuple[int, ...], sigma: float) -> float:
    """g_sigma(u - v) = exp(-|u - v|^2 / (2 sigma^2))."""
    return math.exp(-(math.dist(u, v) ** 2) / (2 * sigma**2))
