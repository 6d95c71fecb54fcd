"""The metrics of an example, pixel by pixel: Sec. 4.2 and the papers it builds on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np

from reference.blur import gaussian_blur, kernel_sums


def pointing_game(
    attribution: np.ndarray, object_mask: np.ndarray, tolerance: float
) -> float:
    """Zhang et al. (2016): (C, *S) and (*S) -> 1.0, 0.0 or NaN."""
    if not object_mask.any():
        return math.nan
    total = attribution.astype(np.float64).sum(axis=0)
    pixels = list(itertools.product(*map(range, total.shape)))
    best = pixels[0]
    for pixel in pixels:
        if total[pixel] > total[best]:  # the first of equals stays
            best = pixel
    if all(total[pixel] == total[best] for pixel in pixels):
        return 0.0
    for pixel in pixels:
        close = pixel == best or math.dist(pixel, best) < tolerance
        if object_mask[pixel] and close:
            return 1.0
    return 0.0


def energy_pointing_game(attribution: np.ndarray, object_mask: np.ndarray) -> float:
    """Wang et al. (2020): (C, *S) and (*S) -> a share or NaN."""
    total = attribution.astype(np.float64).sum(axis=0)
    inside = everywhere = 0.0
    for pixel in itertools.product(*map(range, total.shape)):
        positive = max(total[pixel], 0.0)
        everywhere += positive
        inside += positive if object_mask[pixel] else 0.0
    return inside / everywhere if everywhere and object_mask.any() else math.nan


def perturbation_auc(
    score: Callable[[np.ndarray], float],
    image: np.ndarray,
    attribution: np.ndarray,
    baseline: np.ndarray,
    steps: int,
    inserting: bool,
) -> float:
    """Petsiuk et al. (2018): pixels one by one, a score after each step."""
    total = attribution.astype(np.float64).sum(axis=0)
    pixels = list(itertools.product(*map(range, total.shape)))
    pixels.sort(key=lambda pixel: -total[pixel])  # keeps the order of equals
    current, coming = (baseline, image) if inserting else (image, baseline)
    current = current.copy()
    points = [(0.0, score(current))]
    done = 0
    for step in range(1, steps + 1):
        until = round(step * len(pixels) / steps)
        for pixel in pixels[done:until]:
            current[(slice(None), *pixel)] = coming[(slice(None), *pixel)]
        done = until
        points.append((done / len(pixels), score(current)))
    pairs = itertools.pairwise(points)
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairs)


def class_accuracies(
    hits: list[float], labels: list[int], num_classes: int
) -> list[float]:
    """Share of hits of each class among its defined examples."""
    accuracies = []
    for label in range(num_classes):
        own = [h for h, its in zip(hits, labels, strict=True) if its == label]
        defined = [hit for hit in own if not math.isnan(hit)]
        accuracies.append(sum(defined) / len(defined) if defined else math.nan)
    return accuracies


def masks_to_saliency(masks: np.ndarray, smooth: float) -> np.ndarray:
    """Sec. 4.2: (N, A, 1, *S) -> (N, 1, *S)."""
    total = masks.astype(np.float64).sum(axis=1)
    sigma = smooth * min(masks.shape[3:])
    # Zeros around: divided by the kernel's sum over an unlimited lattice.
    reach = math.ceil(9 * sigma)
    line = sum(math.exp(-(i**2) / (2 * sigma**2)) for i in range(-reach, reach + 1))
    inside = kernel_sums(total.shape[2:], sigma)
    return gaussian_blur(total, sigma) * inside / line**inside.ndim


def box_to_mask(
    box: tuple[float, float, float, float],
    size: tuple[int, int],
    one_based_inclusive: bool,
) -> np.ndarray:
    """(xmin, ymin, xmax, ymax) -> (H, W)."""
    xmin, ymin, xmax, ymax = box
    mask = np.zeros(size, dtype=bool)
    for row, column in itertools.product(*map(range, size)):
        if one_based_inclusive:
            inside = ymin <= row + 1 <= ymax and xmin <= column + 1 <= xmax
        else:
            inside = ymin <= row + 0.5 < ymax and xmin <= column + 0.5 < xmax
        mask[row, column] = inside
    return mask
