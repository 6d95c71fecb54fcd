r"""Rewards of known masks -> how promising other masks are.

A Gaussian process with the kernel

.. math:: \kappa(u, v) = e^{-|u - v|^2 / 2} + \langle u, v \rangle

on coarse masks scaled to a square of about 1: masks that are alike score alike, and
what a mask earns is in part the sum of what its pixels earn.
"""

from __future__ import annotations

import torch
from torch import Tensor

_NOISE = 0.1  # variance, of rewards with variance 1


def upper_bound(
    known: Tensor, rewards: Tensor, new: Tensor, exploration: float
) -> Tensor:
    """Expected reward plus so many standard deviations, in those of the known rewards.

    Args:
        known: Features of masks that were scored, (n, F), n >= 2.
        rewards: Their rewards, (n,).
        new: Features of masks to rate, (m, F).
        exploration: Standard deviations to add.

    Returns:
        (m,) float64.
    """
    known, new, rewards = known.double(), new.double(), rewards.double()
    values = (rewards - rewards.mean()) / (rewards.std() + 1e-12)
    noise = _NOISE * torch.eye(len(known), dtype=torch.double)
    factor = torch.linalg.cholesky(_kernel(known, known) + noise)
    weights = torch.cholesky_solve(values[:, None], factor)
    cross = _kernel(new, known)
    explained = torch.linalg.solve_triangular(factor, cross.T, upper=False)
    variance = 1 + new.square().sum(1) - explained.square().sum(0)
    mean: Tensor = (cross @ weights)[:, 0]
    bound: Tensor = mean + exploration * variance.clamp_min(0).sqrt()
    return bound


def _kernel(u: Tensor, v: Tensor) -> Tensor:
    product = u @ v.T
    norms = u.square().sum(1)[:, None] + v.square().sum(1)[None]
    return torch.exp(product - norms / 2) + product
