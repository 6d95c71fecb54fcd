"""Sec. 5 and its image priors, term by term in float64."""

from __future__ import annotations

import math

import numpy as np


def score(activation: np.ndarray, mask: np.ndarray, found: np.ndarray) -> float:
    """Eq. 12, divided by the score of the activation itself; (K, H, W), (K,)."""
    dot = square = 0.0
    for k, row, column in np.ndindex(*activation.shape):
        target = mask[k] * activation[k, row, column]
        dot += target * found[k, row, column]
        square += target * target
    return dot / square


def saliency(activation: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Eq. 11: v = sum_k m_k Phi_k; (K, H, W), (K,) -> (H, W)."""
    return sum(m * channel for m, channel in zip(mask, activation, strict=True))


def pixels(spectrum: np.ndarray, size: tuple[int, int], decay: float) -> np.ndarray:
    """The real image of half a spectrum (H, W // 2 + 1), its frequencies weighed.

    The other half is the mirror image. In the columns that are their own mirror image
    the coefficients are made symmetric, and times the root of 2 to keep their variance.
    """
    height, width = size
    full = np.zeros(size, dtype=np.complex128)
    squares = 0.0
    for row, column in np.ndindex(*size):
        mirror = (-row % height, -column % width)
        own = spectrum[row, column] if column <= width // 2 else 0.0
        if column == -column % width:
            other = spectrum[mirror[0], column]
            own = (own + np.conj(other)) / math.sqrt(2)
        elif column > width // 2:
            own = np.conj(spectrum[mirror])
        frequency = math.hypot(
            min(row, height - row) / height, min(column, width - column) / width
        )
        weight = max(frequency, 1 / max(size)) ** -decay
        squares += 2 * weight**2
        full[row, column] = weight * own
    image = np.zeros(size)
    for y, x in np.ndindex(*size):
        for row, column in np.ndindex(*size):
            phase = 2 * math.pi * (row * y / height + column * x / width)
            image[y, x] += (full[row, column] * np.exp(1j * phase)).real
    return image / math.sqrt(squares)


def total_variation(image: np.ndarray) -> float:
    """Mean absolute difference of neighbours below, plus that of neighbours beside."""
    channels, height, width = image.shape
    below = [
        abs(image[c, y + 1, x] - image[c, y, x])
        for c, y, x in np.ndindex(channels, height - 1, width)
    ]
    beside = [
        abs(image[c, y, x + 1] - image[c, y, x])
        for c, y, x in np.ndindex(channels, height, width - 1)
    ]
    return float(np.mean(below) + np.mean(beside))
