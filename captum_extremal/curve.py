"""The curve of score against area: its smallest sufficient area, and if it only rises.

The scores are (N, A), of N images and A areas in any order. What an area counts in,
pixels or channels, as fractions or numbers, makes no difference.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def smallest_sufficient(
    areas: Sequence[float], scores: Tensor, threshold: float | Tensor
) -> Tensor:
    """a* = min{a : Phi(m_a * x) >= Phi_0} (eq. 3 and 10), (N,); NaN where none is.

    Example:
        >>> scores = torch.tensor([[1.0, 3.0], [0.0, 0.5]])
        >>> smallest_sufficient([0.1, 0.5], scores, 2.5)
        tensor([0.5000,    nan])
    """
    if not isinstance(threshold, Tensor):
        threshold = torch.tensor(threshold, dtype=torch.float64)
    phi_0 = threshold.to(scores).reshape(-1, 1)
    sizes = torch.tensor(areas, dtype=torch.float64).to(scores)
    enough = torch.where(scores >= phi_0, sizes, torch.inf).amin(dim=1)
    return torch.where(enough.isinf(), torch.nan, enough)


def monotonic(areas: Sequence[float], scores: Tensor, a_star: Tensor) -> Tensor:
    """Whether the score never falls as the area grows below a* (eq. 8), (N,) bool.

    Example:
        >>> scores = torch.tensor([[1.0, 3.0, 2.0], [1.0, 2.0, 3.0]])
        >>> monotonic([0.1, 0.2, 0.3], scores, torch.tensor([torch.nan, 0.3]))
        tensor([False,  True])
    """
    sizes = torch.tensor(areas, dtype=torch.float64).to(scores)
    order = sizes.argsort()
    below = sizes[order] < a_star.nan_to_num(torch.inf).reshape(-1, 1)
    falls = scores[:, order].diff(dim=1) < 0
    return ~(falls & below[:, 1:]).any(dim=1)
