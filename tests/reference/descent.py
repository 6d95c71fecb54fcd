"""One step of the descent on eq. 4, literally, in float64 and one mask at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from captum_extremal.masks.max_convolution import (
    MaskGenerator,
    profile_paper,
    profile_smooth,
    profile_torchray,
)

PROFILES = {
    "smooth": (profile_smooth, 1.5),
    "paper": (profile_paper, 1.0),
    "torchray": (profile_torchray, 1.0),
}


class Descent:
    """The steps of a `GradientSolver` in float64, each from given parameters.

    ``score`` maps a perturbed image (1, C, H, W) to a number, ``levels`` is
    (N, L, C, H, W), ``generator`` tells the geometry alone.
    """

    def __init__(
        self,
        settings: Any,
        score: Callable[[Tensor], Tensor],
        levels: Tensor,
        areas: Sequence[float],
        generator: MaskGenerator,
    ) -> None:
        self.settings = settings
        self.score = score
        self.levels = levels.double()
        self.areas = areas
        self.generator = generator
        self.momentum: Tensor | None = None

    def step(self, iteration: int, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Parameters (K, 1, h, w) -> rewards, area losses and new parameters."""
        results = [
            self._gradient(iteration, cell, p.double()) for cell, p in enumerate(params)
        ]
        rewards, losses, gradients = map(torch.stack, zip(*results, strict=True))
        s = self.settings
        if self.momentum is None:
            self.momentum = gradients
        else:
            self.momentum = s.momentum * self.momentum + (1 - s.dampening) * gradients
        moved = (params.double() + s.learning_rate * self.momentum).clamp(0, 1)
        return rewards, losses, moved

    def _gradient(
        self, iteration: int, cell: int, params: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        s, g = self.settings, self.generator
        params = params.clone().requires_grad_()
        profile, reach = PROFILES[s.profile]
        drawn = canvas(
            params[0],
            g.canvas_size,
            g.margin,
            g.step,
            g.sigma,
            reach * g.sigma,
            profile,
        )
        rows, columns = (slice(g.margin, g.margin + n) for n in g.size)
        mask = drawn[rows, columns]
        image, area = divmod(cell, len(self.areas))
        shown = perturb(self.levels[image], mask)[None]
        if s.mirror and iteration % 2 == 0:
            shown = shown.flip(-1)
        reward = self.score(shown)
        loss = area_loss(mask if s.area_scope == "image" else drawn, self.areas[area])
        weight = s.area_weight(iteration, s.iterations)
        (gradient,) = torch.autograd.grad(reward - weight * loss, params)
        return reward.detach(), loss.detach(), gradient


def canvas(
    params: Tensor,
    sizes: Sequence[int],
    origin: int,
    step: int,
    sigma: float,
    reach: float,
    profile: Callable[[Tensor], Tensor],
) -> Tensor:
    """Eq. 6 and 7 with 1 / T = 20 over the window of App. A.1.

    Pixel (0, 0) of the canvas lies ``origin`` pixels before the image, whose first
    pixel carries the first lattice point.
    """
    radius = 1 + math.ceil(reach / step)
    axes = [torch.arange(size) - origin for size in sizes]
    cells = [torch.div(axis, step, rounding_mode="floor") for axis in axes]
    values = []
    for shift in itertools.product(range(-radius, radius + 1), repeat=len(sizes)):
        points = [cell + s for cell, s in zip(cells, shift, strict=True)]
        squares = [
            (u - step * v).double() ** 2 for u, v in zip(axes, points, strict=True)
        ]
        distance = (squares[0][:, None] + squares[1][None]).sqrt()
        values.append(profile(distance / sigma) * _at(params, points))
    f = torch.stack(values)
    weights = torch.exp(20 * f)
    return (f * weights).sum(0) / weights.sum(0)


def _at(params: Tensor, points: Sequence[Tensor]) -> Tensor:
    """The parameters at lattice points, 0 outside the lattice."""
    inside = [(p >= 0) & (p < n) for p, n in zip(points, params.shape, strict=True)]
    rows, columns = (
        p.clamp(0, n - 1) for p, n in zip(points, params.shape, strict=True)
    )
    found = params[rows[:, None], columns[None]]
    return found * (inside[0][:, None] & inside[1][None])


def perturb(levels: Tensor, mask: Tensor) -> Tensor:
    """Footnote 3: interpolate between the levels (L, C, H, W) at (u, m(u))."""
    position = mask * (len(levels) - 1)
    low = position.detach().floor().clamp(max=len(levels) - 2).long()
    index = low.expand(1, levels.shape[1], *low.shape)
    at_low = levels.gather(0, index)[0]
    at_high = levels.gather(0, index + 1)[0]
    return at_low + (position - low) * (at_high - at_low)


def area_loss(mask: Tensor, area: float) -> Tensor:
    """Sec. 3.3 by a full sort, as a mean."""
    ordered = mask.flatten().sort().values
    reference = torch.zeros_like(ordered)
    reference[len(ordered) - max(1, round(area * len(ordered))) :] = 1
    return ((ordered - reference) ** 2).mean()
