r"""`Ascent`: fields that climb along the gradient of their soft level sets.

The mask of area a keeps the pixels where a smooth field S is largest
(`captum_extremal.masks.edges`); its area is exact at every step, so that no area loss
competes with the score. While it is sought its edge is soft,

.. math:: m(u) = \operatorname{sigmoid}\left(\frac{S(u) - \tau_a}{w}\right),

with :math:`\tau_a` the value that the asked share of the pixels exceeds. The gradient g
of the reward with respect to the mask moves the field to where g is above its mean over
the edge, since a pixel can enter only where another leaves:

.. math:: \partial S = \frac{m (1 - m)}{w} \left(g - \bar g\right), \qquad
    \bar g = \frac{\sum_u m (1 - m)\, g}{\sum_u m (1 - m)}
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from captum_extremal._base.axes import is_short, scales
from captum_extremal._base.checks import check_positive
from captum_extremal.masks.area import area_count
from captum_extremal.masks.edges import edge_widths, smooth_edges
from captum_extremal.masks.fields import Field, FreeField
from captum_extremal.masks.unions import unions
from captum_extremal.perturbations.blur import gaussian_blur
from captum_extremal.solvers.driver import History
from captum_extremal.solvers.problem import Masks, Problem, View, check_gradients

Fields = Sequence[Field | FreeField]

_MOMENTUM = 0.9
SPREAD = 0.8  # edges are drawn within this factor e^+-0.8 of the schedule
_LAST_RATE = 0.1  # of the first one, at the end
_SAMPLES = 8192  # pixels at least that thresholds are read from


class Ascent:
    """Rows of fields, one set for each input tensor, that climb together.

    Args:
        problem: What a mask is worth.
        fields: One for each input tensor.
        params: Where to begin: of each field (M, *points).
        cells: The cell of each row, (M,). Rows take the areas of a step in turn.

    Attributes:
        params: Of each field as they are, with mean 0 and mean square 1.
        momentum: As many.
        seen: Of each row whether a step met a gradient, (M,).
    """

    def __init__(
        self, problem: Problem, fields: Fields, params: Sequence[Tensor], cells: Tensor
    ) -> None:
        self.problem = problem
        self.fields = fields
        self.cells = cells
        self.params = list(params)
        self.momentum = [torch.zeros_like(values) for values in params]
        self.seen = torch.zeros(len(cells), dtype=torch.bool, device=cells.device)
        self._edges = [_Edge(size) for size in problem.sizes]

    def directions(
        self,
        areas: Sequence[float],
        softness: float,
        problem: Problem | None = None,
        view: View | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Where to move the parameters.

        Args:
            areas: Of the rows, which take them in turn.
            softness: Width of the edge, as of `LevelSetSolver`.
            problem: Another one that is asked in place of the run's own.
            view: What the model is shown of the perturbed input.

        Returns:
            The rewards (M,) of the soft masks, and for each field (M, *points) of mean
            square 1, or 0 where no gradient came.
        """
        found = [
            self._directions_of(rows, few, softness, problem or self.problem, view)
            for rows, few in portions(self.problem, len(self.cells), areas)
        ]
        rewards = torch.cat([rewards for rewards, _ in found])
        steps = zip(*(directions for _, directions in found), strict=True)
        return rewards, [torch.cat(rows) for rows in steps]

    def move(self, rate: float, directions: Sequence[Tensor]) -> None:
        """Move all rows, with momentum."""
        for which, direction in enumerate(directions):
            momentum = self.momentum[which].mul_(_MOMENTUM)
            momentum.add_(direction, alpha=1 - _MOMENTUM)
            self.params[which] = standardised(self.params[which] + rate * momentum)

    def pull(self, towards: Sequence[Tensor], strength: float) -> None:
        """Bring all rows nearer to other parameters by this share of the way."""
        self.params = [
            standardised(values + strength * (other - values))
            for values, other in zip(self.params, towards, strict=True)
        ]

    def soft_masks(
        self, params: Sequence[Tensor], softness: float, areas: Sequence[float]
    ) -> Masks:
        """The masks of a step, without its random part."""
        return tuple(
            edge(field(values), softness, areas)[0].unsqueeze(1)
            for edge, field, values in zip(
                self._edges, self.fields, params, strict=True
            )
        )

    def check_finite(
        self, history: History, done: int, when: Callable[[int], str] | None = None
    ) -> None:
        """Refuse rewards of the steps so far, and parameters, that are NaN."""
        if done:
            rewards = history.series["reward"][:done]
            self.problem.check_finite(rewards, self.cells, when or _at_iteration)
        check_gradients(self.params, f"within the first {done} iterations")

    def warn_of_blind_rows(self) -> None:
        """Say so where no step met a gradient, though pixels had to be chosen."""
        pixels = max(math.prod(size) for size in self.problem.sizes)
        some = [area_count(pixels, area) < pixels for area in self.problem.areas]
        choosing = torch.tensor(some, device=self.cells.device)
        blind = torch.nonzero(~self.seen & choosing.repeat(self.problem.num_images))
        if len(blind):
            warnings.warn(
                f"no step met a gradient for {self.problem.name_of(int(blind[0]))}"
                f"{' and others' if len(blind) > 1 else ''}: the score does not change "
                "with the mask, or is saturated. SearchSolver() needs no gradient",
                stacklevel=2,
            )

    def _directions_of(
        self,
        rows: slice,
        areas: Sequence[float],
        softness: float,
        problem: Problem,
        view: View | None,
    ) -> tuple[Tensor, list[Tensor]]:
        soft = [
            edge(field(params[rows]), softness, areas)
            for edge, field, params in zip(
                self._edges, self.fields, self.params, strict=True
            )
        ]
        masks = tuple(mask.unsqueeze(1) for mask, _ in soft)
        rewards, gradients = problem.gradients(masks, self.cells[rows], view)
        directions = []
        for field, (mask, width), gradient in zip(
            self.fields, soft, gradients, strict=True
        ):
            self.seen[rows] |= (gradient != 0).flatten(1).any(dim=1)
            exchanged = _exchanging(gradient.squeeze(1), _slope_of(mask, width))
            directions.append(normalised(field.adjoint(exchanged)))
        return rewards, directions


def check_softness(softness: tuple[float, float]) -> None:
    """A pair of shares.

    Example:
        >>> check_softness((1.0, 0))
        Traceback (most recent call last):
        ...
        ValueError: softness must be positive and finite, got 0
    """
    if not isinstance(softness, tuple) or len(softness) != 2:
        raise ValueError(
            f"softness must be a pair of numbers in (0, 1], got {softness!r}"
        )
    for share in softness:
        if not 0 < check_positive("softness", share) <= 1:
            raise ValueError(f"softness must lie in (0, 1], got {share}")


def _at_iteration(step: int) -> str:
    return f" at iteration {step}"


def portions(
    problem: Problem, number: int, areas: Sequence[float]
) -> Iterator[tuple[slice, Sequence[float]]]:
    """Rows that take the areas in turn: all, or of large images one at a time."""
    if not problem.is_large:
        yield slice(None), areas
        return
    for row in range(number):
        yield slice(row, row + 1), [areas[row % len(areas)]]


def delivered_masks(
    problem: Problem,
    fields: Fields,
    params: Sequence[Tensor],
    areas: Sequence[float],
    edge: float = 0.0,
    radius: Callable[[Sequence[int]], Sequence[float]] | None = None,
) -> Masks:
    """The regions of fields, whose rows take the areas in turn, with their edges.

    Args:
        problem: Where masks are of groups of features, their edges are hard.
        fields: One for each input tensor.
        params: As many.
        areas: Fractions of the positions.
        edge: As of `LevelSetSolver`.
        radius: A size -> the radii of the disks that regions are unions of.
    """
    masks = []
    for field, values in zip(fields, params, strict=True):
        pixels = math.prod(field.size)
        widths = edge_widths(edge if problem.spread is None else 0.0, field.size)
        radii = [0.0] * len(field.size)
        if radius is not None and problem.spread is None:
            radii = list(radius(field.size))
        smooth = torch.empty(len(values), 1, *field.size, device=problem.device)
        for rows, few in portions(problem, len(values), areas):
            counts = [area_count(pixels, area) for area in few]
            smooth[rows] = smooth_edges(
                unions(field(values[rows]), counts, radii), widths
            )
        masks.append(smooth)
    return tuple(masks)


def falling(rate: float, step: int, steps: int) -> float:
    """The rate of a step: falls linearly, and the first ones make up for momentum."""
    part = step / max(1, steps - 1)
    return rate * (1 - (1 - _LAST_RATE) * part) / (1 - _MOMENTUM ** (step + 1))


def geometric(first: float, last: float, part: float) -> float:
    """From the first value to the last, by the same factor in equal parts."""
    return float(first * (last / first) ** part)


def blurred(field: Field, params: Tensor, share: float) -> Tensor:
    """Parameters as smooth as this share of the length of each axis."""
    sigmas = [
        share * length * points / side
        for length, points, side in zip(
            scales(field.size), field.points, field.size, strict=True
        )
    ]
    return gaussian_blur(params.unsqueeze(1), sigmas).squeeze(1)


def or_random(params: Tensor, seed: int) -> Tensor:
    """Random parameters, alike in all rows, where no gradient says where to start."""
    generator = torch.Generator().manual_seed(seed % 2**63)
    noise = torch.randn(params.shape[1:], generator=generator).to(params)
    axes = tuple(range(1, params.dim()))
    largest_one = params.abs().amax(axes, keepdim=True)
    return torch.where(largest_one == 0, noise, params)


class _Edge:
    """Fields (K, *S) -> soft masks and the widths of their edges.

    The rows take the areas in turn. A width of 0 is that of a hard edge. The masks take
    the place of the fields' values.
    """

    def __init__(self, size: Sequence[int]) -> None:
        short = is_short(size)
        excess = math.prod(size) / _SAMPLES
        stride = max(1, math.floor(excess ** (1 / short.count(False))))
        strides = [1 if is_one else stride for is_one in short]
        self.every = (slice(None), *(slice(None, None, step) for step in strides))
        self.samples = math.prod(
            -(-side // step) for side, step in zip(size, strides, strict=True)
        )

    def __call__(
        self, values: Tensor, softness: float, areas: Sequence[float]
    ) -> tuple[Tensor, Tensor]:
        sampled = values[self.every].flatten(1)
        shape = (-1, *[1] * (values.dim() - 1))
        high, middle, low = (
            threshold.view(shape)
            for threshold in self._thresholds(sampled, softness, areas)
        )
        width = ((high - low).nan_to_num(0) / 4).clamp_min(0)
        flat = width == 0  # an edge without pixels has no slope
        # Elsewhere than on a CPU looking would wait.
        inside = None
        if flat.device.type != "cpu" or flat.any():
            inside = values >= middle
        mask = values.sub_(middle).div_(width.masked_fill(flat, 1)).sigmoid_()
        if inside is not None:
            mask.masked_fill_(flat & inside, 1).masked_fill_(flat & ~inside, 0)
        return mask, width

    def _thresholds(
        self, sampled: Tensor, softness: float, areas: Sequence[float]
    ) -> Tensor:
        """Values at the inner end, the middle and the outer end of the edge, (3, K)."""
        columns = sampled.unflatten(0, (-1, len(areas)))
        found = []
        for column, area in enumerate(areas):
            inside = area * self.samples
            reach = softness * min(inside, self.samples - inside)
            ranks = (inside - max(reach, 1), inside, inside + max(reach, 1))
            places = [
                min(max(1, math.ceil(self.samples - rank)), self.samples)
                for rank in ranks
            ]
            rows = columns[:, column]
            thresholds = torch.stack([rows.kthvalue(p, 1).values for p in places])
            if inside > self.samples - 1:
                thresholds.fill_(-torch.inf)  # all pixels are in
            found.append(thresholds)
        return torch.stack(found, dim=2).flatten(1)


def _slope_of(mask: Tensor, width: Tensor) -> Tensor:
    """How fast a soft mask rises with its field: in its place."""
    flat = width == 0
    mask.mul_(1 - mask).div_(width.masked_fill(flat, 1))
    return mask.masked_fill_(flat, 0)


def _exchanging(gradient: Tensor, slope: Tensor) -> Tensor:
    """The gradient of the field: a pixel gains what another, on average, loses.

    In place of the gradient of the mask.
    """
    axes = tuple(range(1, gradient.dim()))
    weight = slope.sum(axes, keepdim=True).clamp_min(torch.finfo(slope.dtype).tiny)
    mean = (slope * gradient).sum(axes, keepdim=True) / weight
    return gradient.sub_(mean).mul_(slope)


def normalised(values: Tensor) -> Tensor:
    """Rows scaled to a mean square of 1; rows of zeros stay."""
    axes = tuple(range(1, values.dim()))
    tiny = torch.finfo(values.dtype).tiny
    # By the largest first, whose square may be too small or too large for its type.
    scaled = values / values.abs().amax(axes, keepdim=True).clamp_min(tiny)
    return scaled / scaled.square().mean(axes, keepdim=True).sqrt().clamp_min(tiny)


def standardised(values: Tensor) -> Tensor:
    """Rows with mean 0 and mean square 1; the level sets stay the same."""
    axes = tuple(range(1, values.dim()))
    return normalised(values - values.mean(axes, keepdim=True))
