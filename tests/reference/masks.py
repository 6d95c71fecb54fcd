"""Smooth masks of Sec. 3.5 and App. A.1, pixel by pixel and in the paper's symbols."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np

Profile = Callable[[float], float]


def profile_smooth(z: float) -> float:
    """1, then half a period of a cosine around z = 1, then 0 (not in the paper)."""
    if z <= 0.5:
        return 1.0
    if z >= 1.5:
        return 0.0
    return 0.5 * (1 + math.cos(math.pi * (z - 0.5)))


def profile_paper(z: float) -> float:
    """k(z) of Sec. 4, with the minus that its print lacks."""
    return math.exp(-(max(0.0, z - 1) ** 2) / 4)


def profile_torchray(z: float) -> float:
    """k(z) of the published code."""
    return math.exp(-2 * max(0.0, z - 0.5) ** 2)


# Profile and its "radius" in units of sigma: A.1 sums over at least so far.
PROFILES: dict[str, tuple[Profile, float]] = {
    "smooth": (profile_smooth, 1.5),
    "paper": (profile_paper, 1.0),
    "torchray": (profile_torchray, 1.0),
}


def smooth_max(values: np.ndarray, temperature: float) -> float:
    """Eq. 7: smax f = sum f exp(f / T) / sum exp(f / T); at T = 0 eq. 6's max."""
    values = values.astype(np.float64).ravel()
    if temperature == 0:
        return float(values.max())
    # Both sums times exp(-max f / T), which keeps them in range.
    weights = np.exp((values - values.max()) / temperature)
    return float((values * weights).sum() / weights.sum())


def convolution(mask: np.ndarray, kernel: Callable[[float], float]) -> np.ndarray:
    """Eq. 5: m(u) = sum_v k(u - v) m(v) / Z, over the lattice of the mask itself."""
    weights, values = _pairs(mask, kernel)
    return ((weights * values).sum(1) / weights.sum(1)).reshape(mask.shape)


def max_convolution(mask: np.ndarray, kernel: Callable[[float], float]) -> np.ndarray:
    """Eq. 6: m(u) = max_v k(u - v) m(v), over the lattice of the mask itself."""
    weights, values = _pairs(mask, kernel)
    return (weights * values).max(1).reshape(mask.shape)


def _pairs(
    mask: np.ndarray, kernel: Callable[[float], float]
) -> tuple[np.ndarray, np.ndarray]:
    """k(|u - v|) for all pairs of pixels, and m(v)."""
    pixels = list(np.ndindex(*mask.shape))
    weights = np.array([[kernel(math.dist(u, v)) for v in pixels] for u in pixels])
    return weights, mask.astype(np.float64).reshape(1, -1)


def smooth_mask(
    params: np.ndarray,
    size: tuple[int, ...],
    s: int,
    sigma: float,
    temperature: float,
    profile: str,
    b: int = 0,
) -> np.ndarray:
    """A.1: the mask of one lattice of parameters, on the canvas with margin b.

    All sums run over K samples per axis, those outside the lattice being 0.
    """
    k, _ = PROFILES[profile]
    n = params.shape
    canvas = np.zeros(canvas_size(size, s, sigma, profile, b))
    window, before = window_size(s, sigma, profile, b)
    for u in np.ndindex(*canvas.shape):
        f = []
        for i in itertools.product(
            *(range(x // s - before, x // s - before + window) for x in u)
        ):
            inside = all(0 <= j < count for j, count in zip(i, n, strict=True))
            if not inside:
                f.append(0.0)
                continue
            u_i = [s * j + b for j in i]
            f.append(k(math.dist(u, u_i) / sigma) * float(params[i]))
        canvas[u] = smooth_max(np.array(f), temperature)
    return canvas


def window_size(s: int, sigma: float, profile: str, b: int) -> tuple[int, int]:
    """K and P of A.1."""
    radius = PROFILES[profile][1] * sigma
    r = 1 + math.ceil(radius / s)
    p = 1 + math.ceil((radius + b) / s)
    return 2 * r + 1, p


def canvas_size(
    size: tuple[int, ...], s: int, sigma: float, profile: str, b: int
) -> tuple[int, ...]:
    """W'' - s + 1 with W'' = s W', W' = N - K + 2 P + 1, but room for the crop."""
    k, p = window_size(s, sigma, profile, b)
    n = [math.ceil(w / s) for w in size]
    return tuple(
        max(s * (count - k + 2 * p + 1) - s + 1, b + w)
        for count, w in zip(n, size, strict=True)
    )
