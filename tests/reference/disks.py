"""Masks of equal disks: eq. 6 with parameters of 0 and 1, pixel by pixel."""

from __future__ import annotations

import itertools
import math

import numpy as np


def disk_mask(
    centres: list[tuple[float, ...]], size: tuple[int, ...], area: float, edge: float
) -> np.ndarray:
    """m(u) = k(distance to the nearest centre), with the area's radius."""
    distance = np.empty(size)
    for u in itertools.product(*map(range, size)):
        distance[u] = min(math.dist(u, centre) for centre in centres)
    count = max(1, round(area * distance.size))
    radius = np.sort(distance.ravel())[count - 1]
    slope = np.clip((radius - distance) / edge, -1, 1)
    return 0.5 + 0.5 * np.sin(math.pi / 2 * slope)
